// Reverse shells in scripts: a shell whose input and output are a connection to somebody else.

rule Reverse_Shell_Dev_Tcp : reverse_shell shell {
    meta:
        id = "VID-1101"
        description = "Interactive shell tied to a network connection through bash's /dev/tcp"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1059/004/"
        technique = "T1059.004,T1071"
    strings:
        $interactive = /\b(ba|z|k|da)?sh\s{1,4}-[a-z]{0,3}i[a-z]{0,3}\s{0,4}(\d?>&|&>|>|<)[^\n]{0,16}\/dev\/(tcp|udp)\/[a-z0-9$_.{}:-]{1,80}\/[\d$_{a-z]/ nocase
        $descriptor = /\bexec\s{1,4}\d{1,3}<>\s{0,4}\/dev\/(tcp|udp)\/[a-z0-9$_.{}:-]{1,80}\/[\d$_{a-z][^\n;]{0,16}[;\n]\s{0,8}(cat\s{0,2}<&\d{1,3}\s{0,4}\|\s{0,4}while\s{1,4}read|(ba|z|da)?sh\s[^\n]{0,12}<&\d{1,3}\s{0,4}\d?>&\d{1,3}|while\s{1,4}read\s[^\n]{0,20}<&\d{1,3})/ nocase
        $zero = /\b0<&(\d{1,3})?-?;?\s{0,4}exec\s{1,4}\d{1,3}<>\s{0,4}\/dev\/tcp\/[^\s]{1,80};\s{0,4}(ba)?sh\s{1,4}<&\d/
    condition:
        filesize < 256KB and any of them
}

rule Reverse_Shell_Python : reverse_shell python {
    meta:
        id = "VID-1102"
        description = "Python that connects out and puts a shell on the socket"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1059/006/"
        technique = "T1059.006,T1059.004"
    strings:
        $connect = /\.connect(_ex)?\s{0,4}\(\s{0,4}\(/
        $dup0 = /\bdup2\s{0,4}\(\s{0,4}[a-z_0-9]{1,20}\.fileno\(\)\s{0,4},\s{0,4}(0|fd|i|f)\b/
        $dup_loop = /\bdup2\s{0,4}\(\s{0,4}[a-z_0-9]{1,20}\.fileno\(\)\s{0,4},\s{0,4}[a-z_]{1,12}\s{0,4}\)\s{0,4}for\s/
        $shell = /\b(subprocess\.(call|run|Popen|check_call)|pty\.spawn|os\.exec[lv]p?e?|os\.system)\s{0,4}\(\s{0,4}\[?\s{0,4}['"](\/usr)?(\/bin\/)?(ba|da|z)?sh\b/
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and $connect and any of ($dup*) and $shell
}

rule Reverse_Shell_Perl_Ruby : reverse_shell perl ruby {
    meta:
        id = "VID-1103"
        description = "Perl or Ruby that connects out and puts a shell on the socket"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1059/"
        technique = "T1059.004"
    strings:
        $perl_socket = /\b(use\s{1,4}Socket|IO::Socket::INET)\b/
        $perl_stdin = /open\s{0,4}\(\s{0,4}STDIN\s{0,4},\s{0,4}['"][<>]{1,2}&\s{0,4}[a-z$]/ nocase
        $perl_reopen = /\b(STDIN|\$~)\s{0,4}->\s{0,4}fdopen\s{0,4}\(\s{0,4}\$[a-z]{1,12}\s{0,4},/
        $perl_exec = /\b(exec|system)\s{0,4}[({'"\s]{1,4}(\/usr)?(\/bin\/)?(ba|da)?sh\b/
        $perl_lines = /system\s{0,4}\$_\s{0,4}while\s{0,4}<>/
        $ruby = /TCPSocket\.(open|new)\s{0,4}\([^)\n]{1,80}\)[^\n]{0,80}(\.to_i|exec\s{0,2}sprintf|IO\.popen)[^\n]{0,80}/
        $ruby_shell = /exec\s{0,2}\(?\s{0,2}(sprintf\s{0,2}\(?\s{0,2})?['"](\/bin\/)?(ba|da)?sh\s{1,2}-i|IO\.popen\s{0,2}\(\s{0,2}[a-z]{1,12}\s{0,2},\s{0,2}['"]r['"]/
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46
        and (($perl_socket and (($perl_stdin and $perl_exec) or ($perl_reopen and $perl_lines))) or ($ruby and $ruby_shell))
}

rule Reverse_Shell_Netcat : reverse_shell shell {
    meta:
        id = "VID-1104"
        description = "Shell handed to netcat, directly or through a named pipe"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1059/004/"
        technique = "T1059.004,T1095"
    strings:
        $direct = /\b(nc|ncat|netcat)(\.traditional|\.openbsd)?\s{1,4}([a-z0-9$_.{}:-]{1,80}\s{1,4}){0,6}(-[a-z]{0,6}[ec]|--exec|--sh-exec)\s{0,4}['"]?(\/usr)?(\/bin\/)?(ba|da|z|c)?sh\b/
        $pipe = /mkfifo\s{1,4}(-m\s{0,2}\d{3,4}\s{1,4})?[^\s;&|]{1,60}[^\n]{0,40}[;&\n]\s{0,4}(cat|tail\s-f)\s{1,4}[^\s;|]{1,60}\s{0,4}\|\s{0,4}(\/usr)?(\/bin\/)?(ba|da|z)?sh\b[^\n|]{0,24}\|\s{0,4}(nc|ncat|netcat|telnet|openssl)\b/
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and any of them
}

rule Reverse_Shell_Socat : reverse_shell shell {
    meta:
        id = "VID-1105"
        description = "socat that gives a shell on a terminal to a network peer"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1059/004/"
        technique = "T1059.004,T1095"
    strings:
        $out = /\bsocat\s[^\n]{0,120}(tcp[46]?|openssl|udp[46]?)(-connect)?:[^\s,]{1,80}[^\n]{0,60}\bexec:\s{0,2}['"]?(\/usr)?(\/bin\/)?(ba|da|z)?sh\b/ nocase
        $in = /\bsocat\s[^\n]{0,40}\bexec:\s{0,2}['"]?(\/usr)?(\/bin\/)?(ba|da|z)?sh\b[^\n]{0,80}\b(tcp[46]?|openssl|udp[46]?)(-connect)?:[^\s,]{1,80}/ nocase
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and any of them
}

rule Reverse_Shell_Inherited_Descriptor : reverse_shell {
    meta:
        id = "VID-1106"
        description = "Interactive shell started on the descriptor of a socket that was opened before"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1059/004/"
        technique = "T1059.004"
    strings:
        $shell = /\b(ba|da|z)?sh\s{1,4}-i\s{0,4}<&\s{0,2}(\d{1,2}|%[ds])\s{0,4}>&\s{0,2}(\d{1,2}|%[ds])\s{0,4}2>&\s{0,2}(\d{1,2}|%[ds])/
        $php = /\bfsockopen\s{0,4}\(/
        $ruby = "TCPSocket"
        $lua = "socket.tcp"
        $bash = "/dev/tcp/"
    condition:
        filesize < 64KB and $shell and any of ($php, $ruby, $lua, $bash)
}
