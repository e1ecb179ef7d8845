//! Every setting that a program knows is in the file that its package brings, as a comment. Which it knows, it says itself
//! when it is given one that it does not.

use super::rig::tree;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use vidette_tests::programs::call;

/// What the program offers instead of a setting that nobody knows, below `heading`.
fn known(folder: &Path, program: &str, command: &str, heading: &str) -> Vec<String> {
    let config = folder.join("config.toml");
    fs::write(&config, format!("{heading}\nnobody_knows_this = 1\n")).expect("written");
    let (config, state) = (config.display().to_string(), folder.join("state").display().to_string());
    let output = call(program, &[command, "--config", &config, "--state", &state], "").expect("called");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let offered = said.split("unknown field `nobody_knows_this`, expected ").nth(1);
    let offered = offered.unwrap_or_else(|| panic!("{program}, {heading}: {said}"));
    offered.lines().next().unwrap_or_default().split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Keys and tables of the packaged file, with what a comment holds.
fn packaged(name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(tree().join("packaging").join(name)).expect("a file");
    let bare = text.lines().map(|line| line.trim_start_matches("#!").trim_start_matches('#').trim());
    bare.filter_map(|line| {
        let table = line.strip_prefix('[').map(|line| line.trim_matches(['[', ']']));
        table.or_else(|| line.split_once(" = ").map(|(key, _)| key)).map(str::to_owned)
    })
    .collect()
}

#[test]
fn the_packaged_settings_are_all_that_there_are() {
    let folder = tempfile::tempdir().expect("a folder");
    for (program, command, file, headings) in [
        ("vidette-agent", "run", "agent.toml", &["", "[sensors]", "[detection]", "[sweep]", "[outbox]"][..]),
        ("vidette", "serve", "collector.toml", &["", "[metrics]", "[[sink]]"]),
    ] {
        let packaged = packaged(file);
        for heading in headings {
            let known = known(folder.path(), program, command, heading);
            assert!(!known.is_empty());
            for key in known {
                assert!(packaged.contains(&key), "{file} does not show `{key}` of `{heading}`: {packaged:?}");
            }
        }
    }
}
