//! The scanners that are compared: how each is found, started on the same rules and the same files, and understood.

use anyhow::{Context, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vidette_tests::grounds::Ground;
use vidette_tests::programs::binary;
use vidette_tests::rulesets::{Set, accepted};

/// Says which version of YARA-X the agent has.
const LOCK: &str = include_str!("../../Cargo.lock");
/// Larger files are scanned by nobody.
pub(crate) const SIZE_MAX_BYTES: u64 = 64 << 20;
/// What clamscan would look into, and the others don't.
const CLAM_OFF: [&str; 9] = [
    "--scan-archive=no",
    "--scan-pe=no",
    "--scan-elf=no",
    "--scan-ole2=no",
    "--scan-pdf=no",
    "--scan-swf=no",
    "--scan-html=no",
    "--scan-mail=no",
    "--scan-image=no",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tool {
    Vidette,
    Yr,
    Yara,
    Clamscan,
}

/// The programs.
#[derive(Debug)]
pub(crate) struct Tools {
    agent: PathBuf,
    yr: PathBuf,
    /// What `vidette-agent scan --help` says.
    help: String,
    yara: Option<String>,
    clamscan: Option<String>,
}

/// A file, a rule file (its name alone) and a rule.
pub(crate) type Match = (String, String, String);

/// What a scanner said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) matches: BTreeSet<Match>,
    /// Files that it could not scan or gave up.
    pub(crate) unscanned: BTreeSet<String>,
}

impl Tool {
    pub(crate) const ALL: [Self; 4] = [Self::Vidette, Self::Yr, Self::Yara, Self::Clamscan];

    /// For a table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vidette => "vidette-agent scan",
            Self::Yr => "yr scan",
            Self::Yara => "yara -r",
            Self::Clamscan => "clamscan",
        }
    }

    /// For a command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Vidette => "vidette",
            Self::Yr => "yr",
            Self::Yara => "yara",
            Self::Clamscan => "clamscan",
        }
    }

    pub(crate) fn takes_threads(self) -> bool {
        self != Self::Clamscan
    }
}

