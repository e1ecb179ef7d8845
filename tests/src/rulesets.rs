//! Rule sets of a wanted size out of a folder of public rules, the same for every tool that is measured and in every run.

use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the rules are, unless `VIDETTE_RULESETS` says otherwise; from the workspace's folder.
const FOLDER: &str = "../shared/data/rulesets";

/// A set may be larger than wanted by this part of it.
pub const OVER: usize = 8;

/// Rules in a folder of their own; each file is a namespace.
#[derive(Debug)]
pub struct Set {
    /// Holds `files` and nothing else.
    pub folder: PathBuf,
    /// In order of name.
    pub files: Vec<PathBuf>,
    /// How many rules they hold, as counted by [`count`].
    pub rules: usize,
}

/// Every rule file that all tools can compile.
#[derive(Debug)]
pub struct Stock {
    /// What it says, and how many rules that is; in an order drawn from the content.
    texts: Vec<(Vec<u8>, usize)>,
    /// Files that some tool could not compile.
    pub left_out: usize,
    /// Rules of those.
    pub rules_left_out: usize,
}

/// The folder of public rules.
///
/// # Errors
/// When it is not there.
pub fn folder() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("VIDETTE_RULESETS").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FOLDER);
    let folder = named.unwrap_or_else(beside);
    folder.canonicalize().with_context(|| {
        format!("there are no rules in {}: name a folder in VIDETTE_RULESETS", folder.display())
    })
}

impl Stock {
    /// Reads every `*.yar` and `*.yara` below `from` and keeps what `accepts` takes; it is asked for many files at once, and for
    /// fewer where it says no.
    ///
    /// # Errors
    /// When a file can't be read, `accepts` fails, or nothing is left.
    pub fn read(
        from: &Path,
        mut accepts: impl FnMut(&[PathBuf]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Self> {
        let files = sources(from)?;
        let accepted = accepted(&files, &mut accepts)?;
        let mut stock = Self { texts: Vec::new(), left_out: 0, rules_left_out: 0 };
        for path in &files {
            let text = fs::read(path)?;
            let rules = count(&text);
            if accepted.contains(&path) {
                stock.texts.push((text, rules));
            } else {
                stock.left_out += 1;
                stock.rules_left_out += rules;
            }
        }
        ensure!(!stock.texts.is_empty(), "no rule file of {} can be used", from.display());
        // Not by name, or a small set would be all of one publisher.
        stock.texts.sort_by_cached_key(|(text, _)| *blake3::hash(text).as_bytes());
        Ok(stock)
    }

    /// Writes a set of about `rules` rules into `folder`: files in order until there are as many, passing over those that would
    /// make it larger than [`OVER`] allows.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn set(&self, folder: &Path, rules: usize) -> anyhow::Result<Set> {
        fs::create_dir_all(folder)?;
        let mut set = Set { folder: folder.to_owned(), files: Vec::new(), rules: 0 };
        for (text, count) in &self.texts {
            if set.rules < rules && set.rules + count <= rules + rules / OVER {
                let path = folder.join(format!("{:04}.yar", set.files.len()));
                fs::write(&path, text)?;
                set.files.push(path);
                set.rules += count;
            }
        }
        Ok(set)
    }
}

/// Those of `files` that `accepts` takes, which is asked for all at once, and for halves where it says no.
///
/// # Errors
/// When `accepts` fails.
pub fn accepted<'a>(
    files: &'a [PathBuf],
    accepts: &mut impl FnMut(&[PathBuf]) -> anyhow::Result<bool>,
) -> anyhow::Result<BTreeSet<&'a PathBuf>> {
    if files.is_empty() || accepts(files)? {
        return Ok(files.iter().collect());
    }
    if files.len() == 1 {
        return Ok(BTreeSet::new());
    }
    let (left, right) = files.split_at(files.len() / 2);
    let mut both = accepted(left, accepts)?;
    both.extend(accepted(right, accepts)?);
    Ok(both)
}

fn sources(from: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut folders, mut found) = (vec![from.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("could not read {}", folder.display()))? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "yar" || end == "yara") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// How many lines begin a rule, outside block comments: enough to size a set; the scanner says how many rules it really is.
#[must_use]
pub fn count(text: &[u8]) -> usize {
    let text = String::from_utf8_lossy(text);
    let (mut commented, mut count) = (false, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace().skip_while(|word| matches!(*word, "private" | "global"));
        if !commented && words.next() == Some("rule") && words.next().is_some() {
            count += 1;
        }
        let last = |mark| line.rfind(mark).map_or(-1, |at| i64::try_from(at).unwrap_or(i64::MAX));
        let (opened, closed) = (last("/*"), last("*/"));
        // A mark within a string or a line comment says nothing; a line that is all comment begins with it.
        if closed > opened {
            commented = false;
        } else if opened >= 0 && line.trim_start().starts_with("/*") {
            commented = true;
        }
    }
    count
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_counted_outside_comments() {
        let text = b"/*\nrule no { }\n*/\nrule a\n{ }\n/* x */ \nprivate global rule b : tag {\n strings: $a = \"/*\"\n}\nrule c { }\n// rule d\n";
        assert_eq!(count(text), 3);
    }

    #[test]
    fn a_set_is_as_large_as_wanted_and_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("deep")).unwrap();
        for number in 0..20 {
            let text =
                "rule a {\n condition: true }\nprivate rule b { condition: true }\n".repeat(number % 3 + 1);
            fs::write(from.join(format!("deep/{number}.yar")), format!("{text}// {number}")).unwrap();
        }
        fs::write(from.join("bad.yar"), "rule x {").unwrap();
        fs::write(from.join("readme.txt"), "rule y {").unwrap();
        let stock =
            Stock::read(&from, |files| Ok(!files.iter().any(|path| path.ends_with("bad.yar")))).unwrap();
        assert_eq!((stock.left_out, stock.rules_left_out), (1, 1));
        let sets: Vec<Set> =
            ["one", "two"].iter().map(|name| stock.set(&folder.path().join(name), 30).unwrap()).collect();
        assert_eq!((sets[0].rules, sets[0].files.len()), (30, sets[1].files.len()));
        for (a, b) in sets[0].files.iter().zip(&sets[1].files) {
            assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
        }
    }
}
