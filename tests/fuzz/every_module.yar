// Rules that ask every module for what its parser found. Which of them match is what tells one input from another; nothing of
// what they look for is bad.
import "pe"
import "elf"
import "dotnet"
import "macho"
import "lnk"
import "dex"
import "zip"
import "math"
import "hash"
import "string"

rule control { strings: $a = "vidette-control" condition: $a }
rule text_wide { strings: $a = "KERNEL32" nocase wide ascii condition: $a }
rule text_encoded { strings: $a = "vidette-control" base64 $b = "vidette-control" xor(1-255) condition: any of them }
rule text_regex { strings: $a = /name[0-9]{1,5}[a-z]?/ $b = /[Cc]:\\[a-z]{2,20}\\/ condition: any of them }
rule text_hex { strings: $a = { 4D 5A [0-64] 50 45 ?? 00 } $b = { 50 4B ( 03 04 | 05 06 | 06 06 ) } condition: any of them }
rule text_many { strings: $a = "main" condition: #a > 2 and @a[2] > 4 and !a[1] == 4 }

rule pe_is { condition: pe.is_pe }
rule pe_kind { condition: pe.is_32bit() or pe.is_dll() }
rule pe_wide { condition: pe.is_64bit() }
rule pe_sections { condition: for any section in pe.sections : ( section.raw_data_size > 0 and section.full_name == ".text" ) }
rule pe_many_sections { condition: pe.number_of_sections > 3 }
rule pe_entry { condition: pe.entry_point > 0 and pe.entry_point_raw > 0 }
rule pe_entry_in_section { condition: pe.section_index(pe.entry_point) >= 0 or pe.section_index(".text") == 0 }
rule pe_address { condition: pe.rva_to_offset(pe.entry_point_raw) > 0 }
rule pe_sum { condition: pe.calculate_checksum() != pe.checksum }
rule pe_imports { condition: pe.number_of_imports > 0 and pe.imports("KERNEL32.dll") > 0 }
rule pe_import { condition: pe.imports("KERNEL32.dll", "LoadLibraryA") or pe.imports(/user32/i, /main/) > 0 }
rule pe_import_number { condition: pe.imports("USER32.dll", 17) or pe.import_rva("USER32.dll", 17) > 0 }
rule pe_many_imports { condition: pe.number_of_imported_functions > 20 }
rule pe_delayed { condition: pe.number_of_delayed_imports > 0 }
rule pe_delayed_import { condition: pe.delayed_import_rva("x", "main") > 0 or pe.imports(pe.IMPORT_DELAYED, /.*/, /.+/) > 0 }
rule pe_imphash { condition: pe.imphash() matches /^[0-7]/ }
rule pe_exports { condition: pe.number_of_exports > 0 and ( pe.exports("main") or pe.exports(1) or pe.exports(/^_/) ) }
rule pe_export_place { condition: pe.exports_index("main") >= 0 or pe.exports_index(2) >= 0 or pe.exports_index(/start/) >= 0 }
rule pe_export_forward { condition: for any export in pe.export_details : ( export.forward_name matches /./ ) }
rule pe_export_dll { condition: pe.dll_name matches /dll$/ }
rule pe_rich { condition: pe.rich_signature.toolid(1) > 0 or pe.rich_signature.length > 0 }
rule pe_rich_version { condition: pe.rich_signature.version(2, 3) > 0 or pe.rich_signature.tools[0].times > 2 }
rule pe_resources { condition: pe.number_of_resources > 0 and pe.resources[0].length > 0 }
rule pe_resource_names { condition: for any resource in pe.resources : ( resource.name_string == "N\x00A\x00M\x00E\x00" ) }
rule pe_resource_language { condition: pe.language(9) or pe.locale(1033) }
rule pe_version_info { condition: pe.number_of_version_infos > 0 }
rule pe_version_main { condition: pe.version_info["main"] matches /./ }
rule pe_pdb { condition: pe.pdb_path matches /pdb/ }
rule pe_signed { condition: pe.number_of_signatures > 0 }
rule pe_signed_twice { condition: pe.number_of_signatures > 1 }
rule pe_signature { condition: for any signature in pe.signatures : ( signature.subject matches /signer/ and signature.valid_on(1700000000) ) }
rule pe_signature_digest { condition: for any signature in pe.signatures : ( signature.digest_alg == "sha256" ) }
rule pe_certificates { condition: for any signature in pe.signatures : ( signature.number_of_certificates > 1 ) }
rule pe_countersigned { condition: for any signature in pe.signatures : ( signature.number_of_countersignatures > 0 ) }
rule pe_verified { condition: pe.is_signed }
rule pe_signer { condition: for any signature in pe.signatures : ( signature.signer_info.program_name matches /p/ ) }
rule pe_overlay { condition: pe.overlay.size > 0 }

rule dotnet_is { condition: dotnet.is_dotnet }
rule dotnet_streams { condition: dotnet.number_of_streams > 4 and dotnet.streams[0].size > 0 }
rule dotnet_version { condition: dotnet.version matches /^v4/ }
rule dotnet_guids { condition: dotnet.number_of_guids > 0 }
rule dotnet_resources { condition: dotnet.number_of_resources > 0 and dotnet.resources[0].length > 0 }
rule dotnet_classes { condition: dotnet.number_of_classes > 0 }
rule dotnet_bases { condition: for any class in dotnet.classes : ( class.number_of_base_types > 0 ) }
rule dotnet_methods { condition: for any class in dotnet.classes : ( class.number_of_methods > 0 ) }
rule dotnet_parameters { condition: for any class in dotnet.classes : ( for any method in class.methods : ( method.number_of_parameters > 0 ) ) }
rule dotnet_returns { condition: for any class in dotnet.classes : ( for any method in class.methods : ( method.return_type matches /[\[*<]/ ) ) }
rule dotnet_generics { condition: for any class in dotnet.classes : ( class.number_of_generic_parameters > 0 ) }
rule dotnet_assembly { condition: dotnet.assembly.version.major >= 0 }
rule dotnet_references { condition: dotnet.number_of_assembly_refs > 0 and dotnet.assembly_refs[0].version.major >= 0 }
rule dotnet_modules { condition: dotnet.number_of_modulerefs > 0 }
rule dotnet_strings { condition: dotnet.number_of_user_strings > 0 }
rule dotnet_constants { condition: dotnet.number_of_constants > 0 }
rule dotnet_fields { condition: dotnet.number_of_field_offsets > 0 }
rule dotnet_library { condition: dotnet.typelib matches /./ }

rule elf_is { condition: defined elf.type }
rule elf_runs { condition: elf.type == elf.ET_EXEC or elf.type == elf.ET_DYN }
rule elf_machine { condition: elf.machine == elf.EM_X86_64 or elf.machine == elf.EM_MIPS }
rule elf_entry { condition: elf.entry_point > 0 }
rule elf_sections { condition: for any section in elf.sections : ( section.name == ".text" and section.size > 0 ) }
rule elf_many_sections { condition: elf.number_of_sections > 16 }
rule elf_segments { condition: for any segment in elf.segments : ( segment.type == elf.PT_DYNAMIC ) }
rule elf_symbols { condition: elf.symtab_entries > 0 and for any symbol in elf.symtab : ( symbol.name == "main" ) }
rule elf_dynamic_symbols { condition: elf.dynsym_entries > 0 and for any symbol in elf.dynsym : ( symbol.bind == elf.STB_GLOBAL ) }
rule elf_dynamic { condition: elf.dynamic_section_entries > 1 }
rule elf_digests { condition: elf.import_md5() matches /^[0-7]/ }
rule elf_telfhash { condition: elf.telfhash() matches /./ }

rule macho_is { condition: defined macho.magic }
rule macho_fat { condition: macho.nfat_arch > 0 }
rule macho_fat_files { condition: for any file in macho.file : ( file.ncmds > 0 ) }
rule macho_fat_entry { condition: macho.entry_point_for_arch(macho.CPU_TYPE_X86) >= 0 or macho.file_index_for_arch(7) >= 0 }
rule macho_segments { condition: macho.number_of_segments > 0 and for any segment in macho.segments : ( segment.nsects > 0 ) }
rule macho_libraries { condition: for any library in macho.dylibs : ( library.name matches /usr/ ) }
rule macho_library { condition: macho.has_dylib("/usr/lib/main") or macho.has_rpath("@executable_path/../Frameworks") }
rule macho_imports { condition: macho.has_import("_main") or macho.has_export("_main") }
rule macho_digests { condition: macho.dylib_hash() matches /^[0-7]/ or macho.import_hash() matches /^[0-7]/ }
rule macho_more_digests { condition: macho.export_hash() matches /./ or macho.symhash() matches /./ }
rule macho_entitlements { condition: macho.has_entitlement("com.apple.security.app-sandbox") or macho.entitlement_hash() matches /./ }
rule macho_certificates { condition: for any certificate in macho.certificates : ( certificate.subject matches /./ ) }
rule macho_symbols { condition: macho.symtab.nsyms > 0 and for any entry in macho.symtab.entries : ( entry == "main" ) }
rule macho_entry { condition: macho.entry_point > 0 }
rule macho_build { condition: macho.build_version.ntools > 0 or macho.min_version.version matches /./ }
rule macho_options { condition: for any option in macho.linker_options : ( option matches /Cocoa/ ) }

rule lnk_is { condition: lnk.is_lnk }
rule lnk_base { condition: lnk.local_base_path matches /calc/ }
rule lnk_items { condition: for any item in lnk.target_id_list : ( item.file_entry_name matches /./ ) }
rule lnk_network { condition: for any item in lnk.target_id_list : ( item.network_location matches /server/ ) }
rule lnk_tracker { condition: lnk.tracker_data.machine_id matches /machine/ }
rule lnk_arguments { condition: lnk.cmd_line_args matches /./ or lnk.relative_path matches /./ }
rule lnk_overlay { condition: lnk.overlay_size > 0 }

rule dex_is { condition: dex.is_dex }
rule dex_strings { condition: dex.contains_string("main") }
rule dex_methods { condition: dex.contains_method("main") }
rule dex_classes { condition: dex.contains_class("main") or for any class in dex.class_defs : ( class.access_flags == 1 ) }
rule dex_protos { condition: for any proto in dex.protos : ( proto.parameters_count > 1 ) }
rule dex_sum { condition: dex.checksum() == dex.header.checksum }
rule dex_signature { condition: dex.signature() == dex.header.signature }
rule dex_map { condition: dex.map_list.size > 0 }

rule zip_is { condition: zip.is_zip }
rule zip_entries { condition: for any entry in zip.entries : ( entry.uncompressed_size > 0 and entry.file_path matches /./ ) }
rule zip_deflated { condition: for any entry in zip.entries : ( entry.compression == zip.DEFLATED ) }

rule math_entropy { condition: math.entropy(0, filesize) > 4.0 }
rule math_mean { condition: math.mean(0, filesize) > 60.0 or math.deviation(0, filesize, 64.0) > 70.0 }
rule math_chance { condition: math.monte_carlo_pi(0, filesize) < 0.3 or math.serial_correlation(0, filesize) > 0.5 }
rule math_count { condition: math.count(0x41) > math.count(0x42, 16, uint32(0)) or math.mode(uint16(2), uint16(4)) == 0 }
rule math_percentage { condition: math.percentage(0x00) > 0.5 }
rule hash_parts { condition: hash.md5(uint32(4), uint32(8)) matches /^[0-7]/ or hash.sha256(uint16(2), uint16(6)) matches /^[0-7]/ }
rule hash_sums { condition: hash.crc32(0, filesize) > 0x7fffffff or hash.checksum32(uint8(1), uint8(9)) > 1000 or hash.sha1(0, 10) matches /^0/ }
rule string_numbers { strings: $a = /0x[0-9A-F]{2}/ condition: $a and string.to_int("17") == 17 and string.length("ab") == 2 }
rule numbers { condition: uint32be(filesize - 4) > 0 and int16(uint8(3)) < 0 }
