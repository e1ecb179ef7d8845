// ELF programs that hide what they are made of. Low severity alone: packers are used honestly too.

rule Packed_UPX : packed elf {
    meta:
        id = "VID-1801"
        description = "ELF program packed with UPX"
        severity = "low"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1027/002/"
        technique = "T1027.002"
    strings:
        $magic = "UPX!"
        $info = "$Info: This file is packed with the UPX"
    condition:
        uint32be(0) == 0x7f454c46 and ($magic in (0..1024) or ($info and $magic in (filesize - 64..filesize)))
}

rule Packed_UPX_Tampered : packed elf {
    meta:
        id = "VID-1802"
        description = "ELF program packed with UPX whose marks were changed, so that it can't be unpacked"
        severity = "medium"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1027/002/"
        technique = "T1027.002"
    strings:
        $magic = "UPX!"
        $stub1 = "PROT_EXEC|PROT_WRITE failed."
        $stub2 = "$Info: This file is packed with the UPX"
        $stub3 = "$Id: UPX "
    condition:
        uint32be(0) == 0x7f454c46 and filesize < 64MB and any of ($stub*) and not $magic
}

rule Packed_ELF_Without_Sections : packed elf {
    meta:
        id = "VID-1803"
        description = "ELF program or library without a section table: built by hand, packed or stripped on purpose"
        severity = "low"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1027/008/"
        technique = "T1027.008"
    condition:
        // e_type EXEC or DYN; e_shoff and e_shnum zero (elf(5)), little-endian, 64 and 32 bit
        uint32be(0) == 0x7f454c46 and uint8(5) == 1 and (uint16(16) == 2 or uint16(16) == 3) and filesize > 64
        and (
            (uint8(4) == 2 and uint32(40) == 0 and uint32(44) == 0 and uint16(60) == 0)
            or (uint8(4) == 1 and uint32(32) == 0 and uint16(48) == 0)
        )
}