impl Tools {
    /// Finds them; installs `yr` when it is nowhere.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let agent = binary("vidette-agent")?;
        let help = output(Command::new(&agent).args(["scan", "--help"]))?;
        let version_of = |name: &str| output(Command::new(name).arg("--version")).ok();
        Ok(Self { agent, yr: yr()?, help, yara: version_of("yara"), clamscan: version_of("clamscan") })
    }

    /// Whether it is there, and its version.
    pub(crate) fn version(&self, tool: Tool) -> anyhow::Result<String> {
        let version = match tool {
            Tool::Vidette => output(Command::new(&self.agent).arg("--version"))?,
            Tool::Yr => output(Command::new(&self.yr).arg("--version"))?,
            Tool::Yara => format!("yara {}", self.yara.as_ref().context("apt-get install yara")?),
            Tool::Clamscan => self.clamscan.clone().context("apt-get install clamav")?,
        };
        Ok(version.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// The agent knows this option of `scan`.
    pub(crate) fn agent_has(&self, option: &str) -> bool {
        self.help.split_whitespace().any(|word| word.trim_end_matches(',') == option)
    }

    /// All of vidette, yr and yara can compile all these files. clamscan takes what it can of a set.
    pub(crate) fn accept(&self, files: &[PathBuf]) -> anyhow::Result<bool> {
        let agent = Command::new(&self.agent).args(["rules", "check"]).args(files).silent()?;
        let yr = || {
            let mut command = Command::new(&self.yr);
            command.args(["compile", "-w", "--path-as-namespace", "-o", "/dev/null"]).args(files).silent()
        };
        let yara = || {
            let named = |(number, path): (usize, &PathBuf)| format!("n{number}:{}", path.display());
            match self.yara {
                Some(_) => {
                    let files = files.iter().enumerate().map(named);
                    Command::new("yarac").arg("-w").args(files).arg("/dev/null").silent()
                }
                None => Ok(true),
            }
        };
        Ok(agent && yr()? && yara()?)
    }

    /// clamscan reads only a part of the language, and gives up on a folder that holds a file with something it can't read: the
    /// files of a set that it can, in a folder of their own, and how many rules it says it has of them.
    pub(crate) fn clam_set(&self, set: &Set, folder: &Path) -> anyhow::Result<(Set, usize)> {
        let mut asked = 0;
        let kept = accepted(&set.files, &mut |files: &[PathBuf]| {
            asked += 1;
            let tried = copied(files, &folder.join(format!("tried-{asked}")))?;
            let rules = clam_rules(&tried)?;
            fs::remove_dir_all(&tried)?;
            Ok(rules.is_some())
        })?;
        let files: Vec<PathBuf> = kept.into_iter().cloned().collect();
        let own = copied(&files, &folder.join("kept"))?;
        let rules = clam_rules(&own)?.context("clamscan accepts each file but not all together")?;
        Ok((Set { folder: own, files, rules: set.rules }, rules))
    }

    /// The command that scans `ground`.
    pub(crate) fn scan(&self, tool: Tool, set: &Set, ground: &Ground, threads: usize) -> Command {
        match tool {
            Tool::Vidette => {
                let mut command = self.agent(set, threads);
                if self.agent_has("--no-cache") {
                    command.arg("--no-cache");
                }
                // It has no option to leave large files out: it gets the parts of the tree that hold none.
                command.args(&ground.paths);
                command
            }
            Tool::Yr => self.yr(set, &ground.root, threads),
            Tool::Yara => yara(set, &ground.root, threads),
            Tool::Clamscan => clamscan(set, &ground.root),
        }
    }

    /// The agent with a verdict table in a file, over the whole tree.
    pub(crate) fn scan_with_cache(
        &self,
        set: &Set,
        ground: &Ground,
        threads: usize,
        cache: &Path,
    ) -> Command {
        let mut command = self.agent(set, threads);
        command.arg("--cache").arg(cache).arg(&ground.root);
        command
    }

    fn agent(&self, set: &Set, threads: usize) -> Command {
        let mut command = Command::new(&self.agent);
        command.args([
            "scan",
            "--json",
            "--no-builtin-rules",
            "--log",
            "error",
            "--threads",
            &threads.to_string(),
        ]);
        command.args(["--max-size", &SIZE_MAX_BYTES.to_string(), "--rules"]).arg(&set.folder);
        command
    }

    fn yr(&self, set: &Set, root: &Path, threads: usize) -> Command {
        let mut command = Command::new(&self.yr);
        command.args([
            "scan",
            "-r",
            "-e",
            "-w",
            "--disable-console-logs",
            "--path-as-namespace",
            "-o",
            "ndjson",
        ]);
        command.args(["-p", &threads.to_string(), "-z", &SIZE_MAX_BYTES.to_string()]);
        command.arg(&set.folder).arg(root);
        command
    }

    /// What the agent or yr said; the others' engines differ, so that their matches are only counted.
    pub(crate) fn findings(&self, tool: Tool, stdout: &Path) -> anyhow::Result<Findings> {
        let text = String::from_utf8_lossy(&fs::read(stdout)?).into_owned();
        match tool {
            Tool::Vidette => of_agent(&text),
            Tool::Yr => of_yr(&text),
            Tool::Yara => Ok(of_yara(&text)),
            Tool::Clamscan => Ok(of_clamscan(&text)),
        }
    }
}

fn yara(set: &Set, root: &Path, threads: usize) -> Command {
    let mut command = Command::new("yara");
    command.args(["-r", "-N", "-e", "-w", "-p", &threads.to_string(), "-z", &SIZE_MAX_BYTES.to_string()]);
    for file in &set.files {
        command.arg(format!("{}:{}", name(&file.to_string_lossy()), file.display()));
    }
    command.arg(root);
    command
}

fn clamscan(set: &Set, root: &Path) -> Command {
    let mut command = Command::new("clamscan");
    command.args(["-r", "-i", "--no-summary", "--max-filesize=64M", "--max-scansize=64M"]).args(CLAM_OFF);
    command.arg("-d").arg(&set.folder).arg(root);
    command
}

/// Files in a folder of their own.
fn copied(files: &[PathBuf], folder: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    for file in files {
        fs::copy(file, folder.join(file.file_name().context("a name")?))?;
    }
    Ok(folder.to_owned())
}

/// How many rules clamscan loads from a folder; `None` when it loads nothing.
fn clam_rules(folder: &Path) -> anyhow::Result<Option<usize>> {
    // Something to scan, beside the folder.
    let empty = folder.with_extension("empty");
    fs::write(&empty, "")?;
    let output = Command::new("clamscan").arg("-d").arg(folder).arg(&empty).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let known = text.lines().find_map(|line| line.strip_prefix("Known viruses: ")?.trim().parse().ok());
    let malformed = output.status.code() == Some(2);
    Ok(known.filter(|rules| *rules > 0 && !malformed))
}

/// `yr` of the agent's YARA-X: in a folder that the user names, or built once into a cache folder.
fn yr() -> anyhow::Result<PathBuf> {
    let version = yara_x()?;
    let named = std::env::var_os("VIDETTE_BENCH_PEERS").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let root = match named {
        Some(root) => root,
        None => cache.context("neither HOME nor XDG_CACHE_HOME is set")?.join("vidette-bench"),
    };
    for path in [root.join("bin/yr"), root.join("yr")] {
        if path.is_file() && output(Command::new(&path).arg("--version"))?.trim().ends_with(&version) {
            return Ok(path);
        }
    }
    eprintln!("building yr {version} into {}", root.display());
    let status = Command::new("cargo")
        .args(["install", "--locked", "--force", "yara-x-cli", "--version", &version, "--root"])
        .arg(&root)
        .status()
        .context("could not start cargo")?;
    ensure!(status.success(), "yara-x-cli {version} could not be built: {status}");
    Ok(root.join("bin/yr"))
}

/// The version in the lock file.
fn yara_x() -> anyhow::Result<String> {
    let after = LOCK.split("name = \"yara-x\"\nversion = \"").nth(1).context("yara-x in Cargo.lock")?;
    Ok(after.split('"').next().context("its version")?.to_owned())
}

fn of_agent(text: &str) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    for line in text.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let path = value["file.path"].as_str().context("file.path")?.to_owned();
        let rules = value["vidette.rules"].as_array().map(Vec::as_slice).unwrap_or_default();
        if rules.is_empty() {
            findings.unscanned.insert(path);
            continue;
        }
        for rule in rules {
            let of = |key: &str| rule[key].as_str().unwrap_or_default();
            findings.matches.insert((path.clone(), name(of("ruleset")), of("name").to_owned()));
        }
    }
    Ok(findings)
}

