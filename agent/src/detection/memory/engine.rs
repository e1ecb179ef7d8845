//! One process after the other: its blocks through the worker, and what comes of them together.
//!
//! Owned by one thread, like the pool in it. A process is read on another thread, because reading can be made to wait
//! for ever by whoever answers for a page (userfaultfd(2), FUSE): such a thread is left behind, and there may be few.

use super::read::Block;
use super::regions::Region;
use super::target::{self, Order, Own, Said, Tally};
use super::{Budget, How};
use crate::sensors::inspect::Identity;
use crate::worker::pool::{Done, Output, Pool};
use crate::worker::{Outcome, Scan, matches};
use crossbeam_channel::{Receiver, bounded, never, select};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vidette_protocol::limits::PATTERNS_MAX;
use vidette_protocol::wire::{self, Verdict};

/// Blocks that were read and that the pool has not taken yet.
const BLOCKS_QUEUE_MAX: usize = 2;
/// Mappings of one process in which something was found; more are counted.
pub const FINDINGS_MAX: usize = 32;
/// How long after its time a process that can't be read is waited for.
const STUCK_TIME: Duration = Duration::from_secs(5);
/// Threads that are left behind; with so many no other process is read.
pub const STUCK_MAX: usize = 8;
/// The longest wait without a look at what is due.
const LOOK_TIME: Duration = Duration::from_millis(200);

/// Something in one mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Where.
    pub region: wire::MemoryRegion,
    /// Matched, or why it is not known.
    pub verdict: Verdict,
    /// Most severe first; offsets are addresses.
    pub rules: Vec<wire::RuleMatch>,
    /// Why it is not known.
    pub detail: String,
    /// In the worker. Microseconds.
    pub scan_us: u64,
}

/// What became of one process.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Who; with nothing but its pid when it was gone before it could be described.
    pub process: wire::Process,
    /// How reading it ended.
    pub how: How,
    /// How much was read.
    pub tally: Tally,
    /// At most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// More of them.
    pub findings_left_out: u64,
    /// Blocks that no worker looked at, and why.
    pub unscanned: Option<String>,
    /// Which rules were asked.
    pub rules_version: String,
}

impl Report {
    /// Of a process that nothing was read of yet, or can be, with nothing but its number.
    #[must_use]
    pub fn unread(pid: u32, how: How, rules_version: &str) -> Self {
        Self {
            process: wire::Process { pid, ..Default::default() },
            how,
            tally: Tally::default(),
            findings: Vec::new(),
            findings_left_out: 0,
            unscanned: None,
            rules_version: rules_version.to_owned(),
        }
    }
}

/// What happens meanwhile.
#[derive(Debug)]
pub enum Meanwhile {
    /// Something about the worker; never a verdict.
    Worker(Output),
    /// So many bytes more were scanned.
    Scanned(u64),
}

/// Looks into processes; see above.
#[derive(Debug)]
pub struct Engine {
    pool: Pool,
    budget: Budget,
    own: Own,
    boot_id: String,
    last_id: u64,
    stuck: Vec<Arc<AtomicBool>>,
    stop: Arc<AtomicBool>,
}

struct Flight {
    region: Arc<Region>,
    start: u64,
    bytes: u64,
}

/// One process that is being looked into.
struct Looking {
    report: Report,
    in_flight: HashMap<u64, Flight>,
    ended: bool,
}

impl Engine {
    /// With a pool of its own, whose largest file is a block; `stop` ends it early.
    #[must_use]
    pub fn new(pool: Pool, budget: Budget, boot_id: &str, stop: Arc<AtomicBool>) -> Self {
        let (own, boot_id) = (Own::new(), boot_id.to_owned());
        Self { pool, budget, own, boot_id, last_id: 0, stuck: Vec::new(), stop }
    }

    /// The pool, to prepare it and to wait with it while there is nothing to look into.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Looks into a process, whoever has this number.
    pub fn scan(&mut self, pid: u32, tell: &mut dyn FnMut(Meanwhile)) -> Report {
        self.look_into(pid, None, tell)
    }

    /// Looks into a process if it is still this one.
    pub(super) fn scan_if(
        &mut self,
        pid: u32,
        identity: Identity,
        tell: &mut dyn FnMut(Meanwhile),
    ) -> Report {
        self.look_into(pid, Some(identity), tell)
    }

    fn look_into(&mut self, pid: u32, identity: Option<Identity>, tell: &mut dyn FnMut(Meanwhile)) -> Report {
        let mut looking = Looking::new(pid, self.pool.rules_version());
        self.stuck.retain(|ended| !ended.load(Ordering::Acquire));
        if self.stuck.len() >= STUCK_MAX {
            looking.report.how =
                How::Failed(format!("{STUCK_MAX} other processes can't be read to their end"));
            return looking.report;
        }
        let deadline = Instant::now() + self.budget.time;
        let order = Order {
            pid,
            identity,
            budget: self.budget,
            deadline,
            own: self.own.clone(),
            boot_id: self.boot_id.clone(),
        };
        match start(order) {
            Ok((said, ended)) => self.follow(&mut looking, said, &ended, deadline, tell),
            Err(error) => looking.report.how = How::Failed(format!("no thread could be started: {error}")),
        }
        looking.finish()
    }

