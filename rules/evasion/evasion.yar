// Getting out of containers, and getting rid of traces and guards.

rule Container_Escape_Release_Agent : container shell {
    meta:
        id = "VID-1901"
        description = "Escape from a container through the release agent of a control group or the core pattern"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1611/"
        technique = "T1611"
    strings:
        $mount = /\bmount\s{1,4}-t\s{1,4}cgroup\s/
        $notify = /\becho\s{1,4}['"]?1['"]?\s{0,4}>\s{0,4}[^\n]{1,80}notify_on_release/
        $agent = />\s{0,4}[^\n]{1,80}\/release_agent\b/
        $core = /\becho\s{1,4}[^\n]{0,20}\|[^\n]{1,160}>\s{0,4}\/proc\/sys\/kernel\/core_pattern/
        $host = /(upperdir=|perdir=|overlay)[^\n]{0,120}(\/etc\/mtab|\/proc\/mounts|sed|grep|awk)|(\/etc\/mtab|\/proc\/mounts)[^\n]{0,80}(upperdir|perdir=)/
    condition:
        filesize < 128KB and uint32be(0) != 0x7f454c46
        and (($agent and 2 of ($mount, $notify, $host)) or ($core and $host))
}

rule Container_Escape_Runtime_Socket : container shell {
    meta:
        id = "VID-1902"
        description = "Starts a container with the host's root through the container runtime, or enters the host's namespaces"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1611/"
        technique = "T1610,T1611"
    strings:
        $create = /(--unix-socket\s{1,4}\/(var\/)?run\/docker\.sock|\bcurl\s[^\n]{0,120}:(2375|2376)\b)[^\n]{0,200}\/containers\/create/
        $binds = /"(Binds|Mounts)"\s{0,4}:\s{0,4}\[\s{0,4}[^\n]{0,40}"\/:\/[a-z]{0,20}/
        $run = /\bdocker\s[^\n]{0,60}\brun\s[^\n]{0,160}(-v|--volume[= ])\s{0,4}\/:\/[a-z]{0,20}(:rw)?\s[^\n]{0,160}\b(chroot|nsenter)\s/
        $enter = /\bdocker\s[^\n]{0,60}\brun\s[^\n]{0,200}--(privileged|pid[= ]host)[^\n]{0,200}nsenter\s[^\n]{0,40}(-t|--target)[= ]?\s{0,4}1\b/
    condition:
        filesize < 128KB and uint32be(0) != 0x7f454c46 and (($create and $binds) or $run or $enter)
}

rule Evasion_Log_Wiping : evasion shell {
    meta:
        id = "VID-1903"
        description = "Script that empties several system logs or login records"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1070/002/"
        technique = "T1070.002"
    strings:
        $wipe = /(\b(rm\s{1,4}-[a-z]{0,3}f[a-z]{0,2}|shred\s[^\n;]{0,20}|truncate\s{1,4}-s\s{0,2}0|unlink)\s{1,4}|(echo\s[^\n;>]{0,12}|cat\s{1,4}\/dev\/null\s{0,4}|:\s{0,4}|[\n;&]\s{0,8}|true\s{0,4})>\s{0,4}|ln\s{1,4}-sf\s{1,4}\/dev\/null\s{1,4})(\/var\/log\/(auth\.log|secure|wtmp|btmp|lastlog|messages|syslog|audit\/audit\.log|faillog|maillog|cron|kern\.log)|\/var\/run\/utmp|\/run\/utmp)/
    condition:
        // a page that starts with a tag is a text about it
        filesize < 256KB and uint32be(0) != 0x7f454c46 and uint8(0) != 0x3c and #wipe >= 3
}

rule Evasion_History_Off : evasion shell {
    meta:
        id = "VID-1904"
        description = "Commands that keep a shell from remembering what was typed"
        severity = "low"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1070/003/"
        technique = "T1070.003,T1562.003"
    strings:
        $unset = /\bunset\s{1,4}HIST(FILE|SIZE)\b/
        $null = /\bHISTFILE=\/dev\/null\b/
        $zero = /\b(export\s{1,4})?HIST(FILE)?SIZE=0\b/
        $clear = /\bhistory\s{1,4}-c[w]?\b/
        $remove = /\b(rm\s{1,4}-[a-z]{0,3}f[a-z]{0,2}|shred\s[^\n;]{0,20}|ln\s{1,4}-sf\s{1,4}\/dev\/null)\s{1,4}[^\n;]{0,60}\.bash_history\b/
    condition:
        filesize < 64KB and uint32be(0) != 0x7f454c46 and 2 of them
}

rule Evasion_Disables_Guards : evasion shell {
    meta:
        id = "VID-1905"
        description = "Script that turns off several of a host's protections"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1562/001/"
        technique = "T1562.001,T1562.004"
    strings:
        $selinux1 = /\bsetenforce\s{1,4}0\b/
        $selinux2 = /SELINUX=disabled[^\n]{0,20}>\s{0,4}\/etc\/(selinux|sysconfig)/
        $firewall1 = /\biptables\s{1,4}-F\b/
        $firewall2 = /\bufw\s{1,4}disable\b/
        $service1 = /\b(systemctl\s{1,4}(stop|disable)(\s{1,4}--now)?|service)\s{1,4}(auditd|falco|falcon-sensor|wazuh-agent|osqueryd|clamav-daemon|apparmor|mdatp|sentinelone|elastic-agent|velociraptor|vidette-agent|rsyslog)\b/
        $service2 = /\b(pkill|killall)\s[^\n;]{0,12}(auditd|falco|falcon-sensor|wazuh|osqueryd|AliYunDun|aliyun|YunJing|vidette-agent)\b/
        $cloud1 = /(uninstall\.sh|quartz_uninstall|aegis)[^\n]{0,80}(aliyun|alicloud|aegis)|\/usr\/local\/(aegis|qcloud|cloudmonitor)/
        $kernel1 = /(nmi_watchdog\s{0,2}=\s{0,2}0|echo\s{1,4}['"]?0['"]?\s{0,4}>\s{0,4}\/proc\/sys\/kernel\/nmi_watchdog)/
        $kernel2 = /vm\.nr_hugepages\s{0,2}=\s{0,2}\$?[({0-9]/
        $immutable = /\bchattr\s{1,4}-[aie]{1,3}\s[^\n;]{0,40}(\/etc\/(crontab|passwd|ld\.so\.preload)|\/var\/spool\/cron|\/root\/\.ssh|\/usr\/bin)/
    condition:
        filesize < 256KB and uint16be(0) == 0x2321 and 4 of them
}
