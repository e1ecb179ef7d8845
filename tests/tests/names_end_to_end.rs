//! Files with hostile names go through every output: one record each, no control byte, nothing executed, and
//! the exact bytes can be had back from the JSON.

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vidette_tests::hostile_names::names;
use vidette_tests::programs::{Agent, Collector, call, wait_for};
use vidette_tests::{samples, syslog};

#[test]
fn hostile_names_pass_every_output_unharmed() {
    let folder = tempfile::tempdir().expect("a folder");
    let watched = folder.path().canonicalize().expect("real").join("host");
    fs::create_dir(&watched).expect("made");
    let (port, messages) = syslog::receive().expect("a receiver");
    let file = folder.path().join("alerts.jsonl");
    let sinks = format!(
        "[[sink]]\nname = \"file\"\ntype = \"jsonl\"\npath = {:?}\n[[sink]]\nname = \"siem\"\ntype = \"syslog\"\n\
         address = \"127.0.0.1:{port}\"\ntransport = \"tcp\"\n",
        file.display().to_string()
    );
    let collector = Collector::start(folder.path(), &sinks).expect("a collector");
    let mut agent = Agent::prepare(folder.path(), &watched, "", "").expect("an agent");
    agent.join(&collector.invitation().expect("an invitation")).expect("joined");
    agent.start().expect("started");

    let written = write_all(&watched);
    assert!(written.len() >= 40, "only {} names", written.len());
    let listed = wait_for("every alert", || {
        let alerts = collector.lines(&["alerts", "list", "--kind", "detection", "--limit", "1000"])?;
        Ok((alerts.len() >= written.len()).then_some(alerts))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.said()));
    compare("alerts list --json", &listed, &written);

    let lines = wait_for("the file", || {
        let text = fs::read(&file).unwrap_or_default();
        let records = json_lines(&text);
        let detections = records
            .into_iter()
            .filter(|record| record["event.dataset"] == "vidette.detection")
            .collect::<Vec<_>>();
        Ok((detections.len() >= written.len()).then_some((text, detections)))
    })
    .expect("the file holds them");
    no_control_bytes("the file", &lines.0);
    compare("the file", &lines.1, &written);

    let mut received = Vec::new();
    while received.len() < written.len() {
        let message = messages.recv_timeout(Duration::from_secs(30)).expect("a syslog message for each");
        no_control_bytes("a syslog message", &[&message.raw[..], b"\n"].concat());
        if message.message_id == "detection" {
            received.push(serde_json::from_str(&message.text).expect("JSON in the message"));
        }
    }
    compare("syslog", &received, &written);

    for command in [
        &["alerts", "list", "--limit", "1000"][..],
        &["events", "list", "--limit", "1000"],
        &["agents", "list"],
    ] {
        let output = collector.vidette(command).expect("called");
        assert!(output.status.success());
        no_control_bytes(&command.join(" "), &output.stdout);
        std::str::from_utf8(&output.stdout).expect("UTF-8 for the terminal");
    }
    scan(&watched, &written);
    assert!(
        !Path::new("/tmp/vidette-executed").exists() && !watched.join("vidette-executed").exists(),
        "a name was executed"
    );
}

/// The same files through `vidette-agent scan`, for programs and for people.
fn scan(watched: &Path, written: &[Vec<u8>]) {
    let folder = watched.display().to_string();
    let output = call("vidette-agent", &["scan", "--json", &folder], "").expect("called");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    no_control_bytes("scan --json", &output.stdout);
    compare("scan --json", &json_lines(&output.stdout), written);
    let output = call("vidette-agent", &["scan", &folder], "").expect("called");
    assert_eq!(output.status.code(), Some(1));
    no_control_bytes("scan", &output.stdout);
    let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines, written.len(), "one line each: {}", String::from_utf8_lossy(&output.stdout));
}

/// One EICAR file for each name that the file system takes; what it refuses was no name.
fn write_all(watched: &Path) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    for (what, name) in names() {
        let path = watched.join(OsStr::from_bytes(&name));
        let inside =
            path.parent() == Some(watched) && path.file_name().is_some_and(|file| file.as_bytes() == name);
        assert!(inside, "{what}: not the name of a file");
        fs::write(&path, samples::eicar()).unwrap_or_else(|error| panic!("{what}: {error}"));
        written.push(path.into_os_string().into_vec());
    }
    written
}

fn json_lines(text: &[u8]) -> Vec<Value> {
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Newlines end records; every other control byte is one that got through.
fn no_control_bytes(what: &str, text: &[u8]) {
    let text_bytes =
        text.iter().enumerate().find(|(_, byte)| (**byte < 0x20 && **byte != b'\n') || **byte == 0x7f);
    assert_eq!(text_bytes, None, "{what}: {}", String::from_utf8_lossy(text));
    for character in String::from_utf8_lossy(text).chars() {
        let number = character as u32;
        let harmful = (0x80..0xa0).contains(&number)
            || (0x202a..=0x202e).contains(&number)
            || (0x2066..=0x2069).contains(&number);
        assert!(!harmful, "{what}: U+{number:04X} got through");
    }
}

/// Exactly one record for each path, its bytes recovered from the JSON.
fn compare(what: &str, records: &[Value], written: &[Vec<u8>]) {
    let mut count: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for record in records {
        *count.entry(path_bytes(record)).or_default() += 1;
    }
    for path in written {
        let shown = PathBuf::from(std::ffi::OsString::from_vec(path.clone()));
        assert_eq!(count.get(path), Some(&1), "{what}: records of {shown:?}");
    }
    assert_eq!(count.len(), written.len(), "{what}: records of other files");
}

/// What a reader of the JSON does: the exact bytes when there are some, the text otherwise.
fn path_bytes(record: &Value) -> Vec<u8> {
    match record["vidette.file.path_base64"].as_str() {
        Some(exact) => data_encoding::BASE64.decode(exact.as_bytes()).expect("base64"),
        None => record["file.path"].as_str().expect("a path").as_bytes().to_vec(),
    }
}
