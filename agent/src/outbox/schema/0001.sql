-- The outbox, first version. What is in `alert` and `telemetry` has not been acknowledged.
-- AUTOINCREMENT: a number is never given twice, not even when the table has been empty.
CREATE TABLE outbox (
    only  INTEGER PRIMARY KEY CHECK (only = 1),
    epoch INTEGER NOT NULL              -- 64 random bits, read as signed
);

CREATE TABLE acked (
    class INTEGER PRIMARY KEY,          -- number of the class on the wire
    seq   INTEGER NOT NULL              -- everything up to here was acknowledged
);

CREATE TABLE alert (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    created INTEGER NOT NULL,           -- Unix nanoseconds, for the age shown in `status`
    rank    INTEGER NOT NULL,           -- what goes first at the bound: 0 file, 1 process, 2 alert, 3 gap
    body    BLOB NOT NULL               -- an encoded Event
);

CREATE TABLE telemetry (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    created INTEGER NOT NULL,
    rank    INTEGER NOT NULL,
    body    BLOB NOT NULL
);

-- What the collector refused three times: kept for a person to look at, bounded, never sent again.
CREATE TABLE aside (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch  INTEGER NOT NULL,
    class  INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    code   INTEGER NOT NULL,
    reason TEXT NOT NULL,
    body   BLOB NOT NULL
);

-- Files whose detection is committed, by their state at that moment: a catch-up after a crash meets them again.
-- Bounded; the oldest go first.
CREATE TABLE reported (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    device  INTEGER NOT NULL,
    inode   INTEGER NOT NULL,
    ctime   INTEGER NOT NULL,
    size    INTEGER NOT NULL,
    rules   TEXT NOT NULL,              -- version of the rules that matched
    swept   INTEGER NOT NULL,           -- 1: met by a catch-up, 0: seen when it was written
    UNIQUE (device, inode, ctime, size, rules)
);
