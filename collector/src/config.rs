//! Settings: as written in the configuration file (`File`), then as used (`Config`), checked.
//!
//! Everything has a default, so that no file is needed at all. Errors name the file, the line and the key,
//! and say what to write instead. `packaging/collector.toml` shows every setting; a test parses it.

use anyhow::{Context, bail};
use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use toml::Spanned;
use vidette_protocol::id::Class;
use vidette_protocol::limits::{HEARTBEAT_S, HEARTBEAT_S_MAX, HEARTBEAT_S_MIN};

/// UDP port of the collector.
pub const PORT_DEFAULT: u16 = 7441;
/// TCP address of the metrics, when they are switched on without one.
pub const METRICS_DEFAULT: &str = "127.0.0.1:7442";
/// Where the settings are looked for when nobody says otherwise. It may be absent.
pub const CONFIG_DEFAULT: &str = "/etc/vidette/collector.toml";
/// Where everything is kept unless said otherwise.
pub const STATE_DEFAULT: &str = "/var/lib/vidette";
/// Size of the configuration file. Bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Sinks in one configuration.
const SINKS_MAX: usize = 16;
/// Name of a sink: it is part of a file name. Bytes.
const SINK_NAME_BYTES_MAX: usize = 32;
/// Size at which a JSON lines file is rotated. Bytes.
const ROTATE_BYTES_DEFAULT: u64 = 100 << 20;
/// Smallest size to rotate at: smaller ones would rotate at almost every event. Bytes.
const ROTATE_BYTES_MIN: u64 = 64 << 10;
/// Rotated files that are kept.
const KEEP_FILES_DEFAULT: u32 = 10;
/// Most rotated files that can be kept.
const KEEP_FILES_MAX: u32 = 10_000;
/// `local0`: no receiver files it with its own logs by accident.
const FACILITY_DEFAULT: &str = "local0";
/// RFC 5424 §6.2.1, table 1, by the names that syslog.conf(5) uses.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];

/// What was said on the command line of `serve`; it wins over the file.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    /// `--state`
    pub state: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<SocketAddr>,
}

/// The settings as used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Absolute folder of everything that is kept.
    pub state: PathBuf,
    /// UDP address for agents; `None` tries `[::]:7441`, then `0.0.0.0:7441`.
    pub listen: Option<SocketAddr>,
    /// `HOST:PORT` that join lines name; `None` for this host's name and the listening port.
    pub advertise: Option<String>,
    /// Days that events are kept; `None` keeps them for ever.
    pub retention_days: Option<u32>,
    /// How often agents are asked for a Status. Seconds.
    pub heartbeat_s: u32,
    /// TCP address of `/metrics`, `/healthz` and `/readyz`; `None` for none.
    pub metrics: Option<SocketAddr>,
    /// Where events go.
    pub sinks: Vec<Sink>,
}

/// One place to which events are forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sink {
    /// Lower-case letters, digits and `-`; its cursor is kept under this name.
    pub name: String,
    /// Which events, never empty.
    pub classes: Vec<Class>,
    /// How.
    pub output: Output,
}

/// The way of a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// JSON lines in a file.
    Jsonl(Jsonl),
    /// RFC 5424 messages to a receiver.
    Syslog(Syslog),
}

/// A rotated file of JSON lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jsonl {
    /// Absolute.
    pub path: PathBuf,
    /// Size at which it is rotated. Bytes.
    pub rotate_bytes: u64,
    /// Rotated files to keep: `path.1` is the youngest.
    pub keep_files: u32,
}

/// A syslog receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syslog {
    /// `HOST:PORT`
    pub address: String,
    /// RFC 5424 facility, 0 to 23.
    pub facility: u8,
    /// `None` for plain TCP.
    pub tls: Option<Tls>,
}

/// How a receiver proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM certificates that it must descend from. No others are trusted.
    pub ca_file: PathBuf,
    /// The name in its certificate.
    pub server_name: String,
}

