//! What must be stored, and what is: pure, over the collector's own answers.
//!
//! The list of written samples is the generator's. Each has a content of its own and is written once, so each has to be
//! stored as one detection. Numbers of a lane run 1, 2, 3, … and each that is missing has to be named by a `gap`.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A number with the lane that gave it: `agent/epoch/class`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    lane: String,
    seq: u64,
}

/// A `gap` that names numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    /// `agent/epoch`: a gap is told on the lane of alerts and may be about the other class.
    outbox: String,
    class: String,
    first: u64,
    last: u64,
}

/// What was written, and where each of it was once seen.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Paths of samples, in the order of writing.
    written: Vec<String>,
    seen: BTreeMap<String, Id>,
    /// A byte of the outbox was changed: a loss must be told by a gap, but nobody can name its numbers.
    outbox_changed: bool,
    /// A byte of the store was changed: an event may be there without content, or a file set aside, when the collector
    /// says so.
    store_changed: bool,
    /// Samples written before that.
    stored_before: usize,
    /// How often damage was told: by gaps, by the collector.
    told: (usize, usize),
    /// Of samples written before damage was last told nobody can know what is missing. Of later ones all is asked.
    excused: usize,
    /// As of then: numbers up to these may be missing.
    excused_numbers: BTreeMap<String, u64>,
}

/// What an answer of the collector says.
#[derive(Debug, Default)]
pub struct Stored {
    detections: BTreeMap<String, Vec<Id>>,
    numbers: BTreeMap<String, Vec<u64>>,
    named: Vec<Named>,
    /// Reasons of all gaps.
    reasons: BTreeMap<String, usize>,
    /// Events without content, which the collector says the disk took.
    damaged: BTreeSet<Id>,
}

/// What is wrong, if anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Samples whose detection is not stored.
    pub lost: u64,
    /// Detections beyond the first of a sample, and numbers that are stored two times.
    pub duplicated: u64,
    /// Of both, and of missing numbers: those that no `gap` explains. One sentence each.
    pub unexplained: Vec<String>,
}

impl Oracle {
    /// The generator wrote a sample.
    pub fn wrote(&mut self, path: String) {
        self.written.push(path);
    }

    /// How many it wrote.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written.len()
    }

    /// From now on a gap without numbers may stand for a loss.
    pub fn outbox_changed(&mut self) {
        self.outbox_changed = true;
    }

    /// From now on an event may be named as damaged.
    pub fn store_changed(&mut self) {
        self.store_changed = true;
        self.stored_before = self.written.len();
    }

    /// Damage that was told since the last time excuses what was written until now, and nothing after it. `said` is how
    /// often the collector has said that it could not read a file.
    pub fn hear(&mut self, stored: &Stored, said: usize) {
        let gaps = stored.reasons.get("outbox_damaged").copied().unwrap_or(0);
        let outbox = self.outbox_changed && gaps > self.told.0;
        let store = self.store_changed && said > self.told.1;
        if outbox || store {
            self.excused = self.written.len();
            for (lane, numbers) in &stored.numbers {
                let highest = numbers.last().copied().unwrap_or(0);
                let known = self.excused_numbers.entry(lane.clone()).or_default();
                *known = highest.max(*known);
            }
        }
        self.told = (gaps.max(self.told.0), said);
    }

    /// Whether something of what is not stored is excused: then nothing may be on its way when it is judged.
    #[must_use]
    pub fn excuses(&self, stored: &Stored) -> bool {
        self.written.iter().take(self.excused.max(self.stored_before)).any(|path| !stored.has(path))
    }

    /// Remembers where each detection was, for the time after a restore.
    pub fn see(&mut self, stored: &Stored) {
        for (path, ids) in &stored.detections {
            self.seen.extend(ids.first().map(|id| (path.clone(), id.clone())));
        }
    }

    /// Samples that are neither stored nor, as far as can be told now, explained.
    #[must_use]
    pub fn missing<'a>(&'a self, stored: &Stored) -> Vec<&'a String> {
        let numbered = self.written.iter().enumerate();
        let missing =
            numbered.filter(|(place, path)| !stored.has(path) && !self.explains(stored, *place, path));
        missing.map(|(_, path)| path).collect()
    }

    /// Compares all of it.
    #[must_use]
    pub fn judge(&self, stored: &Stored) -> Verdict {
        let mut verdict = Verdict::default();
        for (place, path) in self.written.iter().enumerate() {
            if !stored.has(path) {
                verdict.lost += 1;
                if !self.explains(stored, place, path) {
                    verdict.unexplained.push(format!("{path} was lost"));
                }
            }
        }
        let written: BTreeMap<&String, usize> =
            self.written.iter().enumerate().map(|(place, path)| (path, place)).collect();
        for (path, ids) in &stored.detections {
            let place = written.get(path);
            if place.is_none() {
                verdict.unexplained.push(format!("a detection of {path}, which nobody wrote"));
            }
            verdict.duplicated += ids.len() as u64 - 1;
            if ids.len() > 1 && place.is_none_or(|place| *place >= self.excused) {
                verdict.unexplained.push(format!("{path} is stored as {ids:?}"));
            }
        }
        for (lane, numbers) in &stored.numbers {
            self.numbers(stored, lane, numbers, &mut verdict);
        }
        verdict
    }

    fn numbers(&self, stored: &Stored, lane: &str, numbers: &[u64], verdict: &mut Verdict) {
        let mut expected = 1;
        for &number in numbers {
            if number < expected {
                verdict.duplicated += 1;
                verdict.unexplained.push(format!("{lane}/{number} is stored two times"));
            }
            for missing in expected..number {
                let id = Id { lane: lane.to_owned(), seq: missing };
                let excused = self.excused_numbers.get(lane).is_some_and(|highest| missing <= *highest);
                if !stored.names(&id) && !excused {
                    verdict.unexplained.push(format!("{lane}/{missing} is missing and no gap names it"));
                }
            }
            expected = expected.max(number + 1);
        }
    }

    fn explains(&self, stored: &Stored, place: usize, path: &str) -> bool {
        // One that was never seen whole is known by nothing: one byte takes one event.
        let damaged = place < self.stored_before
            && self.seen.get(path).map_or(!stored.damaged.is_empty(), |id| stored.damaged.contains(id));
        damaged || self.seen.get(path).is_some_and(|id| stored.names(id)) || place < self.excused
    }
}

