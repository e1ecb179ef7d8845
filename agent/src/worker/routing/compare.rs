//! The proof of routing: the same bytes scanned with all rules, and with those of their class only.
//!
//! For tests and measurements; the agent itself scans routed. Assumes rules that are not hostile: there is no time-out.

use super::classes::{COUNT, Class};
use super::{Plan, SET_RULES_MIN, plan_joining};
use crate::worker::compile::compile;
use crate::worker::messages::RuleFile;
use std::collections::BTreeSet;
use yara_x::{Rules, Scanner};

/// Namespace and name of every rule that matched.
pub type Names = BTreeSet<(String, String)>;

/// Rules compiled both ways.
pub struct Both {
    all: Rules,
    sets: Vec<Rules>,
    by_class: [usize; COUNT],
    /// How they were sorted.
    pub plan: Plan,
}

impl Both {
    /// Leaves out files with errors, as the worker does.
    #[must_use]
    pub fn compile(files: &[RuleFile]) -> Self {
        Self::joining(files, SET_RULES_MIN)
    }

    /// The same with a set for every class that differs at all, as only many rules have them.
    #[must_use]
    pub fn unjoined(files: &[RuleFile]) -> Self {
        Self::joining(files, 0)
    }

    fn joining(files: &[RuleFile], rules_min: usize) -> Self {
        let all = compile(files, &mut |_| {}).rules;
        let good: BTreeSet<&str> = all.iter().map(|rule| rule.namespace()).collect();
        let files: Vec<RuleFile> =
            files.iter().filter(|file| good.contains(file.name.as_str())).cloned().collect();
        let plan = plan_joining(&files, usize::MAX, rules_min);
        let files_of = |set: &super::Set| set.files.clone().unwrap_or_else(|| files.clone());
        let sets = plan.sets.iter().map(|set| compile(&files_of(set), &mut |_| {}).rules).collect();
        let by_class = plan.by_class();
        Self { all, sets, by_class, plan }
    }

    /// How many rules there are.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.all.iter().count()
    }

    /// How many rules each set holds once compiled, in the order of the plan.
    #[must_use]
    pub fn rules_of_sets(&self) -> Vec<usize> {
        self.sets.iter().map(|set| set.iter().count()).collect()
    }

    /// Scanners to use again and again.
    #[must_use]
    pub fn scanners(&self) -> Scanners<'_> {
        Scanners {
            all: Scanner::new(&self.all),
            sets: self.sets.iter().map(Scanner::new).collect(),
            by_class: self.by_class,
        }
    }
}

/// One scanner for all rules, and one for each set.
pub struct Scanners<'r> {
    all: Scanner<'r>,
    sets: Vec<Scanner<'r>>,
    by_class: [usize; COUNT],
}

impl Scanners<'_> {
    /// With all rules.
    ///
    /// # Errors
    /// What the scanner says.
    pub fn unrouted(&mut self, bytes: &[u8]) -> anyhow::Result<Names> {
        names(&mut self.all, bytes)
    }

    /// With those for files that begin so.
    ///
    /// # Errors
    /// What the scanner says.
    pub fn routed(&mut self, bytes: &[u8]) -> anyhow::Result<Names> {
        let set = self.by_class[Class::of(bytes).index()];
        match self.sets.get_mut(set) {
            Some(scanner) => names(scanner, bytes),
            None => Ok(Names::new()),
        }
    }
}

fn names(scanner: &mut Scanner<'_>, bytes: &[u8]) -> anyhow::Result<Names> {
    let results = scanner.scan(bytes)?;
    let name = |rule: yara_x::Rule<'_, '_>| (rule.namespace().to_owned(), rule.identifier().to_owned());
    Ok(results.matching_rules().map(name).collect())
}
