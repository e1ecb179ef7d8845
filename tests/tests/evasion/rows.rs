//! The table: one row a trick, with what becomes of it and why. Expectations are those of level `full`.

use super::{Place, TAIL};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What becomes of a trick.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Reported while it is there.
    Seen,
    /// Reported when what was held is let go.
    Late,
    /// Never reported.
    NotSeen,
}

impl Outcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Late => "seen late",
            Self::NotSeen => "not seen",
        }
    }
}

/// What counts as seeing it.
pub(crate) enum Sight {
    /// A detection by the row's rule: its bytes were scanned.
    Content,
    /// Something in all events so far.
    Events(fn(&Place, &[&Value]) -> bool),
}

pub(crate) struct Row {
    /// As README.md has it.
    pub(crate) name: &'static str,
    pub(crate) expected: Outcome,
    /// As README.md has it.
    pub(crate) why: &'static str,
    pub(crate) sight: Sight,
    /// Before the agent runs: what lies there already was not seen being written.
    pub(crate) prepare: fn(&Place),
    pub(crate) act: fn(&Place) -> Command,
    /// By an agent that watches the whole host.
    pub(crate) wide: bool,
    /// It is found by a look now and then: at once by luck, so it counts as late whenever it is seen.
    pub(crate) by_look: bool,
    /// A race that is nearly always lost: that it was won once does not make the table untrue.
    pub(crate) by_chance: bool,
}

const fn row(
    name: &'static str,
    expected: Outcome,
    why: &'static str,
    prepare: fn(&Place),
    act: fn(&Place) -> Command,
) -> Row {
    Row {
        name,
        expected,
        why,
        sight: Sight::Content,
        prepare,
        act,
        wide: false,
        by_look: false,
        by_chance: false,
    }
}

impl Row {
    const fn told(mut self, told: fn(&Place, &[&Value]) -> bool) -> Self {
        self.sight = Sight::Events(told);
        self
    }

    const fn wide(mut self) -> Self {
        self.wide = true;
        self
    }

    const fn by_look(mut self) -> Self {
        self.by_look = true;
        self
    }

    const fn by_chance(mut self) -> Self {
        self.by_chance = true;
        self
    }
}

use Outcome::{Late, NotSeen, Seen};

