//! What `scan` did, in the end: a summary and an exit code.

use std::process::ExitCode;
use std::time::Duration;

/// What was wrong with what files are matched with.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Mistakes {
    /// Rule files that could not be read, and errors in others.
    pub rules: u64,
    /// Hash lists that could not be read, and lines of others that are none.
    pub hashes: u64,
}

impl Mistakes {
    /// To be printed by [`print_counts`].
    #[must_use]
    pub fn counts(self) -> [(u64, &'static str); 2] {
        [(self.rules, "errors in rules"), (self.hashes, "mistakes in hash lists")]
    }

    /// All of them.
    #[must_use]
    pub fn sum(self) -> u64 {
        self.rules + self.hashes
    }
}

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
    /// Matched or scanned in part before, and told again.
    pub told_again: u64,
    /// Links, sockets, devices, other file systems.
    pub skipped: u64,
    /// Did not answer, and were left.
    pub silent: u64,
    /// In rules and hash lists.
    pub mistakes: Mistakes,
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
        let again = match self.told_again {
            0 => String::new(),
            again => format!(", {again} told again as they were"),
        };
        eprintln!(
            "{} files, {mib:.1} MiB scanned in {:.1} s{known}{again}: {} matched",
            self.files,
            time.as_secs_f64(),
            self.matched
        );
        print_counts(&[
            (
                self.in_part,
                "not scanned whole, being larger than --max-size: head and tail, or of a sparse file the data",
            ),
            (self.failed, "not scanned, because the scan failed or took too long"),
            (self.unreadable, "not scanned, because they could not be read"),
            (self.silent, "file systems left, because they did not answer"),
            (self.skipped, "skipped: links, sockets, devices, other file systems"),
        ]);
        print_counts(&self.mistakes.counts());
        if self.stopped {
            let next = if resumable { "; the same command again goes on from here" } else { "" };
            eprintln!("  stopped before the end{next}");
        }
    }

    /// See [`exit_code`].
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        let incomplete = self.in_part
            + self.failed
            + self.unreadable
            + self.silent
            + self.mistakes.sum()
            + u64::from(self.stopped);
        exit_code(self.matched, incomplete)
    }
}

/// One line for each that is not 0, to standard error.
pub fn print_counts(counts: &[(u64, &str)]) {
    for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
        eprintln!("  {count} {what}");
    }
}

/// Only clean means clean: 1 for a match, 2 when something was not scanned, else 0.
pub fn exit_code(matched: u64, incomplete: u64) -> ExitCode {
    match (matched, incomplete) {
        (1.., _) => ExitCode::from(1),
        (0, 1..) => ExitCode::from(2),
        (0, 0) => ExitCode::SUCCESS,
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
        let mistakes = Mistakes { hashes: 1, ..Default::default() };
        assert_eq!(code(Totals { mistakes, ..Default::default() }), expect(2));
        assert_eq!(code(Totals { silent: 1, ..Default::default() }), expect(2));
        assert_eq!(code(Totals { stopped: true, ..Default::default() }), expect(2));
    }
}
