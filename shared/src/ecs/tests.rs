//! Shows that a record is exact, harmless and complete, whatever the event holds.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::escape::hostile::{Random, assert_harmless, bytes};
use crate::id::AgentId;

const SEEDS: u64 = 1500;

fn origin() -> Origin {
    let id = EventId { agent: AgentId([0xab; 16]), epoch: 7, class: Class::Alert, seq: 42 };
    Origin { id: Some(id), received_unix_ns: Some(1_700_000_000_123_456_789), damaged: false }
}

/// An event whose every name and text comes from the seed; each kind in turn.
fn hostile_event(seed: u64) -> wire::Event {
    let mut random = Random(seed);
    let mut name = || bytes(random.next());
    let file = wire::File {
        path: name(),
        inode: 5,
        mode: 0o100_644,
        sha256: vec![1; 32],
        blake3: vec![2; 32],
        container_path: name(),
        ..Default::default()
    };
    let parent = wire::ParentProcess {
        pid: 1,
        executable: name(),
        args: vec![name()],
        name: name(),
        ..Default::default()
    };
    let process = wire::Process {
        pid: 2,
        executable: name(),
        args: vec![name(), name()],
        name: name(),
        working_directory: name(),
        uid: Some(0),
        user_name: name(),
        parent: Some(parent),
        cgroup: name(),
        ancestors: vec![wire::Ancestor { pid: 1, executable: name(), ..Default::default() }],
        sources: Some(wire::Sources::default()),
        ..Default::default()
    };
    let mut text = || String::from_utf8_lossy(&name()).into_owned();
    let rule = wire::RuleMatch {
        name: text(),
        id: text(),
        techniques: vec![text()],
        description: text(),
        ..Default::default()
    };
    let (file, process) = (Some(file), Some(process));
    let kind = match seed % 6 {
        0 => Kind::Detection(wire::Detection {
            trigger: 1,
            verdict: 2,
            file,
            process,
            rules: vec![rule],
            detail: text(),
            ..Default::default()
        }),
        1 => Kind::File(wire::FileEvent { action: 2, file, process, old_path: name(), ..Default::default() }),
        2 => Kind::Process(wire::ProcessEvent {
            action: 1,
            process,
            image: file,
            exit_code: Some(256),
            ..Default::default()
        }),
        3 => Kind::Gap(wire::Gap { reason: 5, detail: text(), ..Default::default() }),
        4 => Kind::Health(wire::Health { component: text(), state: 2, message: text() }),
        _ => Kind::Audit(wire::Audit { action: text(), outcome: text(), detail: text(), process }),
    };
    wire::Event { host_name: name(), severity: 4, kind: Some(kind), ..Default::default() }
}

/// The bytes of a name, as a reader of the JSON finds them.
fn exact_bytes(record: &Map<String, Value>, field: &str) -> Vec<u8> {
    match record.get(&exact(field)) {
        Some(exact) => BASE64.decode(exact.as_str().unwrap().as_bytes()).unwrap(),
        None => record.get(field).map(|text| text.as_str().unwrap().as_bytes().to_vec()).unwrap_or_default(),
    }
}

#[test]
fn a_line_is_ascii_and_reads_back_as_the_record() {
    for seed in 0..SEEDS {
        let record = record(origin(), &hostile_event(seed));
        let line = line(&record);
        assert!(line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "seed {seed}: {line}");
        let back: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back, Value::Object(record), "seed {seed}");
    }
}

#[test]
fn keys_and_nested_texts_are_ascii_too() {
    let mut record = Map::new();
    record.insert("é\u{7f}\n".into(), serde_json::json!([{ "\u{202e}": "\u{9b}\u{1f600}" }]));
    assert_eq!(line(&record), "{\"\\u00e9\\u007f\\n\":[{\"\\u202e\":\"\\u009b\\ud83d\\ude00\"}]}");
}

