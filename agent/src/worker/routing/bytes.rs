//! What a condition asks of bytes at a fixed place, and in which classes a file can have them.
//!
//! Assumes nothing of files but their class. What it answers goes to `gates`.

use super::classes::{Class, Classes, HEAD_BYTES};
use yara_x_parser::ast::{HexToken, Pattern, PatternModifier};

/// Certain bits of the bytes from some offset on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Where the first of them stands.
    pub at: usize,
    /// Each byte and which of its bits count; a byte without any stands for one that may be anything.
    pub bytes: Vec<(u8, u8)>,
}

/// In which classes a comparison of bytes can come out how; a class may be in several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// The bytes can be these.
    pub same: Classes,
    /// They can be others.
    pub different: Classes,
    /// The file can be too short to have them.
    pub short: Classes,
}

impl Fit {
    const ANY: Self = Self { same: Classes::ALL, different: Classes::ALL, short: Classes::ALL };
}

impl Want {
    /// How files of each class can fit.
    #[must_use]
    pub fn fit(&self) -> Fit {
        if self.at >= HEAD_BYTES {
            return Fit::ANY;
        }
        let other = Classes::of(&[Class::Other]);
        let mut fit = Fit { same: Classes::NONE, different: other, short: other };
        for class in Class::ALL {
            for prefix in class.prefixes() {
                self.fit_prefix(Classes::of(&[class]), prefix, &mut fit);
            }
        }
        let implied = Class::ALL.into_iter().flat_map(Class::prefixes).any(|prefix| self.implies(prefix));
        if !implied {
            fit.same |= other;
        }
        fit
    }

    fn fit_prefix(&self, class: Classes, prefix: &[u8], fit: &mut Fit) {
        let mut differs = false;
        let mut open = false;
        for (place, (value, mask)) in (self.at..).zip(&self.bytes) {
            match prefix.get(place) {
                Some(byte) => differs |= byte & mask != *value,
                None => open |= *mask != 0,
            }
        }
        if !differs {
            fit.same |= class;
        }
        if differs || open {
            fit.different |= class;
        }
        if self.at + self.bytes.len() > prefix.len() {
            fit.short |= class;
        }
    }

    /// Whether a file with these bytes certainly begins so.
    fn implies(&self, prefix: &[u8]) -> bool {
        (0..).zip(prefix).all(|(place, byte)| {
            place >= self.at && self.bytes.get(place - self.at) == Some(&(*byte, u8::MAX))
        })
    }
}

/// One of `uint8` … `int32be`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// How many bytes it reads: 1, 2 or 4.
    bytes: usize,
    signed: bool,
    big_endian: bool,
}

impl Reader {
    /// By the name of the function. Those of 64 bits are left out: what they read does not fit a literal.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (rest, big_endian) = name.strip_suffix("be").map_or((name, false), |rest| (rest, true));
        let (rest, signed) = rest.strip_prefix('u').map_or((rest, true), |rest| (rest, false));
        let bytes = match rest {
            "int8" => 1,
            "int16" => 2,
            "int32" => 4,
            _ => return None,
        };
        Some(Self { bytes, signed, big_endian })
    }

    /// What bytes it must read at `at` to give `number` in the bits of `mask`; `None` when it never does.
    #[must_use]
    pub fn wants(self, at: usize, number: i128, mask: Option<i128>) -> Option<Want> {
        let bits = 8 * self.bytes;
        let all = (1_i128 << bits) - 1;
        let pattern = match mask {
            // Bits that the sign is copied into are not asked for: only masks of what is read come here.
            Some(mask) if number & !mask != 0 => return None,
            Some(_) => number,
            None if self.signed && (-(1 << (bits - 1))..1 << (bits - 1)).contains(&number) => number & all,
            None if !self.signed && (0..=all).contains(&number) => number,
            None => return None,
        };
        let mask = mask.unwrap_or(all);
        let byte = |number: i128, shift: usize| u8::try_from(number >> shift & 0xff).unwrap_or(0);
        let mut bytes: Vec<(u8, u8)> =
            (0..bits).step_by(8).map(|shift| (byte(pattern, shift), byte(mask, shift))).collect();
        if self.big_endian {
            bytes.reverse();
        }
        Some(Want { at, bytes })
    }

    /// Whether a mask keeps within what it reads, where a sign makes no difference.
    #[must_use]
    pub fn covers(self, mask: i128) -> bool {
        (0..1 << (8 * self.bytes)).contains(&mask)
    }
}

/// All ways in which a pattern can begin, if they are few and fixed: at least one of them fits wherever it matches.
#[must_use]
pub fn beginnings(pattern: &Pattern<'_>) -> Option<Vec<Vec<(u8, u8)>>> {
    match pattern {
        Pattern::Hex(hex) => Some(vec![hex_beginning(hex.sub_patterns.iter())]),
        Pattern::Text(text) => text_beginnings(&text.text.value, text.modifiers.iter()),
        // An expression may begin in many ways.
        Pattern::Regexp(_) => None,
    }
}

