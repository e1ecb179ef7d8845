//! What is wrong with files of rules, in words and with a place: file, line, column, rule. Inside the compiling worker;
//! its parent shows it.
//!
//! Parses a file again for the names of its rules, and only one that has something wrong: the compiler has parsed it
//! before, in this same process.

use super::messages::{PROBLEMS_BYTES_MAX, PROBLEMS_MAX, Problem, RuleFile};
use super::{clip, matches};
use prost::Message as _;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use vidette_protocol::limits::{NAME_BYTES_MAX, PATH_BYTES_MAX, TEXT_BYTES_MAX};
use yara_x::Rules;
use yara_x::errors::CompileError;
use yara_x::warnings::Warning;
use yara_x_parser::Parser;
use yara_x_parser::cst::{Event, SyntaxKind};

/// A file, and where its rules are; these are looked for when the first is asked for.
pub(super) struct Places<'a> {
    file: &'a RuleFile,
    rules: Option<Vec<(Range<usize>, String)>>,
}

/// What is to be said of a place in a file.
struct Told<'a> {
    at: Option<usize>,
    code: &'a str,
    title: &'a str,
    hint: &'a str,
    error: bool,
}

impl<'a> Places<'a> {
    pub(super) fn of(file: &'a RuleFile) -> Self {
        Self { file, rules: None }
    }

    /// What the compiler calls an error.
    pub(super) fn error(&mut self, error: &CompileError) -> Problem {
        let label = error.labels().next().map(|label| (label.span().start(), label.text().to_owned()));
        let hint = match error {
            CompileError::IncludeNotAllowed(_) => "put the included rules into the file itself".to_owned(),
            CompileError::SlowPattern(_) => "give the pattern at least four fixed bytes in a row".to_owned(),
            CompileError::PotentiallySlowLoop(_) => {
                "loop over fewer items, not over the whole file".to_owned()
            }
            // What the compiler says of the place is enough for all others, of which there will be more.
            _ => label.as_ref().map(|(_, text)| text.clone()).unwrap_or_default(),
        };
        let at = label.map(|(at, _)| at);
        self.problem(&Told { at, code: error.code(), title: error.title(), hint: &hint, error: true })
    }

    /// The compiler passes over rules without a word where they are nested too deep.
    pub(super) fn passed_over(&mut self) -> Problem {
        let hint = "nest conditions less deep, or split the file to find the rule";
        self.problem(&Told {
            at: None,
            code: "",
            title: "the compiler passes over a rule",
            hint,
            error: true,
        })
    }

    fn problem(&mut self, told: &Told<'_>) -> Problem {
        let (line, column) = told.at.map_or((0, 0), |at| position(&self.file.text, at));
        let message = if told.hint.is_empty() {
            told.title.to_owned()
        } else {
            format!("{}: {}", told.title, told.hint)
        };
        Problem {
            file: clip(&self.file.name, PATH_BYTES_MAX),
            line,
            column,
            code: told.code.to_owned(),
            message: clip(&message, TEXT_BYTES_MAX),
            error: told.error,
            rule: told.at.map(|at| self.rule_at(at)).unwrap_or_default(),
        }
    }

    /// The rule that a place is in; empty between rules.
    fn rule_at(&mut self, at: usize) -> String {
        let mut rules = self.rules().iter();
        rules.find(|(range, _)| range.contains(&at)).map(|(_, name)| name.clone()).unwrap_or_default()
    }

    fn begin_of(&mut self, rule: &str) -> Option<usize> {
        self.rules().iter().find(|(_, name)| name == rule).map(|(range, _)| range.start)
    }

    fn rules(&mut self) -> &[(Range<usize>, String)] {
        let text = &self.file.text;
        self.rules.get_or_insert_with(|| rules_of(text))
    }
}

/// Where which rule is. One that is broken goes on to the begin of the next.
fn rules_of(text: &[u8]) -> Vec<(Range<usize>, String)> {
    let mut rules: Vec<(Range<usize>, String)> = Vec::new();
    let mut begun = None;
    for event in Parser::new(text) {
        match event {
            Event::Token { kind: SyntaxKind::RULE_KW, span } => {
                begun = Some(span.start());
                if let Some((open, _)) = rules.last_mut() {
                    open.end = open.end.min(span.start());
                }
            }
            Event::Token { kind: SyntaxKind::IDENT, span } => {
                if let Some(start) = begun.take() {
                    let name = String::from_utf8_lossy(text.get(span.range()).unwrap_or_default());
                    rules.push((start..text.len(), clip(&name, NAME_BYTES_MAX)));
                }
            }
            Event::End { kind: SyntaxKind::RULE_DECL, span } => {
                if let Some((open, _)) =
                    rules.last_mut().filter(|(open, _)| span.range().contains(&open.start))
                {
                    open.end = span.range().end;
                }
            }
            Event::Token { .. } | Event::Begin { .. } | Event::End { .. } | Event::Error { .. } => {}
        }
    }
    rules
}

/// What the compiler warns of.
pub(super) fn warnings(warnings: &[Warning], files: &[&RuleFile]) -> Vec<Problem> {
    let mut places: HashMap<&str, Places<'_>> =
        files.iter().map(|file| (file.name.as_str(), Places::of(file))).collect();
    let mut of_warning = |warning: &Warning| {
        let label = warning.labels().next()?;
        let place = places.get_mut(label.origin()?)?;
        let (at, hint) = (Some(label.span().start()), label.text());
        Some(place.problem(&Told { at, code: warning.code(), title: warning.title(), hint, error: false }))
    };
    warnings.iter().filter_map(&mut of_warning).collect()
}

