// Cryptocurrency miners, their configuration and the scripts that bring them.

rule Miner_XMRig_Binary : miner elf {
    meta:
        id = "VID-1201"
        description = "ELF program with the settings and algorithms of a RandomX or CryptoNight miner"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1496/001/"
        technique = "T1496.001"
    strings:
        $donate = "donate-level"
        $pool1 = "stratum+tcp://"
        $pool2 = "stratum+ssl://"
        $job = "mining.notify"
        $login = "\"login\""
        $algorithm1 = "randomx"
        $algorithm2 = "cn/r"
        $algorithm3 = "cryptonight"
        $algorithm4 = "argon2/chukwa"
        $name = "xmrig"
        $threads = "cpu-max-threads-hint"
        $pages = "huge-pages-jit"
    condition:
        uint32be(0) == 0x7f454c46 and filesize < 32MB
        and any of ($pool*) and any of ($algorithm*) and 2 of ($donate, $job, $login, $name, $threads, $pages)
}

rule Miner_Config_JSON : miner config {
    meta:
        id = "VID-1202"
        description = "Configuration of a miner: pools, user and algorithm"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1496/001/"
        technique = "T1496.001"
    strings:
        $pools = /"pools"\s{0,8}:\s{0,8}\[/
        $user = /"user"\s{0,8}:\s{0,8}"[^"\n]{8,200}"/
        $donate = /"donate-level"\s{0,8}:/
        $random = /"randomx"\s{0,8}:/
        $coin = /"(coin|algo)"\s{0,8}:\s{0,8}("|null)/
        $keepalive = /"(keepalive|nicehash|rig-id)"\s{0,8}:/
    condition:
        filesize < 64KB and uint8(0) == 0x7b and $pools and $user and 2 of ($donate, $random, $coin, $keepalive)
}

rule Miner_Command_Line : miner shell {
    meta:
        id = "VID-1203"
        description = "Script or unit that starts a miner against a pool"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1496/001/"
        technique = "T1496.001"
    strings:
        $stratum = /(-o|--url[= ])\s{0,4}['"]?stratum[12]?\+(tcp|ssl|tls|udp):\/\/[a-z0-9.-]{1,80}:\d{2,5}/ nocase
        $pool = /(-o|--url[= ])\s{0,4}['"]?[a-z0-9.-]{0,60}(pool|xmr|monero|minexmr|nanopool|hashvault|moneroocean|nicehash|2miners)[a-z0-9.-]{0,60}:\d{2,5}['"]?\s{1,4}[^\n]{0,40}(-u|--user[= ])\s{0,4}['"]?[a-z0-9.+@_-]{24}/ nocase
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and any of them
}

rule Miner_Kills_Rivals : miner shell {
    meta:
        id = "VID-1204"
        description = "Script that ends the miners of others, as those do that bring their own"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1489/"
        technique = "T1489,T1496.001"
    strings:
        $kill = /\b(pkill|killall|kill)\s{1,4}(-9|-f|-KILL|-15)?/
        $n1 = "xmrig"
        $n2 = "kdevtmpfsi"
        $n3 = "kinsing"
        $n4 = "minerd"
        $n5 = "cryptonight"
        $n6 = "ddgs"
        $n7 = "sysrv"
        $n8 = "kswapd0"
        $n9 = "watchbog"
        $n10 = "xmr-stak"
        $n11 = "stratum"
        $n12 = "sustes"
        $n13 = "cryptominer"
        $n14 = "minergate"
    condition:
        filesize < 256KB and uint16be(0) == 0x2321 and #kill >= 3 and 4 of ($n*)
}
