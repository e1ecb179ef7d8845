//! What was found in memory, as events. Pure.
//!
//! A detection for each mapping in which something matched, or whose scan did not end well: without a file, with the
//! process and the mapping. Severity as for files.

use super::How;
use super::engine::Report;
use crate::detection::events::{Item, Looked, What};
use crate::host::{Host, Moment};
use crate::worker::clip;
use vidette_protocol::limits::TEXT_BYTES_MAX;
use vidette_protocol::wire::{self, Trigger, Verdict, event::Kind};

impl Report {
    /// Something matched.
    #[must_use]
    pub fn has_matched(&self) -> bool {
        self.findings.iter().any(|finding| finding.verdict == Verdict::Matched)
    }

    /// Why not everything was looked at; `None` when it was, or when there was nothing to look at.
    #[must_use]
    pub fn incomplete(&self) -> Option<String> {
        let how = match &self.how {
            How::Whole | How::Gone | How::Own | How::NoMemory => None,
            How::Truncated(why) => Some(format!("truncated: {why}")),
            How::Denied => Some("its memory may not be read: ask as root".to_owned()),
            How::Failed(why) => Some(why.clone()),
        };
        how.or_else(|| self.unscanned.clone())
    }

    /// The detections; none for a process that is clean.
    #[must_use]
    pub fn events(&self, host: &Host, trigger: Trigger, at: Moment) -> Vec<wire::Event> {
        let event = |finding: &super::engine::Finding| {
            let looked = Looked {
                file: wire::File::default(),
                verdict: finding.verdict,
                rules: finding.rules.clone(),
                rules_version: self.rules_version.clone(),
                detail: clip(&self.detail(&finding.detail), TEXT_BYTES_MAX),
                scan_us: finding.scan_us,
            };
            self.event(host, &looked, trigger, at, Some(finding.region.clone()))
        };
        self.findings.iter().filter_map(event).collect()
    }

    /// That it could not be looked into, or not to the end, for those who asked for this very process.
    #[must_use]
    pub fn failure(&self, host: &Host, trigger: Trigger, at: Moment) -> Option<wire::Event> {
        let looked = Looked {
            file: wire::File::default(),
            verdict: Verdict::Failed,
            rules: Vec::new(),
            rules_version: self.rules_version.clone(),
            detail: clip(&self.incomplete()?, TEXT_BYTES_MAX),
            scan_us: 0,
        };
        self.event(host, &looked, trigger, at, None)
    }

    fn event(
        &self,
        host: &Host,
        looked: &Looked,
        trigger: Trigger,
        at: Moment,
        region: Option<wire::MemoryRegion>,
    ) -> Option<wire::Event> {
        let what = What::Written(Some(self.process.clone()), trigger, Vec::new());
        let item = Item { path: Vec::new(), container_path: Vec::new(), deleted: false, what, at };
        let mut event = looked.detection(host, &item)?;
        if let Some(Kind::Detection(detection)) = &mut event.kind {
            (detection.file, detection.memory) = (None, region);
        }
        Some(event)
    }

    fn detail(&self, finding: &str) -> String {
        let more = match self.findings_left_out {
            0 => None,
            more => Some(format!("and in {more} more blocks of its memory")),
        };
        let own = Some(finding.to_owned()).filter(|text| !text.is_empty());
        [own, self.incomplete(), more].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Tally;
    use super::super::engine::Finding;
    use super::*;

    #[test]
    fn every_finding_is_a_detection_without_a_file() {
        let finding = |verdict, severity: wire::Severity| Finding {
            region: wire::MemoryRegion { start: 0x1000, end: 0x2000, ..Default::default() },
            verdict,
            rules: vec![wire::RuleMatch { severity: severity.into(), ..Default::default() }],
            detail: String::new(),
            scan_us: 1,
        };
        let mut report = Report {
            process: wire::Process { pid: 7, ..Default::default() },
            how: How::Truncated("enough".into()),
            tally: Tally::default(),
            findings: vec![
                finding(Verdict::Matched, wire::Severity::Critical),
                Finding { rules: vec![], ..finding(Verdict::TimedOut, wire::Severity::Info) },
            ],
            findings_left_out: 2,
            unscanned: None,
            rules_version: "v".into(),
        };
        let host = Host { name: b"h".to_vec(), boot_id: "b".into(), os: "o".into() };
        let at = Moment { unix_ns: 1, uptime_ns: 2 };
        let events = report.events(&host, Trigger::Exec, at);
        let severities: Vec<i32> = events.iter().map(|event| event.severity).collect();
        assert_eq!(severities, [wire::Severity::Critical as i32, wire::Severity::Low as i32]);
        for event in &events {
            assert_eq!(vidette_protocol::check::event(event), Ok(()));
            let Some(Kind::Detection(detection)) = &event.kind else { panic!("no detection") };
            assert!(detection.file.is_none() && detection.memory.is_some());
            assert_eq!(detection.process.as_ref().unwrap().pid, 7);
            assert_eq!(detection.detail, "truncated: enough; and in 2 more blocks of its memory");
        }
        assert!(report.has_matched() && report.failure(&host, Trigger::Request, at).is_some());
        report.how = How::Gone;
        assert!(report.incomplete().is_none() && report.failure(&host, Trigger::Request, at).is_none());
    }
}