    /// Takes blocks while the pool has room, and verdicts until there are no more.
    fn follow(
        &mut self,
        looking: &mut Looking,
        said: Receiver<Said>,
        reader_ended: &Arc<AtomicBool>,
        deadline: Instant,
        tell: &mut dyn FnMut(Meanwhile),
    ) {
        while !looking.ended || !looking.in_flight.is_empty() {
            if self.stop.load(Ordering::Acquire) {
                looking.report.how = How::Truncated("the agent stops".into());
                return;
            }
            let more = if !looking.ended && self.pool.room() > 0 { said.clone() } else { never() };
            let notes = self.pool.notes().clone();
            let mut outputs = Vec::new();
            select! {
                recv(more) -> said => match said {
                    Ok(said) => outputs = self.take(looking, said),
                    Err(_) => looking.end(How::Failed("the thread that read it panicked".into())),
                },
                recv(notes) -> note => if let Ok(note) = note {
                    outputs = self.pool.note(note, Instant::now());
                },
                default(self.until_due()) => outputs = self.pool.tick(Instant::now()),
            }
            looking.settle(outputs, tell);
            if !looking.ended && said.is_empty() && Instant::now() > deadline + STUCK_TIME {
                looking.end(How::Failed("reading it never came to an end".into()));
                self.stuck.push(reader_ended.clone());
            }
        }
    }

    fn until_due(&self) -> Duration {
        let due = self.pool.wake_at().map(|at| at.saturating_duration_since(Instant::now()));
        due.map_or(LOOK_TIME, |due| due.min(LOOK_TIME))
    }

    fn take(&mut self, looking: &mut Looking, said: Said) -> Vec<Output> {
        match said {
            Said::Process(process) => looking.report.process = *process,
            Said::End(how, tally) => {
                looking.report.tally = tally;
                looking.end(how);
            }
            Said::Block(Block { region, start, bytes, memory }) => {
                self.last_id += 1;
                looking.in_flight.insert(self.last_id, Flight { region, start, bytes });
                return self.pool.submit(self.last_id, memory, Instant::now());
            }
        }
        Vec::new()
    }
}

/// The thread that reads, and whether it has ended.
fn start(order: Order) -> std::io::Result<(Receiver<Said>, Arc<AtomicBool>)> {
    let (out, said) = bounded(BLOCKS_QUEUE_MAX);
    let ended = Arc::new(AtomicBool::new(false));
    let tell_end = ended.clone();
    std::thread::Builder::new().name("memory-reader".into()).spawn(move || {
        target::read(&order, &out);
        tell_end.store(true, Ordering::Release);
    })?;
    Ok((said, ended))
}

impl Looking {
    fn new(pid: u32, rules_version: &str) -> Self {
        let report = Report::unread(pid, How::Gone, rules_version);
        Self { report, in_flight: HashMap::new(), ended: false }
    }

    fn end(&mut self, how: How) {
        (self.report.how, self.ended) = (how, true);
    }

    fn settle(&mut self, outputs: Vec<Output>, tell: &mut dyn FnMut(Meanwhile)) {
        for output in outputs {
            match output {
                Output::Done(done) => self.done(*done, tell),
                other => tell(Meanwhile::Worker(other)),
            }
        }
    }

    fn done(&mut self, done: Done, tell: &mut dyn FnMut(Meanwhile)) {
        let Some(flight) = self.in_flight.remove(&done.id) else { return };
        done.rules_version.clone_into(&mut self.report.rules_version);
        match done.outcome {
            Outcome::Scanned(scan) => {
                tell(Meanwhile::Scanned(scan.scanned_bytes));
                self.scanned(&flight, scan);
            }
            Outcome::TimedOut(detail) => self.add(&flight, Verdict::TimedOut, Vec::new(), detail, 0),
            Outcome::Died(detail) => self.add(&flight, Verdict::Failed, Vec::new(), detail, 0),
            Outcome::NotScanned(detail) => self.report.unscanned = Some(detail),
        }
    }

    fn scanned(&mut self, flight: &Flight, scan: Scan) {
        match scan.verdict {
            Verdict::Clean => {}
            Verdict::Matched => {
                let rules = scan.rules.into_iter().map(|rule| flight.in_memory(rule)).collect();
                self.add(flight, Verdict::Matched, rules, String::new(), scan.scan_us);
            }
            Verdict::TimedOut
            | Verdict::Failed
            | Verdict::TooLarge
            | Verdict::NotScanned
            | Verdict::Unspecified => {
                self.add(flight, scan.verdict, Vec::new(), scan.detail, scan.scan_us);
            }
        }
    }

