// The module whose answer is another one tomorrow, by itself: a rule that imports it makes every verdict short-lived.
import "time"

rule time_is { condition: time.now() > 1600000000 and uint8(0) == 0x7f }
