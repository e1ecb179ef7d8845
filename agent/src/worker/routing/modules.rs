//! What the scanner's modules say of a file that they could not parse, and of which files that is certain.
//!
//! Taken from the parsers of the pinned release: each of these modules first verifies its magic at offset 0, and on any
//! error gives a message in which no field is set, but for one that says so. Its fields are then undefined, its lists
//! empty. Of all other modules, and of functions that are not listed, nothing is claimed.

use super::classes::{Class, Classes};

/// What a name below a module stands for in a file that the module could not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blank {
    /// It is undefined.
    Undefined,
    /// It is undefined, false, or the number 0.
    Zero,
    /// It may be anything.
    Anything,
}

/// In which classes a module can parse a file at all; `None` for one of which nothing is known.
#[must_use]
pub fn parses(module: &str) -> Option<Classes> {
    match module {
        // A .NET assembly is a PE file first.
        "pe" | "dotnet" => Some(Classes::of(&[Class::Pe])),
        "elf" => Some(Classes::of(&[Class::Elf])),
        "macho" => Some(Classes::of(&[Class::MachO, Class::Fat])),
        "lnk" => Some(Classes::of(&[Class::Lnk])),
        "dex" => Some(Classes::of(&[Class::Dex])),
        _ => None,
    }
}

/// A field, by its last name.
#[must_use]
pub fn field(name: &str) -> Blank {
    match name {
        "is_pe" | "is_dotnet" | "is_lnk" | "is_dex" => Blank::Zero,
        // Constants are written in capitals and are the same in every file; no field has a capital.
        _ if name.bytes().any(|byte| byte.is_ascii_uppercase()) => Blank::Anything,
        _ => Blank::Undefined,
    }
}

/// A function, by its last name.
#[must_use]
pub fn function(module: &str, name: &str) -> Blank {
    match (module, name) {
        (
            "pe",
            "is_32bit" | "is_64bit" | "is_dll" | "rva_to_offset" | "offset_to_rva" | "calculate_checksum"
            | "section_index" | "imphash" | "import_rva" | "delayed_import_rva" | "exports_index",
        )
        | ("dex", "checksum" | "signature")
        | ("macho", "entry_point_for_arch") => Blank::Undefined,
        ("pe", "imports" | "exports" | "locale" | "language" | "toolid" | "version")
        | ("macho", "has_entitlement" | "has_dylib" | "has_rpath" | "has_import" | "has_export")
        | ("dex", "contains_string" | "contains_method" | "contains_class") => Blank::Zero,
        // Such as the digest of no symbols at all, which is a text like any other.
        _ => Blank::Anything,
    }
}
