//! The rules of the house, as checks over a source tree. Each gives the violations it found; the test
//! plants one of each kind in a copy and expects to hear of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What may stand at the top of the tree.
const TOP: [&str; 15] = [
    "Cargo.toml",
    "Cargo.lock",
    "agent",
    "collector",
    "shared",
    "rules",
    "packaging",
    "tests",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "BENCHMARKS.md",
    "target",
    "Cargo.toml.orig",
    "rustc-ice",
];
/// Folders that are no part of the source.
const BESIDE: [&str; 2] = ["target", ".git"];
/// File stems that say nothing.
const EMPTY_NAMES: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "misc", "manager", "types"];
/// What `vidette-protocol` may depend on: serialization, and what an error and a time are made of.
const PROTOCOL_MAY: [&str; 9] =
    ["prost", "serde", "serde_json", "zstd", "data-encoding", "jiff", "thiserror", "prost-build", "protox"];
/// The agent's stages in path order; `worker` belongs to detection.
const AGENT_STAGES: [&[&str]; 4] = [&["sensors"], &["detection", "worker"], &["outbox"], &["transport"]];
/// The collector's. Identity stands before ingest: who is asked before what.
const COLLECTOR_STAGES: [&[&str]; 6] =
    [&["identity"], &["ingest"], &["store"], &["sinks"], &["outside"], &["cli"]];

/// All violations in the tree at `root`, one sentence each.
///
/// # Errors
/// When a file of the tree can't be read.
pub fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    top(root, &mut found)?;
    let sources = sources(root)?;
    for (path, text) in &sources {
        name(path, &mut found);
        header(path, text, &mut found);
        unsafe_code(path, text, &mut found);
        scanner(path, text, &mut found);
        platform(path, text, &mut found);
    }
    stages("agent", &AGENT_STAGES, &sources, &mut found);
    stages("collector", &COLLECTOR_STAGES, &sources, &mut found);
    map_order(
        "agent",
        &["sensors", "detection", "worker", "outbox", "transport", "pipeline"],
        &sources,
        &mut found,
    );
    map_order(
        "collector",
        &["identity", "ingest", "store", "sinks", "outside", "cli", "pipeline"],
        &sources,
        &mut found,
    );
    dependencies(root, &mut found)?;
    reasons(root, &mut found)?;
    Ok(found)
}

fn top(root: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root)? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    for name in &names {
        if !name.starts_with('.') && !TOP.contains(&name.as_str()) {
            found.push(format!("top level: `{name}` does not belong there"));
        }
    }
    for name in &TOP[..12] {
        if !names.contains(*name) {
            found.push(format!("top level: `{name}` is missing"));
        }
    }
    Ok(())
}

/// Every Rust file, by its path from the root.
fn sources(root: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let mut folders = vec![root.to_path_buf()];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                if !BESIDE.iter().any(|beside| entry.file_name() == *beside) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
        .iter()
        .map(|path| Ok((path.strip_prefix(root)?.to_string_lossy().into_owned(), fs::read_to_string(path)?)))
        .collect()
}

fn name(path: &str, found: &mut Vec<String>) {
    let stem = Path::new(path).file_stem().unwrap_or_default().to_string_lossy();
    let folders = path.split('/').any(|part| EMPTY_NAMES.contains(&part));
    if folders || EMPTY_NAMES.contains(&stem.as_ref()) {
        found.push(format!("{path}: the name says nothing"));
    }
}

fn header(path: &str, text: &str, found: &mut Vec<String>) {
    if !text.starts_with("//!") {
        found.push(format!("{path}: does not start with `//!` and what it is for"));
    }
}

fn unsafe_code(path: &str, text: &str, found: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let uses =
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| code.contains(word));
        // This file names the words it looks for.
        if !uses || path == "tests/src/shape.rs" {
            continue;
        }
        if !path.starts_with("agent/src/sys/") {
            found.push(format!("{path}:{}: unsafe outside agent/src/sys", index + 1));
        } else if !lines[index.saturating_sub(8)..index].iter().any(|before| before.contains("SAFETY")) {
            found.push(format!("{path}:{}: unsafe without a SAFETY line", index + 1));
        }
    }
}

fn scanner(path: &str, text: &str, found: &mut Vec<String>) {
    let uses = text.lines().any(|line| line.split("//").next().unwrap_or_default().contains("yara_x::"));
    if uses && !path.starts_with("agent/src/worker/") && path != "tests/src/shape.rs" {
        found.push(format!("{path}: the scanner is used outside the worker"));
    }
}

