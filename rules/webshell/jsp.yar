// Web shells in Java Server Pages.

rule Webshell_JSP_Command_Request : webshell jsp {
    meta:
        id = "VID-1011"
        description = "JSP page that runs a command taken from the request"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1505/003/"
        technique = "T1505.003,T1059"
    strings:
        $open = "<%"
        $tag = "<jsp:"
        $direct = /(getRuntime\s{0,4}\(\s{0,4}\)\s{0,4}\.\s{0,4}exec|new\s{1,4}ProcessBuilder)\s{0,4}\([^;\n]{0,120}request\s{0,4}\.\s{0,4}getParameter/
        $parameter = /=\s{0,4}request\s{0,4}\.\s{0,4}get(Parameter|Header)\s{0,4}\(\s{0,4}"(cmd|command|c|exec|comment|pass|pwd|x)"/ nocase
        $run = /getRuntime\s{0,4}\(\s{0,4}\)\s{0,4}\.\s{0,4}exec\s{0,4}\(/
        $builder = /new\s{1,4}(java\.lang\.)?ProcessBuilder\s{0,4}\(/
    condition:
        filesize < 512KB and ($open in (0..4096) or $tag in (0..4096))
        and ($direct or ($parameter and any of ($run, $builder)))
}

rule Webshell_JSP_Loads_Class : webshell jsp {
    meta:
        id = "VID-1012"
        description = "JSP page that defines a class out of the body of the request"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1620/"
        technique = "T1505.003,T1620"
    strings:
        $open = "<%"
        $loader = /extends\s{1,4}ClassLoader\b/
        $define = /\bdefineClass\s{0,4}\(/
        $reflected = "\"defineClass\""
        $body = /request\s{0,4}\.\s{0,4}(getReader|getInputStream|getParameter)\s{0,4}\(/
        $cipher = /Cipher\s{0,4}\.\s{0,4}getInstance\s{0,4}\(\s{0,4}"AES/
        $base64 = /(BASE64Decoder|Base64\s{0,4}\.\s{0,4}getDecoder|decodeBuffer)\b/
    condition:
        filesize < 512KB and $open in (0..4096) and $body
        and (($loader and $define) or $reflected) and any of ($cipher, $base64)
}
