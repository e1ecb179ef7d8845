//! What a configuration names, to files: a file is itself, a folder all files in it with certain endings.
//!
//! Assumes nothing of what is there. Symbolic links are followed only where the path was configured.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use vidette_protocol::escape;

/// Folders in folders.
const DEPTH_MAX: usize = 8;

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Of the names of files, without the dot.
    pub endings: &'static [&'static str],
    /// Entries of one folder that are looked at.
    pub entries_max: usize,
    /// What a folder of them is called where it can't be read.
    pub folder: &'static str,
}

/// Files in the order in which they are named, those of a folder by name; nothing twice. Of a folder that can't be read
/// one sentence goes to `errors`.
pub fn expand(paths: &[PathBuf], wanted: Wanted, errors: &mut Vec<String>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let mut files: Vec<PathBuf> = paths.iter().flat_map(|path| files_in(path, wanted, errors)).collect();
    files.retain(|path| seen.insert(path.clone()));
    files
}

fn files_in(path: &Path, wanted: Wanted, errors: &mut Vec<String>) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let is_wanted =
        |path: &Path| path.extension().is_some_and(|end| wanted.endings.iter().any(|e| end == *e));
    let (mut files, mut folders) = (Vec::new(), vec![(path.to_owned(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                errors.push(format!("could not read the {} {}: {error}", wanted.folder, name(&folder)));
                continue;
            }
        };
        for entry in entries.flatten().take(wanted.entries_max) {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            if kind.is_dir() && depth < DEPTH_MAX {
                folders.push((path, depth + 1));
            } else if kind.is_file() && is_wanted(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// A path for people, without control characters.
#[must_use]
pub fn name(path: &Path) -> String {
    escape::terminal(path.as_os_str().as_encoded_bytes())
}