/// The settings as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state: Option<Spanned<PathBuf>>,
    listen: Option<Spanned<String>>,
    advertise: Option<Spanned<String>>,
    retention_days: Option<Spanned<u32>>,
    heartbeat_s: Option<Spanned<u32>>,
    metrics: Option<Spanned<MetricsFile>>,
    sink: Option<Vec<Spanned<SinkFile>>>,
}

/// The metrics' port as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricsFile {
    listen: Option<String>,
    remote: Option<bool>,
}

/// A sink as written: the keys of all types; which belong together is checked afterwards.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SinkFile {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    classes: Option<Vec<String>>,
    path: Option<PathBuf>,
    rotate_bytes: Option<u64>,
    keep_files: Option<u32>,
    address: Option<String>,
    transport: Option<String>,
    ca_file: Option<PathBuf>,
    server_name: Option<String>,
    facility: Option<String>,
}

impl Config {
    /// The defaults, then `file`, then `overrides`.
    ///
    /// # Errors
    /// One sentence with file, line, key and what to do.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> anyhow::Result<Self> {
        let path = match file {
            Some(path) => path,
            None if Path::new(CONFIG_DEFAULT).exists() => Path::new(CONFIG_DEFAULT),
            None => return Self::parse("", overrides),
        };
        let text = read(path)?;
        Self::parse(&text, overrides).with_context(|| format!("could not use {}", path.display()))
    }

    /// From the text of a configuration file.
    ///
    /// # Errors
    /// As [`Config::load`], without the file's name.
    pub fn parse(text: &str, overrides: &Overrides) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| {
            let place =
                error.span().map_or_else(String::new, |span| format!("line {}: ", line_of(text, span.start)));
            anyhow::anyhow!("{place}{}", error.message().replace('\n', "; "))
        })?;
        let written = file.state.map(|state| (line_of(text, state.span().start), state.into_inner()));
        let (line, state) = match (&overrides.state, written) {
            (Some(state), _) => (0, state.clone()),
            (None, Some(written)) => written,
            (None, None) => (0, PathBuf::from(STATE_DEFAULT)),
        };
        if !state.is_absolute() {
            bail!(
                "{}`state` is {}, which is not an absolute path; write it from `/` on",
                at(line),
                state.display()
            );
        }
        let listen = match (overrides.listen, file.listen) {
            (Some(listen), _) => Some(listen),
            (None, Some(listen)) => {
                Some(listen_address(listen.get_ref()).context_at(text, listen.span().start)?)
            }
            (None, None) => None,
        };
        if let Some(advertise) = &file.advertise {
            host_and_port("advertise", advertise.get_ref()).context_at(text, advertise.span().start)?;
        }
        if let Some(days) = &file.retention_days
            && *days.get_ref() == 0
        {
            bail!(
                "{}`retention_days` is 0, which keeps nothing; leave it out to keep events for ever",
                at(line_of(text, days.span().start))
            );
        }
        let heartbeat_s = match &file.heartbeat_s {
            Some(written) => heartbeat(*written.get_ref()).context_at(text, written.span().start)?,
            None => HEARTBEAT_S,
        };
        let metrics = match file.metrics {
            Some(written) => {
                let start = written.span().start;
                Some(metrics(&written.into_inner()).context_at(text, start)?)
            }
            None => None,
        };
        let sinks = sinks(file.sink, &state, text)?;
        for sink in &sinks {
            if let Some(own) =
                ["identity", "store", "cursors"].iter().find(|own| sink.writes_below(&state.join(own)))
            {
                bail!(
                    "the sink `{}` would write into {}, which is the collector's own; choose another `path`",
                    sink.name,
                    state.join(own).display()
                );
            }
        }
        Ok(Self {
            sinks,
            listen,
            advertise: file.advertise.map(Spanned::into_inner),
            retention_days: file.retention_days.map(Spanned::into_inner),
            heartbeat_s,
            metrics,
            state,
        })
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let next = "name an existing file with --config, or leave it out to use the defaults";
    // Without waiting for somebody to write into it, if it is a FIFO.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .with_context(|| format!("could not open {}; {next}", path.display()))?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind != FileType::RegularFile {
        bail!("{} is not a regular file; {next}", path.display());
    }
    let file = std::fs::File::from(file);
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("could not read {} as UTF-8 text", path.display()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        bail!(
            "{} is over {FILE_BYTES_MAX} bytes, which no configuration needs; check the path",
            path.display()
        );
    }
    Ok(text)
}

