// Ways to come back: jobs, units, start files, keys and device rules.

rule Persistence_Cron_Download : persistence cron {
    meta:
        id = "VID-1501"
        description = "Scheduled job that fetches something and runs it"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1053/003/"
        technique = "T1053.003,T1105"
    strings:
        $pipe = /(@(reboot|hourly|daily)|\*\/?\d{0,2}\s{1,4}\*)\s[^\n]{0,80}\b(curl|wget|lwp-download|fetch)\s[^\n|;]{1,240}\|\s{0,4}(sudo\s{1,4})?(\/usr)?(\/bin\/)?(ba|da|z)?sh\b/
        $python = /(@(reboot|hourly|daily)|\*\/?\d{0,2}\s{1,4}\*)\s[^\n]{0,80}\bpython[23]?\s{1,4}-c\s[^\n]{0,200}(urlopen|requests\.get|b64decode)/
        $substitute = /(@(reboot|hourly|daily)|\*\/?\d{0,2}\s{1,4}\*)\s[^\n]{0,80}\b(ba|da)?sh\s{1,4}(-c\s{1,4})?['"]?(<\(|\$\()\s{0,4}(curl|wget)\s/
    condition:
        filesize < 128KB and uint32be(0) != 0x7f454c46 and any of them
}

rule Persistence_Cron_Temporary : persistence cron {
    meta:
        id = "VID-1502"
        description = "Scheduled job that runs a program from a temporary or hidden place"
        severity = "medium"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1053/003/"
        technique = "T1053.003"
    strings:
        $job = /(@(reboot|hourly|daily)|(\*|\d{1,2})(\/\d{1,2})?\s{1,4}\*\s{1,4}\*\s{1,4}\*)\s{1,8}(root\s{1,8})?((\/bin\/)?(ba|da)?sh\s{1,4})?(\/tmp|\/var\/tmp|\/dev\/shm|\/var\/run|\/root|\/home\/[a-z0-9_-]{1,32})\/[^\s]{0,40}(\.[a-z0-9_-]{1,40}|\/kdevtmpfsi|\/kinsing|\/x86_64)(\s|$)/
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and $job
}

rule Persistence_Systemd_Unit : persistence systemd {
    meta:
        id = "VID-1503"
        description = "systemd unit that runs from a temporary place or starts a download or a network shell"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1543/002/"
        technique = "T1543.002"
    strings:
        $service = "[Service]"
        $place = /Exec(Start|StartPre|StartPost|Stop|Reload)\s{0,2}=[-@:+!]{0,3}\s{0,2}((\/usr)?\/bin\/(ba|da)?sh\s{1,4}(-c\s{1,4}['"]?)?)?(\/tmp|\/var\/tmp|\/dev\/shm)\/[^\s]{1,200}/
        $download = /Exec(Start|StartPre|StartPost|Stop|Reload)\s{0,2}=[^\n]{0,120}\b(curl|wget)\s[^\n]{1,240}\|\s{0,4}(\/usr)?(\/bin\/)?(ba|da)?sh\b/
        $shell = /Exec(Start|StartPre|StartPost)\s{0,2}=[^\n]{0,160}(\/dev\/tcp\/|base64\s{1,4}(-d|--decode)[^\n]{0,40}\|\s{0,4}(ba|da)?sh\b)/
        $hidden = /ExecStart\s{0,2}=[-@:+!]{0,3}\s{0,2}\/(usr|etc|var|opt|lib|bin|sbin|root|home)\/([a-z0-9_.-]{1,40}\/){0,4}\.[a-z0-9_-]{1,40}(\/[^\s]{1,80})?\s{0,4}(\n|$)/
    condition:
        filesize < 32KB and $service and any of ($place, $download, $shell, $hidden)
}

rule Persistence_Shell_Startup : persistence shell {
    meta:
        id = "VID-1504"
        description = "Line of a start file that runs a hidden or temporary program in the background, silently"
        severity = "medium"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1546/004/"
        technique = "T1546.004,T1037.004"
    strings:
        $background = /\b(nohup|setsid)\s{1,4}(nohup\s{1,4}|setsid\s{1,4})?((\/bin\/)?(ba|da)?sh\s{1,4}(-c\s{1,4}['"]?)?)?(\/tmp|\/var\/tmp|\/dev\/shm)\/[^\n;&]{1,120}\s{0,4}(&>|>&|\d?>)\s{0,4}\/dev\/null[^\n]{0,24}&/
        $fetch = /\(\s{0,4}(curl|wget)\s[^\n|]{1,200}\|\s{0,4}(ba|da)?sh\s{0,4}\)?\s{0,4}(&>|>&|\d?>)\s{0,4}\/dev\/null[^\n]{0,24}&/
    condition:
        filesize < 128KB and uint32be(0) != 0x7f454c46 and any of them
}

rule Persistence_Authorized_Keys_Command : persistence ssh {
    meta:
        id = "VID-1505"
        description = "SSH key whose forced command fetches something or opens a network shell"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1098/004/"
        technique = "T1098.004"
    strings:
        $key = /\b(command|environment)="[^\n]{0,200}(\/dev\/tcp\/|\bcurl\s|\bwget\s|\bbase64\s{1,4}-d|\bnc\s{1,4}[^"\n]{0,60}-e|LD_PRELOAD=|\/tmp\/|\/dev\/shm\/)[^\n]{0,300}(ssh-(rsa|ed25519|dss)|ecdsa-sha2-nistp\d{3})\s{1,4}AAAA/
    condition:
        filesize < 128KB and $key
}

rule Persistence_Authorized_Keys_Script : persistence ssh shell {
    meta:
        id = "VID-1506"
        description = "Script that adds its own key to root's authorized keys and makes the file hard to change or hides"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1098/004/"
        technique = "T1098.004,T1222.002"
    strings:
        $add = /\becho\s[^\n]{0,40}(ssh-(rsa|ed25519|dss)|ecdsa-sha2-nistp\d{3})\s{1,4}AAAA[A-Za-z0-9+\/=]{1,1000}[^\n]{0,120}>{1,2}\s{0,4}[^\n;]{0,60}authorized_keys2?\b/
        $lock = /\bchattr\s{1,4}[-+][aie]{1,4}\s[^\n;]{0,80}(authorized_keys|\.ssh)/
        $fetch = /\b(curl|wget)\s[^\n]{0,240}(\|\s{0,4}(ba|da)?sh\b|-O\s{0,2}\/tmp|-o\s{0,2}\/tmp|\/dev\/shm)/
        $quiet = /(unset\s{1,4}HISTFILE|HISTFILE=\/dev\/null|history\s{1,4}-c)/
    condition:
        filesize < 256KB and uint32be(0) != 0x7f454c46 and $add and any of ($lock, $fetch, $quiet)
}

rule Persistence_Udev_Run : persistence udev {
    meta:
        id = "VID-1507"
        description = "Device rule that runs a program from a temporary place or a network command"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1546/017/"
        technique = "T1546.017"
    strings:
        $run = /\bRUN(\{program\})?\s{0,2}\+?:?=\s{0,2}"[^"\n]{0,120}(\/tmp\/|\/dev\/shm\/|\/var\/tmp\/|\bcurl\s|\bwget\s|\/dev\/tcp\/|\bnc\s)/
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and $run
}
