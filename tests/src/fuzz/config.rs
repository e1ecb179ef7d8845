//! The target `config`: both programs' configuration files. The first byte says whose; the rest is the file.
//!
//! Promises: a file that is taken is within its limits and means the same when it is read again; one that is not is
//! answered with a sentence. Nothing panics, whatever an editor left behind.

use super::inside::{Judged, ensure, error_mark, log_mark, observe};
use super::join::memory_folder;
use super::{Observed, Target};
use rand::Rng as _;
use rand::rngs::StdRng;
use std::path::Path;
use vidette_collector::config::{Config as CollectorConfig, Output, Overrides};

/// The files that are packaged, and what may stand in them.
const AGENT: &str = include_str!("../../../packaging/agent.toml");
const COLLECTOR: &str = include_str!("../../../packaging/collector.toml");
/// An answer is for people. Bytes; a value of the file may be quoted in it.
const ANSWER_BYTES_MAX: usize = 128 << 10;

const WORDS: &[&[u8]] = &[
    b"[sensors]\n",
    b"[detection]\n",
    b"[sweep]\n",
    b"[outbox]\n",
    b"[[sink]]\n",
    b"watch = [\"/\"]\n",
    b"state = \"/x\"\n",
    b"listen = \"[::]:7441\"\n",
    b"advertise = \"h:1\"\n",
    b"name = \"a\"\n",
    b"type = \"syslog\"\n",
    b"type = \"jsonl\"\n",
    b"path = \"/tmp/x\"\n",
    b"address = \"h:514\"\n",
    b"bytes_max = ",
    b"18446744073709551615",
    b"-1",
    b"9223372036854775807",
    b"1e400",
    b"\"\"\"",
    b"[[[[",
    b"{a={a={a=",
    b"\\u0000",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
];

/// Both parsers.
#[derive(Debug)]
pub struct Config {
    folder: tempfile::TempDir,
}

impl Config {
    /// With a folder for files.
    ///
    /// # Errors
    /// It can't be made.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { folder: tempfile::tempdir_in(memory_folder())? })
    }

    /// The agent reads files only, which are bytes.
    fn agent(&self, bytes: &[u8]) -> Judged {
        let path = self.folder.path().join("agent.toml");
        std::fs::write(&path, bytes).map_err(|error| error.to_string())?;
        let load = || vidette_agent::config::Config::load(Some(&path), Some(Path::new("/state")));
        match load() {
            Err(error) => answer(&error),
            Ok(config) => {
                ensure(
                    load().is_ok_and(|again| again == config),
                    "a file means something else when read again",
                )?;
                let lists = [&config.watch, &config.exclude, &config.memory_on_exec];
                ensure(lists.iter().all(|list| list.len() <= 1024), "a list over its limit")?;
                let paths = lists.into_iter().flatten().chain(&config.sweep.paths);
                ensure(paths.clone().all(|path| path.starts_with(b"/")), "a path that is not absolute")?;
                let sane = (16 << 20..=1 << 40).contains(&config.outbox_bytes_max)
                    && (4096..=1 << 30).contains(&config.size_max_bytes)
                    && (1..=16).contains(&config.scans_parallel);
                ensure(sane, "a number over its limit")?;
                Ok(vec![
                    "agent".into(),
                    log_mark("paths", paths.count()),
                    log_mark("rules", config.rules.len()),
                ])
            }
        }
    }

    /// The collector's parser takes text.
    fn collector(&self, bytes: &[u8]) -> Judged {
        let path = self.folder.path().join("collector.toml");
        std::fs::write(&path, bytes).map_err(|error| error.to_string())?;
        let load = || CollectorConfig::load(Some(&path), &Overrides::default());
        match load() {
            Err(error) => answer(&error),
            Ok(config) => {
                ensure(
                    load().is_ok_and(|again| again == config),
                    "a file means something else when read again",
                )?;
                ensure(config.state.is_absolute() && config.sinks.len() <= 16, "a limit is not kept")?;
                ensure(config.retention_days != Some(0), "events are kept for no time")?;
                for sink in &config.sinks {
                    let named = (1..=32).contains(&sink.name.len()) && !sink.classes.is_empty();
                    ensure(named && sink.name.is_ascii() && !sink.name.contains('/'), "a name of a sink")?;
                    if let Output::Jsonl(jsonl) = &sink.output {
                        let fits = jsonl.path.is_absolute() && jsonl.rotate_bytes >= 64 << 10;
                        ensure(fits && (1..=10_000).contains(&jsonl.keep_files), "a limit of a sink")?;
                    }
                }
                Ok(vec!["collector".into(), log_mark("sinks", config.sinks.len())])
            }
        }
    }
}

fn answer(error: &anyhow::Error) -> Judged {
    let text = format!("{error:#}");
    ensure(!text.is_empty() && text.len() <= ANSWER_BYTES_MAX, "an answer that nobody reads")?;
    Ok(vec![error_mark(&text.split(": ").last().unwrap_or_default())])
}

impl Target for Config {
    fn name(&self) -> &'static str {
        "config"
    }

    fn batch(&self) -> usize {
        64
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        let which: u8 = random.random_range(0..2);
        let packaged = if which == 0 { AGENT } else { COLLECTOR };
        let mut text = vec![which];
        // Some of the settings, with their defaults.
        for line in packaged.lines() {
            let line = line.strip_prefix("#! ").unwrap_or(line);
            let keep = if line.starts_with('[') { 0.8 } else { 0.4 };
            if !line.starts_with('#') && random.random_bool(keep) {
                text.extend(line.as_bytes());
                text.push(b'\n');
            }
        }
        text
    }

    fn words(&self) -> &'static [&'static [u8]] {
        WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        let judge = |input: &Vec<u8>| {
            observe(|| match input.split_first() {
                Some((which, text)) if which % 2 == 0 => self.agent(text),
                Some((_, text)) => self.collector(text),
                None => self.collector(&[]),
            })
        };
        Ok(inputs.iter().map(judge).collect())
    }
}
