//! Settings as written (`File`), then as used (`Config`). The packaged file holds every setting with its
//! default and is parsed by a test.

use crate::detection::sweep::budget::CPU_PERCENT_MAX;
use crate::detection::verdicts::{FILES_DEFAULT, FILES_RANGE};
use anyhow::{Context, bail};
use serde::Deserialize;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the settings are looked for when nobody says otherwise. It may be absent.
pub const CONFIG_PATH: &str = "/etc/vidette/agent.toml";
/// The state folder of an agent that runs as root.
pub const STATE_PATH: &str = "/var/lib/vidette-agent";
/// A configuration file. Bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// What is said of a mistake quotes its line, unless that makes it longer than this. Bytes.
const ANSWER_BYTES_MAX: usize = 2048;
/// Entries of one list.
const ENTRIES_MAX: usize = 1024;
/// Limits of what may be set.
const SIZE_BYTES_RANGE: std::ops::RangeInclusive<u64> = 4096..=(1 << 30);
/// YARA-X looks at the clock once a second, so that less than two would cut scans that are well.
const TIMEOUT_S_RANGE: std::ops::RangeInclusive<u64> = 2..=600;
const MEMORY_DELAY_MS_RANGE: std::ops::RangeInclusive<u64> = 0..=60_000;
const PARALLEL_RANGE: std::ops::RangeInclusive<usize> = 1..=16;
/// 0 is never.
const SELF_TEST_S_RANGE: std::ops::RangeInclusive<u64> = 0..=86_400;
/// 0 is never.
const SWEEP_H_RANGE: std::ops::RangeInclusive<u64> = 0..=8_760;
/// 0 is no limit.
const SWEEP_CPU_RANGE: std::ops::RangeInclusive<u32> = 0..=CPU_PERCENT_MAX;
/// 0 is no limit.
const SWEEP_MB_RANGE: std::ops::RangeInclusive<u64> = 0..=100_000;
const OUTBOX_BYTES_RANGE: std::ops::RangeInclusive<u64> = (16 << 20)..=(1 << 40);