fn sinks(written: Option<Vec<Spanned<SinkFile>>>, state: &Path, text: &str) -> anyhow::Result<Vec<Sink>> {
    let Some(written) = written else { return Ok(vec![default_sink(state)]) };
    if written.len() > SINKS_MAX {
        bail!("{} sinks are configured, at most {SINKS_MAX} are possible; take some out", written.len());
    }
    let mut sinks: Vec<Sink> = Vec::new();
    for entry in written {
        let start = entry.span().start;
        let sink = sink(entry.into_inner()).context_at(text, start)?;
        for other in &sinks {
            clash(&sink, other).context_at(text, start)?;
        }
        sinks.push(sink);
    }
    Ok(sinks)
}

fn default_sink(state: &Path) -> Sink {
    let path = state.join("alerts.jsonl");
    let jsonl = Jsonl { path, rotate_bytes: ROTATE_BYTES_DEFAULT, keep_files: KEEP_FILES_DEFAULT };
    Sink { name: "alerts".into(), classes: vec![Class::Alert], output: Output::Jsonl(jsonl) }
}

fn clash(sink: &Sink, other: &Sink) -> anyhow::Result<()> {
    if sink.name == other.name {
        bail!("two sinks are named `{}`; give each its own name", sink.name);
    }
    if let (Output::Jsonl(one), Output::Jsonl(two)) = (&sink.output, &other.output)
        && one.path == two.path
    {
        bail!(
            "sinks `{}` and `{}` have the same path {}; give each its own",
            other.name,
            sink.name,
            one.path.display()
        );
    }
    Ok(())
}

fn sink(file: SinkFile) -> anyhow::Result<Sink> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let name = file.name.clone();
    if name.is_empty() || name.len() > SINK_NAME_BYTES_MAX || !name.chars().all(fits) {
        bail!(
            "sink name {name:?} is not 1 to {SINK_NAME_BYTES_MAX} lower-case letters, digits and `-`; rename it"
        );
    }
    let mut classes = Vec::new();
    for class in file.classes.clone().unwrap_or_else(|| vec![Class::Alert.name().to_owned()]) {
        let class = class.parse().with_context(|| format!("sink `{name}`: in `classes`"))?;
        if !classes.contains(&class) {
            classes.push(class);
        }
    }
    if classes.is_empty() {
        bail!("sink `{name}`: `classes` is empty; name `alert`, `telemetry` or both");
    }
    let output = match file.kind.as_str() {
        "jsonl" => Output::Jsonl(jsonl(file)?),
        "syslog" => Output::Syslog(syslog(file)?),
        other => bail!("sink `{name}`: `type` is {other:?}; write `jsonl` or `syslog`"),
    };
    Ok(Sink { name, classes, output })
}

impl Sink {
    fn writes_below(&self, folder: &Path) -> bool {
        matches!(&self.output, Output::Jsonl(jsonl) if jsonl.path.starts_with(folder))
    }
}

fn jsonl(file: SinkFile) -> anyhow::Result<Jsonl> {
    let name = &file.name;
    foreign(name, "jsonl", "address", file.address.is_some())?;
    foreign(name, "jsonl", "transport", file.transport.is_some())?;
    foreign(name, "jsonl", "ca_file", file.ca_file.is_some())?;
    foreign(name, "jsonl", "server_name", file.server_name.is_some())?;
    foreign(name, "jsonl", "facility", file.facility.is_some())?;
    let Some(path) = file.path else { bail!("sink `{name}`: `path` is missing; name the file to write") };
    absolute(name, "path", &path)?;
    let rotate_bytes = file.rotate_bytes.unwrap_or(ROTATE_BYTES_DEFAULT);
    if rotate_bytes < ROTATE_BYTES_MIN {
        bail!("sink `{name}`: `rotate_bytes` is {rotate_bytes}; write at least {ROTATE_BYTES_MIN}");
    }
    let keep_files = file.keep_files.unwrap_or(KEEP_FILES_DEFAULT);
    if keep_files == 0 || keep_files > KEEP_FILES_MAX {
        bail!("sink `{name}`: `keep_files` is {keep_files}; write 1 to {KEEP_FILES_MAX}");
    }
    Ok(Jsonl { path, rotate_bytes, keep_files })
}

