//! What happens to the unit that systemd runs the agent as: masked, disabled, overridden, its program gone or another one.
//!
//! Looks only at names, links and times, never into files. What is found is compared with what was found before (pure), so
//! that an administrator's own settings are told when they come and never again. Knows only units of systemd.unit(5).

use super::Told;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use vidette_protocol::escape::terminal;
use vidette_protocol::wire::Severity;

/// Where units are that are not the packages' own, strongest first.
const FOLDERS: [&str; 4] =
    ["etc/systemd/system.control", "run/systemd/system.control", "etc/systemd/system", "run/systemd/system"];
/// Names in one folder that are looked at.
const NAMES_MAX: usize = 1024;

/// The unit of this process.
#[derive(Debug)]
pub struct Unit {
    root: PathBuf,
    name: OsString,
    /// The program that runs, and the file that it was then: device, inode.
    program: Option<(PathBuf, (u64, u64))>,
    last: Option<Look>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Look {
    masked: Option<PathBuf>,
    enabled: bool,
    /// Files that change the unit, with what tells when they change: inode, mtime.
    overrides: BTreeMap<PathBuf, (u64, i64, i64)>,
    program: Program,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Program {
    #[default]
    Same,
    Other,
    Gone,
}

impl Unit {
    /// None when this process was not started by systemd as a service.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        std::env::var_os("INVOCATION_ID")?;
        let name = name_in(&fs::read("/proc/self/cgroup").ok()?)?;
        let path = fs::read_link("/proc/self/exe").ok()?;
        let program = fs::metadata("/proc/self/exe").ok().map(|data| (path, (data.dev(), data.ino())));
        Some(Self { root: PathBuf::from("/"), name, program, last: None })
    }

    /// What is new since the last look. The first one tells of what is wrong whenever it happened.
    pub fn look(&mut self) -> Vec<Told> {
        let now = self.find();
        let before = self.last.replace(now.clone());
        signs(before.as_ref(), &now)
    }

    fn find(&self) -> Look {
        let mut look = Look { enabled: self.is_enabled(), program: self.program(), ..Look::default() };
        for folder in FOLDERS.map(|folder| self.root.join(folder)) {
            let own = folder.join(&self.name);
            match fs::read_link(&own) {
                Ok(target) if target == Path::new("/dev/null") => {
                    look.masked.get_or_insert(own);
                }
                Ok(_) | Err(_) => look.overrides.extend(stamp(own)),
            }
            let mut beside = self.name.clone();
            beside.push(".d");
            for name in names(&folder.join(&beside)) {
                if name.as_bytes().ends_with(b".conf") {
                    look.overrides.extend(stamp(folder.join(&beside).join(name)));
                }
            }
        }
        look
    }

    /// Something wants it at the start of the host.
    fn is_enabled(&self) -> bool {
        FOLDERS.iter().map(|folder| self.root.join(folder)).any(|folder| {
            let wants = |name: &OsString| {
                [&b".wants"[..], b".requires", b".upholds"].iter().any(|end| name.as_bytes().ends_with(end))
            };
            names(&folder)
                .into_iter()
                .filter(wants)
                .any(|wants| folder.join(wants).join(&self.name).symlink_metadata().is_ok())
        })
    }

    fn program(&self) -> Program {
        let Some((path, before)) = &self.program else { return Program::Same };
        match path.symlink_metadata() {
            Ok(data) if (data.dev(), data.ino()) == *before => Program::Same,
            Ok(_) => Program::Other,
            Err(_) => Program::Gone,
        }
    }
}

/// `0::/system.slice/vidette-agent.service`, or a folder below it.
fn name_in(cgroup: &[u8]) -> Option<OsString> {
    let line = cgroup.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    let mut parts = line.split(|&byte| byte == b'/').filter(|part| part.ends_with(b".service"));
    parts.next_back().map(|name| OsStr::from_bytes(name).to_owned())
}

fn names(folder: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.take(NAMES_MAX).map(|entry| entry.file_name()).collect()
}

fn stamp(path: PathBuf) -> Option<(PathBuf, (u64, i64, i64))> {
    let data = path.symlink_metadata().ok()?;
    Some((path, (data.ino(), data.mtime(), data.mtime_nsec())))
}

fn signs(before: Option<&Look>, now: &Look) -> Vec<Told> {
    let mut told = Vec::new();
    let mut tell = |severity, detail: String| {
        told.push(Told { action: "tamper", severity, detail, process: None });
    };
    let shown = |path: &Path| terminal(path.as_os_str().as_bytes());
    if let Some(path) = now.masked.as_ref().filter(|_| before.is_none_or(|before| before.masked.is_none())) {
        tell(
            Severity::High,
            format!("the agent's unit is masked by {}: once it is stopped, nothing starts it", shown(path)),
        );
    }
    let Some(before) = before else { return told };
    if before.enabled && !now.enabled {
        let detail = "the agent's unit was disabled: it does not start with the host any more";
        tell(Severity::High, detail.to_owned());
    }
    let paths: BTreeSet<&PathBuf> = before.overrides.keys().chain(now.overrides.keys()).collect();
    for path in paths {
        let what = match (before.overrides.get(path), now.overrides.get(path)) {
            (None, Some(_)) => "was added",
            (Some(_), None) => "was taken away",
            (before, now) if before != now => "was changed",
            _ => continue,
        };
        tell(Severity::High, format!("{}, which changes the agent's unit, {what}", shown(path)));
    }
    match now.program {
        program if program == before.program => {}
        Program::Same => {}
        Program::Gone => tell(Severity::High, "the agent's program was deleted".to_owned()),
        Program::Other => {
            let detail =
                "the agent's program was replaced: by an upgrade, which starts it anew, or by somebody else";
            tell(Severity::Medium, detail.to_owned());
        }
    }
    told
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn unit(root: &Path) -> Unit {
        for folder in ["etc/systemd/system/multi-user.target.wants", "run/systemd/system", "usr/bin"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let name = OsString::from("vidette-agent.service");
        symlink("/x", root.join("etc/systemd/system/multi-user.target.wants").join(&name)).unwrap();
        let path = root.join("usr/bin/vidette-agent");
        fs::write(&path, "").unwrap();
        let data = path.metadata().unwrap();
        Unit { root: root.to_path_buf(), name, program: Some((path, (data.dev(), data.ino()))), last: None }
    }

    fn heard(unit: &mut Unit) -> Vec<String> {
        unit.look().into_iter().map(|told| told.detail).collect()
    }

    #[test]
    fn every_sign_is_told_once_when_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut unit = unit(root);
        assert_eq!(heard(&mut unit), [""; 0]);
        let etc = root.join("etc/systemd/system");
        let name = "vidette-agent.service";
        let mut step = |deed: &dyn Fn(), words: &str| {
            deed();
            let told = heard(&mut unit);
            assert!(told.len() == 1 && told[0].contains(words), "{words}: {told:?}");
            assert_eq!(heard(&mut unit), [""; 0], "{words}: again");
        };
        step(&|| symlink("/dev/null", etc.join(name)).unwrap(), "masked by");
        let program = root.join("usr/bin/vidette-agent");
        step(&|| fs::rename(&program, root.join("usr/bin/else")).unwrap(), "deleted");
        let wants = etc.join("multi-user.target.wants").join(name);
        step(&|| fs::remove_file(&wants).unwrap(), "disabled");
    }

    #[test]
    fn drop_ins_overrides_and_the_program_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let mut unit = unit(root);
        let etc = root.join("etc/systemd/system");
        let beside = etc.join("vidette-agent.service.d");
        fs::create_dir(&beside).unwrap();
        fs::write(beside.join("own.conf"), "the administrator's").unwrap();
        assert_eq!(heard(&mut unit), [""; 0], "what was there before is no sign");
        fs::write(beside.join("x.conf"), "[Service]\nExecStart=\n").unwrap();
        fs::write(beside.join("no-configuration"), "").unwrap();
        fs::remove_file(beside.join("own.conf")).unwrap();
        let told = heard(&mut unit);
        assert!(
            told.len() == 2 && told[0].contains("own.conf") && told[0].contains("taken away"),
            "{told:?}"
        );
        assert!(told[1].contains("x.conf") && told[1].contains("added"), "{told:?}");
        fs::write(etc.join("vidette-agent.service"), "[Service]\n").unwrap();
        fs::remove_file(etc.join("multi-user.target.wants/vidette-agent.service")).unwrap();
        let told = heard(&mut unit);
        assert!(told.len() == 2 && told[0].contains("disabled") && told[1].contains("added"), "{told:?}");
        let program = root.join("usr/bin/vidette-agent");
        fs::write(root.join("usr/bin/new"), "").unwrap();
        fs::rename(root.join("usr/bin/new"), &program).unwrap();
        assert!(heard(&mut unit)[0].contains("replaced"));
        fs::remove_file(&program).unwrap();
        assert!(heard(&mut unit)[0].contains("deleted"));
        assert_eq!(heard(&mut unit), [""; 0]);
    }

    #[test]
    fn masked_before_the_start_is_told_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut unit = unit(folder.path());
        let link = folder.path().join("run/systemd/system/vidette-agent.service");
        symlink("/dev/null", link).unwrap();
        assert!(heard(&mut unit)[0].contains("masked"));
    }

    #[test]
    fn the_name_is_in_the_control_group() {
        for (cgroup, name) in [
            ("0::/system.slice/vidette-agent.service\n", Some("vidette-agent.service")),
            ("1:name=systemd:/x.service\n0::/system.slice/a.service/part\n", Some("a.service")),
            ("0::/user.slice/session-1.scope\n", None),
            ("", None),
        ] {
            assert_eq!(name_in(cgroup.as_bytes()).as_deref(), name.map(OsStr::new), "{cgroup}");
        }
    }
}
