//! The life of the packages on a host: installed, used, upgraded, removed, installed again, purged.

use super::rig::{Packages, Rig, build, tree};
use std::fs;
use std::path::Path;
use std::process::Command;
use vidette_tests::debian::{Entry, succeed};

const UNITS: [&str; 2] = ["vidette-agent.service", "vidette-collector.service"];
/// Where a package manager and its caches write by themselves.
const BOOKS: [&str; 7] = ["/run", "/var/lib/dpkg", "/var/log", "/var/cache", "/dev", "/tmp", "/srv"];

#[test]
fn the_packages_are_installed_upgraded_removed_and_purged() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = build("0.0.1", &folder.path().join("old")).expect("packages");
    let new = build("0.0.2", &folder.path().join("new")).expect("packages");
    contents(&old);
    same_bytes_again(&old, &folder.path().join("again"));

    let rig = Rig::new().expect("a Debian system");
    let before = outside_of_books(&rig);
    rig.install(&[&old.agent, &old.collector]).expect("installed");
    installed(&rig);
    units(&rig);

    rig.configure("polling").expect("configured");
    let collector = rig.collector().expect("a collector");
    rig.join().expect("joined");
    let agent = rig.agent().expect("an agent");
    rig.detect("first.php", 1).expect("detected");
    let identity = rig.identity().expect("one agent");
    agent.stop().expect("stopped");
    collector.stop().expect("stopped");

    let kept = rig.kept().expect("readable");
    rig.install(&[&new.agent, &new.collector]).expect("upgraded");
    assert_eq!(rig.kept().expect("readable"), kept, "an upgrade changed what is not its own");
    goes_on(&rig, &identity, 2);

    let kept = rig.kept().expect("readable");
    rig.root.run("dpkg", &["--remove", "vidette-agent", "vidette-collector"]).expect("removed");
    assert!(!rig.root.path("/usr/bin/vidette").exists() && !rig.root.path("/usr/bin/vidette-agent").exists());
    assert_eq!(rig.kept().expect("readable"), kept, "a removal took what only a purge may");
    rig.install(&[&old.agent, &old.collector]).expect("installed again");
    units(&rig);
    goes_on(&rig, &identity, 3);

    let stranger = rig.root.path("/var/lib/vidette-of-somebody-else");
    fs::write(&stranger, "kept").expect("written");
    rig.root.run("dpkg", &["--purge", "vidette-agent", "vidette-collector"]).expect("purged");
    fs::remove_file(&stranger).expect("a purge takes its own folders only");
    let after = outside_of_books(&rig);
    let left: Vec<&Entry> = after.iter().filter(|entry| !before.contains(entry)).collect();
    assert!(left.is_empty(), "a purge left {left:#?}");
    assert_eq!(before.len(), after.len(), "a purge took what was there before");
}

/// The same agent, with all that was stored before, and able to add to it.
fn goes_on(rig: &Rig, identity: &str, count: usize) {
    let collector = rig.collector().expect("a collector");
    let agent = rig.agent().expect("an agent");
    rig.detect(&format!("{count}.php"), count).expect("detected");
    assert_eq!(rig.identity().expect("one agent"), identity);
    agent.stop().expect("stopped");
    collector.stop().expect("stopped");
}

fn outside_of_books(rig: &Rig) -> Vec<Entry> {
    let mut entries = rig.root.entries("/").expect("readable");
    entries.retain(|entry| {
        // Its time changes with every link that is made beside it.
        !BOOKS.iter().any(|book| entry.path.starts_with(book)) && entry.path != "/etc/ld.so.cache"
    });
    entries
}