    /// One finding a mapping: a match wins, and is joined with those of its other blocks.
    fn add(
        &mut self,
        flight: &Flight,
        verdict: Verdict,
        rules: Vec<wire::RuleMatch>,
        detail: String,
        scan_us: u64,
    ) {
        let region = flight.region.to_wire();
        let count = self.report.findings.len();
        let known = self.report.findings.iter_mut().find(|finding| finding.region.start == region.start);
        match known {
            Some(finding) => {
                finding.scan_us = finding.scan_us.saturating_add(scan_us);
                rules.into_iter().for_each(|rule| merge(&mut finding.rules, rule));
                if verdict == Verdict::Matched {
                    finding.verdict = verdict;
                } else {
                    finding.detail = detail;
                }
            }
            None if count < FINDINGS_MAX => {
                self.report.findings.push(Finding { region, verdict, rules, detail, scan_us });
            }
            None => self.report.findings_left_out += 1,
        }
    }

    fn finish(mut self) -> Report {
        for finding in &mut self.report.findings {
            matches::order_and_bound(&mut finding.rules);
        }
        self.report
    }
}

impl Flight {
    /// Offsets in the block become addresses. Those that a worker invents beyond the block go.
    fn in_memory(&self, mut rule: wire::RuleMatch) -> wire::RuleMatch {
        rule.patterns.retain_mut(|pattern| {
            let inside = pattern.offset.checked_add(pattern.length).is_some_and(|end| end <= self.bytes);
            pattern.offset = self.start.saturating_add(pattern.offset);
            inside
        });
        rule
    }
}

/// What two blocks share is found twice.
fn merge(all: &mut Vec<wire::RuleMatch>, rule: wire::RuleMatch) {
    let Some(known) = all.iter_mut().find(|one| one.name == rule.name && one.namespace == rule.namespace)
    else {
        return all.push(rule);
    };
    for pattern in rule.patterns {
        let is_known = known
            .patterns
            .iter()
            .any(|one| (one.offset, &one.identifier) == (pattern.offset, &pattern.identifier));
        if !is_known && known.patterns.len() < PATTERNS_MAX {
            known.patterns.push(pattern);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn flight(start: u64) -> Flight {
        let region = Region::parse(b"1000-9000 rw-p 0 0:0 0 [heap]").unwrap();
        Flight { region: Arc::new(region), start, bytes: 0x2000 }
    }

    fn rule(offsets: &[u64]) -> wire::RuleMatch {
        let pattern =
            |offset: &u64| wire::PatternMatch { offset: *offset, length: 0x10, ..Default::default() };
        wire::RuleMatch {
            name: "r".into(),
            patterns: offsets.iter().map(pattern).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn offsets_become_addresses_and_what_two_blocks_share_is_told_once() {
        let mut looking = Looking::new(7, "v");
        let scan = |offsets: &[u64]| Scan {
            verdict: Verdict::Matched,
            blake3: None,
            sha256: None,
            sha1: None,
            md5: None,
            whole: true,
            rules: vec![rule(offsets)],
            detail: String::new(),
            scan_us: 3,
            scanned_bytes: 0x2000,
            stable: true,
            lasting: true,
            of_the_day: false,
        };
        looking.scanned(&flight(0x1000), scan(&[0x10, 0x1ff0, 0x1ff1, u64::MAX]));
        looking.scanned(&flight(0x2000), scan(&[0xff0]));
        looking.add(&flight(0x3000), Verdict::TimedOut, Vec::new(), "slow".into(), 0);
        let report = looking.finish();
        assert_eq!(report.findings.len(), 1);
        let finding = &report.findings[0];
        assert_eq!(
            (finding.verdict, finding.scan_us, finding.detail.as_str()),
            (Verdict::Matched, 6, "slow")
        );
        let addresses: Vec<u64> = finding.rules[0].patterns.iter().map(|pattern| pattern.offset).collect();
        assert_eq!(addresses, [0x1010, 0x2ff0]);
    }

    #[test]
    fn findings_are_bounded_and_the_rest_is_counted() {
        let mut looking = Looking::new(7, "v");
        for number in 0..FINDINGS_MAX as u64 + 5 {
            let line = format!("{:x}-{:x} rw-p 0 0:0 0 ", number << 12, (number + 1) << 12);
            let region = Arc::new(Region::parse(line.as_bytes()).unwrap());
            let flight = Flight { region, start: number << 12, bytes: 4096 };
            looking.add(&flight, Verdict::Matched, vec![rule(&[])], String::new(), 1);
        }
        assert_eq!((looking.report.findings.len(), looking.report.findings_left_out), (FINDINGS_MAX, 5));
    }
}
