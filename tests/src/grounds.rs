//! Trees of files that benchmarks scan: a part of this machine, a sample of it, and generated scripts. A tree is walked once, so that
//! everybody is measured against the same list; generated content comes from a fixed seed.

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of generated trees.
const SEED: u64 = 4;
/// Size of a generated script. Bytes.
const SCRIPT_BYTES: std::ops::RangeInclusive<usize> = 512..=4096;
const FILES_A_FOLDER: usize = 100;
/// First lines, so that a scanner that tells types apart has something to tell.
const FIRST_LINES: [&str; 6] = [
    "#!/bin/sh\nset -eu\n",
    "#!/usr/bin/env python3\nimport os, sys\n",
    "#!/usr/bin/perl\nuse strict;\n",
    "<?php\ndeclare(strict_types=1);\n",
    "'use strict';\nconst fs = require('fs');\n",
    "#!/bin/bash\n",
];
const WORDS: [&str; 20] = [
    "if",
    "then",
    "fi\n",
    "echo",
    "\"$name\"",
    "for",
    "in",
    "do",
    "done\n",
    "return",
    "=",
    "(",
    ");\n",
    "value",
    "path",
    "print",
    "/usr/lib",
    "-eq",
    "0",
    "# next\n",
];

/// A tree.
#[derive(Debug)]
pub struct Ground {
    /// For a table.
    pub name: String,
    /// Where it is.
    pub root: PathBuf,
    /// Folders and files that together hold every file of `files` and no other.
    pub paths: Vec<PathBuf>,
    /// Every regular file up to the size limit, of one file system; links are not followed.
    pub files: Vec<PathBuf>,
    /// Of all files. Bytes.
    pub bytes: u64,
    /// Larger files, which nobody is to scan.
    pub left_out: usize,
}

impl Ground {
    /// Everything below `root`, but no file above `size_max_bytes`.
    ///
    /// # Errors
    /// When a folder can't be read.
    pub fn of(name: &str, root: &Path, size_max_bytes: u64) -> anyhow::Result<Self> {
        let root = root.canonicalize().with_context(|| format!("could not find {}", root.display()))?;
        let mut ground = Self {
            name: name.to_owned(),
            root: root.clone(),
            paths: Vec::new(),
            files: Vec::new(),
            bytes: 0,
            left_out: 0,
        };
        let device = fs::metadata(&root)?.dev();
        ground.paths = ground.walk(&root, device, size_max_bytes)?.unwrap_or_else(|| vec![root]);
        ensure!(!ground.files.is_empty(), "there is no file below {}", ground.root.display());
        Ok(ground)
    }

    /// The parts of a folder that may be scanned; `None` when that is the folder as a whole.
    fn walk(&mut self, folder: &Path, device: u64, max: u64) -> anyhow::Result<Option<Vec<PathBuf>>> {
        let (mut parts, mut whole) = (Vec::new(), true);
        let entries = fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() && meta.dev() == device {
                match self.walk(&path, device, max)? {
                    None => parts.push(path),
                    Some(inner) => {
                        whole = false;
                        parts.extend(inner);
                    }
                }
            } else if meta.is_file() && meta.len() > max {
                whole = false;
                self.left_out += 1;
            } else if meta.is_file() {
                self.bytes += meta.len();
                self.files.push(path.clone());
                parts.push(path);
            }
        }
        Ok((!whole).then_some(parts))
    }

    /// Copies every `step`th file below `folder`, with its folders.
    ///
    /// # Errors
    /// When a file can't be copied.
    pub fn sample(&self, folder: &Path, step: usize) -> anyhow::Result<()> {
        for path in self.files.iter().step_by(step.max(1)) {
            let to = folder.join(path.strip_prefix("/").unwrap_or(path));
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::copy(path, &to).with_context(|| format!("could not copy {}", path.display()))?;
        }
        Ok(())
    }

    /// MB, as in a million bytes.
    #[must_use]
    pub fn megabytes(&self) -> f64 {
        self.bytes as f64 / 1e6
    }
}

/// Writes `count` small scripts into `folder`.
///
/// # Errors
/// The system's.
pub fn scripts(folder: &Path, count: usize) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(SEED);
    for number in 0..count {
        let inner = folder.join(format!("folder-{}", number / FILES_A_FOLDER));
        if number % FILES_A_FOLDER == 0 {
            fs::create_dir_all(&inner)?;
        }
        let size = random.random_range(SCRIPT_BYTES);
        let mut text = String::with_capacity(size + 64);
        text.push_str(FIRST_LINES[number % FIRST_LINES.len()]);
        words(&mut random, &mut text, size);
        fs::write(inner.join(format!("script-{number}")), text)?;
    }
    Ok(())
}

