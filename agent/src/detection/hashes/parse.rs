//! One line of a hash list to digests and a name. Pure: bytes in, entries out, no state but what a header said.
//!
//! A list is what people have: bare digests, the output of `sha256sum` and its like, `digest,name`, or CSV with a
//! header, also one in a comment and with every field quoted. A line that is none of these is a mistake and costs only
//! itself. A quoted field does not go over the end of a line. Entries go to `read`.

use super::Kind;
use data_encoding::HEXLOWER_PERMISSIVE;
use std::borrow::Cow;
use vidette_protocol::limits::NAME_BYTES_MAX;

/// A longer line is a mistake. Bytes, without its end.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Columns of a CSV file that are looked at.
const COLUMNS_MAX: usize = 256;

/// What a column may be called, without case and punctuation, that says what was found; the first that is filled names
/// the entry.
const NAME_COLUMNS: [&str; 14] = [
    "name",
    "signature",
    "malware",
    "malwarename",
    "family",
    "threat",
    "detection",
    "label",
    "filename",
    "file",
    "path",
    "title",
    "description",
    "comment",
];
/// Columns with a digest of a kind that its length tells.
const DIGEST_COLUMNS: [&str; 6] = ["hash", "digest", "checksum", "filehash", "indicator", "ioc"];

/// Why a line is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Longer than [`LINE_BYTES_MAX`].
    #[error("longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// Text has none.
    #[error("holds a NUL: is the file text, in UTF-8?")]
    Nul,
    /// Hexadecimal digits in a number that no digest has.
    #[error("{0} hexadecimal digits: 32, 40 or 64 are a digest")]
    Length(usize),
    /// Something else where the digest should be.
    #[error("no digest")]
    NoDigest,
    /// A digest of another kind than its column or mark says.
    #[error("not as long as a digest of its kind is")]
    OtherKind,
}

/// What a line was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Empty, a comment or a header.
    Nothing,
    /// At least one digest was handed over.
    Entries,
    /// A mistake.
    Bad(Mistake),
}

/// Reads the lines of one file in order.
#[derive(Debug, Default)]
pub struct Parser {
    /// 64 digits are BLAKE3, because the file says so.
    blake3: bool,
    columns: Option<Columns>,
    begun: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Columns {
    delimiter: u8,
    /// Where digests are, and of which kind; by length where the header doesn't say.
    digests: Vec<(usize, Option<Kind>)>,
    /// Where names are, the best first.
    names: Vec<usize>,
}

impl Parser {
    /// Takes the next line, with or without its end; `entry` gets kind, digest and name for each digest in it. A name is
    /// at most [`NAME_BYTES_MAX`] long and may be empty.
    pub fn line(&mut self, line: &[u8], entry: &mut impl FnMut(Kind, &[u8], &str)) -> Line {
        let mut line = line;
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.len() > LINE_BYTES_MAX + 2 {
            return Line::Bad(Mistake::TooLong);
        }
        let line = line.trim_ascii();
        match line.first() {
            None => return Line::Nothing,
            Some(b'#' | b';') => {
                self.comment(line);
                return Line::Nothing;
            }
            Some(_) if line.contains(&0) => return Line::Bad(Mistake::Nul),
            Some(_) => {}
        }
        let row = self.columns.as_ref().is_some_and(|columns| columns.row(line, self.blake3, entry));
        if row {
            return Line::Entries;
        }
        match plain(line, self.blake3, entry) {
            Ok(()) => Line::Entries,
            Err(mistake) => match Columns::of(line) {
                Some(columns) => {
                    self.columns = Some(columns);
                    Line::Nothing
                }
                None => Line::Bad(mistake),
            },
        }
    }

