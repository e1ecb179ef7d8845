//! Files and processes as ECS fields.

use super::{Record, rfc3339, words};
use crate::wire;
use data_encoding::HEXLOWER;

/// A longer "extension" is a part of the name that happens to follow a dot. Bytes.
const EXTENSION_BYTES_MAX: usize = 16;

/// `st_mode`'s type bits (inode(7)).
const TYPE_MASK: u32 = 0o170_000;

pub(super) fn put_file(record: &mut Record, file: &wire::File) {
    put_path(record, &file.path);
    record.name("vidette.file.container_path", &file.container_path);
    // A file that was looked at has an inode; one known by name only says nothing of its owner.
    if file.inode != 0 || file.mode != 0 {
        record.put("file.size", file.size);
        record.put("file.inode", file.inode.to_string());
        record.put("file.device", device(file.device));
        record.text("file.type", file_type(file.mode));
        record.put("file.mode", format!("{:04o}", file.mode & 0o7777));
        record.put("file.uid", file.uid.to_string());
        record.put("file.gid", file.gid.to_string());
        record.put("file.mtime", rfc3339(file.mtime_unix_ns));
        record.put("file.ctime", rfc3339(file.ctime_unix_ns));
    }
    record.text("file.hash.sha256", &HEXLOWER.encode(&file.sha256));
    record.text("file.hash.sha1", &HEXLOWER.encode(&file.sha1));
    record.text("file.hash.md5", &HEXLOWER.encode(&file.md5));
    record.text("file.hash.blake3", &HEXLOWER.encode(&file.blake3));
    if file.deleted {
        record.put("vidette.file.deleted", true);
    }
}

fn put_path(record: &mut Record, path: &[u8]) {
    record.name("file.path", path);
    let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (&path[..1], &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    };
    record.text("file.name", &String::from_utf8_lossy(name));
    record.text("file.directory", &String::from_utf8_lossy(directory));
    if let Some(extension) = extension(name) {
        record.put("file.extension", extension);
    }
}

/// What follows the last dot, when it is short, plain ASCII, and not the whole name.
fn extension(name: &[u8]) -> Option<&str> {
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0)?;
    let extension = name.get(dot + 1..)?;
    let sane = (1..=EXTENSION_BYTES_MAX).contains(&extension.len())
        && extension.iter().all(u8::is_ascii_alphanumeric);
    if sane { std::str::from_utf8(extension).ok() } else { None }
}

/// `major:minor` as in `/proc/self/mountinfo`; the bits are those of glibc's gnu_dev_major(3).
fn device(number: u64) -> String {
    let major = ((number >> 8) & 0xfff) | ((number >> 32) & !0xfff);
    let minor = (number & 0xff) | ((number >> 12) & !0xff & 0xffff_ffff);
    format!("{major}:{minor}")
}

fn file_type(mode: u32) -> &'static str {
    match mode & TYPE_MASK {
        0o100_000 => "file",
        0o040_000 => "dir",
        0o120_000 => "symlink",
        _ => "", // nothing that the agent opens
    }
}

/// `role` says what the process did to the file of the event; empty where it did nothing.
pub(super) fn put_process(record: &mut Record, process: &wire::Process, role: &str) {
    record.text("process.entity_id", &process.entity_id);
    if process.pid != 0 {
        record.put("process.pid", process.pid);
    }
    record.name("process.name", &process.name);
    record.name("process.executable", &process.executable);
    put_args(record, "process", &process.args);
    record.name("process.working_directory", &process.working_directory);
    if let Some(uid) = process.uid {
        record.put("user.id", uid.to_string());
    }
    record.name("user.name", &process.user_name);
    if let Some(gid) = process.gid {
        record.put("group.id", gid.to_string());
    }
    process.parent.iter().for_each(|parent| put_parent(record, parent));
    if process.start_ns != 0 {
        record.put("vidette.process.start_uptime_ns", process.start_ns);
    }
    record.put("vidette.process.source", words::source(process.source));
    record.text("vidette.process.role", role);
    put_session(record, process);
    put_ancestors(record, &process.ancestors);
    process.sources.iter().for_each(|sources| put_sources(record, sources));
}

/// Whose login it descends from, and where it is confined.
fn put_session(record: &mut Record, process: &wire::Process) {
    for (field, number) in [
        ("vidette.process.login_uid", process.login_uid),
        ("vidette.process.login_session", process.login_session),
        ("vidette.process.session", process.session),
    ] {
        if let Some(number) = number {
            record.put(field, number);
        }
    }
    record.name("vidette.process.cgroup", &process.cgroup);
    record.text("container.id", &process.container_id);
}

/// `executable(pid)` for people, the parent's parent first, and the ids for programs, in the same order. One
/// whose executable is not known is called by its name.
fn put_ancestors(record: &mut Record, ancestors: &[wire::Ancestor]) {
    let shown = |ancestor: &wire::Ancestor| {
        let name = if ancestor.executable.is_empty() { &ancestor.name } else { &ancestor.executable };
        [name.as_slice(), format!("({})", ancestor.pid).as_bytes()].concat()
    };
    record.names("vidette.process.ancestors", &ancestors.iter().map(shown).collect::<Vec<_>>());
    let ids: Vec<&str> = ancestors.iter().map(|ancestor| ancestor.entity_id.as_str()).collect();
    record.list("vidette.process.ancestor_entity_ids", &ids);
}

fn put_sources(record: &mut Record, sources: &wire::Sources) {
    for (part, source) in [
        ("start", sources.start),
        ("parent", sources.parent),
        ("args", sources.args),
        ("user", sources.user),
        ("login", sources.login),
        ("cgroup", sources.cgroup),
    ] {
        record.put(&format!("vidette.process.sources.{part}"), words::source(source));
    }
}

fn put_parent(record: &mut Record, parent: &wire::ParentProcess) {
    record.text("process.parent.entity_id", &parent.entity_id);
    if parent.pid != 0 {
        record.put("process.parent.pid", parent.pid);
    }
    record.name("process.parent.name", &parent.name);
    record.name("process.parent.executable", &parent.executable);
    put_args(record, "process.parent", &parent.args);
}

fn put_args(record: &mut Record, prefix: &str, args: &[Vec<u8>]) {
    record.names(&format!("{prefix}.args"), args);
    record.text(&format!("{prefix}.command_line"), &String::from_utf8_lossy(&args.join(&b' ')));
}

/// A wait(2) status: an exit code or a signal.
pub(super) fn put_exit(record: &mut Record, status: i32) {
    let signal = status & 0x7f;
    if signal == 0 {
        record.put("process.exit_code", (status >> 8) & 0xff);
    } else {
        record.put("vidette.process.signal", signal);
    }
}
