//! rsyslog beside it, as its users run it for the same purpose: a sender with a disk-assisted queue, TLS to a receiver that
//! writes a file, on loopback. The same telemetry as JSON lines. How many messages a second, what they cost, and what a
//! kill -9 of the sender loses, in the flow and while the receiver is away.

use super::Sizes;
use anyhow::{Context, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vidette_protocol::ecs::{self, Origin};
use vidette_tests::fleet::events;
use vidette_tests::fleet::figures::{Table, cpu_s, unix_ns};

const RSYSLOGD: &str = "/usr/sbin/rsyslogd";
/// Until everything that will arrive has arrived.
const STILL: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(180);
/// Different messages; numbers are put in.
const MESSAGES: u64 = 256;

/// Prints the table.
pub(crate) fn measure(sizes: &Sizes) -> anyhow::Result<()> {
    ensure!(
        Path::new(RSYSLOGD).exists(),
        "{RSYSLOGD} is missing: install the Debian packages rsyslog and rsyslog-gnutls"
    );
    let table = Table::new(&format!("rsyslog: disk-assisted queue, TLS, {} messages", sizes.messages));
    let messages = Messages::new();
    table.row("a message, bytes", &messages.bytes.to_string(), "");

    eprintln!("  rsyslog: in the flow");
    let mut pair = Pair::start()?;
    let start = Instant::now();
    let cpu = (pair.sender.cpu_s()?, pair.receiver.cpu_s()?);
    messages.send(pair.sender.port, 0..sizes.messages, || true)?;
    pair.wait_for(sizes.messages)?;
    let wall = start.elapsed().as_secs_f64();
    table.row("messages/s", &format!("{:.0}", sizes.messages as f64 / wall), "");
    let cpu = (pair.sender.cpu_s()? - cpu.0, pair.receiver.cpu_s()? - cpu.1);
    table.row("cores used, sender / receiver", &format!("{:.2} / {:.2}", cpu.0 / wall, cpu.1 / wall), "");
    drop(pair);

    eprintln!("  rsyslog: its sender is killed in the flow");
    let mut pair = Pair::start()?;
    let mut killed = false;
    let third = sizes.messages / 3;
    let handed = messages.send(pair.sender.port, 0..sizes.messages, || {
        if !killed && pair.receiver.lines() > third {
            let _ = pair.sender.kill(); // the write says what became of it
            killed = true;
        }
        !killed
    })?;
    pair.sender.kill()?;
    pair.sender.start()?;
    lost(&table, "kill -9 of the sender in the flow", &pair, handed);
    drop(pair);

    eprintln!("  rsyslog: its sender is killed while the receiver is away");
    let mut pair = Pair::start()?;
    pair.receiver.kill()?;
    let handed = messages.send(pair.sender.port, 0..sizes.messages / 4, || true)?;
    std::thread::sleep(STILL);
    pair.sender.kill()?;
    pair.receiver.start()?;
    pair.sender.start()?;
    lost(&table, "kill -9 of the sender, receiver away", &pair, handed);
    table.row("the same of vidette-agent", "see the fault campaign: `tests/bench/faults`", "0 lost");
    Ok(())
}

fn lost(table: &Table, what: &str, pair: &Pair, handed: usize) {
    let (mut count, mut since) = (0, Instant::now());
    while since.elapsed() < STILL {
        std::thread::sleep(Duration::from_millis(200));
        let now = pair.receiver.lines();
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    let numbers = pair.receiver.numbers();
    let distinct: HashSet<&String> = numbers.iter().collect();
    let lost = handed.saturating_sub(distinct.len());
    let twice = numbers.len() - distinct.len();
    table.row(&format!("{what}: handed over / lost / twice"), &format!("{handed} / {lost} / {twice}"), "");
}

/// What is sent, made before.
struct Messages {
    json: Vec<String>,
    bytes: usize,
}

impl Messages {
    fn new() -> Self {
        let json = (0..MESSAGES).map(|number| {
            let event = events::telemetry(number, "host-00042", unix_ns());
            ecs::line(&ecs::record(Origin::NONE, &event))
        });
        let json: Vec<String> = json.collect();
        let bytes = json.iter().map(String::len).sum::<usize>() / json.len();
        Self { json, bytes }
    }

    /// Hands messages over until `goes_on` says no or nobody takes them, and waits until the other side has read them;
    /// gives how many were written.
    fn send(
        &self,
        port: u16,
        numbers: std::ops::Range<usize>,
        mut goes_on: impl FnMut() -> bool,
    ) -> anyhow::Result<usize> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let mut handed = 0;
        for (number, json) in numbers.zip(self.json.iter().cycle()) {
            if number % 500 == 0 && !goes_on() {
                return Ok(handed);
            }
            let line = format!(
                "<134>1 2026-11-21T00:00:00Z host-00042 vidette - - [event@0 id=\"{number}\"] {json}\n"
            );
            if stream.write_all(line.as_bytes()).is_err() {
                return Ok(handed);
            }
            handed += 1;
        }
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let _ = stream.read(&mut [0]); // the other side closes when it has read everything
        Ok(handed)
    }
}

/// Both ends, each in a folder that vanishes.
struct Pair {
    sender: Rsyslog,
    receiver: Rsyslog,
}

impl Pair {
    fn start() -> anyhow::Result<Self> {
        let mut receiver = Rsyslog::new(receiver)?;
        certificates(receiver.folder.path())?;
        receiver.start()?;
        let (port, ca) = (receiver.port, receiver.folder.path().join("ca.pem"));
        let mut sender = Rsyslog::new(|folder, own| sender(folder, own, port, &ca))?;
        sender.start()?;
        Ok(Self { sender, receiver })
    }

    fn wait_for(&mut self, messages: usize) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.receiver.lines() < messages {
            ensure!(
                start.elapsed() < PATIENCE,
                "{} of {messages} messages came: {}",
                self.receiver.lines(),
                self.sender.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

struct Rsyslog {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl Rsyslog {
    fn new(configuration: impl FnOnce(&Path, u16) -> String) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("vidette-rsyslog-").tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        fs::write(folder.path().join("rsyslog.conf"), configuration(folder.path(), port))?;
        Ok(Self { folder, port, process: None })
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let path = |name: &str| self.folder.path().join(name);
        let log = File::options().create(true).append(true).open(path("log"))?;
        let mut command = Command::new(RSYSLOGD);
        command.arg("-n").arg("-f").arg(path("rsyslog.conf")).arg("-i").arg(path("pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(self.folder.path());
        self.process = Some(command.spawn()?);
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if start.elapsed() > Duration::from_secs(20) {
                bail!("rsyslog does not listen: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        let _ = fs::remove_file(self.folder.path().join("pid"));
        Ok(())
    }

    fn cpu_s(&self) -> anyhow::Result<f64> {
        cpu_s(self.process.as_ref().context("rsyslog runs")?.id())
    }

    fn received(&self) -> PathBuf {
        self.folder.path().join("received")
    }

    /// Whole lines that were received.
    fn lines(&self) -> usize {
        let bytes = fs::read(self.received()).unwrap_or_default();
        bytes.iter().filter(|byte| **byte == b'\n').count()
    }

    fn numbers(&self) -> Vec<String> {
        let text = fs::read_to_string(self.received()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Takes lines over TCP and ships them over TLS. What does not fit in its memory goes to the queue's files, and at the end
/// of the program all of it.
fn sender(folder: &Path, own: u16, port: u16, ca: &Path) -> String {
    let (folder, ca) = (folder.display(), ca.display());
    format!(
        "global(workDirectory=\"{folder}\" maxMessageSize=\"512k\" defaultNetstreamDriverCAFile=\"{ca}\")\n\
         module(load=\"imptcp\")\n\
         ruleset(name=\"all\") {{ action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{port}\" protocol=\"tcp\" \
         template=\"RSYSLOG_SyslogProtocol23Format\" TCP_Framing=\"octet-counted\" \
         streamDriver=\"gtls\" streamDriverMode=\"1\" streamDriverAuthMode=\"x509/certvalid\" \
         queue.type=\"LinkedList\" queue.filename=\"forward\" queue.maxDiskSpace=\"2g\" queue.saveOnShutdown=\"on\" \
         queue.timeoutEnqueue=\"60000\" action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\") }}\n\
         input(type=\"imptcp\" port=\"{own}\" address=\"127.0.0.1\" ruleset=\"all\")\n"
    )
}

/// Writes the number of every message that comes to a file, at once.
fn receiver(folder: &Path, own: u16) -> String {
    let folder = folder.display();
    format!(
        "global(workDirectory=\"{folder}\" maxMessageSize=\"512k\" defaultNetstreamDriver=\"gtls\" \
         defaultNetstreamDriverCAFile=\"{folder}/ca.pem\" defaultNetstreamDriverCertFile=\"{folder}/cert.pem\" \
         defaultNetstreamDriverKeyFile=\"{folder}/key.pem\")\n\
         module(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" streamDriver.authMode=\"anon\")\n\
         template(name=\"number\" type=\"string\" string=\"%structured-data%\\n\")\n\
         ruleset(name=\"all\") {{ action(type=\"omfile\" file=\"{folder}/received\" template=\"number\") }}\n\
         input(type=\"imtcp\" port=\"{own}\" address=\"127.0.0.1\" ruleset=\"all\")\n"
    )
}

fn certificates(folder: &Path) -> anyhow::Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "throwaway");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".into()])?.signed_by(&key, &ca)?;
    fs::write(folder.join("ca.pem"), ca.pem())?;
    fs::write(folder.join("cert.pem"), certificate.pem())?;
    Ok(fs::write(folder.join("key.pem"), key.serialize_pem())?)
}