#[test]
fn every_name_can_be_recovered_exactly() {
    for seed in (0..SEEDS).step_by(6) {
        let event = hostile_event(seed);
        let record = record(origin(), &event);
        let Some(Kind::Detection(detection)) = event.kind else { panic!("seed {seed}: not a detection") };
        let (file, process) = (detection.file.unwrap(), detection.process.unwrap());
        let parent = process.parent.unwrap();
        for (field, name) in [
            ("host.name", &event.host_name),
            ("file.path", &file.path),
            ("process.name", &process.name),
            ("process.executable", &process.executable),
            ("process.working_directory", &process.working_directory),
            ("user.name", &process.user_name),
            ("process.parent.name", &parent.name),
            ("process.parent.executable", &parent.executable),
            ("vidette.process.cgroup", &process.cgroup),
            ("vidette.file.container_path", &file.container_path),
        ] {
            assert_eq!(&exact_bytes(&record, field), name, "seed {seed}: {field}");
        }
        let exact = record
            .get("vidette.process.args_base64")
            .or(record.get("process.args"))
            .unwrap()
            .as_array()
            .unwrap();
        let decode = |text: &str| BASE64.decode(text.as_bytes()).unwrap();
        let in_base64 = record.contains_key("vidette.process.args_base64");
        let args: Vec<Vec<u8>> = exact
            .iter()
            .map(|arg| arg.as_str().unwrap())
            .map(|arg| if in_base64 { decode(arg) } else { arg.into() })
            .collect();
        assert_eq!(args, process.args, "seed {seed}");
    }
}

#[test]
fn what_people_read_is_harmless() {
    for seed in 0..SEEDS {
        let event = hostile_event(seed);
        assert_harmless(seed, &human(&event));
        assert_harmless(seed, record(origin(), &event)["message"].as_str().unwrap());
    }
}

#[test]
fn nothing_is_null_or_empty() {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    let bare = Origin::NONE;
    let events = (0..60).map(hostile_event).chain([wire::Event::default()]);
    for (at, event) in events.enumerate() {
        for (field, value) in record(bare, &event) {
            assert!(!empty(&value), "event {at}: {field} is {value}");
        }
    }
}

#[test]
fn any_clock_gives_a_valid_time() {
    for (unix_ns, expected) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (i64::MAX, "2262-04-11T23:47:16.854775807Z"),
        (i64::MIN, "1677-09-21T00:12:43.145224192Z"),
    ] {
        assert_eq!(rfc3339(unix_ns), expected);
        let event = wire::Event { time_unix_ns: unix_ns, ..Default::default() };
        assert_eq!(record(origin(), &event)["@timestamp"], expected);
        assert!(human(&event).contains(&expected[..10]));
    }
}