pub(crate) const ROWS: &[Row] = &[
    // ---- other calls than write(2)
    row("written and closed", Seen, "to compare with", nothing, |at| {
        at.evade(["write", &at.file("x"), &at.marker])
    }),
    row("written by `io_uring`", Seen, "the ring closes files like everybody", nothing, |at| {
        at.evade(["io_uring", &at.file("x"), &at.marker])
    }),
    row(
        "written by `sendfile`",
        Seen,
        "reported at the close, whatever wrote",
        |at| at.write(&at.outside("y")),
        |at| at.evade(["sendfile", &at.file("x"), &at.outside("y")]),
    ),
    row(
        "written by `splice` from a pipe",
        Seen,
        "the same",
        |at| at.write(&at.outside("y")),
        |at| at.evade(["splice", &at.file("x"), &at.outside("y")]),
    ),
    row(
        "written by `copy_file_range`",
        Seen,
        "the same",
        |at| at.write(&at.outside("y")),
        |at| at.evade(["copy_range", &at.file("x"), &at.outside("y")]),
    ),
    row(
        "overwritten in the middle (`dd conv=notrunc`)",
        Seen,
        "the whole file is scanned again",
        |at| put(&at.file("x"), &[b'.'; 8192]),
        |at| at.shell("printf %s \"$marker\" | dd of=x bs=1 seek=4000 conv=notrunc status=none"),
    ),
    row(
        "overwritten in place, size and mtime as before",
        Seen,
        "a close after writing is always scanned; the cache of verdicts also looks at ctime",
        |at| put(&at.file("x"), &vec![b'.'; at.marker.len()]),
        |at| at.evade(["keep_times", &at.file("x"), &at.marker]),
    ),
    row(
        "cut to what matters by `ftruncate`",
        Seen,
        "the descriptor was open for writing; nothing needs to be written",
        |at| put(&at.file("x"), format!("{}{TAIL}", at.marker).as_bytes()),
        |at| at.evade(["ftruncate", &at.file("x"), &at.marker.len().to_string()]),
    ),
    row(
        "cut to what matters by `truncate`, by path",
        NotSeen,
        "no descriptor, so no close; until it is run or swept",
        |at| put(&at.file("x"), format!("{}{TAIL}", at.marker).as_bytes()),
        |at| at.evade(["truncate", &at.file("x"), &at.marker.len().to_string()]),
    ),
    row(
        "written through a shared mapping after the close",
        Late,
        "the kernel reports it when the mapping ends, however long that takes",
        nothing,
        |at| at.evade(["mmap", &at.file("x"), &at.marker]),
    ),
    row(
        "written and kept open",
        Late,
        "at the last close; until then others can read it (run it they can't)",
        nothing,
        |at| at.evade(["hold", &at.file("x"), &at.marker]),
    ),
    row(
        "in the middle of a file of 200 MiB",
        NotSeen,
        "beyond `detection.size_max_bytes` head and tail are scanned; the verdict is `too_large`, an alert of its own",
        nothing,
        |at| at.evade(["sparse", &at.file("x"), &at.marker]),
    ),
    row(
        "put into an extended attribute",
        NotSeen,
        "it is no content; whatever reads it from there is a program or a script, and seen",
        nothing,
        |at| at.evade(["xattr", &at.file("x"), &at.marker]),
    ),
    row("put into the memory of another process", NotSeen, "there is no file", nothing, |at| {
        at.evade(["memory", &at.marker])
    }),
    row(
        "put straight on a block device",
        NotSeen,
        "devices are not watched; the file system on it tells nobody either",
        |at| put(&at.outside("blocks"), &[0; 65536]),
        |at| at.evade(["device", &at.outside("blocks"), &at.marker]),
    ),
    // ---- other owners of the descriptor
    row(
        "written through an inherited descriptor",
        Seen,
        "with the last closer, as `closed_by`",
        nothing,
        |at| at.evade(["inherit", &at.file("x"), &at.marker]),
    ),
    row("written through a descriptor sent over a socket", Seen, "the same", nothing, |at| {
        at.evade(["pass", &at.file("x"), &at.marker])
    }),
    row("the writer is killed before it closes", Seen, "the kernel closes for it", nothing, |at| {
        at.evade(["killed", &at.file("x"), &at.marker])
    }),
    row(
        "written by a process that calls itself `x) R 1 (⏎root`",
        Seen,
        "who it was comes from the kernel's events, not from a name; names travel as bytes",
        nothing,
        |at| at.evade(["renamed_self", &at.file("x"), &at.marker]),
    )
    .told(|at, events| {
        events.iter().any(|event| {
            event["event.dataset"] == "vidette.file"
                && event["file.path"] == at.file("x").as_str()
                && event["process.executable"] == text(&at.evade).as_str()
        })
    }),
    // ---- other names
    row("renamed while it is open", Seen, "the descriptor is scanned, under its last name", nothing, |at| {
        at.evade(["rename_open", &at.file("x"), &at.file("y"), &at.marker])
    }),
    row(
        "unlinked before the first byte, run by descriptor",
        Seen,
        "the kernel hands over the file, not a name",
        nothing,
        |at| at.evade(["unlinked", &at.file("x"), &at.program_text()]),
    ),
    row("written in a `chroot`", Seen, "under the host's path", nothing, |at| {
        at.evade(["chroot", &text(&at.folder), &at.marker])
    }),
    row(
        "moved in from a place that is not watched",
        Seen,
        "a rename is a trigger",
        |at| at.write(&at.outside("y")),
        |at| at.shell("mv \"$outside/y\" x"),
    ),
    row(
        "exchanged with a harmless file (`RENAME_EXCHANGE`)",
        Seen,
        "the same, for both names",
        |at| {
            at.write(&at.outside("y"));
            put(&at.file("x"), b"harmless");
        },
        |at| at.evade(["exchange", &at.file("x"), &at.outside("y")]),
    ),
    row(
        "a folder is moved in",
        Seen,
        "it is walked, and what it holds is scanned",
        |at| {
            fs::create_dir_all(at.outside("a/b")).expect("made");
            at.write(&at.outside("a/b/y"));
        },
        |at| at.shell("mv \"$outside/a\" a"),
    ),
    row(
        "hard-linked in",
        Seen,
        "a new name is a trigger",
        |at| at.write(&at.outside("y")),
        |at| at.shell("ln \"$outside/y\" x"),
    ),
    row(
        "made without a name, named while still open (`O_TMPFILE`, `linkat`)",
        Seen,
        "the same; and again at the close",
        nothing,
        |at| at.evade(["tmpfile", &at.file("x"), &at.marker]),
    ),
    // ---- other places
    row(
        "written through a bind mount of a private mount namespace",
        Seen,
        "it is the same file system, and the place in it counts",
        nothing,
        |at| at.evade(["bind", &text(&at.folder), &text(&at.outside), &at.marker]),
    ),
    row(
        "written through an overlay, as in a container",
        Seen,
        "in the upper layer, which lies on a watched file system",
        nothing,
        |at| at.evade(["overlay", &text(&at.folder), &at.marker]),
    ),
    row(
        "written to a tmpfs of a private mount namespace",
        Late,
        "no other namespace can see it; found by a look at the namespaces there are",
        nothing,
        |at| at.evade(["tmpfs", &text(&at.folder), &at.marker]),
    )
    .by_look(),
    row("the same in a user namespace, without privilege", Late, "the same", nothing, |at| {
        at.evade(["user_tmpfs", &text(&at.folder), &at.marker])
    })
    .by_look(),
    row(
        "the same, and gone within a moment",
        NotSeen,
        "it ended before anybody looked, unless a look came in that moment",
        nothing,
        |at| at.evade(["brief_tmpfs", &text(&at.folder), &at.marker]),
    )
    .by_chance(),
    // ---- other ways to run what lay there already
    row("`./program`", Seen, "to compare with", |at| at.program("x"), |at| at.run(&at.file("x"), ["true"])),
    row(
        "`./script`",
        Seen,
        "the script, not only its interpreter",
        |at| at.script("x", "#!/bin/sh\n"),
        |at| at.run(&at.file("x"), NONE),
    ),
    row(
        "`./script` of another language (`#!` perl)",
        Seen,
        "the same",
        |at| at.script("x", "#!/usr/bin/perl\n"),
        |at| at.run(&at.file("x"), NONE),
    ),
    row(
        "`sh script`: the content",
        NotSeen,
        "to the kernel it is an argument; it was scanned when it was written",
        |at| at.script("x", ""),
        |at| at.run("/bin/sh", [at.file("x")]),
    ),
    row(
        "`sh script`: the process",
        Seen,
        "with its arguments, when `/proc` could be read in time",
        |at| {
            at.script("x", "echo ready; read line || true\n");
            copy("/bin/sh", &at.file("sh"));
        },
        |at| at.run(&at.file("sh"), [at.file("x")]),
    )
    .told(|at, events| at.ran(events, "sh", &at.file("x"))),
    row(
        "`sh < script`, `sh -c`, a script from a FIFO",
        NotSeen,
        "nothing is run but `sh`",
        |at| at.script("x", ""),
        |at| at.shell("mkfifo fifo; cat x > fifo & sh fifo; sh < x; sh -c \"$(cat x)\""),
    ),
    row(
        "`ld.so ./program`: the content",
        NotSeen,
        "the kernel runs the loader, which maps the program as it maps a library; it was scanned when it was written",
        |at| at.program("x"),
        |at| at.run(&loader(), [&*at.file("x"), "true"]),
    ),
    row(
        "`ld.so ./program`: the process",
        Seen,
        "as `ld.so`, with the program among its arguments",
        |at| {
            at.program("x");
            copy(&loader(), &at.file("ld.so"));
        },
        |at| at.run(&at.file("ld.so"), [&*at.file("x"), "sleep"]),
    )
    .told(|at, events| at.ran(events, "ld.so", &at.file("x"))),
    row(
        "a library loaded by `LD_PRELOAD`",
        NotSeen,
        "mapped, not run; it was scanned when it was written",
        |at| {
            let mut bytes = fs::read(at.evade.with_extension("so")).expect("compiled");
            bytes.extend(at.marker.as_bytes());
            put(&at.file("x"), &bytes);
        },
        |at| at.evade(["preload", &at.file("x"), &text(&at.evade)]),
    ),
    row(
        "run by descriptor (`fexecve`)",
        Seen,
        "the kernel hands over the file",
        |at| at.program("x"),
        |at| at.evade(["fexecve", &at.file("x")]),
    ),
    row(
        "unlinked right before it is run",
        Seen,
        "the same, and it says that it has no name",
        |at| at.program("x"),
        |at| at.evade(["deleted", &at.file("x")]),
    ),
    row(
        "run from a memfd",
        Seen,
        "through `/proc`, while it lives; of one that ends at once only that it ran",
        |at| at.program_at(&at.outside("x")),
        |at| at.evade(["memfd", &at.outside("x"), "sleep"]),
    )
    .wide(),
    row(
        "run from a tmpfs of a private mount namespace",
        Seen,
        "the same",
        |at| at.program_at(&at.outside("x")),
        |at| at.evade(["tmpfs_run", &text(&at.folder), &at.outside("x")]),
    ),
    row(
        "a FIFO or a device is run",
        NotSeen,
        "the kernel refuses, so nothing ran; the agent does not open it either",
        |at| drop(at.shell("mkfifo x; mknod y c 1 3").status()),
        |at| at.shell("\"$evade\" refused \"$PWD/x\" && \"$evade\" refused \"$PWD/y\""),
    )
    .told(|at, events| {
        events.iter().any(|event| {
            [at.file("x"), at.file("y")].iter().any(|path| event["process.executable"] == path.as_str())
        })
    }),
    row(
        "a set-user-id program",
        Seen,
        "with the user that it becomes",
        |at| {
            at.program("x");
            std::os::unix::fs::chown(at.file("x"), Some(NOBODY), Some(NOBODY)).expect("given away");
            fs::set_permissions(at.file("x"), fs::Permissions::from_mode(0o4755)).expect("set");
        },
        |at| at.run(&at.file("x"), ["sleep"]),
    )
    .told(|at, events| {
        at.runs(events, "x").iter().any(|event| event["user.id"] == NOBODY.to_string().as_str())
    }),
    row(
        "run under another name (`exec -a`)",
        Seen,
        "the executable is the kernel's word; `args[0]` is the caller's",
        |at| at.program("x"),
        |at| {
            let mut command = Command::new("bash");
            command.args(["-c", "exec -a '[kworker/0:1]' \"$0\" sleep", &at.file("x")]);
            command
        },
    )
    .told(|at, events| at.runs(events, "x").iter().any(|event| event["process.args"][0] == "[kworker/0:1]")),
    row(
        "arguments and name rewritten after the start",
        Seen,
        "the executable stays true; arguments are those at the start, when `/proc` was read in time",
        |at| at.program("x"),
        |at| at.run(&at.file("x"), ["argv", "secret"]),
    )
    .told(|at, events| !at.runs(events, "x").is_empty()),
    row(
        "a program called `x) R 1 (⏎root`",
        Seen,
        "the name is cut out between the first and the last bracket, and escaped by every sink",
        |at| at.program(HOSTILE),
        |at| at.run(&at.file(HOSTILE), ["sleep"]),
    )
    .told(|at, events| {
        let own = u64::from(std::process::id());
        at.runs(events, HOSTILE)
            .iter()
            .any(|event| event["process.name"] == HOSTILE && event["process.parent.pid"] == own)
    }),
    row(
        "two programs with the same process id, one after the other",
        Seen,
        "a process is (boot, pid, start): two entities, each with its own executable; one that comes within a tenth of a second has another round",
        |at| {
            at.program("x");
            at.program("y");
        },
        |at| at.evade(["same_pid", &at.file("x"), &at.file("y")]),
    )
    .told(|at, events| {
        let (first, second) = (at.runs(events, "x"), at.runs(events, "y"));
        first.iter().any(|first| {
            second.iter().any(|second| {
                first["process.pid"] == second["process.pid"]
                    && first["process.entity_id"] != second["process.entity_id"]
            })
        })
    }),
];

