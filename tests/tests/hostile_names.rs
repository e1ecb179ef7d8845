//! Every name of the hostile table, through every format: one record, no control byte, exact bytes back.

use data_encoding::BASE64;
use std::collections::HashSet;
use vidette_protocol::wire::{self, event::Kind};
use vidette_protocol::{ecs, escape};
use vidette_tests::hostile_names::names;

/// The path under which a name would stand.
fn path(name: &[u8]) -> Vec<u8> {
    [b"/srv/", name].concat()
}

fn detection(name: &[u8]) -> wire::Event {
    let file = wire::File { path: path(name), ..Default::default() };
    let process = wire::Process { pid: 9, name: name.into(), args: vec![name.into()], ..Default::default() };
    let rules = vec![wire::RuleMatch { name: "Rule".into(), ..Default::default() }];
    let detection =
        wire::Detection { trigger: 1, file: Some(file), process: Some(process), rules, ..Default::default() };
    wire::Event { host_name: name.into(), kind: Some(Kind::Detection(detection)), ..Default::default() }
}

#[test]
fn the_table_is_large_and_every_name_can_exist() {
    let names = names();
    assert!(names.len() >= 40, "{}", names.len());
    assert_eq!(
        names.iter().map(|(_, name)| name).collect::<HashSet<_>>().len(),
        names.len(),
        "two names are the same"
    );
    for (what, name) in names {
        assert!((1..=255).contains(&name.len()) && !name.contains(&0) && !name.contains(&b'/'), "{what}");
    }
}

#[test]
fn a_file_system_takes_every_name() {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let folder = tempfile::tempdir().unwrap();
    for (what, name) in names() {
        std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(&name)), what).unwrap();
    }
    let found: HashSet<Vec<u8>> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_vec())
        .collect();
    assert_eq!(found, names().into_iter().map(|(_, name)| name).collect());
}

#[test]
fn no_format_lets_a_control_character_through() {
    for (what, name) in names() {
        let event = detection(&name);
        let record = ecs::record(ecs::Origin::NONE, &event);
        for text in [
            escape::terminal(&name),
            escape::syslog_param(&name),
            escape::syslog_hostname(&name),
            escape::cef_header(&name),
            escape::cef_extension(&name),
            escape::csv(&name),
            escape::html(&name),
            escape::json(&String::from_utf8_lossy(&name)),
            ecs::human(&event),
            ecs::line(&record),
        ] {
            let visible = |c: char| !c.is_control() && (c.is_ascii() || c.escape_debug().len() == 1);
            assert!(text.chars().all(visible), "{what}: {text:?}");
        }
    }
}

#[test]
fn a_json_line_is_one_ascii_line_with_the_exact_bytes() {
    for (what, name) in names() {
        let line = ecs::line(&ecs::record(ecs::Origin::NONE, &detection(&name)));
        assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{what}: {line}");
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(back.get("event.id").is_none(), "{what}: forged");
        let exact = |field: &str| match back.get(format!("vidette.{field}_base64")) {
            Some(exact) => BASE64.decode(exact.as_str().unwrap().as_bytes()).unwrap(),
            None => back[field].as_str().unwrap().as_bytes().to_vec(),
        };
        assert_eq!(exact("file.path"), path(&name), "{what}");
        assert_eq!(exact("host.name"), name, "{what}");
        assert_eq!(exact("process.name"), name, "{what}");
    }
}

#[test]
fn no_two_names_look_the_same_in_any_format_that_can_be_read_back() {
    let formats: [fn(&[u8]) -> String; 6] = [
        escape::terminal,
        escape::syslog_param,
        escape::cef_header,
        escape::cef_extension,
        escape::csv,
        escape::html,
    ];
    for (at, format) in formats.into_iter().enumerate() {
        let shown: HashSet<String> = names().iter().map(|(_, name)| format(name)).collect();
        assert_eq!(shown.len(), names().len(), "format {at}");
    }
}
