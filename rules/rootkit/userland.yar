// Rootkits that live in libraries: loaded into every program, they hide files, processes and logins.

rule Rootkit_Preload_Writer : rootkit shell {
    meta:
        id = "VID-1301"
        description = "Script that has a library loaded into every program through /etc/ld.so.preload"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1574/006/"
        technique = "T1574.006"
    strings:
        $redirect = /\.so[0-9.]{0,8}['"]?\s{0,4}(>{1,2}|\|\s{0,4}(sudo\s{1,4})?tee\s{1,4}(-a\s{1,4})?)\s{0,4}['"]?\/etc\/ld\.so\.preload/
        $copy = /\b(cp|mv|install)\s{1,4}[^\n;]{1,80}\s\/etc\/ld\.so\.preload/
        $locked = /chattr\s{1,4}\+i[a-z]{0,2}\s{1,4}[^\n;]{0,80}\/etc\/ld\.so\.preload/
        $open = /open\s{0,4}\(\s{0,4}['"]\/etc\/ld\.so\.preload['"]\s{0,4},\s{0,4}['"](w|a)/
    condition:
        filesize < 256KB and uint32be(0) != 0x7f454c46 and any of them
}

rule Rootkit_Preload_List : rootkit config {
    meta:
        id = "VID-1302"
        description = "List of preloaded libraries that names a hidden or temporary place"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1574/006/"
        technique = "T1574.006,T1564.001"
    strings:
        $library = /^\/(tmp|var\/tmp|dev\/shm|dev\/[a-z]{1,12}|home\/[^\/\n]{1,32}|([a-z0-9_-]{1,32}\/){1,5}\.[^\/\n]{1,40})\/?[^\n ]{0,80}\.so[0-9.]{0,8}\s{0,2}$/
    condition:
        filesize < 512 and uint8(0) == 0x2f and $library at 0
}

rule Rootkit_Preload_Library : rootkit elf {
    meta:
        id = "VID-1303"
        description = "Shared library that replaces directory listing functions and guards /etc/ld.so.preload"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1014/"
        technique = "T1014,T1574.006"
    strings:
        $dlsym = "\x00dlsym\x00"
        $list1 = "\x00readdir\x00"
        $list2 = "\x00readdir64\x00"
        $hook1 = "\x00unlinkat\x00"
        $hook2 = "\x00__lxstat\x00"
        $hook3 = "\x00__xstat\x00"
        $hook4 = "\x00fopen64\x00"
        $hook5 = "\x00execve\x00"
        $hook6 = "\x00access\x00"
        $hook7 = "\x00lstat\x00"
        $hook8 = "\x00opendir\x00"
        $hook9 = "\x00pam_authenticate\x00"
        $hook10 = "\x00accept\x00"
        $hook11 = "\x00pcap_loop\x00"
        $target1 = "ld.so.preload"
        $target2 = "/proc/net/tcp"
        $target3 = "/proc/self/fd/%d"
        $target4 = "/proc/%s/cmdline"
        $target5 = "/proc/self/maps"
        // a program, not a library
        $main = "\x00__libc_start_main\x00"
    condition:
        uint32be(0) == 0x7f454c46 and uint16(16) == 3 and filesize < 1MB
        and $dlsym and any of ($list*) and 2 of ($hook*) and 2 of ($target*) and not $main
}

rule Rootkit_PAM_Backdoor : rootkit elf {
    meta:
        id = "VID-1304"
        description = "Login module that keeps passwords in a file or compares them with its own"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1556/003/"
        technique = "T1556.003"
    strings:
        $module = "\x00pam_sm_authenticate\x00"
        $get1 = "\x00pam_get_authtok\x00"
        $get2 = "\x00pam_get_item\x00"
        $write1 = "\x00fprintf\x00"
        $write2 = "\x00__fprintf_chk\x00"
        $place = /\x00\/(tmp|var\/tmp|dev\/shm|usr\/share|var\/log|var\/lib)\/\.?[a-z0-9_.\/-]{1,60}\x00/
        $line1 = /\x00[^\x00\n]{0,40}%s[ :|]{1,3}%s[^\x00]{0,20}\n\x00/
        $line2 = /pass(word|wd)?\s{0,2}[=:]\s{0,2}%s/ nocase
    condition:
        uint32be(0) == 0x7f454c46 and uint16(16) == 3 and filesize < 256KB
        and $module and any of ($get*) and any of ($write*) and $place and any of ($line*)
}
