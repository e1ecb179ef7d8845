//! The tree keeps the rules of the house, and the check that says so can fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use vidette_tests::shape::check;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace")
}

#[test]
fn the_tree_keeps_the_rules() {
    let found = check(&root()).expect("the tree is readable");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A change to a copy of the tree, and what must be said about it.
struct Plant {
    file: &'static str,
    /// Put before what the file holds; a new file when there is none.
    text: &'static str,
    heard: &'static str,
}

const PLANTS: [Plant; 13] = [
    Plant { file: "scripts/x", text: "", heard: "`scripts` does not belong there" },
    Plant { file: "agent/src/util.rs", text: "//! X.\n", heard: "the name says nothing" },
    Plant { file: "agent/src/outbox/new.rs", text: "fn x() {}\n", heard: "does not start with `//!`" },
    Plant {
        file: "agent/src/outbox/new.rs",
        text: "//! X.\nfn x() { unsafe { y() } }\n",
        heard: "unsafe outside",
    },
    Plant {
        file: "agent/src/sys/new.rs",
        text: "//! X.\nfn x() { unsafe { y() } }\n",
        heard: "without a SAFETY line",
    },
    Plant {
        file: "agent/src/detection/new.rs",
        text: "//! X.\nuse yara_x::Rules;\n",
        heard: "outside the worker",
    },
    Plant {
        file: "agent/src/sensors/new.rs",
        text: "//! X.\nuse crate::outbox::Handle;\n",
        heard: "imports the later outbox",
    },
    Plant {
        file: "collector/src/store/new.rs",
        text: "//! X.\nuse crate::sinks::X;\n",
        heard: "imports the later sinks",
    },
    Plant {
        file: "agent/src/cli/new.rs",
        text: "//! X.\nuse crate::sensors::A;\nuse crate::detection::B;\nuse crate::outbox::C;\nuse crate::transport::D;\n",
        heard: "sees all stages",
    },
    Plant {
        file: "agent/src/outbox/new.rs",
        text: "//! X.\n#[cfg(target_os = \"linux\")]\nfn x() {}\n",
        heard: "names an operating system",
    },
    Plant {
        file: "agent/Cargo.toml",
        text: "[dev-dependencies]\nvidette-collector = { workspace = true }\n",
        heard: "depends on vidette-collector",
    },
    Plant {
        file: "shared/Cargo.toml",
        text: "[dev-dependencies]\ntokio = { workspace = true }\n",
        heard: "no serialization crate",
    },
    Plant { file: "agent/src/lib.rs", text: "//! X.\npub mod transport;\n", heard: "path order" },
];

#[test]
fn every_rule_hears_a_planted_violation() {
    let copy = tempfile::tempdir().expect("a folder");
    copy_tree(&root(), copy.path());
    assert_eq!(check(copy.path()).expect("readable"), Vec::<String>::new(), "the copy is clean");
    for plant in PLANTS {
        let path = copy.path().join(plant.file);
        let before = fs::read_to_string(&path).ok();
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        let kept = before
            .clone()
            .unwrap_or_default()
            .replace("[dev-dependencies]", "[old]")
            .replace("pub mod transport;", "");
        fs::write(&path, format!("{}{kept}", plant.text)).expect("planted");
        let found = check(copy.path()).expect("readable");
        assert!(
            found.iter().any(|line| line.contains(plant.heard)),
            "{} in {}: {found:?}",
            plant.heard,
            plant.file
        );
        match before {
            Some(text) => fs::write(&path, text).expect("put back"),
            None => fs::remove_file(&path).expect("taken away"),
        }
        if plant.file.starts_with("scripts") {
            fs::remove_dir(copy.path().join("scripts")).expect("taken away");
        }
    }
}

/// What git knows of the tree, as it is in the working folder.
fn copy_tree(from: &Path, to: &Path) {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(from)
        .output()
        .expect("git lists the tree");
    for name in listed.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = Path::new(std::str::from_utf8(name).expect("our own names are UTF-8"));
        if !from.join(name).exists() {
            continue;
        }
        fs::create_dir_all(to.join(name).parent().expect("a folder")).expect("made");
        fs::copy(from.join(name), to.join(name)).expect("copied");
    }
}

/// A threat model is worth what its tests are: each that README's table names has to be there.
#[test]
fn the_tests_of_the_threat_model_are_there() {
    let readme = fs::read_to_string(root().join("README.md")).expect("readable");
    let section = readme.split("\n## Threat model\n").nth(1).expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let sources = sources(&root());
    let mut named = 0;
    for row in section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| who ")) {
        let shown = row.rsplit('|').nth(1).expect("a last column");
        let words: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!words.is_empty(), "nothing shows this: {row}");
        for word in words {
            assert!(is_there(word, &sources), "no such test: {word}");
            named += 1;
        }
    }
    assert!(named > 10, "only {named} tests are named");
    assert!(!is_there("a_test_that_nobody_wrote", &sources) && !is_there("nowhere::", &sources));
}

/// A test's name, a module of end-to-end tests (`faults::`), a test program (`binary(worker)`), or a file.
fn is_there(word: &str, sources: &[(PathBuf, String)]) -> bool {
    if let Some(module) = word.strip_suffix("::") {
        return sources.iter().any(|(path, _)| {
            path.ends_with(format!("tests/tests/{module}.rs"))
                || path.ends_with(format!("tests/tests/{module}/mod.rs"))
        });
    }
    if let Some(program) = word.strip_prefix("binary(").and_then(|rest| rest.strip_suffix(')')) {
        return sources.iter().any(|(path, _)| {
            path.ends_with(format!("tests/{program}.rs"))
                || path.ends_with(format!("tests/{program}/main.rs"))
        });
    }
    root().join(word).is_file() || sources.iter().any(|(_, text)| text.contains(&format!("fn {word}()")))
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> =
        ["agent", "collector", "shared", "tests"].map(|top| folder.join(top)).into();
    while let Some(path) = waiting.pop() {
        for entry in fs::read_dir(path).expect("readable").flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).expect("readable")));
            }
        }
    }
    found
}