/// As written. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    state: Option<PathBuf>,
    sensors: SensorsFile,
    detection: DetectionFile,
    sweep: SweepFile,
    outbox: OutboxFile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SensorsFile {
    watch: Vec<PathBuf>,
    exclude: Vec<PathBuf>,
    level: LevelFile,
    network_filesystems: bool,
    realtime: bool,
    self_test_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LevelFile {
    Full,
    Polling,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DetectionFile {
    builtin_rules: bool,
    rules: Vec<PathBuf>,
    hashes: Vec<PathBuf>,
    size_max_bytes: u64,
    scan_timeout_s: u64,
    scans_parallel: usize,
    telemetry: bool,
    memory_on_exec: Vec<PathBuf>,
    memory_delay_ms: u64,
    verdicts_max: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SweepFile {
    every_h: u64,
    after_rules_change: bool,
    cpu_percent: u32,
    io_mb_per_s: u64,
    paths: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OutboxFile {
    bytes_max: u64,
}

impl Default for SensorsFile {
    fn default() -> Self {
        Self {
            watch: vec![PathBuf::from("/")],
            exclude: Vec::new(),
            level: LevelFile::Full,
            network_filesystems: false,
            realtime: true,
            self_test_s: 300,
        }
    }
}

impl Default for DetectionFile {
    fn default() -> Self {
        Self {
            builtin_rules: true,
            rules: Vec::new(),
            hashes: Vec::new(),
            size_max_bytes: 64 << 20,
            scan_timeout_s: 30,
            scans_parallel: 2,
            telemetry: true,
            memory_on_exec: Vec::new(),
            memory_delay_ms: 1000,
            verdicts_max: FILES_DEFAULT,
        }
    }
}

impl Default for SweepFile {
    fn default() -> Self {
        Self { every_h: 24, after_rules_change: true, cpu_percent: 25, io_mb_per_s: 0, paths: Vec::new() }
    }
}

impl Default for OutboxFile {
    fn default() -> Self {
        Self { bytes_max: 1 << 30 }
    }
}

/// As used: checked, with nothing left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Identity, outbox, status socket. 0700.
    pub state: PathBuf,
    /// Absolute prefixes that are watched; `/` is everything.
    pub watch: Vec<Vec<u8>>,
    /// Absolute prefixes that are never reported.
    pub exclude: Vec<Vec<u8>>,
    /// Use the portable sensors even where the full ones would work.
    pub polling: bool,
    /// Watch NFS, SMB and FUSE too.
    pub network_filesystems: bool,
    /// Read the kernel's queues at real-time priority, where that is permitted.
    pub realtime: bool,
    /// How often the sensors prove that they see; none never.
    pub self_test: Option<Duration>,
    /// Use the rules that ship with the agent.
    pub builtin_rules: bool,
    /// Further rules: files, or folders of `.yar` and `.yara` files.
    pub rules: Vec<PathBuf>,
    /// Lists of digests: files, or folders of `.txt`, `.csv` and `.hashes` files.
    pub hashes: Vec<PathBuf>,
    /// Of a larger file only head and tail are scanned. Bytes.
    pub size_max_bytes: u64,
    /// A scan that takes longer is given up.
    pub scan_timeout: Duration,
    /// Scans at the same time.
    pub scans_parallel: usize,
    /// Report every file and program, not only detections.
    pub telemetry: bool,
    /// Programs, and folders of programs, whose memory is scanned after they began to run.
    pub memory_on_exec: Vec<Vec<u8>>,
    /// How long after.
    pub memory_delay: Duration,
    /// Files whose verdicts are kept on disk.
    pub verdicts_max: u64,
    /// When and how everything is looked at.
    pub sweep: Sweep,
    /// The outbox on disk, its write-ahead log included. Bytes.
    pub outbox_bytes_max: u64,
}

/// When and how everything is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// The time between two; none for never by time alone.
    pub every: Option<Duration>,
    /// Also when rules have changed.
    pub after_rules_change: bool,
    /// Of one processor; 0 for no limit.
    pub cpu_percent: u32,
    /// Bytes a second; 0 for no limit.
    pub io_bytes_per_s: u64,
    /// Absolute paths; none for what is watched.
    pub paths: Vec<Vec<u8>>,
}

impl SweepFile {
    fn check(&self) -> anyhow::Result<Sweep> {
        within("sweep.every_h", self.every_h, &SWEEP_H_RANGE)?;
        within("sweep.cpu_percent", self.cpu_percent, &SWEEP_CPU_RANGE)?;
        within("sweep.io_mb_per_s", self.io_mb_per_s, &SWEEP_MB_RANGE)?;
        Ok(Sweep { paths: prefixes("sweep.paths", &self.paths)?, ..self.trusted() })
    }

    fn trusted(&self) -> Sweep {
        Sweep {
            every: interval(self.every_h * 3600),
            after_rules_change: self.after_rules_change,
            cpu_percent: self.cpu_percent,
            io_bytes_per_s: self.io_mb_per_s * 1_000_000,
            paths: Vec::new(),
        }
    }
}

impl Config {
    /// Reads `path`; the default path may be absent, a path somebody named may not. `state` overrides the file.
    ///
    /// # Errors
    /// One sentence that names the file, the key and what is expected.
    pub fn load(path: Option<&Path>, state: Option<&Path>) -> anyhow::Result<Self> {
        let place = path.unwrap_or(Path::new(CONFIG_PATH));
        let text = match read(place) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("could not read {}", place.display())),
        };
        let state = state.map(std::path::absolute).transpose().context("--state can't be used")?;
        Self::parse(&text, state.as_deref()).with_context(|| format!("{} can't be used", place.display()))
    }

    /// What an empty file says.
    #[must_use]
    pub fn of_defaults() -> Self {
        let (sensors, detection, outbox) =
            (SensorsFile::default(), DetectionFile::default(), OutboxFile::default());
        Self {
            state: default_state(),
            watch: vec![b"/".to_vec()],
            exclude: Vec::new(),
            polling: sensors.level == LevelFile::Polling,
            network_filesystems: sensors.network_filesystems,
            realtime: sensors.realtime,
            self_test: interval(sensors.self_test_s),
            builtin_rules: detection.builtin_rules,
            rules: Vec::new(),
            hashes: Vec::new(),
            size_max_bytes: detection.size_max_bytes,
            scan_timeout: Duration::from_secs(detection.scan_timeout_s),
            scans_parallel: detection.scans_parallel,
            telemetry: detection.telemetry,
            memory_on_exec: Vec::new(),
            memory_delay: Duration::from_millis(detection.memory_delay_ms),
            verdicts_max: detection.verdicts_max,
            sweep: SweepFile::default().trusted(),
            outbox_bytes_max: outbox.bytes_max,
        }
    }

    fn parse(text: &str, state: Option<&Path>) -> anyhow::Result<Self> {
        let file: File =
            toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", mistake(text, &error)))?;
        let state = state.map(Path::to_path_buf).or(file.state).unwrap_or_else(default_state);
        absolute("state", &state)?;
        let detection = file.detection;
        within("detection.size_max_bytes", detection.size_max_bytes, &SIZE_BYTES_RANGE)?;
        within("detection.scan_timeout_s", detection.scan_timeout_s, &TIMEOUT_S_RANGE)?;
        within("detection.scans_parallel", detection.scans_parallel, &PARALLEL_RANGE)?;
        within("detection.memory_delay_ms", detection.memory_delay_ms, &MEMORY_DELAY_MS_RANGE)?;
        within("detection.verdicts_max", detection.verdicts_max, &FILES_RANGE)?;
        within("sensors.self_test_s", file.sensors.self_test_s, &SELF_TEST_S_RANGE)?;
        within("outbox.bytes_max", file.outbox.bytes_max, &OUTBOX_BYTES_RANGE)?;
        for rule in &detection.rules {
            absolute("detection.rules", rule)?;
        }
        for list in &detection.hashes {
            absolute("detection.hashes", list)?;
        }
        Ok(Self {
            state,
            watch: prefixes("sensors.watch", &file.sensors.watch)?,
            exclude: prefixes("sensors.exclude", &file.sensors.exclude)?,
            polling: file.sensors.level == LevelFile::Polling,
            network_filesystems: file.sensors.network_filesystems,
            realtime: file.sensors.realtime,
            self_test: interval(file.sensors.self_test_s),
            builtin_rules: detection.builtin_rules,
            rules: detection.rules,
            hashes: detection.hashes,
            size_max_bytes: detection.size_max_bytes,
            scan_timeout: Duration::from_secs(detection.scan_timeout_s),
            scans_parallel: detection.scans_parallel,
            telemetry: detection.telemetry,
            memory_on_exec: prefixes("detection.memory_on_exec", &detection.memory_on_exec)?,
            memory_delay: Duration::from_millis(detection.memory_delay_ms),
            verdicts_max: detection.verdicts_max,
            sweep: file.sweep.check()?,
            outbox_bytes_max: file.outbox.bytes_max,
        })
    }
}

