//! Rules sorted by the files that they can match, so that a file is scanned with those only.
//!
//! ```text
//! rule files -> outline (gates, bytes, modules) -> references -> cut -> sets of rule files
//! first bytes of a file -> classes -> the set for it
//! ```
//!
//! Pure. Assumes rule files that compile as they are: a set may leave out the very rule that has the error, and then
//! the rest of its file would match. Promises that a file's class picks a set which matches exactly as all rules
//! together would; the proof is `compare`, and the tests that use it.

/// The classes of files.
pub mod classes;
/// Bytes at fixed places.
pub mod bytes;
/// What the scanner's modules say of files that are not theirs.
pub mod modules;
/// A condition to the classes in which it can be true.
pub mod gates;
/// A file of rules as far as routing must know it.
pub mod outline;
/// What else a set must hold.
pub mod references;
/// The text that is left.
pub mod cut;
/// The same bytes with all rules and with those of their class.
pub mod compare;
#[cfg(test)]
mod tests;

use super::messages::RuleFile;
use classes::{COUNT, Class, Classes};
use outline::Outline;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Sets of which none has this many rules more than another one are joined: each costs memory and time to compile, and
/// a rule that can't match costs some 50 ns a scan.
pub const SET_RULES_MIN: usize = 64;

/// Which rules to scan with, for every class of files.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Each class is in exactly one of them.
    pub sets: Vec<Set>,
}

/// Rules that are compiled together.
#[derive(Debug, Clone, PartialEq)]
pub struct Set {
    /// For which files: one bit a class, the lowest for index 0.
    pub classes: u32,
    /// In the order that they came in; without those that have no rule in this set. `None`: all, as they are.
    pub files: Option<Vec<RuleFile>>,
    /// How many rules are in them, as far as they could be counted.
    pub rules: usize,
}

impl Plan {
    /// Which set is for each class, by its index.
    #[must_use]
    pub fn by_class(&self) -> [usize; COUNT] {
        let set_of = |class: Class| self.sets.iter().position(|set| set.classes >> class.index() & 1 == 1);
        Class::ALL.map(|class| set_of(class).unwrap_or_default())
    }
}

/// Sorts the rules. A file that is not wholly understood, or whose name another one has too (they share a namespace),
/// is in every set as it is. A set of so many rules or more is not cut: it gets all.
#[must_use]
pub fn plan(files: &[RuleFile], nearly_all: usize) -> Plan {
    plan_joining(files, nearly_all, SET_RULES_MIN)
}

/// With sets that differ by fewer rules than this joined.
fn plan_joining(files: &[RuleFile], nearly_all: usize, rules_min: usize) -> Plan {
    let mut names: HashMap<&str, usize> = HashMap::new();
    for file in files {
        *names.entry(&file.name).or_default() += 1;
    }
    let alone = |file: &RuleFile| names.get(file.name.as_str()) == Some(&1);
    let outlines: Vec<Option<Outline>> =
        files.iter().map(|file| alone(file).then(|| Outline::of(&file.text)).flatten()).collect();
    let sets = groups(&outlines, rules_min).into_iter();
    Plan { sets: sets.map(|group| set(files, &outlines, group, nearly_all)).collect() }
}

/// Classes that share a set, and what it needs: of each file each rule.
struct Group {
    classes: Classes,
    needed: Vec<Vec<bool>>,
    /// Rules that not every class needs.
    own: BTreeSet<(usize, usize)>,
    /// Modules that its rules use.
    modules: BTreeSet<String>,
}

fn groups(outlines: &[Option<Outline>], rules_min: usize) -> Vec<Group> {
    let mut same: BTreeMap<Vec<Vec<bool>>, Classes> = BTreeMap::new();
    for class in Class::ALL {
        let of_file = |outline: &Option<Outline>| {
            outline.as_ref().map(|outline| references::needed(outline, class)).unwrap_or_default()
        };
        let needed = outlines.iter().map(of_file).collect();
        *same.entry(needed).or_insert(Classes::NONE) |= Classes::of(&[class]);
    }
    let general = |place: &(usize, usize)| same.keys().all(|needed| needed[place.0][place.1]);
    let mut groups: Vec<Group> = same
        .iter()
        .map(|(needed, classes)| Group {
            classes: *classes,
            needed: needed.clone(),
            own: places(needed).filter(|place| !general(place)).collect(),
            modules: modules_of(outlines, needed, *classes),
        })
        .collect();
    groups.sort_by_key(|group| (group.own.len(), group.classes));
    join(outlines, groups, rules_min)
}

/// Each into the first of those before it that it may share a set with.
fn join(outlines: &[Option<Outline>], groups: Vec<Group>, rules_min: usize) -> Vec<Group> {
    let mut joined: Vec<Group> = Vec::new();
    for group in groups {
        let found = joined.iter().enumerate().find_map(|(index, known)| {
            let both = known.with(outlines, &group);
            // A module costs more than all rules that are saved here.
            let no_more = both.modules == known.modules && both.modules == group.modules;
            (no_more && both.own.len() < rules_min).then_some((index, both))
        });
        match found {
            Some((index, both)) => joined[index] = both,
            None => joined.push(group),
        }
    }
    joined
}

impl Group {
    fn with(&self, outlines: &[Option<Outline>], other: &Self) -> Self {
        let either = |(a, b): (&Vec<bool>, &Vec<bool>)| a.iter().zip(b).map(|(a, b)| a | b).collect();
        let needed: Vec<Vec<bool>> = self.needed.iter().zip(&other.needed).map(either).collect();
        let classes = self.classes | other.classes;
        let modules = modules_of(outlines, &needed, classes);
        Self { classes, needed, own: self.own.union(&other.own).copied().collect(), modules }
    }
}

/// File and rule of each that is needed.
fn places(needed: &[Vec<bool>]) -> impl Iterator<Item = (usize, usize)> + '_ {
    needed.iter().enumerate().flat_map(|(file, rules)| {
        rules.iter().enumerate().filter(|(_, needed)| **needed).map(move |(rule, _)| (file, rule))
    })
}

fn modules_of(outlines: &[Option<Outline>], needed: &[Vec<bool>], classes: Classes) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (outline, needed) in outlines.iter().zip(needed) {
        let Some(outline) = outline else { continue };
        let used = outline.imports.iter().zip(cut::modules(outline, needed, classes));
        modules.extend(used.filter(|(_, used)| *used).map(|(import, _)| import.module.clone()));
    }
    modules
}

fn set(files: &[RuleFile], outlines: &[Option<Outline>], group: Group, nearly_all: usize) -> Set {
    let rules = places(&group.needed).count();
    let cut = || {
        let mut cut = Vec::new();
        for ((file, outline), needed) in files.iter().zip(outlines).zip(&group.needed) {
            match outline {
                Some(outline) => cut.extend(cut::cut(file, outline, needed, group.classes)),
                None => cut.push(file.clone()),
            }
        }
        cut
    };
    Set { classes: group.classes.bits(), files: (rules < nearly_all).then(cut), rules }
}
