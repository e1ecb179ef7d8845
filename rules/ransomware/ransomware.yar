// Ransomware: the note, and the programs that encrypt hosts and virtual machines.

rule Ransom_Note : ransomware note {
    meta:
        id = "VID-1601"
        description = "Text that tells a victim that files are encrypted and what to pay"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1486/"
        technique = "T1486"
    strings:
        $claim1 = /\b(your|all)\s{1,3}(of\s{1,3}your\s{1,3})?([a-z]{1,14}\s{1,3}){0,3}(files|data|documents|servers?|network|databases?|systems?)[^.\n]{0,60}\b(are|is|was|were|have|has)\s{1,3}(been\s{1,3})?[^.\n]{0,30}\b(encrypted|locked|stolen)/ nocase
        $claim2 = /\bwe\s{1,3}(have\s{1,3})?(encrypted|locked|downloaded|stolen)\s{1,3}[^.\n]{0,40}\b(your|all)\s/ nocase
        $pay1 = "bitcoin" nocase fullword
        $pay2 = "monero" nocase fullword
        $pay3 = "btc" nocase fullword
        $pay4 = "ransom" nocase fullword
        $pay5 = "wallet" nocase
        $contact1 = "tor browser" nocase
        $contact2 = /[a-z2-7]{16,56}\.onion\b/ nocase
        $contact3 = /[a-z0-9._-]{1,40}@(protonmail|proton|onionmail|tutanota|tuta|cock|aol|mailfence|msgsafe|keemail)\.[a-z]{2,6}/ nocase
        $contact4 = "qtox" nocase
        $key1 = /\b(decrypt(ion|or|er)?\s{1,3}(key|tool|software|program|your|them|files)|private\s{1,3}key|(recover|restore|decrypt|unlock)\s{1,3}(your|the|all|them)\b)/ nocase
        $threat = /(do\s{0,2}n[o']t\s{1,3}(try|rename|modify|delete|use|contact|turn)|will\s{1,3}be\s{1,3}(published|leaked|sold|lost|deleted|destroyed))/ nocase
    condition:
        filesize < 32KB and uint32be(0) != 0x7f454c46 and any of ($claim*) and $key1
        and 2 of (any of ($pay*), any of ($contact*), $threat)
        and any of ($pay*, $contact*)
}

rule Ransom_Encryptor_Virtual_Machines : ransomware elf {
    meta:
        id = "VID-1602"
        description = "Program that ends virtual machines on a hypervisor and encrypts their disks"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1486/"
        technique = "T1486,T1489"
    strings:
        $stop1 = /esxcli\s[^\x00\n]{0,40}vm process (kill|list)/
        $stop2 = /vim-cmd\s{1,3}vmsvc\/(power\.off|getallvms|snapshot\.remove)/
        $disk1 = ".vmdk"
        $disk2 = ".vmem"
        $disk3 = "/vmfs/volumes"
        $disk4 = ".vswp"
        $crypt1 = "encrypt" nocase
        $crypt2 = "chacha20" nocase
        $crypt3 = "expand 32-byte k"
        $crypt4 = "-----BEGIN PUBLIC KEY-----"
        $note1 = ".onion"
        $note2 = /(README|RECOVER|RESTORE|HOW_TO|DECRYPT)[A-Za-z0-9_. -]{0,24}\.(txt|html|md)/
    condition:
        uint32be(0) == 0x7f454c46 and filesize < 16MB
        and any of ($stop*) and 2 of ($disk*) and any of ($crypt*) and any of ($note*)
}

rule Ransom_Encrypts_By_Script : ransomware shell {
    meta:
        id = "VID-1603"
        description = "Script that encrypts files one by one, removes the originals and leaves a message"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1486/"
        technique = "T1486,T1485"
    strings:
        $find = /\b(find\s{1,4}[^\n]{0,120}-(type\s{1,4}f|i?name)|grep\s{1,4}-[a-z]{0,4}r[a-z]{0,4}l|for\s{1,4}[a-z_]{1,16}\s{1,4}in\s[^\n]{0,60}\*)/ nocase
        $crypt = /\b(openssl\s{1,4}(enc|aes-\d{3}-[a-z]{3}|rsautl|pkeyutl)\s[^\n]{0,160}-(in|e|salt|pass|k)\b|gpg\s[^\n]{0,80}(-c|-e|--symmetric|--encrypt)\b|zip\s[^\n]{0,40}(-P|--password)\s)/
        $remove = /\b(shred\s|rm\s{1,4}-[a-z]{0,3}f|rm\s{1,4}["']?\$|unlink\s|dd\s{1,4}if=\/dev\/(zero|urandom)\s{1,4}of="?\$)/
        $message = /(\/etc\/motd|README[A-Z0-9_-]{0,24}\.txt|\.onion\b|\bbitcoin\b|\bransom\b|\bdecrypt(ion|or)? (key|your))/ nocase
    condition:
        filesize < 128KB and uint16be(0) == 0x2321 and all of them
}
