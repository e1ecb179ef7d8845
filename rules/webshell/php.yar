// Web shells in PHP: pages that run what a request tells them to.

rule Webshell_PHP_Eval_Request : webshell php {
    meta:
        id = "VID-1001"
        description = "PHP page that evaluates code taken straight from the request"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1505/003/"
        technique = "T1505.003,T1059"
    strings:
        $open = "<?"
        $eval = /\b(eval|assert|create_function)\s{0,8}\(\s{0,8}(@?[a-z0-9_]{3,24}\s{0,4}\(\s{0,4}){0,4}@?\$(_(GET|POST|REQUEST|COOKIE|FILES)\b|\{['"]_(GET|POST|REQUEST)|HTTP_RAW_POST_DATA)/ nocase
        $input = /\beval\s{0,8}\(\s{0,8}(@?[a-z0-9_]{3,24}\s{0,4}\(\s{0,4}){0,3}file_get_contents\s{0,4}\(\s{0,4}['"]php:\/\/input/ nocase
    condition:
        filesize < 1MB and $open in (0..4096) and any of ($eval, $input)
}

rule Webshell_PHP_Command_Request : webshell php {
    meta:
        id = "VID-1002"
        description = "PHP page that runs a system command taken straight from the request"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1505/003/"
        technique = "T1505.003,T1059.004"
    strings:
        $open = "<?"
        $run = /\b(system|shell_exec|passthru|exec|popen|proc_open|pcntl_exec)\s{0,8}\(\s{0,8}(@?[a-z0-9_]{3,24}\s{0,4}\(\s{0,4}){0,3}@?\$(_(GET|POST|REQUEST|COOKIE)\b|_SERVER\s{0,4}\[\s{0,4}['"]HTTP_)/ nocase
        $ticks = /`\s{0,4}\{?\$_(GET|POST|REQUEST|COOKIE)\b[^`\n]{0,80}`/
    condition:
        filesize < 1MB and $open in (0..4096) and any of ($run, $ticks)
}

rule Webshell_PHP_Packed_Eval : webshell php {
    meta:
        id = "VID-1003"
        description = "PHP page that evaluates a long packed text"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1027/013/"
        technique = "T1505.003,T1027.013"
    strings:
        $open = "<?"
        $packed = /\b(eval|assert)\s{0,8}\(\s{0,8}(@?(gzinflate|gzuncompress|gzdecode|str_rot13|strrev|rawurldecode|convert_uudecode)\s{0,4}\(\s{0,4}){1,5}(@?base64_decode\s{0,4}\(\s{0,4})?['"$]/ nocase
        $plain = /\b(eval|assert)\s{0,8}\(\s{0,8}@?base64_decode\s{0,4}\(\s{0,4}['"][a-z0-9+\/=]{80}/ nocase
    condition:
        filesize < 2MB and $open in (0..4096) and any of ($packed, $plain)
}

rule Webshell_PHP_Called_By_Name : webshell php {
    meta:
        id = "VID-1004"
        description = "PHP page that lets the request name both a function and its argument"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1505/003/"
        technique = "T1505.003"
    strings:
        $open = "<?"
        $call = /\$_(GET|POST|REQUEST|COOKIE)\s{0,4}(\[[^\]\n]{1,40}\]|\{[^}\n]{1,40}\})\s{0,4}\(\s{0,4}@?\$_(GET|POST|REQUEST|COOKIE)\b/
        $callback = /\b(array_map|array_filter|call_user_func(_array)?|usort|array_walk|register_shutdown_function)\s{0,4}\(\s{0,4}@?\$_(GET|POST|REQUEST|COOKIE)\s{0,4}\[/ nocase
    condition:
        filesize < 1MB and $open in (0..4096) and any of ($call, $callback)
}

rule Webshell_PHP_Inside_Image : webshell php {
    meta:
        id = "VID-1005"
        description = "Picture that carries PHP code which runs commands or evaluates text"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1036/008/"
        technique = "T1505.003,T1036.008"
    strings:
        $php = /<\?(php\s|=)[^\x00]{0,400}\b(eval|assert|system|shell_exec|passthru|proc_open|popen|base64_decode)\s{0,4}\(/ nocase
    condition:
        filesize < 4MB
        and (uint32be(0) == 0x47494638 or uint32be(0) == 0x89504e47 or uint16be(0) == 0xffd8 or uint16be(0) == 0x424d)
        and $php
}
