//! rsyslog as its users run it, but unprivileged, in a folder that vanishes, with a CA that vanishes with it.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Debian's `nobody`.
const NOBODY: u32 = 65_534;
/// Fields of a line that rsyslog writes; the JSON is the last and may hold anything but a newline.
const FIELDS: usize = 7;

pub(crate) struct Receiver {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

/// A message as rsyslog has understood it.
pub(crate) struct Message {
    /// Facility, severity, host name, program, message id.
    pub(crate) header: Vec<String>,
    pub(crate) id: String,
    pub(crate) json: String,
}

impl Receiver {
    /// Everything but the process.
    pub(crate) fn new(is_tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        certificates(folder.path());
        std::fs::write(folder.path().join("rsyslog.conf"), configuration(folder.path(), port, is_tls))
            .unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            for entry in std::fs::read_dir(folder.path()).unwrap() {
                std::os::unix::fs::chown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        Self { folder, port, process: None }
    }

    pub(crate) fn address(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(&mut self) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new("/usr/sbin/rsyslogd");
        command.arg("-n").arg("-f").arg(self.folder.path().join("rsyslog.conf"));
        command.arg("-i").arg(self.folder.path().join("pid")).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        self.process = Some(
            command.spawn().expect("rsyslogd starts: install the Debian packages rsyslog and rsyslog-gnutls"),
        );
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "rsyslog does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// SIGTERM: it ends in order.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&process);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            process.wait().unwrap();
        }
    }

    /// SIGSTOP: its kernel goes on accepting and acknowledging bytes that it will never read.
    pub(crate) fn pause(&self) {
        if let Some(process) = &self.process {
            rustix::process::kill_process(
                rustix::process::Pid::from_child(process),
                rustix::process::Signal::STOP,
            )
            .unwrap();
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        let _ = std::fs::remove_file(self.folder.path().join("pid"));
    }

    /// What it has written so far. A line that is not ended yet is left out.
    pub(crate) fn received(&self) -> Vec<Message> {
        let text = std::fs::read_to_string(self.folder.path().join("received")).unwrap_or_default();
        let ended = text.rfind('\n').map_or("", |end| &text[..end]);
        ended.lines().map(message).collect()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.kill();
    }
}

fn message(line: &str) -> Message {
    let fields: Vec<&str> = line.splitn(FIELDS, '\t').collect();
    let [facility, severity, host, program, kind, data, json] = fields[..] else {
        panic!("not a line of ours: {line:?}")
    };
    let id = data.split("id=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an id");
    Message {
        header: [facility, severity, host, program, kind].map(str::to_owned).to_vec(),
        id: id.to_owned(),
        json: json.to_owned(),
    }
}

/// Every event is written at once (`asyncWriting` is off by default), so that a kill loses what was not read only.
fn configuration(folder: &Path, port: u16, is_tls: bool) -> String {
    let folder = folder.display();
    let (tls, driver) = if is_tls {
        let files = format!(
            "defaultNetstreamDriverCAFile=\"{folder}/ca.pem\" defaultNetstreamDriverCertFile=\"{folder}/cert.pem\" \
             defaultNetstreamDriverKeyFile=\"{folder}/key.pem\" defaultNetstreamDriver=\"gtls\""
        );
        (files, "streamDriver.name=\"gtls\" streamDriver.mode=\"1\" streamDriver.authMode=\"anon\"")
    } else {
        (String::new(), "")
    };
    format!(
        "global(workDirectory=\"{folder}\" maxMessageSize=\"512k\" {tls})\n\
         module(load=\"imtcp\" {driver})\n\
         template(name=\"fields\" type=\"string\" \
         string=\"%syslogfacility-text%\\t%syslogseverity-text%\\t%hostname%\\t%app-name%\\t%msgid%\\t%structured-data%\\t%msg:::drop-last-lf%\\n\")\n\
         ruleset(name=\"all\") {{ action(type=\"omfile\" file=\"{folder}/received\" template=\"fields\") }}\n\
         input(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\" ruleset=\"all\")\n"
    )
}

fn certificates(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "throwaway");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &ca).unwrap();
    std::fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}