fn syslog(file: SinkFile) -> anyhow::Result<Syslog> {
    let name = &file.name;
    foreign(name, "syslog", "path", file.path.is_some())?;
    foreign(name, "syslog", "rotate_bytes", file.rotate_bytes.is_some())?;
    foreign(name, "syslog", "keep_files", file.keep_files.is_some())?;
    let Some(address) = file.address else {
        bail!("sink `{name}`: `address` is missing; name the receiver as HOST:PORT")
    };
    let host = host_and_port("address", &address).with_context(|| format!("sink `{name}`"))?.to_owned();
    let facility = file.facility.as_deref().unwrap_or(FACILITY_DEFAULT);
    let Some(number) = FACILITIES.iter().position(|known| *known == facility) else {
        bail!("sink `{name}`: `facility` is {facility:?}; write one of {}", FACILITIES.join(", "));
    };
    let tls = match file.transport.as_deref().unwrap_or("tcp") {
        "tcp" => {
            foreign(name, "tcp", "ca_file", file.ca_file.is_some())?;
            foreign(name, "tcp", "server_name", file.server_name.is_some())?;
            None
        }
        "tls" => {
            let Some(ca_file) = file.ca_file else {
                bail!(
                    "sink `{name}`: `ca_file` is missing; name the PEM file of the CA that signed the receiver's certificate"
                )
            };
            absolute(name, "ca_file", &ca_file)?;
            Some(Tls { ca_file, server_name: file.server_name.unwrap_or(host) })
        }
        other => bail!("sink `{name}`: `transport` is {other:?}; write `tcp` or `tls`"),
    };
    Ok(Syslog { address, facility: u8::try_from(number).unwrap_or(0), tls })
}

fn foreign(name: &str, kind: &str, key: &str, given: bool) -> anyhow::Result<()> {
    if given {
        bail!("sink `{name}`: `{key}` means nothing for `{kind}`; take it out");
    }
    Ok(())
}

fn absolute(name: &str, key: &str, path: &Path) -> anyhow::Result<()> {
    if !path.is_absolute() {
        bail!(
            "sink `{name}`: `{key}` is {}, which is not an absolute path; write it from `/` on",
            path.display()
        );
    }
    Ok(())
}

fn heartbeat(seconds: u32) -> anyhow::Result<u32> {
    if !(HEARTBEAT_S_MIN..=HEARTBEAT_S_MAX).contains(&seconds) {
        bail!("`heartbeat_s` is {seconds}; write {HEARTBEAT_S_MIN} to {HEARTBEAT_S_MAX}");
    }
    Ok(seconds)
}

/// Only this host may read metrics, unless somebody says otherwise in so many words: they have no password.
fn metrics(file: &MetricsFile) -> anyhow::Result<SocketAddr> {
    let text = file.listen.as_deref().unwrap_or(METRICS_DEFAULT);
    let Ok(address) = text.parse::<SocketAddr>() else {
        bail!(
            "`listen` in [metrics] is {text:?}, which is not an IP address and a port; write for example `{METRICS_DEFAULT}`"
        )
    };
    if !address.ip().is_loopback() && file.remote != Some(true) {
        bail!(
            "`listen` in [metrics] is {address}, which others can reach, and metrics have no password; \
             write `{METRICS_DEFAULT}`, or `remote = true` beside it when a firewall decides who may"
        );
    }
    Ok(address)
}