    /// `# algorithm: blake3`, or the header of the columns below.
    fn comment(&mut self, line: &[u8]) {
        let start = line.iter().position(|byte| !matches!(byte, b'#' | b';' | b' ' | b'\t'));
        let Some(text) = start.and_then(|start| line.get(start..)) else { return };
        if let Some((key, value)) = split_at_byte(text, |byte| matches!(byte, b':' | b'=')) {
            let (key, value) = (plain_word(key), plain_word(value));
            if key == "algorithm" && (value == "blake3" || value == "sha256") {
                self.blake3 = value == "blake3";
                return;
            }
        }
        // A single word is prose.
        if let Some(columns) =
            Columns::of(text).filter(|columns| columns.digests.len() + columns.names.len() > 1)
        {
            self.columns = Some(columns);
        }
    }
}

impl Columns {
    /// The columns, when the line is a header with a digest among them.
    fn of(line: &[u8]) -> Option<Self> {
        [b',', b';', b'\t'].into_iter().find_map(|delimiter| {
            let fields = fields(line, delimiter)?;
            let words: Vec<String> = fields.iter().map(|field| plain_word(field)).collect();
            let digests: Vec<_> = words
                .iter()
                .enumerate()
                .filter_map(|(at, word)| digest_column(word).map(|kind| (at, kind)))
                .collect();
            let names = NAME_COLUMNS.iter().filter_map(|name| words.iter().position(|word| word == name));
            let names = names.collect();
            (!digests.is_empty()).then_some(Self { delimiter, digests, names })
        })
    }

    /// Whether the line had a digest in one of the columns.
    fn row(&self, line: &[u8], blake3: bool, entry: &mut impl FnMut(Kind, &[u8], &str)) -> bool {
        let Some(fields) = fields(line, self.delimiter) else { return false };
        let filled = |at: &usize| fields.get(*at).filter(|field| !is_void(field));
        let name = self.names.iter().find_map(filled).map_or(Cow::Borrowed(""), |field| text(field));
        let mut any = false;
        for (at, kind) in &self.digests {
            let Some(field) = fields.get(*at) else { continue };
            if let Ok((kind, digest)) = decode(field, *kind, blake3) {
                entry(kind, digest.get(..kind.bytes()).unwrap_or_default(), &name);
                any = true;
            }
        }
        any
    }
}

/// `None`: no column of digests. `Some(None)`: of a kind that the length tells.
fn digest_column(word: &str) -> Option<Option<Kind>> {
    let kind = Kind::ALL.into_iter().find(|kind| {
        let name = kind.word();
        let rest = word.strip_prefix(name).or_else(|| word.strip_suffix(name));
        rest.is_some_and(|rest| ["", "hash", "digest", "sum", "file", "filehash"].contains(&rest))
    });
    match kind {
        Some(kind) => Some(Some(kind)),
        None => DIGEST_COLUMNS.contains(&word).then_some(None),
    }
}

/// A line without columns: a digest, and what follows it.
fn plain(line: &[u8], blake3: bool, entry: &mut impl FnMut(Kind, &[u8], &str)) -> Result<(), Mistake> {
    if line.starts_with(b"\"") {
        return quoted(line, blake3, entry);
    }
    if let Some((kind, name, digest)) = tagged(line) {
        let (kind, digest) = decode(digest, Some(kind), blake3)?;
        entry(kind, digest.get(..kind.bytes()).unwrap_or_default(), &text(name));
        return Ok(());
    }
    // sha256sum(1) begins a line with `\` when it has escaped the name in it.
    let line = line.strip_prefix(b"\\").unwrap_or(line);
    let (kind, line) = marked(line);
    let length = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digest, rest) = line.split_at(length);
    let name = match rest {
        [] => rest,
        [b' ', b'*', name @ ..] => name,
        [b' ' | b'\t', name @ ..] => name,
        [delimiter @ (b',' | b';'), after @ ..] => {
            return after_delimiter(digest, kind, blake3, *delimiter, after, entry);
        }
        _ => return Err(Mistake::NoDigest),
    };
    let (kind, digest) = decode(digest, kind, blake3)?;
    entry(kind, digest.get(..kind.bytes()).unwrap_or_default(), &text(name));
    Ok(())
}

/// `digest,name,…` without a header: the first field after it that says something.
fn after_delimiter(
    digest: &[u8],
    kind: Option<Kind>,
    blake3: bool,
    delimiter: u8,
    rest: &[u8],
    entry: &mut impl FnMut(Kind, &[u8], &str),
) -> Result<(), Mistake> {
    let (kind, digest) = decode(digest, kind, blake3)?;
    let fields = fields(rest, delimiter).unwrap_or_else(|| vec![Cow::Borrowed(rest)]);
    let name = fields.iter().find(|field| !is_void(field)).map_or(Cow::Borrowed(""), |field| text(field));
    entry(kind, digest.get(..kind.bytes()).unwrap_or_default(), &name);
    Ok(())
}

