// Rootkits in the kernel: modules and eBPF programs.

rule Rootkit_Kernel_Module : rootkit kernel elf {
    meta:
        id = "VID-1311"
        description = "Kernel module that looks up hidden symbols to change directory listing, sockets or signals"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1547/006/"
        technique = "T1014,T1547.006"
    strings:
        $module = "vermagic="
        $look1 = "kallsyms_lookup_name"
        $look2 = "sys_call_table"
        $look3 = "ftrace_set_filter_ip"
        $look4 = "register_kprobe"
        $target1 = "getdents64"
        $target2 = "tcp4_seq_show"
        $target3 = "udp4_seq_show"
        $target4 = "tcp6_seq_show"
        $target5 = "x64_sys_kill"
        $target6 = "sys_getdents"
        $power1 = "prepare_creds"
        $power2 = "commit_creds"
        $power3 = "prepare_kernel_cred"
    condition:
        uint32be(0) == 0x7f454c46 and uint16(16) == 1 and filesize < 4MB
        and $module and any of ($look*) and any of ($target*) and (2 of ($target*) or any of ($power*))
}

rule Rootkit_eBPF : rootkit kernel elf {
    meta:
        id = "VID-1312"
        description = "eBPF program that writes into other programs' memory on directory listing, reading or running"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1014/"
        technique = "T1014"
    strings:
        // call helper 36, bpf_probe_write_user, or 58, bpf_override_return (bpf-helpers(7), linux/bpf.h)
        $write = { 85 00 00 00 24 00 00 00 }
        $override = { 85 00 00 00 3a 00 00 00 }
        $hook1 = "syscalls/sys_exit_getdents64"
        $hook2 = "syscalls/sys_enter_getdents64"
        $hook3 = "syscalls/sys_exit_read"
        $hook4 = "syscalls/sys_enter_execve"
        $hook5 = "syscalls/sys_exit_openat"
        $hook6 = /k(ret)?probe\/(__x64_)?sys_(getdents64|read|openat|kill|bpf|execve)/
    condition:
        uint32be(0) == 0x7f454c46 and uint16(16) == 1 and uint16(18) == 247 and filesize < 4MB
        and any of ($write, $override) and any of ($hook*)
}
