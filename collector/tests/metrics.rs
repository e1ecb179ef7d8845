//! `/metrics`, `/healthz` and `/readyz` of a real collector, asked over plain TCP: by Prometheus' own checker, and by
//! clients that mean no good.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vidette_collector::outside::http::{CONNECTION_TIME_MAX, CONNECTIONS_MAX, HEAD_BYTES_MAX};

/// On a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running collector with metrics; killed when the test ends.
struct Served {
    folder: tempfile::TempDir,
    process: Child,
    address: SocketAddr,
}

impl Served {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = folder.path().join("collector.toml");
        std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\n[metrics]\nlisten = \"{address}\"\n"))
            .unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_vidette"))
            .args(["serve", "--state"])
            .arg(folder.path().join("state"))
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut served = Self { folder, process, address };
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(
                served.process.try_wait().unwrap().is_none() && Instant::now() < until,
                "it did not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        served
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Everything that comes back to these bytes, up to the end of the connection.
    fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may refuse before everything is written.
        let _ = stream.write_all(bytes);
        rest(&mut stream)
    }

    fn get(&self, path: &str) -> String {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes())
    }

    fn memory_bytes(&self) -> u64 {
        let metrics = self.get("/metrics");
        value(&metrics, "process_resident_memory_bytes").unwrap()
    }

    fn vidette(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vidette"));
        command.args(arguments).arg("--state").arg(self.folder.path().join("state")).output().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // What it did not read makes it reset the connection; what it said has come before.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn value(metrics: &str, series: &str) -> Option<u64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

#[test]
fn prometheus_own_checker_accepts_the_metrics() {
    let served = Served::start();
    let answer = served.get("/metrics");
    assert_eq!(status(&answer), "200");
    assert!(answer.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{answer}");
    let metrics = body(&answer);
    for series in
        ["vidette_agents{state=\"silent\"}", "vidette_store_wal_bytes", "vidette_sink_up{sink=\"alerts\"}"]
    {
        assert!(value(metrics, series).is_some(), "{series} is not in {metrics}");
    }
    let (accepted, said) = promtool(&["check", "metrics"], metrics);
    assert!(accepted && said.is_empty(), "{said}\n{metrics}");
}

#[test]
fn the_checker_does_find_what_is_wrong() {
    let (accepted, said) =
        promtool(&["check", "metrics"], "# TYPE vidette_batches counter\nvidette_batches 1\n");
    assert!(!accepted && said.contains("_total"), "{said}");
}

#[test]
fn the_alert_rules_that_ship_are_rules_and_ask_for_metrics_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/prometheus-alerts.yml");
    let (accepted, said) = promtool(&["check", "rules", path.to_str().unwrap()], "");
    assert!(accepted && said.contains("rules found"), "{said}");
    let served = Served::start();
    let metrics = served.get("/metrics");
    let rules = std::fs::read_to_string(path).unwrap();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let asked = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let mut names: Vec<&str> = asked
        .flat_map(|expression| expression.split(|c| !word(c)))
        .filter(|name| name.starts_with("vidette_"))
        .collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.len() > 8, "{names:?}");
    for name in names {
        let known = metrics.contains(&format!("\n{name}{{")) || metrics.contains(&format!("\n{name} "));
        assert!(known, "{name} is not in {metrics}");
    }
}

/// Whether it accepts, and all that it says.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut promtool = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool of Debian's package `prometheus`: tests/run installs it");
    promtool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.success(), said)
}