impl Stored {
    /// From the lines of `vidette events list --json`.
    ///
    /// # Errors
    /// When a line is not what it should be.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let mut stored = Self::default();
        for line in text.lines() {
            stored.take(&serde_json::from_str(line)?)?;
        }
        stored.numbers.values_mut().for_each(|numbers| numbers.sort_unstable());
        Ok(stored)
    }

    fn take(&mut self, event: &Value) -> anyhow::Result<()> {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| event[key].as_u64().unwrap_or(0);
        let id = text("event.id");
        let parts: Vec<&str> = id.split('/').collect();
        let [agent, epoch, class, seq] = parts[..] else { anyhow::bail!("{id:?} is no event id") };
        let id = Id { lane: format!("{agent}/{epoch}/{class}"), seq: seq.parse()? };
        self.numbers.entry(id.lane.clone()).or_default().push(id.seq);
        if event["vidette.damaged"] == true {
            self.damaged.insert(id);
            return Ok(());
        }
        let reason = text("vidette.gap.reason");
        if !reason.is_empty() {
            *self.reasons.entry(reason).or_default() += 1;
            if number("vidette.gap.last_seq") > 0 {
                self.named.push(Named {
                    outbox: format!("{agent}/{epoch}"),
                    class: text("vidette.gap.class"),
                    first: number("vidette.gap.first_seq"),
                    last: number("vidette.gap.last_seq"),
                });
            }
        } else if event["event.dataset"] == "vidette.detection" {
            self.detections.entry(text("file.path")).or_default().push(id);
        }
        Ok(())
    }

    fn has(&self, path: &str) -> bool {
        self.detections.contains_key(path)
    }

    fn names(&self, id: &Id) -> bool {
        self.named.iter().any(|gap| {
            id.lane == format!("{}/{}", gap.outbox, gap.class) && (gap.first..=gap.last).contains(&id.seq)
        })
    }

    /// Everything that is stored.
    #[must_use]
    pub fn events(&self) -> usize {
        self.numbers.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn detection(id: &str, path: &str) -> String {
        json!({"event.id": id, "event.dataset": "vidette.detection", "file.path": path}).to_string()
    }

    fn gap(id: &str, reason: &str, class: &str, first: u64, last: u64) -> String {
        json!({"event.id": id, "event.dataset": "vidette.gap", "vidette.gap.reason": reason,
               "vidette.gap.class": class, "vidette.gap.first_seq": first, "vidette.gap.last_seq": last})
        .to_string()
    }

    fn judge(oracle: &Oracle, lines: &[String]) -> Verdict {
        oracle.judge(&Stored::read(&lines.join("\n")).unwrap())
    }

    fn written(paths: &[&str]) -> Oracle {
        let mut oracle = Oracle::default();
        paths.iter().for_each(|path| oracle.wrote((*path).to_owned()));
        oracle
    }

    #[test]
    fn what_is_stored_once_is_in_order() {
        let oracle = written(&["/a", "/b"]);
        let lines = [detection("g/1/alert/2", "/b"), detection("g/1/alert/1", "/a")];
        assert_eq!(judge(&oracle, &lines), Verdict::default());
    }

    #[test]
    fn a_loss_a_second_one_and_a_hole_are_seen() {
        let oracle = written(&["/a", "/b"]);
        let verdict = judge(&oracle, &[detection("g/1/alert/1", "/a"), detection("g/1/alert/3", "/a")]);
        assert_eq!((verdict.lost, verdict.duplicated, verdict.unexplained.len()), (1, 1, 3), "{verdict:?}");
        let verdict = judge(&oracle, &[detection("g/1/alert/1", "/a"), detection("g/1/alert/1", "/b")]);
        assert_eq!((verdict.lost, verdict.duplicated, verdict.unexplained.len()), (0, 1, 1), "{verdict:?}");
        assert_eq!(judge(&written(&[]), &[detection("g/1/alert/1", "/a")]).unexplained.len(), 1);
    }

    #[test]
    fn only_a_gap_of_the_same_outbox_and_class_names_a_number() {
        let mut oracle = written(&["/a"]);
        oracle.see(&Stored::read(&detection("g/1/alert/1", "/a")).unwrap());
        let told = |outbox: &str, class: &str, last| {
            let lines = [gap(&format!("{outbox}/alert/2"), "store_restored", class, 1, last)];
            judge(&oracle, &lines).unexplained
        };
        assert_eq!(told("g/1", "alert", 1), Vec::<String>::new());
        assert_eq!(told("g/1", "telemetry", 1).len(), 2, "the sample and its number");
        assert_eq!(told("g/2", "alert", 1).len(), 1, "the sample was in another outbox");
    }

    #[test]
    fn an_event_that_is_named_as_damaged_is_no_silent_loss() {
        let mut oracle = written(&["/a", "/b"]);
        oracle.see(&Stored::read(&detection("g/1/alert/1", "/a")).unwrap());
        let damaged = |id: &str| json!({"event.id": id, "vidette.damaged": true}).to_string();
        let lines = [damaged("g/1/alert/1"), detection("g/1/alert/2", "/b")];
        assert_eq!(judge(&oracle, &lines).unexplained.len(), 1, "nobody changed the store");
        oracle.store_changed();
        let verdict = judge(&oracle, &lines);
        assert_eq!((verdict.lost, verdict.unexplained.len()), (1, 0), "{verdict:?}");
        let lines = [detection("g/1/alert/1", "/b"), damaged("g/1/alert/2")];
        assert_eq!(judge(&oracle, &lines).unexplained.len(), 1, "/a was seen under another number");
        oracle.wrote("/c".into());
        let lines = [damaged("g/1/alert/1"), detection("g/1/alert/2", "/b")];
        assert_eq!(judge(&oracle, &lines).unexplained.len(), 1, "/c came later");
    }

    #[test]
    fn damage_has_to_be_told_too() {
        let told = Stored::read(&gap("g/1/alert/5", "outbox_damaged", "", 0, 0)).unwrap();
        let mut oracle = written(&["/a"]);
        oracle.hear(&told, 1);
        assert_eq!(oracle.judge(&told).unexplained.len(), 5, "nobody changed anything: /a, and 1 to 4");
        let mut oracle = written(&["/a"]);
        oracle.outbox_changed();
        oracle.hear(&Stored::default(), 0);
        assert_eq!(oracle.judge(&Stored::default()).unexplained.len(), 1, "nobody told");
        oracle.hear(&told, 0);
        assert_eq!(oracle.judge(&told).unexplained, Vec::<String>::new());
        assert!(oracle.excuses(&told));
        oracle.wrote("/b".into());
        let later = [gap("g/1/alert/5", "outbox_damaged", "", 0, 0), detection("g/1/alert/7", "/c")];
        let later = Stored::read(&later.join("\n")).unwrap();
        oracle.hear(&later, 0);
        assert_eq!(oracle.judge(&later).unexplained.len(), 3, "/b, /c which nobody wrote, number 6");
        let mut oracle = written(&["/a"]);
        oracle.store_changed();
        oracle.hear(&Stored::default(), 1);
        assert_eq!(oracle.judge(&Stored::default()).unexplained, Vec::<String>::new());
    }
}
