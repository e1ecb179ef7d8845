//! Verdicts and observations as events. Pure.
//!
//! Severity of a detection: that of its highest rule; LOW for a scan that timed out or failed, because only clean
//! means clean, but files that no scanner reads are also quite ordinary. Gaps are MEDIUM. A file too large to be
//! scanned whole that matched nothing is no detection: its file event says so.

use super::hashes::Summary;
use crate::host::{Host, Moment};
use crate::worker::{Outcome, Scan, clip};
use vidette_protocol::escape;
use vidette_protocol::limits::{PATH_BYTES_MAX, TEXT_BYTES_MAX};
use vidette_protocol::wire::{self, Severity, Trigger, Verdict, event::Kind};

/// What was observed of a file, without its descriptor.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its name then.
    pub path: Vec<u8>,
    /// The same, as the process that touched it sees it, where that differs.
    pub container_path: Vec<u8>,
    /// It had none.
    pub deleted: bool,
    /// What happened.
    pub what: What,
    /// When.
    pub at: Moment,
}

/// What happened to it.
#[derive(Debug, Clone)]
pub enum What {
    /// It was written, renamed (with the name before) or linked.
    Written(Option<wire::Process>, Trigger, Vec<u8>),
    /// It was run; or a polling sensor found it running.
    Run(wire::Process, bool),
}

/// What is known of a file after it was looked at.
#[derive(Debug, Clone)]
pub struct Looked {
    /// By its descriptor; the name is the observation's.
    pub file: wire::File,
    /// What the scanner says.
    pub verdict: Verdict,
    /// Most severe first.
    pub rules: Vec<wire::RuleMatch>,
    /// Which rules were asked.
    pub rules_version: String,
    /// Why it is not clean.
    pub detail: String,
    /// Microseconds.
    pub scan_us: u64,
}

/// A file as fstat(2) sees it, without name and digests.
#[must_use]
pub fn file(stat: &rustix::fs::Stat) -> wire::File {
    let key = crate::worker::poison::FileKey::of(stat);
    wire::File {
        device: key.device,
        inode: key.inode,
        size: key.size,
        mode: mode(stat),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_unix_ns: key.mtime_ns,
        ctime_unix_ns: key.ctime_ns,
        ..Default::default()
    }
}

#[allow(clippy::useless_conversion)] // The width differs between systems.
fn mode(stat: &rustix::fs::Stat) -> u32 {
    stat.st_mode.into()
}

impl Looked {
    /// From what became of a scan.
    #[must_use]
    pub fn new(file: wire::File, outcome: Outcome, rules_version: &str) -> Self {
        let mut looked = Self {
            file,
            verdict: Verdict::NotScanned,
            rules: Vec::new(),
            rules_version: rules_version.to_owned(),
            detail: String::new(),
            scan_us: 0,
        };
        match outcome {
            Outcome::Scanned(scan) => looked.take(scan),
            Outcome::TimedOut(detail) => (looked.verdict, looked.detail) = (Verdict::TimedOut, detail),
            Outcome::Died(detail) => (looked.verdict, looked.detail) = (Verdict::Failed, detail),
            Outcome::NotScanned(detail) => looked.detail = detail,
        }
        looked.detail = clip(&looked.detail, TEXT_BYTES_MAX);
        looked
    }

    fn take(&mut self, scan: Scan) {
        // Of a part they would be taken for the file's.
        if scan.whole {
            self.file.blake3 = scan.blake3.map(|digest| digest.to_vec()).unwrap_or_default();
            self.file.sha256 = scan.sha256.map(|digest| digest.to_vec()).unwrap_or_default();
            self.file.sha1 = scan.sha1.map(|digest| digest.to_vec()).unwrap_or_default();
            self.file.md5 = scan.md5.map(|digest| digest.to_vec()).unwrap_or_default();
        }
        (self.verdict, self.rules, self.detail, self.scan_us) =
            (scan.verdict, scan.rules, scan.detail, scan.scan_us);
    }

    fn file_of(&self, item: &Item) -> wire::File {
        let mut file = self.file.clone();
        file.path = item.path.iter().take(PATH_BYTES_MAX).copied().collect();
        file.container_path = item.container_path.iter().take(PATH_BYTES_MAX).copied().collect();
        file.deleted = item.deleted;
        file
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        let highest = self.rules.iter().map(severity_of).max_by_key(|severity| *severity as i32);
        highest.unwrap_or(Severity::Low)
    }