/// Rules whose severity is none, one for each file and word: public sets put numbers there, in every rule.
pub(super) fn unknown_severities(rules: &Rules, files: &[RuleFile]) -> Vec<Problem> {
    let mut unknown: BTreeMap<(String, String), (String, &'static str, usize)> = BTreeMap::new();
    for rule in rules.iter() {
        let (severity, words) = matches::severity_of(&rule);
        for word in words {
            let first = || (rule.identifier().to_owned(), matches::severity_word(severity), 0);
            let key = (rule.namespace().to_owned(), clip(&word, NAME_BYTES_MAX));
            unknown.entry(key).or_insert_with(first).2 += 1;
        }
    }
    let of_word = |((file, word), (rule, used, count)): ((String, String), (String, &str, usize))| {
        let mut places = Places::of(files.iter().find(|known| known.name == file)?);
        let at = places.begin_of(&rule);
        let more = if count > 1 { format!(" (in {count} rules of this file)") } else { String::new() };
        let hint = format!("{used} is used{more}; write info, low, medium, high or critical");
        let title = format!("unknown severity `{word}`");
        Some(places.problem(&Told { at, code: "", title: &title, hint: &hint, error: false }))
    };
    // Each costs a look through its file, and no more are told.
    unknown.into_iter().take(PROBLEMS_MAX).filter_map(of_word).collect()
}

/// Line and column, both from 1; the column in characters.
fn position(text: &[u8], at: usize) -> (u32, u32) {
    let before = &text[..at.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// Cuts the list to what an answer holds, errors first; says how many went.
pub(super) fn bound(problems: &mut Vec<Problem>) -> u32 {
    let all = problems.len();
    problems.sort_by_key(|problem| !problem.error);
    problems.truncate(PROBLEMS_MAX);
    // A key and a length beside each message.
    let mut bytes: usize = problems.iter().map(|problem| problem.encoded_len() + 4).sum();
    while bytes > PROBLEMS_BYTES_MAX {
        bytes -= problems.pop().map_or(bytes, |problem| problem.encoded_len() + 4);
    }
    u32::try_from(all - problems.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::worker::compile::{Compiled, compile};

    fn file(name: &str, text: &str) -> RuleFile {
        RuleFile { name: name.into(), text: text.into() }
    }

    fn compiled(files: &[RuleFile]) -> Compiled {
        compile(files, &mut |_| {})
    }

    #[test]
    fn the_rule_with_the_error_is_named() {
        let cases = [
            ("rule ok { condition: true }\nrule short { strings: $a = /./ condition: $a }", "short"),
            (
                "rule ok { condition: true }\nprivate rule unknown { condition: other }\nrule c { condition: true }",
                "unknown",
            ),
            ("rule a { condition: true }\nrule a { condition: true }", "a"),
            ("rule a { condition: true }\nrule broken { condition: }\nrule c { condition: true }", "broken"),
            ("rule a { condition: true }\ninclude \"x\"\nrule b { condition: true }", ""),
            ("rule a { condition: true }\nimport \"console\"\nrule b { condition: true }", ""),
        ];
        for (text, rule) in cases {
            let problems = compiled(&[file("x.yar", text)]).problems;
            let errors: Vec<&str> = problems.iter().filter(|p| p.error).map(|p| p.rule.as_str()).collect();
            assert_eq!(errors, [rule], "{text}: {problems:?}");
        }
    }

    #[test]
    fn a_severity_that_is_none_is_told_with_the_one_that_is_used() {
        let files = [
            file(
                "a.yar",
                "rule good { meta: severity = \" High \" condition: true }\n\
                rule urgent { meta: severity = \"urgent\" condition: true }",
            ),
            file(
                "b.yar",
                "rule one { meta: severity = 100 condition: true }\n\
                rule two { meta: severity = 100 condition: true }",
            ),
            file("c.yar", "rule both { meta: severity = \"low\" severity = \"?\" condition: true }"),
            file("d.yar", "rule none { condition: true }"),
        ];
        let found = unknown_severities(&compiled(&files).rules, &files);
        let told: Vec<String> = found.iter().map(Problem::sentence).collect();
        assert_eq!(
            told,
            [
                "a.yar:2:1: in rule urgent: unknown severity `urgent`: medium is used; write info, low, medium, high or critical",
                "b.yar:1:1: in rule one: unknown severity `100`: medium is used (in 2 rules of this file); write info, low, medium, high or critical",
                "c.yar:1:1: in rule both: unknown severity `?`: low is used; write info, low, medium, high or critical",
            ]
        );
        assert!(found.iter().all(|problem| !problem.error));
    }

    #[test]
    fn problems_fit_an_answer() {
        let bad = "rule { ".repeat(50);
        let files: Vec<RuleFile> = (0..600).map(|n| file(&format!("{n:0>3000}"), &bad)).collect();
        let compiled = compiled(&files);
        assert!(
            compiled.problems.iter().map(prost::Message::encoded_len).sum::<usize>() <= PROBLEMS_BYTES_MAX
        );
        assert!(compiled.left_out > 0);
    }
}