#[test]
fn a_detection_has_the_names_that_siems_search() {
    let file = wire::File {
        path: b"/var/www/a.php".to_vec(),
        device: 0x801,
        inode: 12,
        size: 3,
        mode: 0o100_644,
        sha256: vec![0xaa; 32],
        ..Default::default()
    };
    let process = wire::Process {
        entity_id: "e1".into(),
        pid: 77,
        name: b"php".to_vec(),
        executable: b"/usr/bin/php".to_vec(),
        args: vec![b"php".to_vec(), b"-r x".to_vec()],
        uid: Some(33),
        parent: Some(wire::ParentProcess { pid: 1, ..Default::default() }),
        source: 2,
        ..Default::default()
    };
    let rule = |name: &str, techniques: &[&str]| wire::RuleMatch {
        name: name.into(),
        id: "VID-0001".into(),
        severity: 4,
        techniques: techniques.iter().map(|id| (*id).to_owned()).collect(),
        patterns: vec![wire::PatternMatch {
            identifier: "$a".into(),
            offset: 1,
            length: 2,
            data: b"\0\xff".to_vec(),
        }],
        ..Default::default()
    };
    let rules = vec![rule("A", &["T1505.003"]), rule("B", &["T1059", "T1505.003"])];
    let detection = wire::Detection {
        trigger: 1,
        verdict: 2,
        file: Some(file),
        process: Some(process),
        rules,
        ..Default::default()
    };
    let event = wire::Event { severity: 4, kind: Some(Kind::Detection(detection)), ..Default::default() };
    let record = record(origin(), &event);
    for (field, expected) in [
        ("event.id", serde_json::json!("abababababababababababababababab/0000000000000007/alert/42")),
        ("event.kind", "alert".into()),
        ("event.category", serde_json::json!(["malware", "file"])),
        ("event.sequence", 42.into()),
        ("event.severity", 4.into()),
        ("event.ingested", "2023-11-14T22:13:20.123456789Z".into()),
        ("agent.id", "abababababababababababababababab".into()),
        ("file.path", "/var/www/a.php".into()),
        ("file.name", "a.php".into()),
        ("file.directory", "/var/www".into()),
        ("file.extension", "php".into()),
        ("file.device", "8:1".into()),
        ("file.inode", "12".into()),
        ("file.mode", "0644".into()),
        ("file.uid", "0".into()),
        ("file.hash.sha256", "aa".repeat(32).into()),
        ("process.pid", 77.into()),
        ("process.command_line", "php -r x".into()),
        ("process.parent.pid", 1.into()),
        ("user.id", "33".into()),
        ("rule.name", "A".into()),
        ("rule.id", "VID-0001".into()),
        ("threat.framework", "MITRE ATT&CK".into()),
        ("threat.technique.id", serde_json::json!(["T1505.003", "T1059"])),
        ("vidette.verdict", "matched".into()),
        ("vidette.trigger", "close_write".into()),
        ("vidette.process.role", "closed_by".into()),
        ("vidette.process.source", "join".into()),
        ("message", "VID-0001 A and 1 more matched /var/www/a.php, closed by php (pid 77)".into()),
    ] {
        assert_eq!(record.get(field), Some(&expected), "{field}");
    }
    assert_eq!(record["vidette.rules"][1]["patterns"][0]["data_base64"], "AP8=");
    assert!(!record.contains_key("file.hash.blake3"), "what was not hashed has no hash");
    assert!(human(&event).starts_with("1970-01-01T00:00:00.000Z  high      VID-0001 A and 1 more matched"));
}

#[test]
fn a_detection_in_memory_has_its_region_and_no_file() {
    let rule = wire::RuleMatch {
        name: "EICAR".into(),
        patterns: vec![wire::PatternMatch { offset: 0x7fff_ffff_f010, ..Default::default() }],
        ..Default::default()
    };
    let region = wire::MemoryRegion {
        start: 0x7fff_ffff_e000,
        end: 0x7fff_ffff_f000 + 0x1000,
        permissions: "rwxp".into(),
        name: b"/memfd:\x1b[2J\xff (deleted)".to_vec(),
    };
    let process = wire::Process { pid: 7, executable: b"/bin/x".to_vec(), ..Default::default() };
    let detection = wire::Detection {
        trigger: 2,
        verdict: 2,
        process: Some(process),
        rules: vec![rule],
        memory: Some(region),
        ..Default::default()
    };
    let event = wire::Event { severity: 5, kind: Some(Kind::Detection(detection)), ..Default::default() };
    let record = record(origin(), &event);
    for (field, expected) in [
        ("event.category", serde_json::json!(["malware", "process"])),
        ("vidette.memory.start", "0x7fffffffe000".into()),
        ("vidette.memory.end", "0x800000000000".into()),
        ("vidette.memory.address", "0x7ffffffff010".into()),
        ("vidette.memory.permissions", "rwxp".into()),
        ("vidette.memory.name_base64", "L21lbWZkOhtbMkr/IChkZWxldGVkKQ==".into()),
        ("process.pid", 7.into()),
    ] {
        assert_eq!(record.get(field), Some(&expected), "{field}");
    }
    assert!(!record.contains_key("file.path") && !record.contains_key("vidette.process.role"));
    let message = record["message"].as_str().unwrap();
    let expected = "EICAR matched memory of /bin/x (pid 7) at 0x7fffffffe000-0x800000000000 rwxp /memfd:";
    assert!(message.starts_with(expected) && !message.contains('\x1b'), "{message}");
}