    /// The detection, if this is one.
    #[must_use]
    pub fn detection(&self, host: &Host, item: &Item) -> Option<wire::Event> {
        match self.verdict {
            Verdict::Matched | Verdict::TimedOut | Verdict::Failed => {}
            Verdict::Clean | Verdict::TooLarge | Verdict::NotScanned | Verdict::Unspecified => return None,
        }
        Some(self.told(host, item))
    }

    /// The verdict as a detection, whatever it is.
    #[must_use]
    pub fn told(&self, host: &Host, item: &Item) -> wire::Event {
        let (process, trigger) = match &item.what {
            What::Written(process, trigger, _) => (process.clone(), *trigger),
            What::Run(process, _) => (Some(process.clone()), Trigger::Exec),
        };
        let detection = wire::Detection {
            trigger: trigger.into(),
            verdict: self.verdict.into(),
            file: Some(self.file_of(item)),
            process,
            rules: self.rules.clone(),
            rules_version: self.rules_version.clone(),
            detail: self.detail.clone(),
            scan_us: self.scan_us,
            memory: None,
        };
        host.event(item.at, self.severity(), Kind::Detection(detection))
    }

    /// The observation itself, with its verdict.
    #[must_use]
    pub fn telemetry(&self, host: &Host, item: Item) -> wire::Event {
        let file = Some(self.file_of(&item));
        let kind = match item.what {
            What::Written(process, trigger, old_path) => Kind::File(wire::FileEvent {
                action: action(trigger).into(),
                file,
                process: process.map(briefly),
                old_path,
                folder: false,
                verdict: self.verdict.into(),
                rules_version: self.rules_version.clone(),
                detail: self.detail.clone(),
            }),
            What::Run(process, found) => Kind::Process(wire::ProcessEvent {
                action: run(found).into(),
                process: Some(process),
                image: file,
                exit_code: None,
                verdict: self.verdict.into(),
            }),
        };
        host.event(item.at, Severity::Info, kind)
    }
}

/// A number that this version does not know counts as medium.
fn severity_of(rule: &wire::RuleMatch) -> Severity {
    Severity::try_from(rule.severity).unwrap_or(Severity::Medium)
}

fn action(trigger: Trigger) -> wire::FileAction {
    match trigger {
        Trigger::Rename => wire::FileAction::Renamed,
        Trigger::Link => wire::FileAction::Linked,
        Trigger::Attributes => wire::FileAction::Attributes,
        Trigger::CloseWrite | Trigger::Exec | Trigger::Sweep | Trigger::Request | Trigger::Unspecified => {
            wire::FileAction::Written
        }
    }
}

/// File events are many: they name the process and its parent, and leave the other ancestors to its own events.
fn briefly(mut process: wire::Process) -> wire::Process {
    process.ancestors = Vec::new();
    process
}

fn run(found: bool) -> wire::ProcessAction {
    if found { wire::ProcessAction::Found } else { wire::ProcessAction::Run }
}

/// A program that ran and whose image nobody could open.
#[must_use]
pub fn run_without_image(host: &Host, process: wire::Process, found: bool, at: Moment) -> wire::Event {
    let kind = Kind::Process(wire::ProcessEvent {
        action: run(found).into(),
        process: Some(process),
        image: None,
        exit_code: None,
        verdict: Verdict::NotScanned.into(),
    });
    host.event(at, Severity::Info, kind)
}

/// A name that changed, with nothing to scan.
#[must_use]
pub fn name_changed(
    host: &Host,
    action: wire::FileAction,
    file: wire::File,
    old_path: Vec<u8>,
    folder: bool,
    process: Option<wire::Process>,
    at: Moment,
) -> wire::Event {
    let kind = Kind::File(wire::FileEvent {
        action: action.into(),
        file: Some(file),
        process: process.map(briefly),
        old_path,
        verdict: Verdict::Unspecified.into(),
        folder,
        ..Default::default()
    });
    host.event(at, Severity::Info, kind)
}

/// A process that ended.
#[must_use]
pub fn ended(host: &Host, process: wire::Process, status: Option<i32>, at: Moment) -> wire::Event {
    let kind = Kind::Process(wire::ProcessEvent {
        action: wire::ProcessAction::Ended.into(),
        process: Some(process),
        image: None,
        exit_code: status,
        verdict: Verdict::Unspecified.into(),
    });
    host.event(at, Severity::Info, kind)
}