/// `"digest","name"` without a header.
fn quoted(line: &[u8], blake3: bool, entry: &mut impl FnMut(Kind, &[u8], &str)) -> Result<(), Mistake> {
    let mut mistake = Mistake::NoDigest;
    for delimiter in *b",;\t" {
        let Some(fields) = fields(line, delimiter) else { continue };
        let Some((first, others)) = fields.split_first() else { continue };
        match decode(first, None, blake3) {
            Ok((kind, digest)) => {
                let name = others.iter().find(|field| !is_void(field));
                let name = name.map_or(Cow::Borrowed(""), |field| text(field));
                entry(kind, digest.get(..kind.bytes()).unwrap_or_default(), &name);
                return Ok(());
            }
            Err(error) => mistake = error,
        }
    }
    Err(mistake)
}

/// `SHA256 (name) = digest`, as `sha256sum --tag` and `b3sum --tag` write it.
fn tagged(line: &[u8]) -> Option<(Kind, &[u8], &[u8])> {
    let (word, rest) = split_at_byte(line, |byte| byte == b' ')?;
    let kind = Kind::ALL.into_iter().find(|kind| word.eq_ignore_ascii_case(kind.word().as_bytes()))?;
    let rest = rest.trim_ascii_start().strip_prefix(b"(")?;
    let end = rest.windows(4).rposition(|four| four == b") = ")?;
    Some((kind, rest.get(..end)?, rest.get(end + 4..)?.trim_ascii()))
}

/// `blake3:digest`
fn marked(line: &[u8]) -> (Option<Kind>, &[u8]) {
    let mark = split_at_byte(line, |byte| byte == b':');
    let found = mark.and_then(|(word, rest)| {
        let kind = Kind::ALL.into_iter().find(|kind| word.eq_ignore_ascii_case(kind.word().as_bytes()))?;
        Some((Some(kind), rest.trim_ascii_start()))
    });
    found.unwrap_or((None, line))
}

fn decode(hex: &[u8], kind: Option<Kind>, blake3: bool) -> Result<(Kind, [u8; 32]), Mistake> {
    let hex = hex.trim_ascii();
    if hex.is_empty() || !hex.iter().all(u8::is_ascii_hexdigit) {
        return Err(Mistake::NoDigest);
    }
    let by_length = match hex.len() {
        32 => Kind::Md5,
        40 => Kind::Sha1,
        64 if blake3 => Kind::Blake3,
        64 => Kind::Sha256,
        length => return Err(Mistake::Length(length)),
    };
    let kind = kind.unwrap_or(by_length);
    if 2 * kind.bytes() != hex.len() {
        return Err(Mistake::OtherKind);
    }
    let mut digest = [0; 32];
    let (target, _) = digest.split_at_mut(kind.bytes());
    HEXLOWER_PERMISSIVE.decode_mut(hex, target).map_err(|_| Mistake::NoDigest)?;
    Ok((kind, digest))
}

/// The fields of a row (RFC 4180, and white space around quotes); `None` when a quote does not end.
fn fields(line: &[u8], delimiter: u8) -> Option<Vec<Cow<'_, [u8]>>> {
    let mut fields = Vec::new();
    let mut rest = Some(line);
    while let Some(text) = rest {
        if fields.len() >= COLUMNS_MAX {
            break;
        }
        let start = text.trim_ascii_start();
        let (field, after) = match start.strip_prefix(b"\"") {
            // A tab that delimits must not be trimmed away.
            Some(inside) if delimiter != b'\t' || text.len() == start.len() => unquote(inside)?,
            Some(_) | None => {
                let end = text.iter().position(|byte| *byte == delimiter).unwrap_or(text.len());
                let (field, after) = text.split_at(end);
                (Cow::Borrowed(field.trim_ascii()), after)
            }
        };
        fields.push(field);
        rest = split_at_byte(after, |byte| byte == delimiter).map(|(_, after)| after);
    }
    Some(fields)
}

