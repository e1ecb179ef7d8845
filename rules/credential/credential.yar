// Theft of passwords, keys and tokens.

rule Credential_Shadow_Sent : credential shell {
    meta:
        id = "VID-1401"
        description = "Script that sends the host's password hashes away"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1003/008/"
        technique = "T1003.008,T1048"
    strings:
        $upload = /\b(curl|wget)\s[^\n;|]{0,120}(@|--post-file[= ]|--body-file[= ]|-T\s{0,2}|--upload-file[= ])['"]?\/etc\/(shadow|gshadow|master\.passwd)\b/
        $pipe = /\b(cat|base64|gzip\s-c|tar\s[a-z-]{1,6})\s[^\n;|]{0,60}\/etc\/shadow\b[^\n;|]{0,40}(\|\s{0,4}[^\n;|]{0,40}){0,2}\|\s{0,4}(curl|wget|nc|ncat|netcat|socat|openssl\s{1,4}s_client)\b/
        $python = /open\s{0,4}\(\s{0,4}['"]\/etc\/shadow['"][^\n]{0,40}\)[^;]{0,400}(requests\.post|urlopen|\.sendall|\.send)\s{0,4}\(/
    condition:
        filesize < 256KB and uint32be(0) != 0x7f454c46 and any of them
}

rule Credential_SSH_Key_Harvest : credential shell {
    meta:
        id = "VID-1402"
        description = "Script that collects SSH keys and known hosts, to send them away or to spread with them"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1552/004/"
        technique = "T1552.004,T1021.004"
    strings:
        $find = /\bfind\s{1,4}[^\n;|]{0,80}-(i?name|path|regex)\s{1,4}['"]?[^\s]{0,20}(id_rsa|id_ed25519|id_dsa|\.pem|known_hosts)/
        $read = /\b(cat|cp|tar|grep|awk|sed)\s[^\n;|]{0,100}\/\.ssh\/(id_rsa|id_ed25519|id_\*|known_hosts|config)/
        $hosts = "known_hosts"
        $spread = /\bssh\s[^\n]{0,60}StrictHostKeyChecking[= ]no[^\n]{0,160}(curl|wget|bash|sh\s)/
        $send = /\b(curl|wget)\s[^\n;]{0,100}(-F|-d|--data|--data-binary|-T|--upload-file|--post-file)[= ]?\s{0,2}['"]?[^\s]{0,20}@?/
    condition:
        filesize < 256KB and uint16be(0) == 0x2321
        and (($find and any of ($spread, $send)) or ($read and $hosts and $spread) or ($read and $find and $send))
}

rule Credential_Memory_Dump : credential {
    meta:
        id = "VID-1403"
        description = "Reads the memory of login services to find passwords in clear text"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1003/007/"
        technique = "T1003.007"
    strings:
        $service1 = "gnome-keyring-daemon"
        $service2 = "gdm-password"
        $service3 = "lightdm"
        $service4 = "sshd:"
        $service5 = "vsftpd"
        $service6 = "apache2"
        $memory1 = /\/proc\/(%d|%s|%i|\$\{?[a-z_]{1,12}\}?|"?\s?\+)[^\n\x00]{0,12}\/mem\b/ nocase
        $memory2 = /\bgcore\s|\bdd\s[^\n]{0,80}if=\/proc\/[^\n]{1,20}\/mem\b/
        $maps = /\/(maps|task)\b/
        $needle1 = "_pammodutil_getpwnam_root_1"
        $needle2 = "libgck-1.so"
        $needle3 = "libgcrypt.so.20"
        $needle4 = /sudo[^\n]{0,4}[.+*]{1,3}[^\n]{0,30}password/
        $needle5 = "$6$"
        $needle6 = "$y$"
    condition:
        filesize < 2MB and 2 of ($service*) and any of ($memory*) and $maps and any of ($needle*)
}

rule Credential_Cloud_Keys_Sent : credential shell {
    meta:
        id = "VID-1404"
        description = "Script that collects keys of cloud accounts and containers and sends them away"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1552/005/"
        technique = "T1552.001,T1552.005"
    strings:
        $metadata = "169.254.169.254"
        $role = "iam/security-credentials"
        $ecs = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
        $file1 = ".aws/credentials"
        $file2 = ".docker/config.json"
        $file3 = ".kube/config"
        $file4 = "gcloud/credentials.db"
        $file5 = "application_default_credentials.json"
        $file6 = ".azure/accessTokens.json"
        $file7 = "serviceaccount/token"
        $file8 = ".git-credentials"
        $send = /\b(curl|wget)\s[^\n;]{0,160}(-F\s|--form\s|-d\s|--data[a-z-]{0,12}[= ]|-T\s|--upload-file|--post-(file|data))/
    condition:
        filesize < 256KB and uint16be(0) == 0x2321 and $send
        and (2 of ($file*) or ($metadata and any of ($role, $ecs) and any of ($file*)))
}

rule Credential_Fake_Sudo : credential shell {
    meta:
        id = "VID-1405"
        description = "Function or script that poses as sudo, su or ssh and keeps the password"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1056/"
        technique = "T1056,T1546.004"
    strings:
        $prompt = /(\[sudo\] password for|[Pp]assword for \$(\{?USER\}?|\(whoami\)))/
        $read = /\bread\s{1,4}-[a-z]{0,3}s[a-z]{0,3}\s/
        $keep = /echo\s[^\n;]{0,60}\$\{?[a-z_]{1,24}\}?[^\n;]{0,40}>{1,2}\s{0,4}['"]?(\/tmp|\/var\/tmp|\/dev\/shm|~|\$HOME)\/\.?/ nocase
        $send = /\b(curl|wget|nc)\s[^\n]{0,120}\$\{?(pass|pwd|pw|password|sudopass)/ nocase
        $pass = /\bsudo\s{1,4}(-k\s{1,4})?-S\b/
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and $prompt and $read and any of ($keep, $send) and $pass
}