#[test]
fn an_end_is_an_exit_code_or_a_signal() {
    for (status, field, expected) in
        [(256, "process.exit_code", 1), (0, "process.exit_code", 0), (9, "vidette.process.signal", 9)]
    {
        let process = wire::ProcessEvent { action: 2, exit_code: Some(status), ..Default::default() };
        let record =
            record(origin(), &wire::Event { kind: Some(Kind::Process(process)), ..Default::default() });
        assert_eq!(record[field], expected, "status {status}");
        assert_eq!(record["event.type"], serde_json::json!(["end"]));
    }
}

#[test]
fn numbers_of_a_newer_version_are_unknown_not_errors() {
    let detection = wire::Detection { trigger: 99, verdict: 99, ..Default::default() };
    let record = record(
        origin(),
        &wire::Event { severity: 99, kind: Some(Kind::Detection(detection)), ..Default::default() },
    );
    for field in ["vidette.severity", "vidette.verdict", "vidette.trigger"] {
        assert_eq!(record[field], "unknown", "{field}");
    }
}

#[test]
fn odd_names_have_no_extension() {
    for (path, expected) in [
        ("/a/.bashrc", None),
        ("/a/b.", None),
        ("/a/x.tar.gz", Some("gz")),
        ("/a/x.a b", None),
        ("noslash.c", Some("c")),
    ] {
        let file = wire::FileEvent {
            file: Some(wire::File { path: path.into(), ..Default::default() }),
            ..Default::default()
        };
        let record = record(origin(), &wire::Event { kind: Some(Kind::File(file)), ..Default::default() });
        assert_eq!(record.get("file.extension").and_then(Value::as_str), expected, "{path}");
    }
}

#[test]
fn a_process_says_where_it_comes_from_and_how_that_is_known() {
    let ancestor = |executable: &[u8], name: &[u8], pid| wire::Ancestor {
        entity_id: format!("e{pid}"),
        pid,
        executable: executable.into(),
        name: name.into(),
    };
    let process = wire::Process {
        pid: 77,
        entity_id: "e77".into(),
        executable: b"/usr/bin/nc".to_vec(),
        login_uid: Some(1000),
        login_session: Some(3),
        session: Some(70),
        cgroup: b"/system.slice/docker-ab.scope".to_vec(),
        container_id: "ab".into(),
        ancestors: vec![ancestor(b"/usr/sbin/sshd", b"sshd", 9), ancestor(b"", b"systemd", 1)],
        source: 2,
        sources: Some(wire::Sources { start: 2, parent: 2, args: 3, user: 2, login: 3, cgroup: 0 }),
        ..Default::default()
    };
    let file = wire::File { path: b"/h/x".to_vec(), container_path: b"/x".to_vec(), ..Default::default() };
    let event = wire::FileEvent {
        action: 2,
        file: Some(file),
        process: Some(process),
        old_path: b"/h/y".to_vec(),
        folder: true,
        ..Default::default()
    };
    let record = record(origin(), &wire::Event { kind: Some(Kind::File(event)), ..Default::default() });
    println!("{}", serde_json::to_string_pretty(&record).unwrap());
    for (field, expected) in [
        ("process.entity_id", serde_json::json!("e77")),
        ("container.id", "ab".into()),
        ("vidette.process.login_uid", 1000.into()),
        ("vidette.process.login_session", 3.into()),
        ("vidette.process.session", 70.into()),
        ("vidette.process.cgroup", "/system.slice/docker-ab.scope".into()),
        ("vidette.process.ancestors", serde_json::json!(["/usr/sbin/sshd(9)", "systemd(1)"])),
        ("vidette.process.ancestor_entity_ids", serde_json::json!(["e9", "e1"])),
        ("vidette.process.sources.start", "join".into()),
        ("vidette.process.sources.args", "proc".into()),
        ("vidette.process.sources.cgroup", "none".into()),
        ("vidette.file.container_path", "/x".into()),
        ("vidette.file.old_path", "/h/y".into()),
        ("file.type", "dir".into()),
    ] {
        assert_eq!(record.get(field), Some(&expected), "{field}");
    }
}