/// `ADDRESS:PORT`, or `:PORT` for every address.
fn listen_address(text: &str) -> anyhow::Result<SocketAddr> {
    let every = |port: &str| port.parse().ok().map(|port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    match text.parse().ok().or_else(|| text.strip_prefix(':').and_then(every)) {
        Some(address) => Ok(address),
        None => bail!(
            "`listen` is {text:?}, which is not an IP address and a port; write for example `[::]:{PORT_DEFAULT}`"
        ),
    }
}

/// The host of `HOST:PORT`.
///
/// # Errors
/// When it is something else.
pub fn host_and_port<'a>(key: &str, text: &'a str) -> anyhow::Result<&'a str> {
    let host_fits = |host: &str| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bare {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)),
        }
    };
    match text.rsplit_once(':') {
        Some((host, port))
            if text.len() <= 300 && host_fits(host) && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(host.trim_start_matches('[').trim_end_matches(']'))
        }
        _ => bail!("`{key}` is {text:?}, which is not HOST:PORT; write for example `siem.example.org:6514`"),
    }
}

trait ContextAt<T> {
    /// Says in which line it went wrong.
    fn context_at(self, text: &str, offset: usize) -> anyhow::Result<T>;
}

impl<T> ContextAt<T> for anyhow::Result<T> {
    fn context_at(self, text: &str, offset: usize) -> anyhow::Result<T> {
        self.map_err(|error| anyhow::anyhow!("{}{error:#}", at(line_of(text, offset))))
    }
}