fn platform(path: &str, text: &str, found: &mut Vec<String>) {
    let core = path.starts_with("agent/src/")
        || path.starts_with("shared/src/")
        || path.starts_with("collector/src/");
    let may = path.starts_with("agent/src/sensors/") || path.starts_with("agent/src/sys/");
    if core && !may && text.contains("target_os") {
        found.push(format!("{path}: names an operating system outside sensors/ and sys/"));
    }
}

/// A stage imports only stages before it, and nobody but `pipeline.rs` imports all of them.
fn stages(program: &str, order: &[&[&str]], sources: &[(String, String)], found: &mut Vec<String>) {
    let prefix = format!("{program}/src/");
    for (path, text) in sources {
        let Some(inner) = path.strip_prefix(&prefix) else { continue };
        let imported: Vec<usize> =
            (0..order.len()).filter(|stage| order[*stage].iter().any(|name| imports(text, name))).collect();
        let own = order.iter().position(|names| names.iter().any(|name| in_stage(inner, name)));
        if let Some(own) = own {
            for late in imported.iter().filter(|stage| **stage > own) {
                found.push(format!("{path}: stage {} imports the later {}", order[own][0], order[*late][0]));
            }
        } else if imported.len() == order.len() && inner != "pipeline.rs" && inner != "lib.rs" {
            found.push(format!("{path}: sees all stages, which only pipeline.rs may"));
        }
    }
}

fn in_stage(inner: &str, name: &str) -> bool {
    inner == format!("{name}.rs") || inner.starts_with(&format!("{name}/"))
}

fn imports(text: &str, module: &str) -> bool {
    text.lines().any(|line| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices("crate::").any(|(at, word)| {
            let rest = &code[at + word.len()..];
            rest.strip_prefix(module)
                .is_some_and(|after| !after.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        })
    })
}

fn map_order(program: &str, order: &[&str], sources: &[(String, String)], found: &mut Vec<String>) {
    let path = format!("{program}/src/lib.rs");
    let Some((_, text)) = sources.iter().find(|(name, _)| *name == path) else {
        found.push(format!("{path}: missing"));
        return;
    };
    let places: Vec<Option<usize>> =
        order.iter().map(|name| text.find(&format!("pub mod {name};"))).collect();
    if places.iter().any(Option::is_none) || !places.is_sorted() {
        found.push(format!("{path}: the modules do not stand in path order ({})", order.join(", ")));
    }
}

fn dependencies(root: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    for (program, other) in [("agent", "vidette-collector"), ("collector", "vidette-agent")] {
        if dependencies_of(root, program)?.iter().any(|name| name == other) {
            found.push(format!("{program}/Cargo.toml: depends on {other}"));
        }
    }
    for name in dependencies_of(root, "shared")? {
        if !PROTOCOL_MAY.contains(&name.as_str()) {
            found.push(format!("shared/Cargo.toml: `{name}` is no serialization crate"));
        }
    }
    for program in ["collector", "shared", "tests"] {
        if dependencies_of(root, program)?.iter().any(|name| name == "yara-x") {
            found.push(format!("{program}/Cargo.toml: depends on yara-x, which only the agent may"));
        }
    }
    Ok(())
}

/// Names in every table of dependencies of one package.
fn dependencies_of(root: &Path, package: &str) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(root.join(package).join("Cargo.toml"))?;
    let manifest: toml::Table = text.parse()?;
    let mut names = Vec::new();
    for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
        if let Some(toml::Value::Table(entries)) = manifest.get(table) {
            names.extend(entries.keys().cloned());
        }
    }
    Ok(names)
}

/// Every dependency is declared once, with its reason beside it.
fn reasons(root: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    let text = fs::read_to_string(root.join("Cargo.toml"))?;
    let section = text.split("[workspace.dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let mut before = "";
    for line in section.lines() {
        let declares = line
            .split_once(" = ")
            .is_some_and(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || "-_".contains(c)));
        if declares && !line.contains("path = ") && !line.contains('#') && !before.starts_with('#') {
            found.push(format!("Cargo.toml: no reason beside `{line}`"));
        }
        before = line;
    }
    for package in ["agent", "collector", "shared", "tests"] {
        let manifest: toml::Table = fs::read_to_string(root.join(package).join("Cargo.toml"))?.parse()?;
        for (table, entries) in &manifest {
            let Some(entries) = entries.as_table().filter(|_| table.ends_with("dependencies")) else {
                continue;
            };
            for (name, value) in entries {
                if value.as_table().and_then(|value| value.get("workspace")).is_none() {
                    found.push(format!(
                        "{package}/Cargo.toml: the version of `{name}` is not the workspace's"
                    ));
                }
            }
        }
    }
    Ok(())
}
