// Web shells in Python: routes and CGI programs that run what a request says.

rule Webshell_Python_Command_Request : webshell python {
    meta:
        id = "VID-1021"
        description = "Python web program that runs a command taken straight from the request"
        severity = "critical"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1505/003/"
        technique = "T1505.003,T1059.006"
    strings:
        $call = /\b(os\.(system|popen)|subprocess\.(run|call|Popen|check_output|getoutput|getstatusoutput)|commands\.getoutput|exec|eval)\s{0,4}\(\s{0,4}(str\(|base64\.b64decode\(|unquote\()?\s{0,4}(flask\.)?(request\.(args|form|values|headers|cookies|data|json|query|GET|POST|params|get_data)\b|form\.getvalue\(|form\[|cgi\.FieldStorage\()/
    condition:
        filesize < 256KB and uint32be(0) != 0x7f454c46 and $call
}

rule Webshell_Python_CGI : webshell python {
    meta:
        id = "VID-1022"
        description = "Small Python CGI program that passes a field named like a command to a shell"
        severity = "high"
        author = "Vidette project"
        reference = "https://attack.mitre.org/techniques/T1505/003/"
        technique = "T1505.003,T1059.006"
    strings:
        $field = /\.(getvalue|getfirst|get)\s{0,4}\(\s{0,4}['"](cmd|command|exec|shell)['"]/
        $cgi = /\b(cgi\.FieldStorage|parse_qs|wsgi\.input|BaseHTTPRequestHandler)\b/
        $run = /\b(os\.popen|os\.system|commands\.getoutput|subprocess\.(run|call|Popen|check_output|getoutput))\s{0,4}\(\s{0,4}(cmd|command|shell|exec)\b/
    condition:
        filesize < 32KB and uint32be(0) != 0x7f454c46 and all of them
}
