//! A Debian system in a folder, for packages to be installed in: made once by debootstrap, copied for each test.
//!
//! Assumes root, debootstrap and a mirror that can be reached the first time. Each program runs in a mount namespace of its own, so
//! that whatever is mounted for it is gone when it ends; network, processes and kernel are the machine's.

use anyhow::{Context, ensure};
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// The folder below `target` in which systems are kept between runs.
const KEPT: &str = "debian-root";
/// Mounts what programs expect below the folder `$0`, then becomes the program.
const ENTER: &str = r#"mount -t proc proc "$0/proc" && exec chroot "$0" "$@""#;
/// What a program in there sees of the environment.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LC_ALL", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("HOME", "/root"),
];

/// A system of the test's own. Dropping it removes it.
#[derive(Debug)]
pub struct Root {
    folder: TempDir,
}

/// One file, folder or link: what a package manager must not change by accident.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its path, as the system in there sees it.
    pub path: String,
    /// Type and permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// BLAKE3 of a regular file, where a link leads, or nothing.
    pub content: String,
}

impl Root {
    /// A new copy. The first one of all takes half a minute.
    ///
    /// # Errors
    /// When the system can't be made; the sentence says what is needed.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let kept = kept_system()?;
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--reflink=auto"]).arg(&kept).arg(folder.path().join("root"));
        succeed("copy the Debian system", &mut copy)?;
        Ok(Self { folder })
    }

    /// Where it is on the machine; `inside` begins with `/`.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join("root").join(inside.trim_start_matches('/'))
    }

    /// A program in there. Its process id is the one of what is spawned.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER]);
        command.arg(self.path("/")).arg(program).env_clear().envs(ENVIRONMENT).current_dir("/");
        command
    }

    /// Runs a program in there to its end, which must be a good one. Gives what it printed on standard output.
    ///
    /// # Errors
    /// When it fails; the sentence holds what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let output = succeed(program, self.command(program).args(arguments))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Everything below `inside`, sorted; nothing when it is not there. Sockets are left out: they live with a process.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn entries(&self, inside: &str) -> anyhow::Result<Vec<Entry>> {
        let top = self.path("/");
        let mut entries = Vec::new();
        let mut waiting = vec![self.path(inside)];
        while let Some(path) = waiting.pop() {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let content = if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    waiting.push(entry?.path());
                }
                String::new()
            } else if metadata.is_file() {
                blake3::hash(&fs::read(&path)?).to_string()
            } else if metadata.is_symlink() {
                fs::read_link(&path)?.display().to_string()
            } else {
                continue;
            };
            entries.push(Entry {
                path: format!("/{}", path.strip_prefix(&top)?.display()),
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                content,
            });
        }
        entries.sort();
        Ok(entries)
    }
}

/// Runs a command that must succeed.
///
/// # Errors
/// When it fails; the sentence holds what it said.
pub fn succeed(what: &str, command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("could not start: {what}"))?;
    ensure!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// The system that copies are made of. Whoever comes first makes it; the others wait.
fn kept_system() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("the test lies in no target folder")?;
    let folder = target.join(KEPT);
    fs::create_dir_all(&folder)?;
    let lock = fs::File::create(folder.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let release = release()?;
    let made = folder.join(&release);
    if !made.exists() {
        let unfinished = folder.join(format!("{release}.unfinished"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        bootstrap(&release, &unfinished)?;
        fs::rename(&unfinished, &made)?;
    }
    Ok(made)
}

/// This machine's own release: what is built here runs there.
fn release() -> anyhow::Result<String> {
    let text = fs::read_to_string("/etc/os-release")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    line.map(str::to_owned)
        .context("/etc/os-release has no VERSION_CODENAME: run this on a release of Debian")
}

/// With systemd, which checks and enables units; without what nobody reads in a test.
fn bootstrap(release: &str, folder: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", "--include=systemd,init-system-helpers", release]).arg(folder);
    if let Some(mirror) = std::env::var_os("DEBIAN_MIRROR") {
        command.arg(mirror);
    }
    succeed("debootstrap", &mut command).context(
        "no Debian system to install packages in: debootstrap has to be installed (apt-get install debootstrap) and has to \
         reach a Debian mirror once; name yours as DEBIAN_MIRROR, or a proxy as http_proxy",
    )?;
    for kept in ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"] {
        fs::remove_dir_all(folder.join(kept))?;
        fs::create_dir_all(folder.join(kept))?;
    }
    Ok(())
}