/// Of the kernel's `comm` there are 15 bytes: this has 13.
const HOSTILE: &str = "x) R 1 (\nroot";
const NOBODY: u32 = 65534;
const NONE: [&str; 0] = [];

impl Place {
    fn file(&self, name: &str) -> String {
        text(&self.folder.join(name))
    }

    fn outside(&self, name: &str) -> String {
        text(&self.outside.join(name))
    }

    fn evade<const N: usize>(&self, arguments: [&str; N]) -> Command {
        self.run(&text(&self.evade), arguments)
    }

    fn run<A: AsRef<OsStr>, const N: usize>(&self, program: &str, arguments: [A; N]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.folder);
        command
    }

    /// A line of shell in the folder, which knows `$outside`, `$marker` and `$evade`.
    fn shell(&self, line: &str) -> Command {
        let mut command = self.run("/bin/sh", ["-c", line]);
        command.env("outside", &self.outside).env("marker", &self.marker).env("evade", &self.evade);
        command
    }

    fn write(&self, path: &str) {
        put(path, self.marker.as_bytes());
    }

    /// A program with the marker behind its end, where nothing looks.
    fn program(&self, name: &str) {
        self.program_at(&self.file(name));
    }

    fn program_at(&self, path: &str) {
        let mut bytes = fs::read(&self.evade).expect("compiled");
        bytes.extend(self.marker.as_bytes());
        put(path, &bytes);
    }

    fn script(&self, name: &str, first: &str) {
        put(&self.file(name), format!("{first}# {}\n", self.marker).as_bytes());
    }

    fn program_text(&self) -> String {
        format!("#!/bin/sh\n# {}\n", self.marker)
    }

    /// What was told of runs of a program in the folder.
    fn runs<'a>(&self, events: &[&'a Value], name: &str) -> Vec<&'a Value> {
        let path = self.file(name);
        let is = |event: &&&Value| {
            event["event.dataset"] == "vidette.process" && event["event.type"][0] == "start"
        };
        events
            .iter()
            .filter(is)
            .filter(|event| event["process.executable"] == path.as_str())
            .copied()
            .collect()
    }

    /// Whether `name` ran with `argument`.
    fn ran(&self, events: &[&Value], name: &str, argument: &str) -> bool {
        self.runs(events, name).iter().any(|event| {
            event["process.args"].as_array().is_some_and(|all| all.iter().any(|one| one == argument))
        })
    }
}

fn nothing(_: &Place) {}

fn text(path: &Path) -> String {
    path.to_str().expect("our own paths are UTF-8").to_owned()
}

fn put(path: &str, bytes: &[u8]) {
    fs::write(path, bytes).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

fn copy(from: &str, to: &str) {
    put(to, &fs::read(from).expect("read"));
}

/// The dynamic loader of this system, by the name that programs ask for.
fn loader() -> String {
    let found = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(PathBuf::from);
    text(found.iter().find(|path| path.exists()).expect("a dynamic loader"))
}
