//! The work that is measured: unpacking a source tree, compiling, short processes. All of it is made from a fixed seed,
//! so that two runs do the same; nothing comes from a network.

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Of trees and sources.
const SEED: u64 = 3;
/// How many of a hundred files are at most how large: about what a tree of sources holds. Bytes.
const SIZES: [(u32, usize); 5] =
    [(30, 2 << 10), (65, 8 << 10), (90, 32 << 10), (99, 100 << 10), (100, 500 << 10)];
const FILES_A_FOLDER: usize = 20;
const FUNCTIONS_A_SOURCE: usize = 40;
const WORDS: [&str; 24] = [
    "static",
    "int",
    "return",
    "struct",
    "device",
    "if",
    "else",
    "buffer",
    "->next",
    "size_t",
    "const",
    "char",
    "/* lock",
    "held */",
    "{\n",
    "}\n",
    ";\n",
    "= 0;\n",
    "unsigned",
    "for",
    "(i = 0; i < n; i++)",
    "err",
    "goto out;\n",
    "NULL",
];

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Untar,
    UntarGzip,
    Compile,
    Processes,
}

impl Work {
    pub(crate) const ALL: [Self; 4] = [Self::Untar, Self::UntarGzip, Self::Compile, Self::Processes];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Untar => "untar",
            Self::UntarGzip => "untar, gzip",
            Self::Compile => "compile",
            Self::Processes => "short processes",
        }
    }
}

/// How long it took.
pub(crate) struct Done {
    pub(crate) wall_s: f64,
    /// User and system time of everybody who did the work.
    pub(crate) cpu_s: f64,
}

/// Archives and sources, and the watched folder beside them.
pub(crate) struct Ground {
    /// Not watched.
    stock: PathBuf,
    watched: PathBuf,
    files: usize,
    bytes: u64,
    sources: usize,
    processes: usize,
}

impl Ground {
    pub(crate) fn make(
        folder: &Path,
        files: usize,
        sources: usize,
        processes: usize,
    ) -> anyhow::Result<Self> {
        let (stock, watched) = (folder.join("stock"), folder.join("watched"));
        fs::create_dir(&stock)?;
        fs::create_dir(&watched)?;
        let bytes = make_tree(&stock.join("tree"), files)?;
        shell(&stock, "tar cf tree.tar tree && gzip -kf tree.tar && rm -r tree")?;
        make_sources(&stock.join("project"), sources)?;
        Ok(Self { stock, watched, files, bytes, sources, processes })
    }

    pub(crate) fn watched(&self) -> &Path {
        &self.watched
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "a tree of {} files and {} MiB, {} files of C compiled by as many compilers as cores, {} short processes; the page cache is warm and clean before each",
            self.files,
            self.bytes >> 20,
            self.sources,
            self.processes
        )
    }

    /// The watched folder as it is before any work: sources, and the program that is run.
    pub(crate) fn reset(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.watched)?;
        fs::create_dir(&self.watched)?;
        shell(
            &self.stock,
            &format!("cp -r project '{0}/project' && cp /bin/true '{0}/true'", self.watched.display()),
        )
    }

    pub(crate) fn run(&self, work: Work) -> anyhow::Result<Done> {
        // What others left to be written is not this one's cost, and everybody reads from memory.
        rustix::fs::sync();
        shell(&self.stock, "cat tree.tar tree.tar.gz > /dev/null")?;
        let line = match work {
            Work::Untar => format!("tar xf '{}/tree.tar'", self.stock.display()),
            Work::UntarGzip => format!("tar xzf '{}/tree.tar.gz'", self.stock.display()),
            Work::Compile => {
                "cd project && ls *.c | xargs -P \"$(nproc)\" -n 1 cc -O1 -c && cc -o program *.o".to_owned()
            }
            Work::Processes => {
                format!("i=0; while [ $i -lt {} ]; do ./true; i=$((i+1)); done", self.processes)
            }
        };
        let (cpu, start) = (children_cpu_s()?, Instant::now());
        shell(&self.watched, &line)?;
        Ok(Done { wall_s: start.elapsed().as_secs_f64(), cpu_s: children_cpu_s()? - cpu })
    }

    /// Takes away what the work made, so that the next round makes it again.
    pub(crate) fn clear(&self, work: Work) -> anyhow::Result<()> {
        match work {
            Work::Untar | Work::UntarGzip => shell(&self.watched, "rm -r tree"),
            Work::Compile => shell(&self.watched, "rm project/*.o project/program"),
            Work::Processes => Ok(()),
        }
    }
}

fn make_tree(folder: &Path, files: usize) -> anyhow::Result<u64> {
    let (mut random, mut bytes) = (StdRng::seed_from_u64(SEED), 0);
    for number in 0..files {
        let place = number / FILES_A_FOLDER;
        let inner = folder.join(format!("part-{}/folder-{place}", place % 40));
        if number % FILES_A_FOLDER == 0 {
            fs::create_dir_all(&inner)?;
        }
        let text = text(&mut random);
        bytes += text.len() as u64;
        fs::write(inner.join(format!("file-{number}.c")), text)?;
    }
    Ok(bytes)
}

fn text(random: &mut StdRng) -> String {
    let part = random.random_range(1..=100);
    let at = SIZES.iter().position(|(to, _)| part <= *to).unwrap_or(0);
    let least = if at == 0 { 64 } else { SIZES[at - 1].1 };
    let size = random.random_range(least..SIZES[at].1);
    let mut text = String::with_capacity(size + 16);
    while text.len() < size {
        text.push_str(WORDS[random.random_range(0..WORDS.len())]);
        text.push(' ');
    }
    text.truncate(size);
    text
}

fn make_sources(folder: &Path, sources: usize) -> anyhow::Result<()> {
    fs::create_dir(folder)?;
    let mut random = StdRng::seed_from_u64(SEED);
    for number in 0..sources {
        let mut text =
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <sys/stat.h>\n"
                .to_owned();
        for function in 0..FUNCTIONS_A_SOURCE {
            let (a, b) = (random.random_range(2..99), random.random_range(2..99));
            write!(
                text,
                "int f_{number}_{function}(const char *s, int n) {{\n  int sum = {a};\n  for (int i = 0; i < n; i++) {{\n    \
                 if (s[i] == '{}') sum = sum * {b} + i; else sum ^= (int)strlen(s + i);\n  }}\n  \
                 if (sum == {a}) printf(\"%d %s\\n\", sum, s);\n  return sum;\n}}\n",
                char::from(b'a' + (a % 26) as u8),
            )?;
        }
        if number == 0 {
            text.push_str("int main(int c, char **v) { return f_0_0(v[0], c) & 1; }\n");
        }
        fs::write(folder.join(format!("source_{number}.c")), text)?;
    }
    Ok(())
}

fn shell(folder: &Path, line: &str) -> anyhow::Result<()> {
    let status = Command::new("/bin/sh")
        .args(["-ec", line])
        .current_dir(folder)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("could not run `{line}`"))?;
    ensure!(status.success(), "`{line}` ended with {status}");
    Ok(())
}

/// User and system time of all children that ended, in seconds (proc_pid_stat(5), fields 16 and 17).
fn children_cpu_s() -> anyhow::Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rsplit(')').next().context("a stat line")?;
    let ticks: u64 = rest.split_whitespace().skip(13).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
