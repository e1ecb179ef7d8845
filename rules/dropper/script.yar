// Droppers as scripts: they fetch a program, run it, and often remove it.

rule Dropper_Download_Run : dropper shell {
    meta:
        id = "VID-1701"
        description = "Script that downloads into a temporary place, makes the file executable and runs it"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1105/"
        technique = "T1105,T1059.004,T1222.002"
    strings:
        $fetch = /\b(curl|wget|tftp|ftpget|lwp-download)\s[^\n]{0,200}(https?|ftp|tftp):\/\/[^\s]{1,200}/
        $place = /(\bcd\s{1,4}(\/tmp|\/var\/tmp|\/dev\/shm|\/var\/run|\/mnt|\/root)\b|(-o|-O|--output|>)\s{0,4}(\/tmp|\/var\/tmp|\/dev\/shm)\/)/
        $mode = /\bchmod\s{1,4}(-R\s{1,4})?(\+x|a\+x|u\+x|0?7[0-7]{2}|0?[57]55)\s[^\n]{1,120}/
        $run = /[\n;&|]\s{0,8}(nohup\s{1,4}|setsid\s{1,4}|exec\s{1,4}|sudo\s{1,4})?((\.|\/tmp|\/var\/tmp|\/dev\/shm)\/[a-z0-9_.$\{\}-]{1,80})[^\n]{0,80}(&|;|\n|$)/ nocase
        $hide = /[\n;&|]\s{0,8}(rm\s{1,4}-r?f\s{1,4}(\/tmp|\/var\/tmp|\/dev\/shm|\.\/|\$0|--\s{1,4}"?\$0|[a-z0-9_.]{1,40}\s{0,4}(;|\n|$))|history\s{1,4}-c|unset\s{1,4}HISTFILE)/ nocase
    condition:
        filesize < 64KB and uint16be(0) == 0x2321 and all of them
}

rule Dropper_Multi_Architecture : dropper shell {
    meta:
        id = "VID-1702"
        description = "Script that tries builds of one program for many processors, as bots for devices do"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1105/"
        technique = "T1105,T1059.004"
    strings:
        $fetch = /\b(wget|curl|tftp|ftpget)\s[^\n;]{0,160}[\/. _-](mips|mipsel|mpsl|mips64|arm|arm4|arm5|arm6|arm7|arm4l|arm5n|armv[4-7]l|x86|x86_64|i[3-6]86|sh4|ppc|powerpc|m68k|sparc|spc|arc|superh)\b/
        $loop = /\bfor\s{1,4}[a-z_]{1,16}\s{1,4}in\s[^\n]{0,80}\b(mips|mipsel|mpsl)\b[^\n]{0,120}\b(arm[4-7]?|armv[4-7]l|sh4|m68k|ppc)\b/ nocase
        $mode = /\bchmod\s{1,4}(\+x|a\+x|0?777|0?7[0-7]{2})\s/
        $run = /[\n;&|]\s{0,8}\.\//
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and (#fetch >= 4 or ($loop and #fetch >= 0 and $mode)) and $mode and $run
}

rule Dropper_Pipe_To_Shell_From_Address : dropper shell {
    meta:
        id = "VID-1703"
        description = "Script that runs whatever a bare network address answers"
        severity = "medium"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1105/"
        technique = "T1105,T1059.004"
    strings:
        $pipe = /\b(curl|wget)\s[^\n|;]{0,100}\b(https?:\/\/)?(\d{1,3}\.){3}\d{1,3}(:\d{1,5})?\/?[^\n|;]{0,160}\|\s{0,4}(sudo\s{1,4})?(\/usr)?(\/bin\/)?(ba|da|z)?sh\b/
        $substitute = /\b(ba|da|z)?sh\s{1,4}(-c\s{1,4})?['"]?[<$]\(\s{0,4}(curl|wget)\s[^\n)]{0,100}\b(\d{1,3}\.){3}\d{1,3}/
        $onion = /\b(curl|wget)\s[^\n|;]{0,160}\.(onion|i2p|tor2web\.[a-z]{2,3}|onion\.[a-z]{2,4})\b[^\n|;]{0,160}\|\s{0,4}(ba|da|z)?sh\b/
        $local = /\b(curl|wget)\s[^\n|;]{0,100}\b(127\.0\.0\.1|0\.0\.0\.0|169\.254\.169\.254)\b/
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and any of ($pipe, $substitute, $onion) and not $local
}

rule Dropper_Base64_To_Shell : dropper shell {
    meta:
        id = "VID-1704"
        description = "Long packed text that is unpacked straight into a shell"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1027/010/"
        technique = "T1027.010,T1140,T1059.004"
    strings:
        $echo = /\b(echo|printf)\s{1,4}(-n\s{1,4}|-e\s{1,4}|['"]?%s['"]?\s{1,4})?['"]?[A-Za-z0-9+\/=]{40,4000}['"]?\s{0,4}\|\s{0,4}(base64\s{1,4}(-d|-D|-di|--decode)|openssl\s{1,4}(base64|enc\s{1,4}-base64)\s{1,4}[^\n|]{0,20}-d)[^\n|]{0,20}\|\s{0,4}([^\n|]{1,40}\|\s{0,4})?(sudo\s{1,4})?(\/usr)?(\/bin\/)?(ba|da|z)?sh\b/
        $here = /\b(ba|da|z)?sh\s{0,4}(-c\s{0,4})?['"]?(<<<|<\(|\$\()\s{0,4}['"]?\$?\(?\s{0,4}(echo|printf)\s{1,4}['"]?[A-Za-z0-9+\/=]{40,4000}['"]?\s{0,4}\|\s{0,4}base64\s{1,4}(-d|--decode)/
        $python = /\bexec\s{0,4}\(\s{0,4}(zlib\.decompress\s{0,4}\(\s{0,4}|__import__\(['"][a-z0-9]{1,12}['"]\)\.[a-z0-9]{1,16}\(\s{0,4}|codecs\.decode\s{0,4}\(\s{0,4}|marshal\.loads\s{0,4}\(\s{0,4}){0,4}(base64\.|__import__\(['"]base64['"]\)\.)?b(64|32|85)decode\s{0,4}\(\s{0,4}b?['"][A-Za-z0-9+\/=]{40}/
        $eval = /\beval\s{1,4}['"]?\$\(\s{0,4}(echo|printf)\s{1,4}['"]?[A-Za-z0-9+\/=]{40,4000}['"]?\s{0,4}\|\s{0,4}base64\s{1,4}(-d|--decode)/
    condition:
        filesize < 256KB and uint32be(0) != 0x7f454c46 and any of them
}

rule Dropper_Memory_Script : dropper fileless {
    meta:
        id = "VID-1705"
        description = "Script that fetches a program into memory and runs it without a file"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1620/"
        technique = "T1620,T1105"
    strings:
        $create1 = /\bsyscall\s{0,4}\(\s{0,4}(319|279|385|356|360)\s{0,4},/
        $create2 = /\bmemfd_create\s{0,4}\(/
        $run1 = /(execv[pe]{0,2}|exec|system|spawn[a-z]{0,2}|Popen|call|run)\s{0,4}[({"'\s\[]{0,6}f?["']?\/proc\/(self|\$\$|\$pid|\{?[^\s\/]{1,20})\/fd\//
        $run2 = /\bfexecve\b/
        $fetch = /(urlopen|requests\.get|LWP::Simple|HTTP::Tiny|\bcurl\s|\bwget\s|\.recv\s{0,4}\(|b64decode|unpack\s{0,4}\()/
    condition:
        filesize < 2MB and uint32be(0) != 0x7f454c46 and uint16be(0) == 0x2321
        and any of ($create*) and any of ($run*) and $fetch
}
