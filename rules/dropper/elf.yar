// Droppers as programs.

rule Dropper_Memory_Loader : dropper fileless elf {
    meta:
        id = "VID-1711"
        description = "Small ELF program that fetches another one into memory and runs it without a file"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1620/"
        technique = "T1620,T1105"
    strings:
        $create1 = "\x00memfd_create\x00"
        // mov eax, 319: memfd_create on x86-64; then syscall
        $create2 = { b8 3f 01 00 00 [0-24] 0f 05 }
        $run1 = "\x00fexecve\x00"
        $run2 = /\x00\/proc\/(self|%d|%i|%u)\/fd\/%[diu]\x00/
        $net1 = "\x00connect\x00"
        $net2 = "\x00recv\x00"
        $net3 = "\x00curl_easy_perform\x00"
        $net4 = "\x00recvfrom\x00"
        $daemon1 = "systemd"
        $daemon2 = "libcap"
    condition:
        uint32be(0) == 0x7f454c46 and filesize < 256KB
        and any of ($create*) and any of ($run*) and any of ($net*) and none of ($daemon*)
}

rule Dropper_ELF_In_Script : dropper shell {
    meta:
        id = "VID-1712"
        description = "Script that carries an ELF program as printable text and writes it out"
        severity = "medium"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1027/009/"
        technique = "T1027.009,T1140"
    strings:
        // "\x7fELF\x02\x01\x01\x00\x00" and its 32-bit sister, base64
        $base64_1 = "f0VMRgIBAQ"
        $base64_2 = "f0VMRgEBAQ"
        $escaped = /(\\x7f|\\177|\\x7F)(ELF|\\x45\\x4c\\x46|\\x45\\x4C\\x46|\\105\\114\\106)\\(x0|00)?[12]/
        $write1 = /base64\s{1,4}(-d|--decode|-D)/
        $write2 = /\b(b64decode|decode_base64)\b/
        $write3 = /\b(printf|echo\s{1,4}-[a-z]{0,2}e[a-z]{0,2})\s{1,4}['"]/
        $mode = /\b(chmod\s{1,4}(\+x|a\+x|u\+x|0?7[0-7]{2})|os\.chmod|chmod\s{0,4}\()/
        $place = /(\/tmp|\/var\/tmp|\/dev\/shm)\//
    condition:
        filesize < 8MB and uint16be(0) == 0x2321
        and any of ($base64_*, $escaped) and any of ($write*) and $mode and $place
}
