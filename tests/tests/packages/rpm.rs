//! The same programs as RPM packages, in a system whose libraries they fit: installed, used, upgraded, erased. There is no
//! distribution of such packages here to install them in, so what they say they need is looked at and not resolved.

use super::rig::{Rig, tree};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use vidette_tests::debian::succeed;
use vidette_tests::programs::binary;

/// Both packages of one version.
fn build(version: &str, out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = Command::new(tree().join("packaging/build"));
    command.args(["--rpm", "--version", version, "--compression", "0", "--out"]).arg(out).arg("--from");
    command.arg(binary("vidette")?.parent().expect("a folder")).env("SOURCE_DATE_EPOCH", "1700000000");
    let said = String::from_utf8(succeed("packaging/build", &mut command)?.stdout)?;
    Ok(said.lines().filter(|line| line.ends_with(".rpm")).map(PathBuf::from).collect())
}

/// `rpm` of this machine, on the packages of the system.
fn rpm(rig: &Rig, arguments: &[&str], packages: &[PathBuf]) -> String {
    let mut command = Command::new("rpm");
    command.arg("--root").arg(rig.root.path("/")).args(arguments).args(packages);
    let output = succeed(&format!("rpm {arguments:?}"), &mut command).expect("rpm");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_rpm_packages_are_installed_upgraded_and_erased() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("1"), folder.path().join("2"));
    let old = build("0.0.1", &first).expect("packages");
    let new = build("0.0.2", &second).expect("packages");
    assert_eq!((old.len(), new.len()), (2, 2));
    // Who built it, when and where is not in it.
    let again = build("0.0.1", &folder.path().join("again")).expect("packages");
    for (one, two) in old.iter().zip(&again) {
        assert!(fs::read(one).expect("read") == fs::read(two).expect("read"), "{} differs", one.display());
    }

    let rig = Rig::new().expect("a system");
    let needs = rpm(&rig, &["--query", "--requires", "--package"], &old);
    assert!(needs.contains("libc.so.6") && needs.contains("systemd"), "{needs}");
    rpm(&rig, &["--install", "--nodeps"], &old);
    assert_eq!(rpm(&rig, &["--verify", "--nodeps", "vidette-agent", "vidette-collector"], &[]), "");
    let wants = rig.root.path("/etc/systemd/system/multi-user.target.wants/vidette-agent.service");
    assert!(wants.symlink_metadata().is_ok(), "the presets of this system enable what is installed");

    rig.configure("polling").expect("configured");
    let collector = rig.collector().expect("a collector");
    rig.join().expect("joined");
    let agent = rig.agent().expect("an agent");
    rig.detect("first.php", 1).expect("detected");
    let identity = rig.identity().expect("one agent");
    agent.stop().expect("stopped");
    collector.stop().expect("stopped");

    let kept = rig.kept().expect("readable");
    rpm(&rig, &["--upgrade", "--nodeps"], &new);
    assert_eq!(rig.kept().expect("readable"), kept, "an upgrade changed what is not its own");
    let _collector = rig.collector().expect("a collector");
    let agent = rig.agent().expect("an agent");
    rig.detect("second.php", 2).expect("detected");
    assert_eq!(rig.identity().expect("one agent"), identity);
    agent.stop().expect("stopped");

    rpm(&rig, &["--erase", "vidette-agent"], &[]);
    assert!(!rig.root.path("/usr/bin/vidette-agent").exists() && wants.symlink_metadata().is_err());
    assert!(rig.root.path("/var/lib/vidette-agent/identity/key.pem").exists(), "its state was taken");
    assert!(rig.root.path("/etc/vidette/agent.toml.rpmsave").exists(), "changed settings were taken");
}