/// Beginnings of files of many types; what follows is words or noise.
const TYPES: [(&str, &[u8]); 8] = [
    ("script", b"#!/bin/sh\nset -eu\n"),
    ("elf", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0"),
    ("pe", b"MZ"),
    ("zip", b"PK\x03\x04\x14\0\0\0\x08\0"),
    ("ole", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"),
    ("mach-o", b"\xcf\xfa\xed\xfe\x07\0\0\x01\x03\0\0\0\x02\0\0\0"),
    ("text", b""),
];
/// Where a generated PE says that its header is.
const PE_AT: usize = 0x80;

/// Writes `count` files of `size` bytes and of many types in turn into `folder`: half of them words, half of them noise after
/// their first bytes; the ELF ones are this program's own beginning. Gives their paths.
///
/// # Errors
/// The system's.
pub fn mixed(folder: &Path, count: usize, size: usize) -> anyhow::Result<Vec<PathBuf>> {
    let mut random = StdRng::seed_from_u64(SEED);
    let own = fs::read("/proc/self/exe")?;
    fs::create_dir_all(folder)?;
    let mut paths = Vec::new();
    for number in 0..count {
        let (kind, _) = TYPES[number % TYPES.len()];
        let mut content = beginning(kind, &own, size);
        if matches!(kind, "script" | "text" | "pdf") {
            let mut text = String::new();
            words(&mut random, &mut text, size);
            content.extend(text.as_bytes());
        }
        let mut noise = vec![0; size.saturating_sub(content.len())];
        random.fill(noise.as_mut_slice());
        content.extend(noise);
        content.truncate(size);
        let path = folder.join(format!("{number}-{kind}"));
        fs::write(&path, content)?;
        paths.push(path);
    }
    Ok(paths)
}

/// Rule files that bait is made of are at most so large: more than a verdict's list of rules would match in a larger one. Bytes.
const BAIT_BYTES_MAX: usize = 16 << 10;

/// Writes every small one of `texts` (rule files, which hold the very strings that they look for) into `folder`: as it is, and
/// behind the first bytes of every type, so that rules of all types match something. Gives how many files that is.
///
/// # Errors
/// The system's.
pub fn bait(folder: &Path, texts: &[PathBuf]) -> anyhow::Result<usize> {
    let own = fs::read("/proc/self/exe")?;
    let mut count = 0;
    for (number, path) in texts.iter().enumerate() {
        let text = fs::read(path)?;
        if text.len() > BAIT_BYTES_MAX {
            continue;
        }
        let inner = folder.join(format!("bait-{number}"));
        fs::create_dir_all(&inner)?;
        for (kind, _) in TYPES {
            fs::write(inner.join(kind), [beginning(kind, &own, PE_AT * 2), text.clone()].concat())?;
            count += 1;
        }
    }
    Ok(count)
}

/// The first bytes of a type; of an ELF file up to `size`, from a real one.
fn beginning(kind: &str, elf: &[u8], size: usize) -> Vec<u8> {
    let start = TYPES.iter().find(|(name, _)| *name == kind).map_or(b"".as_slice(), |(_, start)| *start);
    let mut content = if kind == "elf" { elf.iter().take(size).copied().collect() } else { start.to_vec() };
    if kind == "pe" {
        content.resize(PE_AT, 0);
        content[0x3c..0x40].copy_from_slice(&(PE_AT as u32).to_le_bytes());
        content.extend(b"PE\0\0\x64\x86\x03\0");
    }
    content
}

fn words(random: &mut StdRng, text: &mut String, size: usize) {
    while text.len() < size {
        text.push_str(WORDS[random.random_range(0..WORDS.len())]);
        text.push(' ');
    }
    text.truncate(size);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_every_file_but_the_large_ones() {
        let folder = tempfile::tempdir().unwrap();
        for (name, size) in
            [("a/small", 10), ("a/b/large", 200), ("a/b/other", 100), ("c/one", 1), ("c/d/two", 1)]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![b'x'; size]).unwrap();
        }
        let ground = Ground::of("test", folder.path(), 100).unwrap();
        assert_eq!((ground.files.len(), ground.bytes, ground.left_out), (4, 112, 1));
        let mut parts: Vec<String> = ground
            .paths
            .iter()
            .map(|path| path.strip_prefix(&ground.root).unwrap().display().to_string())
            .collect();
        parts.sort();
        assert_eq!(parts, ["a/b/other", "a/small", "c"]);
        let whole = Ground::of("test", &folder.path().join("c"), 100).unwrap();
        assert_eq!(whole.paths, std::slice::from_ref(&whole.root));
    }

    #[test]
    fn generated_files_are_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let digest = |name: &str| -> Vec<Vec<u8>> {
            let inner = folder.path().join(name);
            mixed(&inner, 16, 1000).unwrap().iter().map(|path| fs::read(path).unwrap()).collect()
        };
        let first = digest("a");
        assert_eq!(first, digest("b"));
        assert!(first.iter().all(|content| content.len() == 1000));
        scripts(&folder.path().join("scripts"), 150).unwrap();
        let ground = Ground::of("scripts", &folder.path().join("scripts"), 4096).unwrap();
        assert_eq!((ground.files.len(), ground.left_out), (150, 0));
    }
}