/// From behind the first quote to the one that ends it, and what follows.
fn unquote(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let end = text.iter().position(|byte| *byte == b'"')?;
    let (first, rest) = (text.get(..end)?, text.get(end + 1..)?);
    if rest.first() != Some(&b'"') {
        return Some((Cow::Borrowed(first), rest));
    }
    let (mut field, mut rest) = (first.to_vec(), rest);
    while let Some(again) = rest.strip_prefix(b"\"") {
        let end = again.iter().position(|byte| *byte == b'"')?;
        field.push(b'"');
        field.extend_from_slice(again.get(..end)?);
        rest = again.get(end + 1..)?;
    }
    Some((Cow::Owned(field), rest))
}

fn split_at_byte(text: &[u8], is: impl Fn(u8) -> bool) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| is(*byte))?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// In lower case, with letters and digits only.
fn plain_word(field: &[u8]) -> String {
    let kept = field.iter().take(NAME_BYTES_MAX).filter(|byte| byte.is_ascii_alphanumeric());
    kept.map(|byte| char::from(byte.to_ascii_lowercase())).collect()
}

/// What dumps write where they know nothing.
fn is_void(field: &[u8]) -> bool {
    let field = field.trim_ascii();
    field.is_empty()
        || field == b"-"
        || [b"n/a".as_slice(), b"null", b"none"].iter().any(|word| field.eq_ignore_ascii_case(word))
}