fn of_yr(text: &str) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    for line in text.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let path = value["path"].as_str().context("path")?.to_owned();
        for rule in value["rules"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let of = |key: &str| rule[key].as_str().unwrap_or_default();
            findings.matches.insert((path.clone(), name(of("namespace")), of("identifier").to_owned()));
        }
    }
    Ok(findings)
}

/// `namespace:rule path`
fn of_yara(text: &str) -> Findings {
    let one = |line: &str| {
        let (rule, path) = line.split_once(' ')?;
        let (namespace, rule) = rule.split_once(':')?;
        Some((path.to_owned(), namespace.to_owned(), rule.to_owned()))
    };
    Findings { matches: text.lines().filter_map(one).collect(), unscanned: BTreeSet::new() }
}

/// `path: YARA.rule.UNOFFICIAL FOUND`
fn of_clamscan(text: &str) -> Findings {
    let one = |line: &str| {
        let (path, rule) = line.strip_suffix(" FOUND")?.rsplit_once(": ")?;
        Some((path.to_owned(), String::new(), rule.to_owned()))
    };
    Findings { matches: text.lines().filter_map(one).collect(), unscanned: BTreeSet::new() }
}

fn name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{:?} ended with {}", command.get_program(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

trait Silent {
    /// Whether it succeeds.
    fn silent(&mut self) -> anyhow::Result<bool>;
}

impl Silent for Command {
    fn silent(&mut self) -> anyhow::Result<bool> {
        let status = self.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        Ok(status.with_context(|| format!("could not start {:?}", self.get_program()))?.success())
    }
}