/// What is wrong with a file, with its line.
fn mistake(text: &str, error: &toml::de::Error) -> String {
    let shown = error.to_string();
    if shown.len() <= ANSWER_BYTES_MAX {
        return shown.trim_end().to_owned();
    }
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let message: String = error.message().chars().take(ANSWER_BYTES_MAX / 8).collect();
    format!("line {}: {message}", before.matches('\n').count() + 1)
}

/// `/var/lib/vidette-agent` for root; a folder of the user's own otherwise.
#[must_use]
pub fn default_state() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(STATE_PATH);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or(home.map(|home| home.join(".local/state")))
    {
        Some(folder) if folder.is_absolute() => folder.join("vidette-agent"),
        _ => PathBuf::from(STATE_PATH),
    }
}

fn interval(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn read(path: &Path) -> std::io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    fs::File::open(path)?.take(CONFIG_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn prefixes(key: &str, paths: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    if paths.len() > ENTRIES_MAX {
        bail!("{key} has {} entries, at most {ENTRIES_MAX} are allowed", paths.len());
    }
    paths
        .iter()
        .map(|path| {
            absolute(key, path)?;
            Ok(path.as_os_str().as_bytes().to_vec())
        })
        .collect()
}

fn absolute(key: &str, path: &Path) -> anyhow::Result<()> {
    if path.is_absolute() {
        return Ok(());
    }
    bail!("{key} entry `{}` is not an absolute path: write it from the root, such as `/{0}`", path.display())
}

fn within<T: PartialOrd + std::fmt::Display>(
    key: &str,
    value: T,
    range: &std::ops::RangeInclusive<T>,
) -> anyhow::Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    bail!("{key} is {value}: set it between {} and {}", range.start(), range.end())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The packaged file: what is commented out there is the default, so both must mean the same.
    const PACKAGED: &str = include_str!("../../packaging/agent.toml");

    #[test]
    fn the_packaged_file_says_the_defaults() {
        let uncommented: String = PACKAGED
            .lines()
            .map(|line| line.strip_prefix("#! ").unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let state = Some(Path::new(STATE_PATH));
        assert_eq!(Config::parse(&uncommented, state).unwrap(), Config::parse("", state).unwrap());
        for key in [
            "state",
            "watch",
            "exclude",
            "level",
            "network_filesystems",
            "realtime",
            "self_test_s",
            "builtin_rules",
            "rules",
            "hashes",
            "size_max_bytes",
            "scan_timeout_s",
            "scans_parallel",
            "telemetry",
            "memory_on_exec",
            "memory_delay_ms",
            "verdicts_max",
            "every_h",
            "after_rules_change",
            "cpu_percent",
            "io_mb_per_s",
            "paths",
            "bytes_max",
        ] {
            assert!(
                uncommented.lines().any(|line| line.starts_with(&format!("{key} ="))),
                "{key} is not in the packaged file"
            );
        }
    }

    fn check(text: &str, expected: &str) {
        let error = format!("{:#}", Config::parse(text, None).unwrap_err());
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn a_mistake_names_its_key() {
        check("[sensors]\nwatch = [\"tmp\"]", "sensors.watch entry `tmp` is not an absolute path");
        check("[sensors]\nwach = []", "unknown field `wach`");
        check("[sensors\n", "line 1");
        let long = format!("\nx = [{}", "\"a\", ".repeat(100_000));
        let error = format!("{:#}", Config::parse(&long, None).unwrap_err());
        assert!(error.contains("line 2") && error.len() < ANSWER_BYTES_MAX, "{} bytes", error.len());
        check("[detection]\nscan_timeout_s = 1", "detection.scan_timeout_s is 1: set it between 2 and 600");
        check("[detection]\nrules = [\"rules\"]", "detection.rules entry `rules`");
        check("[detection]\nhashes = [\"lists\"]", "detection.hashes entry `lists`");
        check(
            "[detection]\nmemory_on_exec = [\"tmp\"]",
            "detection.memory_on_exec entry `tmp` is not an absolute",
        );
        check("[detection]\nmemory_delay_ms = 60001", "detection.memory_delay_ms is 60001");
        check("[sensors]\nlevel = \"max\"", "unknown variant `max`");
        check("[sweep]\ncpu_percent = 10001", "sweep.cpu_percent is 10001");
        check("[sweep]\npaths = [\"srv\"]", "sweep.paths entry `srv`");
        check("[detection]\nverdicts_max = 0", "detection.verdicts_max is 0");
        check("[outbox]\nbytes_max = 1", "outbox.bytes_max is 1");
        check("state = \"x\"", "state entry `x`");
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/agent.toml")), None).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("could not read /nonexistent/agent.toml: No such file"),
            "{error:#}"
        );
    }
}