/// A name as text, without quotes around it, clipped.
fn text(name: &[u8]) -> Cow<'_, str> {
    let name = name.trim_ascii();
    let name = name.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\"")).unwrap_or(name);
    // What is clipped away anyway need not be read as text; a character has at most four bytes.
    match String::from_utf8_lossy(name.get(..NAME_BYTES_MAX + 4).unwrap_or(name)) {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..text.floor_char_boundary(NAME_BYTES_MAX)]),
        Cow::Owned(mut text) => {
            text.truncate(text.floor_char_boundary(NAME_BYTES_MAX));
            Cow::Owned(text)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    const A: &str = "aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899";

    fn read(lines: &[&[u8]]) -> (Vec<String>, Vec<Mistake>) {
        let (mut parser, mut entries, mut mistakes) = (Parser::default(), vec![], vec![]);
        for line in lines {
            let mut found = 0;
            let line = parser.line(line, &mut |kind, digest, name| {
                found += 1;
                assert_eq!(digest.len(), kind.bytes());
                assert_eq!(HEXLOWER_PERMISSIVE.encode(digest), A[..2 * kind.bytes()]);
                entries.push(format!("{}={name}", kind.word()));
            });
            assert_eq!(found > 0, line == Line::Entries);
            if let Line::Bad(mistake) = line {
                mistakes.push(mistake);
            }
        }
        (entries, mistakes)
    }

    fn check(lines: &str, expected: &[&str]) {
        let lines: Vec<String> = lines
            .split('\n')
            .map(|line| line.replace("S256", A).replace("S1", &A[..40]).replace("M5", &A[..32]))
            .collect();
        let bytes: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        assert_eq!(read(&bytes), (expected.iter().map(ToString::to_string).collect(), vec![]), "{lines:#?}");
    }

    #[test]
    fn what_people_have_is_read() {
        check("M5\nS1\nS256", &["md5=", "sha1=", "sha256="]);
        check("\u{feff}S256\r\n\r\n  \t\r\n# comment\n; comment", &["sha256="]);
        check(&format!("{}  UPPER", A.to_uppercase()), &["sha256=UPPER"]);
        check(
            "S256  a name.exe\nS256 *bin.exe\nS256\ttab",
            &["sha256=a name.exe", "sha256=bin.exe", "sha256=tab"],
        );
        check("\\S256  a\\nb", &["sha256=a\\nb"]);
        check(
            "S256,x\nS1;y\nM5, \"a, \"\"b\"\"\" ,z\nM5,,n/a,q",
            &["sha256=x", "sha1=y", "md5=a, \"b\"", "md5=q"],
        );
        check("\"S256\",\"Emotet\"\n\"M5\"", &["sha256=Emotet", "md5="]);
        check("# algorithm: BLAKE3\nS256 x\n# algorithm = sha256\nS256 y", &["blake3=x", "sha256=y"]);
        check("blake3:S256 x\nMD5:M5", &["blake3=x", "md5="]);
        check("BLAKE3 (a (b) = c) = S256\nSHA1 (x) = S1", &["blake3=a (b) = c", "sha1=x"]);
        check("sha256\nS256\nS256  n", &["sha256=", "sha256=n"]);
        check("# sha256, and so on\nS256  n, m", &["sha256=n, m"]);
    }

    #[test]
    fn columns_are_found_by_their_names() {
        check("name,sha256\nx,S256\n\"y, z\",S256", &["sha256=x", "sha256=y, z"]);
        check("SHA-1;File Name;BLAKE3\nS1;f;S256", &["sha1=f", "blake3=f"]);
        check("description\tMD5\nwords\tM5\n\tM5", &["md5=words", "md5="]);
        check("hash,label\nM5,a\nS1,b\nS256,c", &["md5=a", "sha1=b", "sha256=c"]);
        check("imphash,sha3_384,sha512,md5\nM5,S256,S256,M5", &["md5="]);
        // The head of a dump of MalwareBazaar: quoted, the header in a comment, `n/a` for what is not known.
        check(
            "################\n# Dump (CSV)   #\n#\n# \"first_seen_utc\",\"sha256_hash\",\"md5_hash\",\"sha1_hash\",\"reporter\",\"file_name\",\"signature\"\n\"2020-01-01 00:00:00\", \"S256\", \"M5\", \"S1\", \"someone\", \"a.exe\", \"Mirai\"\n\"2020-01-01 00:00:00\", \"S256\", \"n/a\", \"\", \"someone\", \"b.exe\", \"n/a\"",
            &["sha256=Mirai", "md5=Mirai", "sha1=Mirai", "sha256=b.exe"],
        );
    }

    #[test]
    fn hostile_lines_are_mistakes_and_nothing_else() {
        let long = vec![b'a'; LINE_BYTES_MAX + 3];
        let cases: [(&[u8], Mistake); 12] = [
            (&long, Mistake::TooLong),
            (&long[..LINE_BYTES_MAX], Mistake::Length(LINE_BYTES_MAX)),
            (&[A.as_bytes(), b"\0"].concat(), Mistake::Nul),
            (b"\xff\xfea\0a\0", Mistake::Nul),
            (b"\xff\xff\xff", Mistake::NoDigest),
            (&A.as_bytes()[..63], Mistake::Length(63)),
            (&A.as_bytes()[..2], Mistake::Length(2)),
            (b"zz  name", Mistake::NoDigest),
            (&[&A.as_bytes()[..32], b"x"].concat(), Mistake::NoDigest),
            (&[b"\"", A.as_bytes()].concat(), Mistake::NoDigest),
            (&[b"md5:", A.as_bytes()].concat(), Mistake::OtherKind),
            (b",,,,", Mistake::NoDigest),
        ];
        for (line, mistake) in cases {
            assert_eq!(read(&[line]), (vec![], vec![mistake]), "{:?}", line.get(..80).unwrap_or(line));
        }
        let name = [A.as_bytes(), b"  ", &vec![0xffu8; LINE_BYTES_MAX - 66]].concat();
        let (entries, mistakes) = read(&[&name]);
        assert!(mistakes.is_empty() && entries[0].len() <= "sha256=".len() + NAME_BYTES_MAX);
    }

    #[test]
    fn no_bytes_break_it() {
        for seed in 0..20_000u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let pieces: [&[u8]; 14] = [
                b"\"",
                b",",
                b";",
                b"\t",
                b" ",
                b"#",
                A.as_bytes(),
                &A.as_bytes()[..32],
                b"sha256",
                b"name",
                b":",
                b"\\",
                b"\xff",
                b"SHA1 (x) = ",
            ];
            let mut parser = Parser::default();
            for _ in 0..4 {
                let line: Vec<u8> = (0..random.random_range(0..12))
                    .flat_map(|_| pieces[random.random_range(0..pieces.len())].to_vec())
                    .collect();
                let mut found = false;
                let line = parser.line(&line, &mut |kind, digest, name| {
                    found = true;
                    assert!(digest.len() == kind.bytes() && name.len() <= NAME_BYTES_MAX, "seed {seed}");
                });
                assert_eq!(found, line == Line::Entries, "seed {seed}");
            }
        }
    }
}