fn hex_beginning<'a>(tokens: impl Iterator<Item = &'a HexToken>) -> Vec<(u8, u8)> {
    let mut bytes = Vec::new();
    for token in tokens {
        match token {
            HexToken::Byte(byte) => bytes.push((byte.value & byte.mask, byte.mask)),
            HexToken::NotByte(_) => bytes.push((0, 0)),
            // Where the next byte stands is not fixed any more.
            HexToken::Alternative(_) | HexToken::Jump(_) => break,
        }
        if bytes.len() == HEAD_BYTES {
            break;
        }
    }
    bytes
}

fn text_beginnings<'a>(
    text: &[u8],
    modifiers: impl Iterator<Item = &'a PatternModifier<'a>>,
) -> Option<Vec<Vec<(u8, u8)>>> {
    let (mut ascii, mut wide, mut nocase) = (false, false, false);
    for modifier in modifiers {
        match modifier {
            PatternModifier::Ascii { .. } => ascii = true,
            PatternModifier::Wide { .. } => wide = true,
            PatternModifier::Nocase { .. } => nocase = true,
            PatternModifier::Private { .. } | PatternModifier::Fullword { .. } => {}
            PatternModifier::Base64 { .. }
            | PatternModifier::Base64Wide { .. }
            | PatternModifier::Xor { .. } => return None,
        }
    }
    let mask = |byte: u8| if nocase && byte.is_ascii_alphabetic() { !0x20 } else { u8::MAX };
    let narrow = text.iter().map(|byte| (byte & mask(*byte), mask(*byte)));
    let mut ways = Vec::new();
    if ascii || !wide {
        ways.push(narrow.clone().take(HEAD_BYTES).collect());
    }
    if wide {
        ways.push(narrow.flat_map(|byte| [byte, (0, u8::MAX)]).take(HEAD_BYTES).collect());
    }
    Some(ways)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn readers_want_bytes_in_their_order() {
        let want = |name: &str, number| Reader::named(name).unwrap().wants(0, number, None);
        let values = |want: Want| want.bytes.iter().map(|(value, _)| *value).collect::<Vec<u8>>();
        assert_eq!(values(want("uint16", 0x5A4D).unwrap()), b"MZ");
        assert_eq!(values(want("uint16be", 0x4D5A).unwrap()), b"MZ");
        assert_eq!(values(want("int32", -2).unwrap()), [0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(values(want("int8", -1).unwrap()), [0xff]);
        for (name, number) in
            [("uint8", 256), ("uint8", -1), ("int8", 255), ("uint32", 0x4_464C_457F), ("int16", 0x8000)]
        {
            assert_eq!(want(name, number), None, "{name} never gives {number}");
        }
        for name in ["uint64", "int", "uint16le", "be", ""] {
            assert_eq!(Reader::named(name), None, "{name}");
        }
    }

    #[test]
    fn a_mask_leaves_bits_open() {
        let reader = Reader::named("uint16").unwrap();
        assert_eq!(reader.wants(0, 0x4D, Some(0xFF)).unwrap().bytes, [(0x4D, 0xFF), (0, 0)]);
        assert_eq!(reader.wants(0, 0x14D, Some(0xFF)), None);
        assert!(reader.covers(0xFFFF) && !reader.covers(0x1_0000) && !reader.covers(-1));
    }

    #[test]
    fn what_fits_a_class_is_told_byte_by_byte() {
        let want = |at, text: &[u8]| Want { at, bytes: text.iter().map(|byte| (*byte, 0xFF)).collect() };
        let pe = Classes::of(&[Class::Pe]);
        let other = Classes::of(&[Class::Other]);
        assert_eq!(want(0, b"MZ").fit(), Fit { same: pe, different: !pe, short: other });
        assert_eq!(want(0, b"MZ\x90\0").fit().same, pe);
        assert!(want(0, b"MZ\x90\0").fit().short.contains(Class::Pe));
        assert_eq!(want(0, b"M").fit().same, pe | other, "a file may begin with M alone");
        assert_eq!(want(0, b"<?ph").fit().same, other);
        assert_eq!(want(1, b"Z").fit().same & pe, pe);
        assert!(want(1, b"Z").fit().same.contains(Class::Other));
        assert!(!want(1, b"Z").fit().same.contains(Class::Elf));
        assert_eq!(want(2, b"\x03\x04").fit().same & (pe | other), pe | other);
        assert!(!want(2, b"\x03\x04").fit().same.contains(Class::Dex));
        assert_eq!(want(9, b"MZ").fit(), Fit::ANY);
        assert_eq!(want(0, b"\xfe\xed").fit().same, Classes::of(&[Class::MachO, Class::Other]));
    }
}