#[test]
fn every_path_answers_and_nothing_but_reading_is_possible() {
    let served = Served::start();
    for path in ["/healthz", "/readyz", "/healthz?verbose=1"] {
        let answer = served.get(path);
        assert_eq!((status(&answer), body(&answer)), ("200", "ok\n"), "{path}: {answer}");
    }
    assert_eq!(status(&served.get("/../../etc/passwd")), "404");
    for method in ["POST", "PUT", "DELETE", "CONNECT", "BREW"] {
        let bytes = format!("{method} /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
        let answer = served.say(bytes.as_bytes());
        assert!(["405", "400"].contains(&status(&answer)), "{method}: {answer}");
    }
    let head = served.say(b"HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((status(&head), body(&head)), ("200", ""));
}

#[test]
fn hostile_requests_end_alone_and_cost_nothing() {
    let served = Served::start();
    let before = served.memory_bytes();
    let huge = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 * HEAD_BYTES_MAX));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let endless = vec![b'A'; 16 << 20];
    let zeros = vec![0; 100_000];
    let table: [&[u8]; 6] =
        [huge.as_bytes(), many.as_bytes(), &endless, &zeros, b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n"];
    for bytes in table {
        let answer = served.say(bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        assert!(!answer.contains(" 200 "), "{shown:?}: {answer}");
    }
    // One connection, one answer: what is pipelined behind it is not served.
    let three = served.say(&b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n".repeat(3));
    assert_eq!(three.matches("HTTP/1.1 200").count(), 1, "{three}");
    assert!(three.to_lowercase().contains("connection: close"), "{three}");
    assert_eq!(status(&served.get("/healthz")), "200");
    let after = served.memory_bytes();
    assert!(after < before + (32 << 20), "{before} bytes grew to {after}");
}

#[test]
fn slow_clients_and_more_than_there_are_places_only_make_others_wait() {
    let served = Served::start();
    let mut slow: Vec<TcpStream> = (0..2 * CONNECTIONS_MAX).map(|_| served.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /metrics HTT").unwrap();
    }
    let began = Instant::now();
    let answer = served.get("/healthz");
    assert_eq!(status(&answer), "200", "after {:?}: {answer}", began.elapsed());
    for stream in &mut slow {
        // Each is told that it was too slow, or just closed.
        let answer = rest(stream);
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    // A client that sends a byte now and then is no better off than one that sends none.
    let mut dripping = served.connect();
    let (began, mut alive) = (Instant::now(), true);
    while alive && began.elapsed() < 3 * CONNECTION_TIME_MAX {
        std::thread::sleep(Duration::from_millis(200));
        alive = dripping.write_all(b"G").is_ok();
    }
    assert!(!alive, "still open after {:?}", began.elapsed());
}

#[test]
fn a_port_that_is_taken_or_open_to_others_is_refused() {
    let served = Served::start();
    let refused = |text: String, words: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("collector.toml");
        std::fs::write(&config, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_vidette"))
            .args(["serve", "--listen", "127.0.0.1:0", "--state"])
            .arg(folder.path().join("state"))
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "{error} says nothing of {word}"));
    };
    refused(format!("[metrics]\nlisten = \"{}\"\n", served.address), &["TCP", "[metrics]"]);
    refused("[metrics]\nlisten = \"0.0.0.0:0\"\n".into(), &["no password", "remote = true"]);
}

/// A file system of its own that is small, unmounted at the end.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(path: &'a Path, bytes: u64) -> Self {
        let size = format!("size={bytes},mode=0700");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(path).status();
        assert!(status.is_ok_and(|status| status.success()), "mounting a tmpfs needs root");
        Self(path)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_not_ready_but_alive_and_the_check_says_why() {
    let mut served = Served::start();
    assert_eq!(status(&served.get("/readyz")), "200");
    let fine = served.vidette(&["status", "--check"]);
    assert!(String::from_utf8_lossy(&fine.stdout).starts_with("VIDETTE "), "{fine:?}");
    let _ = served.process.kill();
    let _ = served.process.wait();
    let state = served.folder.path().join("small");
    std::fs::create_dir(&state).unwrap();
    let _small = Small::mount(&state, 24 << 20);
    served.process = Command::new(env!("CARGO_BIN_EXE_vidette"))
        .args(["serve", "--state"])
        .arg(&state)
        .arg("--config")
        .arg(served.folder.path().join("collector.toml"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(served.address).is_err() {
        assert!(Instant::now() < until, "it did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let ready = served.get("/readyz");
    assert_eq!(status(&ready), "503", "{ready}");
    assert!(body(&ready).contains("KiB left") && body(&ready).lines().count() == 1, "{ready}");
    assert_eq!(status(&served.get("/healthz")), "200", "a restart would not help");
    let mut check = Command::new(env!("CARGO_BIN_EXE_vidette"));
    let output = check.args(["status", "--check", "--state"]).arg(&state).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.starts_with("VIDETTE CRITICAL: ") && said.contains("MiB left") && said.lines().count() == 1,
        "{said}"
    );
    let _ = served.process.kill();
    let _ = served.process.wait();
}
