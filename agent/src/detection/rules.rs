//! Where rules come from: those built in, and files and folders of the configuration. Read here as bytes, compiled
//! only in the worker.

use super::folders::{self, Wanted, name};
use crate::worker::{RULE_FILES_MAX, RULES_BYTES_MAX, RuleSet};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

pub use crate::worker::Source;

/// Rules that ship, as `build.rs` found them: name and source.
const BUILTIN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/builtin_rules.rs"));
/// What of a folder is a rule file.
const WANTED: Wanted =
    Wanted { endings: &["yar", "yara"], entries_max: RULE_FILES_MAX, folder: "rules folder" };
/// Before the name of a rule file that is built in.
const BUILTIN_PREFIX: &str = "builtin:";

/// Where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSources {
    /// Use the rules that ship.
    pub builtin: bool,
    /// Files, or folders of which every `*.yar` and `*.yara` is used, also further down.
    pub files: Vec<PathBuf>,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In order: built in, then as configured, folders by name.
    pub sources: Vec<Source>,
    /// One sentence for each file or folder that could not be read, naming it.
    pub errors: Vec<String>,
}

impl Found {
    /// As the worker takes them.
    #[must_use]
    pub fn into_set(self) -> RuleSet {
        RuleSet::new(self.sources)
    }
}

impl RuleSources {
    /// Reads them all. What can't be read is named, the others are returned.
    #[must_use]
    pub fn load(&self) -> Found {
        let mut found = Found::default();
        if self.builtin {
            let builtin = BUILTIN
                .iter()
                .map(|(name, text)| (format!("{BUILTIN_PREFIX}{name}"), text.as_bytes().to_vec()));
            found.sources.extend(builtin.map(|(name, text)| Source { name, text }));
        }
        let mut bytes_left = RULES_BYTES_MAX
            - found.sources.iter().map(|source| source.text.len()).sum::<usize>().min(RULES_BYTES_MAX);
        // One that is named twice would clash with itself.
        for path in folders::expand(&self.files, WANTED, &mut found.errors) {
            if found.sources.len() >= RULE_FILES_MAX {
                found
                    .errors
                    .push(format!("more than {RULE_FILES_MAX} rule files: the rest is left out, join some"));
                break;
            }
            match read(&path, bytes_left) {
                Ok(text) => {
                    bytes_left -= text.len();
                    found.sources.push(Source { name: name(&path), text });
                }
                Err(error) => found.errors.push(error),
            }
        }
        found
    }
}

fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("could not read the rule file {}: {error}", name(path));
    // Not blocking, for a FIFO; a link is what the operator named.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: File =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?.into();
    let data = file.metadata().map_err(failed)?;
    if !data.is_file() {
        return Err(format!("the rule file {} is not a regular file", name(path)));
    }
    // At once, not in growing steps: there may be thousands of them.
    let size = usize::try_from(data.len()).unwrap_or(usize::MAX).min(bytes_max);
    let mut text = Vec::with_capacity(size + 1);
    file.take(bytes_max as u64 + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() > bytes_max {
        return Err(format!(
            "the rule file {} is left out: all rules together may have {RULES_BYTES_MAX} bytes",
            name(path)
        ));
    }
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_and_what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        for name in ["b.yar", "a.yara", "deep/c.yar", "readme.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let missing = folder.path().join("missing.yar");
        let files = vec![folder.path().to_owned(), missing, PathBuf::from("/dev/null")];
        let found = RuleSources { builtin: false, files }.load();
        let texts: Vec<&[u8]> = found.sources.iter().map(|source| source.text.as_slice()).collect();
        assert_eq!(texts, [b"a.yara".as_slice(), b"b.yar", b"deep/c.yar"]);
        assert_eq!(found.errors.len(), 2);
        assert!(found.errors[0].contains("missing.yar") && found.errors[1].contains("not a regular file"));
    }

    #[test]
    fn rules_are_built_in() {
        let found = RuleSources { builtin: true, files: vec![] }.load();
        assert!(!found.sources.is_empty() && found.errors.is_empty());
    }
}
