//! Embeds every rule file of the repository's `rules/` folder in the agent: `detection::rules` reads the list
//! that is written here, so that an agent without any configuration detects something.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../rules");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    if folder.is_dir() {
        collect(&folder, &folder, &mut files)?;
    }
    files.sort();
    let mut list = String::from("&[\n");
    for (name, path) in files {
        writeln!(list, "    ({name:?}, include_str!({:?})),", path.canonicalize()?.display().to_string())?;
    }
    list.push_str("]\n");
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("builtin_rules.rs"), list)?;
    Ok(())
}

/// Every `*.yar` under `folder`, named by its path from `root`.
fn collect(
    root: &Path,
    folder: &Path,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), Box<dyn std::error::Error>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "yar") {
            let name = path.strip_prefix(root)?.to_str().ok_or("a rule file's name is not UTF-8")?.to_owned();
            files.push((name, path));
        }
    }
    Ok(())
}
