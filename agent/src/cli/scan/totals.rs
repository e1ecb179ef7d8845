//! What `scan` did, in the end: a summary and an exit code.

use std::process::ExitCode;
use std::time::Duration;

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Totals {
    /// Files that were scanned, or tried.
    pub files: u64,
    /// What was scanned of them.
    pub bytes: u64,
    /// Files that matched.
    pub matched: u64,
    /// Too large to be scanned whole.
    pub in_part: u64,
    /// The scan failed or took too long.
    pub failed: u64,
    /// Could not be opened.
    pub unreadable: u64,
    /// Not opened, being known to be clean.
    pub known: u64,
    /// Links, sockets, devices, other file systems.
    pub skipped: u64,
    /// Did not answer, and were left.
    pub silent: u64,
    /// Errors in rules.
    pub bad_rules: usize,
    /// Ctrl-C.
    pub stopped: bool,
}

impl Totals {
    /// To standard error.
    pub fn print(&self, time: Duration, resumable: bool) {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let known = match self.known {
            0 => String::new(),
            known => format!(", {known} skipped because they are known to be clean"),
        };
        eprintln!(
            "{} files, {mib:.1} MiB scanned in {:.1} s{known}: {} matched",
            self.files,
            time.as_secs_f64(),
            self.matched
        );
        for (count, what) in [
            (self.in_part, "scanned only in part, being larger than --max-size"),
            (self.failed, "not scanned, because the scan failed or took too long"),
            (self.unreadable, "not scanned, because they could not be read"),
            (self.silent, "file systems left, because they did not answer"),
            (self.skipped, "skipped: links, sockets, devices, other file systems"),
        ] {
            if count > 0 {
                eprintln!("  {count} {what}");
            }
        }
        if self.bad_rules > 0 {
            eprintln!("  {} errors in rules", self.bad_rules);
        }
        if self.stopped {
            let next = if resumable { "; the same command again goes on from here" } else { "" };
            eprintln!("  stopped before the end{next}");
        }
    }

    /// Only clean means clean.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        let incomplete = self.in_part
            + self.failed
            + self.unreadable
            + self.silent
            + self.bad_rules as u64
            + u64::from(self.stopped);
        match (self.matched, incomplete) {
            (1.., _) => ExitCode::from(1),
            (0, 1..) => ExitCode::from(2),
            (0, 0) => ExitCode::SUCCESS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_is_zero() {
        let code = |totals: Totals| format!("{:?}", totals.exit_code());
        let expect = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(Totals { skipped: 3, known: 4, ..Default::default() }), expect(0));
        assert_eq!(code(Totals { matched: 1, failed: 1, ..Default::default() }), expect(1));
        assert_eq!(code(Totals { unreadable: 1, ..Default::default() }), expect(2));
        assert_eq!(code(Totals { silent: 1, ..Default::default() }), expect(2));
        assert_eq!(code(Totals { stopped: true, ..Default::default() }), expect(2));
    }
}
