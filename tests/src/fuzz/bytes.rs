//! Numbers into bytes, in either order, with places that are filled in later. Under every generator of `files`.

use rand::Rng as _;
use rand::rngs::StdRng;

/// A file that is being written.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    /// What there is so far.
    pub bytes: Vec<u8>,
    big_endian: bool,
}

impl Writer {
    /// The least significant byte first.
    #[must_use]
    pub fn little() -> Self {
        Self::default()
    }

    /// In the order that is asked for.
    #[must_use]
    pub fn ordered(big_endian: bool) -> Self {
        Self { big_endian, ..Self::default() }
    }

    /// Where the next byte goes.
    #[must_use]
    pub fn at(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() })
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() })
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() })
    }

    /// Four or eight bytes: an address.
    pub fn word(&mut self, wide: bool, value: u64) -> &mut Self {
        if wide { self.u64(value) } else { self.u32(u32::try_from(value).unwrap_or(u32::MAX)) }
    }

    /// Each as four bytes.
    pub fn u32s(&mut self, values: &[u32]) -> &mut Self {
        values.iter().for_each(|value| self.u32(*value).end());
        self
    }

    /// Each as two bytes.
    pub fn u16s(&mut self, values: &[u16]) -> &mut Self {
        values.iter().for_each(|value| self.u16(*value).end());
        self
    }

    /// As they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A text and the zero behind it.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.raw(text.as_bytes()).u8(0)
    }

    /// A text as UTF-16, without a zero.
    pub fn utf16(&mut self, text: &str) -> &mut Self {
        text.encode_utf16().for_each(|unit| self.u16(unit).end());
        self
    }

    /// Zeros.
    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.bytes.resize(self.bytes.len() + count, 0);
        self
    }

    /// Zeros up to a multiple.
    pub fn align(&mut self, to: usize) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
        self
    }

    /// Zeros up to a place.
    pub fn fill_to(&mut self, at: u32) -> &mut Self {
        self.bytes.resize(self.bytes.len().max(at as usize), 0);
        self
    }

    /// Nothing: where a closure has to give nothing.
    pub fn end(&self) {}

    /// Fills in four bytes at a place that was passed.
    pub fn put_u32(&mut self, at: u32, value: u32) {
        let bytes = if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        if let Some(place) = self.bytes.get_mut(at as usize..at as usize + 4) {
            place.copy_from_slice(&bytes);
        }
    }
}

/// A name such as programs have: short, now and then empty, long, or not of ASCII.
pub fn name(random: &mut StdRng) -> String {
    const NAMES: [&str; 12] = [
        "main",
        "KERNEL32.dll",
        "LoadLibraryA",
        "_start",
        "",
        "Ünïcode",
        ".text",
        "a/b/c",
        "libc.so.6",
        "Ljava/lang/Object;",
        "System.Object",
        "mscorlib",
    ];
    match random.random_range(0..16) {
        0 => "x".repeat(random.random_range(1..300)),
        1 => format!("name{}", random.random::<u16>()),
        at => NAMES[at % NAMES.len()].to_owned(),
    }
}

/// One of them.
pub fn one_of<T: Copy>(random: &mut StdRng, choices: &[T]) -> T {
    choices[random.random_range(0..choices.len())]
}
