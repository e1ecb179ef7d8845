//! dpkg is killed at each step of an upgrade. Whatever it leaves, the program starts with the state that was there, and
//! installing once more makes it whole.

use super::rig::{Rig, build};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use vidette_tests::debian::succeed;
use vidette_tests::programs::wait_for;

/// In the order in which dpkg comes to them (Debian policy, 6.6).
const STEPS: [Step; 7] = [
    Step::OldScript("prerm"),
    Step::NewScript("preinst", Moment::Before),
    Step::Unpacking,
    Step::OldScript("postrm"),
    Step::NotConfigured,
    Step::NewScript("postinst", Moment::Before),
    Step::NewScript("postinst", Moment::After),
];

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A script of the installed package kills before it does anything.
    OldScript(&'static str),
    /// A script of the new package kills.
    NewScript(&'static str, Moment),
    /// Killed from outside, while the new program lies beside the old one, unfinished.
    Unpacking,
    /// Everything is unpacked, nobody came to configure it.
    NotConfigured,
}

#[derive(Debug, Clone, Copy)]
enum Moment {
    Before,
    After,
}

/// dpkg is the parent of every script.
const KILL: &str = "kill -9 \"$PPID\"; exit 1";

#[test]
fn an_upgrade_that_is_killed_at_any_step_leaves_a_program_that_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = build("0.0.1", folder.path()).expect("packages");
    let rig = Rig::new().expect("a Debian system");
    rig.install(&[&first.agent, &first.collector]).expect("installed");
    rig.configure("polling").expect("configured");
    let collector = rig.collector().expect("a collector");
    rig.join().expect("joined");
    rig.agent().expect("an agent").stop().expect("stopped");
    collector.stop().expect("stopped");

    for (package, program, deb) in
        [("vidette-agent", "vidette-agent", &first.agent), ("vidette-collector", "vidette", &first.collector)]
    {
        let unpacked = folder.path().join(package);
        succeed("dpkg-deb", Command::new("dpkg-deb").arg("--raw-extract").arg(deb).arg(&unpacked))
            .expect("unpacked");
        for (number, step) in STEPS.iter().enumerate() {
            let version = format!("0.1.{number}");
            let whole = pack(&unpacked, &version, None, folder.path());
            let kept = rig.kept().expect("readable");
            kill_at(&rig, *step, package, program, &unpacked, &version, folder.path());
            assert_eq!(rig.kept().expect("readable"), kept, "{package}, {step:?}");
            starts(&rig, program, *step);

            let kept = rig.kept().expect("readable");
            rig.install(&[&whole]).unwrap_or_else(|error| panic!("{package}, {step:?}: {error:#}"));
            assert_eq!(rig.root.run("dpkg", &["--audit"]).expect("asked"), "", "{package}, {step:?}");
            assert_eq!(rig.kept().expect("readable"), kept, "{package}, {step:?}, installed once more");
        }
        starts(&rig, program, Step::NotConfigured);
    }
    let collector = rig.collector().expect("a collector");
    rig.identity().expect("still one agent");
    collector.stop().expect("stopped");
}

fn starts(rig: &Rig, program: &str, step: Step) {
    rig.root.run(program, &["--version"]).unwrap_or_else(|error| panic!("{program}, {step:?}: {error:#}"));
    let running = if program == "vidette" { rig.collector() } else { rig.agent() };
    let running = running.unwrap_or_else(|error| panic!("{program}, {step:?}: {error:#}"));
    running.stop().unwrap_or_else(|error| panic!("{program}, {step:?}: {error:#}"));
}

fn kill_at(
    rig: &Rig,
    step: Step,
    package: &str,
    program: &str,
    unpacked: &Path,
    version: &str,
    folder: &Path,
) {
    let script = match step {
        Step::NewScript(name, moment) => Some((name, moment)),
        Step::OldScript(_) | Step::Unpacking | Step::NotConfigured => None,
    };
    let deb = pack(unpacked, version, script, folder);
    match step {
        Step::NotConfigured => {
            succeed("dpkg --unpack", &mut rig.dpkg("--unpack", &[&deb]).expect("copied")).expect("unpacked");
        }
        Step::Unpacking => {
            let mut dpkg = rig.dpkg("--install", &[&deb]).expect("copied").spawn().expect("started");
            let unfinished = rig.root.path(&format!("/usr/bin/{program}.dpkg-new"));
            let seen = wait_for("the new program", || {
                Ok(if unfinished.exists() { Some(true) } else { dpkg.try_wait()?.map(|_| false) })
            });
            dpkg.kill().expect("killed");
            let status = dpkg.wait().expect("waited for");
            assert!(seen.expect("unpacked") && !status.success(), "dpkg was done before it could be killed");
        }
        Step::OldScript(name) => {
            let path = rig.root.path(&format!("/var/lib/dpkg/info/{package}.{name}"));
            let text = fs::read_to_string(&path).expect("a script");
            fs::write(&path, text.replacen('\n', &format!("\n{KILL}\n"), 1)).expect("changed");
            killed(rig, &deb, step);
            // It kills once, not whoever installs again.
            fs::write(&path, text).expect("put back");
        }
        Step::NewScript(..) => killed(rig, &deb, step),
    }
}

fn killed(rig: &Rig, deb: &Path, step: Step) {
    use std::os::unix::process::ExitStatusExt;
    let output = rig.dpkg("--install", &[deb]).expect("copied").output().expect("started");
    assert_eq!(output.status.signal(), Some(9), "{step:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The package again, as `version`, with a script that kills. Not compressed: it is made often.
fn pack(unpacked: &Path, version: &str, kills: Option<(&str, Moment)>, folder: &Path) -> PathBuf {
    let control = unpacked.join("DEBIAN/control");
    let text = fs::read_to_string(&control).expect("read");
    let line = text.lines().find(|line| line.starts_with("Version: ")).expect("a version");
    fs::write(&control, text.replace(line, &format!("Version: {version}"))).expect("written");
    let changed = kills.map(|(name, moment)| {
        let path = unpacked.join("DEBIAN").join(name);
        let before = fs::read_to_string(&path).ok();
        let whole = before.clone().unwrap_or_else(|| "#!/bin/sh\n".to_owned());
        let text = match moment {
            Moment::Before => whole.replacen('\n', &format!("\n{KILL}\n"), 1),
            // It has `exit 0` on its way; in a shell of its own that ends the rest alone.
            Moment::After => {
                format!("#!/bin/sh\nif [ -z \"$INNER\" ]; then INNER=1 sh \"$0\" \"$@\"; {KILL}; fi\n{whole}")
            }
        };
        fs::write(&path, text).expect("written");
        succeed("chmod", Command::new("chmod").arg("755").arg(&path)).expect("executable");
        (path, before)
    });
    let deb = folder.join(format!("{version}{}.deb", if changed.is_some() { "-kills" } else { "" }));
    let mut command = Command::new("dpkg-deb");
    succeed("dpkg-deb", command.args(["--root-owner-group", "-Znone", "--build"]).arg(unpacked).arg(&deb))
        .expect("packed");
    if let Some((path, before)) = changed {
        match before {
            Some(text) => fs::write(&path, text).expect("put back"),
            None => fs::remove_file(&path).expect("taken away"),
        }
    }
    deb
}
