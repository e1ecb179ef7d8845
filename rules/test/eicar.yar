// The industry's harmless test file. In hexadecimal, so that this file does not look like it.

rule EICAR_Test_File : test {
    meta:
        id = "VID-1000"
        description = "EICAR test file: harmless, made to show that detection works"
        severity = "high"
        author = "Vidette project"
        reference = "https://www.eicar.org/download-anti-malware-testfile/"
        technique = "T1204.002"
    strings:
        // suppress: text_as_hex
        $eicar = {
            58 35 4f 21 50 25 40 41 50 5b 34 5c 50 5a 58 35 34 28 50 5e 29 37 43 43 29 37 7d 24
            45 49 43 41 52 2d 53 54 41 4e 44 41 52 44 2d 41 4e 54 49 56 49 52 55 53 2d 54 45 53
            54 2d 46 49 4c 45 21 24 48 2b 48 2a
        }
    condition:
        filesize <= 128 and $eicar at 0
}