/// Lines count from 1; 0 stands for the command line.
fn at(line: usize) -> String {
    if line == 0 { String::new() } else { format!("line {line}: ") }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Config> {
        Config::parse(text, &Overrides::default())
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for path in [pipe.as_path(), folder.path()] {
            let error = format!("{:#}", read(path).unwrap_err());
            assert!(error.contains("is not a regular file"), "{error}");
        }
    }

    #[test]
    fn nothing_written_is_enough() {
        let config = parse("").unwrap();
        assert_eq!(config.state, Path::new(STATE_DEFAULT));
        assert_eq!(config.sinks.len(), 1);
        assert!(matches!(&config.sinks[0].output, Output::Jsonl(j) if j.path.ends_with("alerts.jsonl")));
    }

    #[test]
    fn the_packaged_file_says_the_defaults() {
        let packaged = include_str!("../../packaging/collector.toml");
        assert_eq!(parse(packaged).unwrap(), parse("").unwrap(), "as it is, every line is a comment");
        let every: String = packaged.lines().map(uncommented).collect::<Vec<_>>().join("\n");
        let config = parse(&every).unwrap();
        assert_eq!(config.state, Path::new(STATE_DEFAULT));
        assert_eq!(config.listen.unwrap().port(), PORT_DEFAULT);
        assert_eq!(config.heartbeat_s, HEARTBEAT_S);
        assert_eq!(config.metrics, METRICS_DEFAULT.parse().ok(), "off as it is, here when it is asked for");
        let kinds: Vec<bool> =
            config.sinks.iter().map(|sink| matches!(sink.output, Output::Jsonl(_))).collect();
        assert_eq!(kinds, [true, false], "one sink of each type is shown");
        assert_eq!(config.sinks[0], parse("").unwrap().sinks[0], "the first sink shown is the default one");
        for key in every_key() {
            assert!(every.lines().any(|line| line.starts_with(&format!("{key} = "))), "`{key}` is not shown");
        }
    }

    /// A line that starts with `#` and no blank is a setting; with a blank it is prose.
    fn uncommented(line: &str) -> &str {
        line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)
    }

    /// What serde accepts, by asking it: its error for an unknown key lists them all.
    fn every_key() -> Vec<String> {
        let mut keys = Vec::new();
        for text in ["zzz = 1", "[metrics]\nzzz = 1", "[[sink]]\nname = \"a\"\ntype = \"jsonl\"\nzzz = 1"] {
            let error = format!("{:#}", parse(text).unwrap_err());
            let list = error.split("expected ").nth(1).unwrap();
            keys.extend(list.split('`').skip(1).step_by(2).map(str::to_owned));
        }
        keys.retain(|key| key != "sink" && key != "metrics");
        assert!(keys.len() > 10, "{keys:?}");
        keys
    }

    #[test]
    fn an_error_names_line_key_and_next_step() {
        let syslog = "[[sink]]\nname = \"s\"\ntype = \"syslog\"\n";
        let jsonl = "\n[[sink]]\nname = \"s\"\ntype = \"jsonl\"\n";
        let table: [(String, &[&str]); 24] = [
            ("listen = ".into(), &["line 1"]),
            ("# a\nlisten = \"here\"".into(), &["line 2", "`listen`", "[::]:7441"]),
            ("\nlissten = \"[::]:1\"".into(), &["line 2", "`lissten`", "expected one of"]),
            ("state = \"here\"".into(), &["line 1", "`state`", "absolute"]),
            ("advertise = \"nowhere\"".into(), &["line 1", "`advertise`", "HOST:PORT"]),
            ("retention_days = 0".into(), &["line 1", "`retention_days`"]),
            ("retention_days = -3".into(), &["line 1"]),
            ("heartbeat_s = 9".into(), &["line 1", "`heartbeat_s`", "10 to 3600"]),
            ("\n[metrics]\nlisten = \"here\"".into(), &["line 2", "`listen` in [metrics]", "127.0.0.1:7442"]),
            ("[metrics]\nlisten = \"0.0.0.0:9\"".into(), &["line 1", "no password", "`remote = true`"]),
            ("[metrics]\nlisten = \"[2001:db8::1]:9\"\nremote = false".into(), &["no password"]),
            ("[metrics]\nport = 9".into(), &["line 2", "`port`", "`listen` or `remote`"]),
            (format!("{syslog}address = \"x\""), &["line 1", "sink `s`", "`address`", "HOST:PORT"]),
            (syslog.into(), &["`address` is missing"]),
            (format!("{syslog}address = \"h:1\"\ntransport = \"udp\""), &["`transport`", "`tcp` or `tls`"]),
            (format!("{syslog}address = \"h:1\"\ntransport = \"tls\""), &["`ca_file` is missing"]),
            (
                format!("{syslog}address = \"h:1\"\ntransport = \"tls\"\nca_file = \"ca.pem\""),
                &["`ca_file`", "absolute"],
            ),
            (
                format!("{syslog}address = \"h:1\"\nca_file = \"/ca.pem\""),
                &["`ca_file` means nothing for `tcp`"],
            ),
            (format!("{syslog}address = \"h:1\"\nfacility = \"me\""), &["`facility`", "local0"]),
            (jsonl.into(), &["line 2", "`path` is missing"]),
            (format!("{jsonl}path = \"a.jsonl\""), &["`path`", "absolute"]),
            (format!("{jsonl}path = \"/a\"\nclasses = [\"all\"]"), &["`classes`", "alert, telemetry"]),
            (format!("{jsonl}path = \"/a\"\nrotate_bytes = 1"), &["`rotate_bytes`", "at least"]),
            (format!("{jsonl}path = \"/a\"{jsonl}path = \"/b\""), &["line 6", "two sinks", "`s`"]),
        ];
        for (text, parts) in table {
            let error = format!("{:#}", parse(&text).unwrap_err());
            for part in parts {
                assert!(error.contains(part), "{text:?}\n gave {error:?}\n without {part:?}");
            }
            assert!(!error.contains('\n'), "one sentence: {error:?}");
        }
    }

    #[test]
    fn metrics_are_off_until_asked_for_and_local_until_said_otherwise() {
        let listens = |text: &str| parse(text).unwrap().metrics.map(|address| address.to_string());
        assert_eq!(listens(""), None);
        assert_eq!(listens("[metrics]").as_deref(), Some(METRICS_DEFAULT));
        assert_eq!(listens("[metrics]\nlisten = \"[::1]:9\"").as_deref(), Some("[::1]:9"));
        let open = "[metrics]\nlisten = \"0.0.0.0:9\"\nremote = true";
        assert_eq!(listens(open).as_deref(), Some("0.0.0.0:9"));
    }

    #[test]
    fn the_command_line_wins() {
        let overrides = Overrides { state: Some("/elsewhere".into()), listen: "127.0.0.1:9".parse().ok() };
        let config = Config::parse("state = \"/a\"\nlisten = \"[::1]:1\"", &overrides).unwrap();
        assert_eq!((config.state.as_path(), config.listen), (Path::new("/elsewhere"), overrides.listen));
    }
}
