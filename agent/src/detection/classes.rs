//! How urgent a file is, and whose work: from what was observed and what its descriptor says. Pure.
//!
//! "May be run" is told by the mode alone: nothing is read of a file here.

use super::events::What;
use super::queue::Class;
use super::shares::Share;
use std::hash::{BuildHasher as _, RandomState};
use vidette_protocol::wire::{self, Trigger};

/// Where the system lives: what root owns there decides what runs as root.
pub const SYSTEM_FOLDERS: [&[u8]; 13] = [
    b"/etc/",
    b"/usr/",
    b"/bin/",
    b"/sbin/",
    b"/lib/",
    b"/lib32/",
    b"/lib64/",
    b"/libx32/",
    b"/boot/",
    b"/opt/",
    b"/root/",
    b"/var/spool/cron/",
    b"/var/lib/systemd/",
];
/// The permission bits that let somebody run a file: inode(7).
const MAY_RUN: u32 = 0o111;

/// Gives programs numbers that nobody outside can foresee.
#[derive(Debug, Default)]
pub struct Origins(RandomState);

/// How urgent it is.
#[must_use]
pub fn class(what: &What, file: &wire::File, path: &[u8]) -> Class {
    match what {
        What::Run(..) => Class::Run,
        What::Written(_, Trigger::Sweep, _) => Class::Sweep,
        What::Written(..) if file.mode & MAY_RUN != 0 => Class::Executable,
        What::Written(..) if file.uid == 0 && is_system(path) => Class::System,
        What::Written(..) => Class::Rest,
    }
}

/// Which observations of one file need one event alone: writes with writes, names with names.
#[must_use]
pub fn kind(what: &What) -> Option<u8> {
    match what {
        What::Run(..) => None,
        What::Written(_, trigger, _) => Some(match trigger {
            Trigger::CloseWrite
            | Trigger::Sweep
            | Trigger::Exec
            | Trigger::Request
            | Trigger::Unspecified => 0,
            Trigger::Rename => 1,
            Trigger::Link => 2,
            Trigger::Attributes => 3,
        }),
    }
}

fn is_system(path: &[u8]) -> bool {
    SYSTEM_FOLDERS.iter().any(|folder| path.starts_with(folder))
}

impl Origins {
    /// Whose work it is.
    #[must_use]
    pub fn share(&self, what: &What, file: &wire::File) -> Share {
        let process = match what {
            What::Run(process, _) => Some(process),
            What::Written(process, ..) => process.as_ref(),
        };
        let executable = process.map_or(&[][..], |process| &process.executable);
        Share {
            uid: process.and_then(|process| process.uid).unwrap_or(file.uid),
            origin: self.0.hash_one(executable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(trigger: Trigger) -> What {
        What::Written(None, trigger, Vec::new())
    }

    #[test]
    fn classes_by_what_mode_owner_and_folder() {
        let run = What::Run(wire::Process::default(), false);
        for (what, mode, uid, path, expected) in [
            (&run, 0o644, 5, &b"/x"[..], Class::Run),
            (&written(Trigger::Attributes), 0o100_755, 5, b"/x", Class::Executable),
            (&written(Trigger::CloseWrite), 0o100_010, 5, b"/x", Class::Executable),
            (&written(Trigger::Rename), 0o100_644, 0, b"/etc/cron.d/x", Class::System),
            (&written(Trigger::CloseWrite), 0o100_644, 5, b"/etc/x", Class::Rest),
            (&written(Trigger::CloseWrite), 0o100_644, 0, b"/etcetera", Class::Rest),
            (&written(Trigger::Sweep), 0o100_755, 0, b"/etc/x", Class::Sweep),
        ] {
            let file = wire::File { mode, uid, ..Default::default() };
            assert_eq!(class(what, &file, path), expected, "{what:?} {mode:o} {uid}");
        }
    }

    #[test]
    fn a_share_is_the_process_s_user_and_program_or_the_owner_s() {
        let origins = Origins::default();
        let by = |uid, executable: &[u8]| {
            let process = wire::Process { uid, executable: executable.to_vec(), ..Default::default() };
            let what = What::Written(Some(process), Trigger::CloseWrite, Vec::new());
            origins.share(&what, &wire::File { uid: 7, ..Default::default() })
        };
        assert_eq!((by(Some(3), b"/a").uid, by(None, b"/a").uid), (3, 7));
        assert_eq!(by(Some(3), b"/a"), by(Some(3), b"/a"));
        assert_ne!(by(Some(3), b"/a").origin, by(Some(3), b"/b").origin);
    }
}