/// Something that was lost.
#[must_use]
pub fn gap(host: &Host, gap: wire::Gap, at: Moment) -> wire::Event {
    host.event(at, Severity::Medium, Kind::Gap(gap))
}

/// A change of a component's state.
#[must_use]
pub fn health(host: &Host, health: wire::Health, at: Moment) -> wire::Event {
    let severity = match wire::HealthState::try_from(health.state) {
        Ok(wire::HealthState::Ok) => Severity::Info,
        Ok(wire::HealthState::Degraded) => Severity::Medium,
        Ok(wire::HealthState::Failed | wire::HealthState::Unspecified) | Err(_) => Severity::High,
    };
    host.event(at, severity, Kind::Health(health))
}

/// What this stage says of one of its own components.
#[must_use]
pub fn own_health(host: &Host, component: &str, state: wire::HealthState, message: &str) -> wire::Event {
    let told = wire::Health {
        component: component.to_owned(),
        state: state.into(),
        message: clip(message, TEXT_BYTES_MAX),
    };
    health(host, told, Moment::now())
}

/// Somebody else opened a file that is the agent's alone: its key, or what it trusts.
#[must_use]
pub fn guarded_opened(
    host: &Host,
    path: &[u8],
    process: Option<wire::Process>,
    untold: u64,
    at: Moment,
) -> wire::Event {
    let mut detail = format!("{} was opened", escape::terminal(path));
    if process.is_none() {
        detail += "; by whom is not known";
    }
    if untold > 0 {
        detail += &format!("; the same program opened such files {untold} times before, since that was told");
    }
    detail += "; whoever has the key can be this agent: unless it was you, revoke it on the collector and join again";
    let audit = wire::Audit {
        action: "identity-read".to_owned(),
        outcome: "success".to_owned(),
        detail: clip(&detail, TEXT_BYTES_MAX),
        process,
    };
    host.event(at, Severity::High, Kind::Audit(audit))
}

/// A rescan that ended: what it was for, what it looked at, what it found.
#[must_use]
pub fn rescanned(host: &Host, whole: bool, detail: &str) -> wire::Event {
    let audit = wire::Audit {
        action: "rescanned".to_owned(),
        outcome: if whole { "success" } else { "failure" }.to_owned(),
        detail: clip(detail, TEXT_BYTES_MAX),
        process: None,
    };
    host.event(Moment::now(), Severity::Info, Kind::Audit(audit))
}

/// A sweep that began or ended.
#[must_use]
pub fn swept(host: &Host, action: &str, good: bool, detail: &str) -> wire::Event {
    let audit = wire::Audit {
        action: action.to_owned(),
        outcome: if good { "success" } else { "failure" }.to_owned(),
        detail: clip(detail, TEXT_BYTES_MAX),
        process: None,
    };
    host.event(Moment::now(), Severity::Info, Kind::Audit(audit))
}

/// Rules that are used from now on.
#[must_use]
pub fn rules_loaded(host: &Host, version: &str, rules: u32, errors: usize) -> wire::Event {
    let audit = wire::Audit {
        action: "rules-loaded".to_owned(),
        outcome: if errors == 0 { "success" } else { "failure" }.to_owned(),
        detail: format!("version {version}: {rules} rules, {errors} errors"),
        process: None,
    };
    host.event(Moment::now(), Severity::Info, Kind::Audit(audit))
}

