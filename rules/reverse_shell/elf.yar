// Reverse shells as tiny ELF programs made of little more than shellcode.

rule Reverse_Shell_ELF_Shellcode : reverse_shell elf {
    meta:
        id = "VID-1111"
        description = "Tiny ELF program whose code opens a socket, connects and duplicates it or reads code from it"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1095/"
        technique = "T1059.004,T1095"
    strings:
        // push 41; pop rax … push 2; pop rdi; push 1; pop rsi; syscall: socket(AF_INET, SOCK_STREAM)
        $socket64 = { 6a 29 58 [0-3] 6a 02 5f [0-2] 6a 01 5e [0-2] 0f 05 }
        // push 42; pop rax; syscall: connect
        $connect64 = { 6a 2a 58 0f 05 }
        // push 33; pop rax; syscall: dup2. pop; read: xor eax, eax; … syscall; jmp rsi
        $dup64 = { 6a 21 58 0f 05 }
        $stage64 = { 0f 05 [0-8] ff e6 }
        // push 102; pop eax … int 0x80: socketcall
        $socket32 = { 6a 66 58 [0-12] cd 80 }
        $dup32 = { (b0 3f | 6a 3f 58) [0-4] cd 80 }
        $stage32 = { cd 80 [0-8] ff e1 }
    condition:
        uint32be(0) == 0x7f454c46 and filesize < 8KB
        and (($socket64 and $connect64 and any of ($dup64, $stage64)) or ($socket32 and any of ($dup32, $stage32)))
}
