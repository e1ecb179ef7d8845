//! Which class of files some first bytes belong to. A class is nothing but a list of prefixes: it says how a file
//! begins, not that it is a valid file of that type.
//!
//! Assumes that it gets the first bytes of exactly what will be scanned. Short prefixes are on purpose: a rule that
//! asks for two bytes and one that asks for four then meet in one class, and the class of all other files is asked
//! of neither.

use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not};

/// How many first bytes tell the class; a file that is shorter gives all it has. Bytes.
pub const HEAD_BYTES: usize = 4;
/// How many classes there are.
pub const COUNT: usize = Class::ALL.len();

/// How a file begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// `MZ`: programs for DOS and Windows.
    Pe,
    /// The first two bytes of ELF.
    Elf,
    /// Mach-O of one processor, either byte order, 32 and 64 bits.
    MachO,
    /// Mach-O of several processors, and compiled Java, which begins with the same bytes.
    Fat,
    /// `PK`: zip, and the documents and programs that are zips.
    Zip,
    /// Compound files: documents and installers from before zip.
    Ole,
    /// `%P`.
    Pdf,
    /// `{\`.
    Rtf,
    /// `#!`.
    Script,
    /// Shortcuts of Windows.
    Lnk,
    /// Android's byte code.
    Dex,
    /// Everything else, and what is too short to tell.
    Other,
}

impl Class {
    /// In the order of [`Class::index`].
    pub const ALL: [Self; 12] = [
        Self::Pe,
        Self::Elf,
        Self::MachO,
        Self::Fat,
        Self::Zip,
        Self::Ole,
        Self::Pdf,
        Self::Rtf,
        Self::Script,
        Self::Lnk,
        Self::Dex,
        Self::Other,
    ];

    /// The class of a file from its first [`HEAD_BYTES`] bytes; more do no harm.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        let begins = |class: &Self| class.prefixes().iter().any(|prefix| head.starts_with(prefix));
        Self::ALL.into_iter().find(begins).unwrap_or(Self::Other)
    }

    /// From 0 to [`COUNT`] - 1.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// How its files may begin; no prefix begins with another one. `Other` has none: it is what is left.
    #[must_use]
    pub fn prefixes(self) -> &'static [&'static [u8]] {
        match self {
            Self::Pe => &[b"MZ"],
            Self::Elf => &[b"\x7fE"],
            // mach-o/loader.h: MH_MAGIC and MH_MAGIC_64, both ways round.
            Self::MachO => &[b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa", b"\xcf\xfa"],
            // mach-o/fat.h: FAT_MAGIC and FAT_MAGIC_64, both ways round.
            Self::Fat => &[b"\xca\xfe", b"\xbe\xba\xfe\xca", b"\xbf\xba\xfe\xca"],
            Self::Zip => &[b"PK"],
            Self::Ole => &[b"\xd0\xcf"],
            Self::Pdf => &[b"%P"],
            Self::Rtf => &[b"{\\"],
            Self::Script => &[b"#!"],
            // [MS-SHLLINK] 2.1: the size of the header, 0x4c.
            Self::Lnk => &[b"L\0"],
            Self::Dex => &[b"dex\n"],
            Self::Other => &[],
        }
    }
}

/// A set of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Classes(u32);

const _: () = assert!(COUNT <= 32);

impl Classes {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// All of them.
    pub const ALL: Self = Self((1 << COUNT) - 1);

    /// These.
    #[must_use]
    pub fn of(classes: &[Class]) -> Self {
        Self(classes.iter().fold(0, |bits, class| bits | 1 << class.index()))
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(self, class: Class) -> bool {
        self.0 >> class.index() & 1 == 1
    }

    /// One bit a class, the lowest for index 0.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl BitAnd for Classes {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Classes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAndAssign for Classes {
    fn bitand_assign(&mut self, other: Self) {
        self.0 &= other.0;
    }
}

impl BitOrAssign for Classes {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl Not for Classes {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0 & Self::ALL.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_class_and_the_head_is_enough_to_tell() {
        for (index, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), index);
            for prefix in class.prefixes() {
                assert!(!prefix.is_empty() && prefix.len() <= HEAD_BYTES, "{class:?}");
                assert_eq!(Class::of(prefix), class);
                for short in 0..prefix.len() {
                    assert_eq!(Class::of(&prefix[..short]), Class::Other, "{class:?} cut to {short}");
                }
                for other in Class::ALL.into_iter().flat_map(Class::prefixes) {
                    assert!(prefix == other || !other.starts_with(prefix), "{prefix:?} begins {other:?}");
                }
            }
        }
        assert_eq!(Class::of(b""), Class::Other);
        assert_eq!(Class::of(b"<html>"), Class::Other);
        assert_eq!(Class::of(b"PK\x05\x06 an empty zip"), Class::Zip);
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set = Classes::of(&[Class::Pe, Class::Other]);
        assert_eq!(Class::ALL.into_iter().filter(|class| set.contains(*class)).count(), 2);
        assert!(!(!set).contains(Class::Pe) && (!set).contains(Class::Elf));
        assert_eq!(set | !set, Classes::ALL);
        assert_eq!(set & !set, Classes::NONE);
    }
}