/// Hash lists that are used from now on.
#[must_use]
pub fn hashes_loaded(host: &Host, lists: &Summary) -> wire::Event {
    let audit = wire::Audit {
        action: "hash-lists-loaded".to_owned(),
        outcome: if lists.errors.is_empty() { "success" } else { "failure" }.to_owned(),
        detail: format!(
            "version {}: {} digests of {} lists, {} errors",
            lists.version,
            lists.entries,
            lists.lists,
            lists.errors.len()
        ),
        process: None,
    };
    host.event(Moment::now(), Severity::Info, Kind::Audit(audit))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { name: b"h".to_vec(), boot_id: "b".into(), os: "o".into() }
    }

    fn item(what: What) -> Item {
        Item {
            path: b"/a\n".to_vec(),
            container_path: Vec::new(),
            deleted: true,
            what,
            at: Moment { unix_ns: 5, uptime_ns: 6 },
        }
    }

    #[test]
    fn only_what_is_not_clean_is_a_detection() {
        let rule = wire::RuleMatch { severity: Severity::Critical.into(), ..Default::default() };
        let scan = |verdict, rules| {
            Outcome::Scanned(Scan {
                verdict,
                blake3: Some([1; 32]),
                sha256: None,
                sha1: None,
                md5: None,
                whole: true,
                rules,
                detail: String::new(),
                scan_us: 9,
                scanned_bytes: 1,
                stable: true,
                lasting: true,
                of_the_day: false,
            })
        };
        let cases = [
            (scan(Verdict::Clean, vec![]), None),
            (scan(Verdict::TooLarge, vec![]), None),
            (scan(Verdict::Matched, vec![rule]), Some(Severity::Critical)),
            (scan(Verdict::TimedOut, vec![]), Some(Severity::Low)),
            (Outcome::Died("signal 11".into()), Some(Severity::Low)),
            (Outcome::TimedOut("stuck".into()), Some(Severity::Low)),
            (Outcome::NotScanned("no worker".into()), None),
        ];
        for (outcome, expected) in cases {
            let what = format!("{outcome:?}");
            let looked = Looked::new(wire::File::default(), outcome, "v");
            let event =
                looked.detection(&host(), &item(What::Written(None, Trigger::CloseWrite, Vec::new())));
            assert_eq!(event.as_ref().map(|event| event.severity), expected.map(|s| s as i32), "{what}");
            let Some(Kind::Detection(detection)) = event.and_then(|event| event.kind) else { continue };
            assert_eq!(detection.file.unwrap().path, b"/a\n");
        }
    }

    #[test]
    fn ancestors_are_told_with_detections_and_processes_and_not_with_files() {
        let process = wire::Process { ancestors: vec![wire::Ancestor::default()], ..Default::default() };
        let looked = Looked::new(wire::File::default(), Outcome::Died(String::new()), "v");
        let written = item(What::Written(Some(process.clone()), Trigger::CloseWrite, Vec::new()));
        let Some(Kind::Detection(detection)) = looked.detection(&host(), &written).unwrap().kind else {
            panic!("no detection")
        };
        let Some(Kind::File(file)) = looked.telemetry(&host(), written).kind else { panic!("no file") };
        let run = item(What::Run(process.clone(), false));
        let Some(Kind::Process(run)) = looked.telemetry(&host(), run).kind else { panic!("no process") };
        let action = wire::FileAction::Deleted;
        let name =
            name_changed(&host(), action, wire::File::default(), vec![], false, Some(process), written_at());
        let Some(Kind::File(name)) = name.kind else { panic!("no file") };
        let count = |process: Option<wire::Process>| process.unwrap().ancestors.len();
        let counts = [detection.process, run.process, file.process, name.process].map(count);
        assert_eq!(counts, [1, 1, 0, 0]);
    }

    fn written_at() -> Moment {
        Moment { unix_ns: 5, uptime_ns: 6 }
    }

    #[test]
    fn the_longest_names_and_the_fullest_matches_make_an_event_within_its_limits() {
        use prost::Message as _;
        use vidette_protocol::limits::{ARGS_BYTES_MAX, EVENT_BYTES_MAX};
        let long = vec![b'x'; PATH_BYTES_MAX];
        let parent = wire::ParentProcess {
            executable: long.clone(),
            args: vec![vec![0; ARGS_BYTES_MAX]],
            ..Default::default()
        };
        let process = wire::Process {
            executable: long.clone(),
            working_directory: long.clone(),
            args: vec![vec![0; ARGS_BYTES_MAX]],
            parent: Some(parent),
            ..Default::default()
        };
        // What a worker sends at most, in one text for short.
        let rule = wire::RuleMatch {
            description: "x".repeat(crate::worker::messages::MATCHES_BYTES_MAX),
            ..Default::default()
        };
        let mut looked = Looked::new(wire::File::default(), Outcome::Died("x".repeat(9999)), "v");
        looked.rules = vec![rule];
        let mut item = item(What::Run(process, false));
        item.path = vec![b'x'; 2 * PATH_BYTES_MAX];
        let event = looked.detection(&host(), &item).unwrap();
        assert!(event.encoded_len() < EVENT_BYTES_MAX, "{}", event.encoded_len());
    }
}
