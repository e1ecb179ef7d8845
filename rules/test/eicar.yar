rule EICAR_Test_File : test
{
    meta:
        id = "VID-TEST-0001"
        description = "The EICAR test file, which every scanner should report"
        severity = "low"
        author = "Vidette"
        reference = "https://www.eicar.org/download-anti-malware-testfile/"
        technique = "T1204.002"
    strings:
        $eicar = "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
    condition:
        $eicar at 0 and filesize < 256
}