/// Root's, and writable by nobody else; nothing that runs with another's rights.
fn contents(packages: &Packages) {
    for package in [&packages.agent, &packages.collector] {
        let listed =
            succeed("dpkg-deb", Command::new("dpkg-deb").arg("--contents").arg(package)).expect("listed");
        let listed = String::from_utf8(listed.stdout).expect("UTF-8");
        for line in listed.lines() {
            let expected = match line {
                line if line.starts_with('d') => "drwxr-xr-x root/root",
                line if line.contains(" ./usr/bin/") => "-rwxr-xr-x root/root",
                _ => "-rw-r--r-- root/root",
            };
            assert!(line.starts_with(expected), "{line} is not {expected}");
        }
        lintian(package);
    }
}

/// Clean; what is overridden has its reason in the line before.
fn lintian(package: &Path) {
    let mut command = Command::new("lintian");
    command.args(["--allow-root", "--no-cfg", "--info", "--fail-on", "error,warning"]).arg(package);
    succeed("lintian", &mut command).expect("lintian is content");
    for folder in ["agent", "collector"] {
        let path = tree().join("packaging/deb").join(folder).join("lintian-overrides");
        let text = fs::read_to_string(path).expect("overrides");
        let mut before = "";
        for line in text.lines() {
            assert!(line.starts_with('#') || before.starts_with('#'), "no reason before `{line}`");
            before = line;
        }
    }
}

fn same_bytes_again(packages: &Packages, out: &Path) {
    let again = build("0.0.1", out).expect("packages");
    for (one, two) in [(&packages.agent, &again.agent), (&packages.collector, &again.collector)] {
        assert!(
            fs::read(one).expect("read") == fs::read(two).expect("read"),
            "{} is not reproducible",
            one.display()
        );
    }
}

fn installed(rig: &Rig) {
    for path in [
        "/usr/share/man/man1/vidette.1.gz",
        "/usr/share/man/man1/vidette-agents-list.1.gz",
        "/usr/share/man/man1/vidette-agent.1.gz",
        "/usr/share/man/man1/vidette-agent-scan.1.gz",
        "/usr/share/zsh/vendor-completions/_vidette",
        "/usr/share/fish/vendor_completions.d/vidette-agent.fish",
        "/usr/share/doc/vidette-agent/copyright",
        "/usr/share/doc/vidette-agent/rules.tar.gz",
        "/usr/share/doc/vidette-collector/linked-crates.gz",
        "/usr/lib/sysctl.d/10-vidette-collector.conf",
    ] {
        assert!(rig.root.path(path).is_file(), "{path} is missing");
    }
    // The scanner's own command is nobody's to call.
    assert!(!rig.root.path("/usr/share/man/man1/vidette-agent-worker.1.gz").exists());
    for program in ["vidette", "vidette-agent"] {
        let script = rig.root.path("/usr/share/bash-completion/completions").join(program);
        succeed("bash -n", Command::new("bash").arg("-n").arg(script)).expect("a script");
    }
    for package in ["vidette-agent", "vidette-collector"] {
        assert_eq!(rig.root.run("dpkg", &["--verify", package]).expect("verified"), "", "{package}");
        let settings =
            rig.root.run("dpkg-query", &["--show", "--showformat=${Conffiles}", package]).expect("shown");
        assert_eq!(settings.matches("/etc/vidette/").count(), 1, "{settings}");
    }
    let settings = rig.root.entries("/etc/vidette").expect("readable");
    assert_eq!(settings.len(), 3, "{settings:?}");
    assert!(settings.iter().all(|entry| entry.owner == (0, 0)));
    for state in ["/var/lib/vidette-agent", "/var/lib/vidette"] {
        assert!(!rig.root.path(state).exists(), "{state} is the program's to make");
    }
}

/// systemd has nothing to say about them, and starts them with the system.
fn units(rig: &Rig) {
    let mut verify = rig.root.command("systemd-analyze");
    let said = succeed("systemd-analyze verify", verify.arg("--man=no").arg("verify").args(UNITS))
        .expect("valid units");
    assert_eq!(String::from_utf8_lossy(&said.stderr), "");
    for unit in UNITS {
        assert_eq!(
            rig.root.run("systemctl", &["is-enabled", unit]).expect("asked").trim(),
            "enabled",
            "{unit}"
        );
    }
}
