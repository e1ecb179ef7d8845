//! The agent does all of its work with exactly the capabilities that its unit gives it.

use super::rig::tree;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use vidette_tests::programs::{binary, call, wait_for};
use vidette_tests::samples;

/// Kills what it holds.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As the unit lists them, in the words of setpriv(1).
fn granted() -> String {
    let unit = fs::read_to_string(tree().join("packaging/vidette-agent.service")).expect("a unit");
    let list = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a list");
    let words: Vec<String> =
        list.split_whitespace().map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
    format!("-all,+{}", words.join(",+"))
}

/// Starts the agent with these capabilities, and nothing that could give it more.
fn start(folder: &Path, capabilities: &str) -> Running {
    let settings = format!(
        "[sensors]\nwatch = [{:?}]\n[sweep]\nevery_h = 0\nafter_rules_change = false\n",
        folder.join("watched").display().to_string()
    );
    fs::write(folder.join("agent.toml"), settings).expect("written");
    let log = fs::File::create(folder.join("log")).expect("made");
    let mut command = Command::new("setpriv");
    command.args([&format!("--bounding-set={capabilities}"), "--inh-caps=-all", "--no-new-privs"]);
    command.arg(binary("vidette-agent").expect("built")).arg("run");
    command.arg("--state").arg(folder.join("state")).arg("--config").arg(folder.join("agent.toml"));
    Running(command.stdin(Stdio::null()).stderr(log).spawn().expect("started"))
}

fn status(folder: &Path) -> anyhow::Result<Option<serde_json::Value>> {
    let state = folder.join("state").display().to_string();
    let output = call("vidette-agent", &["status", "--json", "--state", &state], "")?;
    Ok(if output.status.success() { Some(serde_json::from_slice(&output.stdout)?) } else { None })
}

#[test]
fn the_agent_works_with_the_capabilities_of_its_unit() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().canonicalize().expect("real");
    // A folder that root alone may enter by its rights, and that belongs to somebody else.
    let private = folder.join("watched/private");
    fs::create_dir_all(&private).expect("made");
    std::os::unix::fs::chown(&private, Some(65_534), Some(65_534)).expect("given away");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).expect("closed");

    let _running = start(&folder, &granted());
    let said = || fs::read_to_string(folder.join("log")).unwrap_or_default();
    let proof = wait_for("the self-test", || {
        Ok(status(&folder)?
            .filter(|status| status["self_test"].as_str().is_some_and(|proof| !proof.is_empty())))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", said()));
    assert_eq!(proof["level"], "full", "{}", said());
    let proof = proof["self_test"].as_str().expect("words");
    assert!(proof.starts_with("seen: name, content, run, process"), "{proof}\n{}", said());
    assert!(said().contains("real-time priority") && !said().contains("refused"), "{}", said());

    let file = private.join("page.php");
    fs::write(&file, samples::web_shell()).expect("written");
    std::os::unix::fs::chown(&file, Some(65_534), Some(65_534)).expect("given away");
    fs::rename(&file, private.join("index.php")).expect("renamed");
    let scanned = wait_for("the scan", || {
        Ok(status(&folder)?.filter(|status| status["counters"]["detection_passed"].as_u64().unwrap_or(0) > 0))
    });
    let scanned = scanned.unwrap_or_else(|error| panic!("{error:#}\n{}", said()));
    assert_eq!(scanned["counters"]["worker_deaths"], 0, "{}", said());
    assert!(!said().contains(" ERROR "), "{}", said());
}

/// What is missed without one of them, in the words of the log or of `status`. The others are missed on older kernels
/// (NET_ADMIN), or only by what a file or a process of another user happens to need.
const MISSED: [(&str, &str); 5] = [
    ("sys_admin", "fanotify is refused (it needs CAP_SYS_ADMIN)"),
    ("sys_nice", "real time is refused (it needs CAP_SYS_NICE)"),
    ("setuid", "could not become user nobody"),
    ("setgid", "could not drop supplementary groups"),
    ("setpcap", "could not empty the capability bounding set"),
];

#[test]
fn each_capability_is_missed() {
    let granted = granted();
    for (capability, missed) in MISSED {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("real");
        fs::create_dir(folder.join("watched")).expect("made");
        let fewer = granted.replace(&format!(",+{capability}"), "").replace(&format!("+{capability},"), "");
        assert_ne!(fewer, granted, "the unit does not give {capability}");
        let _running = start(&folder, &fewer);
        let said = || fs::read_to_string(folder.join("log")).unwrap_or_default();
        let seen = wait_for("what is missed", || {
            let reason =
                status(&folder)?.and_then(|status| status["level_reason"].as_str().map(str::to_owned));
            Ok((said().contains(missed) || reason.unwrap_or_default().contains(missed)).then_some(()))
        });
        seen.unwrap_or_else(|error| panic!("without {capability}: {error:#}\n{}", said()));
        // No rule is blamed for what the unit does not give.
        assert!(!said().contains("is left out"), "without {capability}: {}", said());
    }
}

#[test]
fn without_the_right_for_marks_the_agent_says_that_it_sees_less() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().canonicalize().expect("real");
    fs::create_dir(folder.join("watched")).expect("made");
    let _running = start(&folder, &granted().replace(",+sys_admin", "").replace("+sys_admin,", ""));
    let status = wait_for("the agent", || status(&folder)).expect("it runs");
    assert_eq!(status["level"], "polling", "{status}");
    assert!(
        status["level_reason"].as_str().is_some_and(|reason| reason.contains("CAP_SYS_ADMIN")),
        "{status}"
    );
}
