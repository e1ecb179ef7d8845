//! One file of rules, as far as routing must know it: where each rule stands, to what it refers, in which classes of
//! files it can match.
//!
//! Assumes nothing of the text; one that the parser finds fault with has no outline. Goes to `references` and `cut`.

use super::classes::Classes;
use super::gates;
use std::collections::HashMap;
use std::ops::Range;
use yara_x_parser::Parser;
use yara_x_parser::ast::{AST, Item, RuleFlags};
use yara_x_parser::cst::{Event, SyntaxKind};

/// A file of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// In the order of the file.
    pub rules: Vec<Rule>,
    /// In the order of the file.
    pub imports: Vec<Import>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// How others refer to it.
    pub name: String,
    /// From its first word to its closing brace. Bytes of the file.
    pub span: Range<usize>,
    /// It gates its whole file.
    pub global: bool,
    /// It is never reported.
    pub private: bool,
    /// Earlier rules that its condition names; more do no harm.
    pub refers: Vec<usize>,
    /// Where its condition names a module, by the module's place among the imports; more do no harm.
    pub modules: Vec<(usize, Range<usize>)>,
    /// Parts of its condition that name modules and no patterns, and in which classes they can be true: elsewhere
    /// `false` may stand in their place.
    pub idle: Vec<(Range<usize>, Classes)>,
    /// Where it can match.
    pub classes: Classes,
}

/// One import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Of the module.
    pub module: String,
    /// Bytes of the file.
    pub span: Range<usize>,
}

/// The words of one rule, as the parser's stream of events has them.
struct Words<'t> {
    span: Range<usize>,
    in_condition: Vec<(&'t str, Range<usize>)>,
    /// Where its condition speaks of patterns.
    patterns: Vec<Range<usize>>,
}

impl Outline {
    /// `None` when the text is not wholly understood: then it can only be taken as it is.
    #[must_use]
    pub fn of(text: &[u8]) -> Option<Self> {
        // Parsing is most of what routing costs: once, for both.
        let mut gathered = Gathered::default();
        let ast = AST::new(text, Parser::new(text).inspect(|event| gathered.take(text, event)));
        let includes = ast.items().any(|item| matches!(item, Item::Include(_)));
        if !ast.errors().is_empty() || includes || gathered.faulty {
            return None;
        }
        let Gathered { rules: words, imports: import_spans, .. } = gathered;
        let modules: Vec<&str> = ast.imports().map(|import| import.module_name).collect();
        if words.len() != ast.rules().count() || import_spans.len() != modules.len() {
            return None;
        }
        let mut known: HashMap<&str, (usize, Classes)> = HashMap::new();
        let mut rules = Vec::with_capacity(words.len());
        for (rule, words) in ast.rules().zip(words) {
            let earlier = |name: &str| known.get(name).map(|(_, classes)| *classes);
            let gate = gates::gate(rule, &modules, &earlier);
            let refers = words.in_condition.iter().filter_map(|(word, _)| known.get(word));
            let refers = sorted(refers.map(|(index, _)| *index).collect());
            if known.insert(rule.identifier.name, (rules.len(), gate.classes)).is_some() {
                return None;
            }
            let named = words.named(&modules);
            let idle = idle(gate.operands, &named, &words.patterns);
            rules.push(Rule {
                name: rule.identifier.name.to_owned(),
                span: words.span,
                global: rule.flags.contains(RuleFlags::Global),
                private: rule.flags.contains(RuleFlags::Private),
                refers,
                modules: named,
                idle,
                classes: gate.classes,
            });
        }
        let imports = modules.iter().zip(import_spans);
        let imports = imports.map(|(module, span)| Import { module: (*module).to_owned(), span }).collect();
        Some(Self { rules, imports })
    }
}

impl Rule {
    /// The parts of its condition that are never true in these classes; none lies in another one.
    #[must_use]
    pub fn idle_in(&self, classes: Classes) -> Vec<Range<usize>> {
        let mut parts: Vec<Range<usize>> = Vec::new();
        let never = self.idle.iter().filter(|(_, yes)| *yes & classes == Classes::NONE);
        for (span, _) in never {
            if parts.last().is_none_or(|last| last.end <= span.start) {
                parts.push(span.clone());
            }
        }
        parts
    }
}

impl Words<'_> {
    fn named(&self, modules: &[&str]) -> Vec<(usize, Range<usize>)> {
        let place = |(word, span): &(&str, Range<usize>)| {
            let all = modules.iter().enumerate().filter(|(_, module)| *module == word);
            all.map(|(index, _)| (index, span.clone())).collect::<Vec<_>>()
        };
        self.in_condition.iter().flat_map(place).collect()
    }
}

/// The operands that are worth to be taken out; the longest first of those that start at one place. A pattern that no
/// condition names any more would be an error.
fn idle(
    operands: Vec<(Range<usize>, Classes)>,
    modules: &[(usize, Range<usize>)],
    patterns: &[Range<usize>],
) -> Vec<(Range<usize>, Classes)> {
    let mut idle = operands;
    idle.retain(|(operand, _)| {
        modules.iter().any(|(_, module)| within(module, operand))
            && !patterns.iter().any(|pattern| within(pattern, operand))
    });
    idle.sort_by_key(|(span, _)| (span.start, std::cmp::Reverse(span.end)));
    idle
}

/// Whether a span lies in another one.
#[must_use]
pub fn within(inner: &Range<usize>, outer: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Every rule's words and where the imports stand, gathered while the parser's events go by.
#[derive(Default)]
struct Gathered<'t> {
    rules: Vec<Words<'t>>,
    imports: Vec<Range<usize>>,
    in_condition: bool,
    /// The parser found fault with something.
    faulty: bool,
}

impl<'t> Gathered<'t> {
    fn take(&mut self, text: &'t [u8], event: &Event) {
        match event {
            Event::Begin { kind: SyntaxKind::RULE_DECL, span } => {
                let span = span.range();
                self.rules.push(Words { span, in_condition: Vec::new(), patterns: Vec::new() });
                self.in_condition = false;
            }
            Event::Begin { kind: SyntaxKind::IMPORT_STMT, span } => self.imports.push(span.range()),
            Event::Token { kind: SyntaxKind::CONDITION_KW, .. } => self.in_condition = true,
            Event::Token { kind: SyntaxKind::IDENT, span } if self.in_condition => {
                let word = text.get(span.range()).and_then(|word| std::str::from_utf8(word).ok());
                match (word, self.rules.last_mut()) {
                    (Some(word), Some(rule)) => rule.in_condition.push((word, span.range())),
                    _ => self.faulty = true,
                }
            }
            Event::Token {
                kind:
                    SyntaxKind::PATTERN_IDENT
                    | SyntaxKind::PATTERN_COUNT
                    | SyntaxKind::PATTERN_OFFSET
                    | SyntaxKind::PATTERN_LENGTH
                    | SyntaxKind::THEM_KW,
                span,
            } if self.in_condition => match self.rules.last_mut() {
                Some(rule) => rule.patterns.push(span.range()),
                None => self.faulty = true,
            },
            Event::Error { .. } => self.faulty = true,
            Event::Begin { .. } | Event::End { .. } | Event::Token { .. } => {}
        }
    }
}

fn sorted(mut list: Vec<usize>) -> Vec<usize> {
    list.sort_unstable();
    list.dedup();
    list
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_outlined() {
        let text = r#"import "pe" // rule no { condition: true }
            global rule first { meta: pe = "math" condition: true }
            private rule second : tag { strings: $a = "rule x { }" condition: first and pe.is_pe and $a }
            import "math" rule third { condition: second or for any first in (1..2) : (first == 1) } /* end */"#;
        let outline = Outline::of(text.as_bytes()).unwrap();
        let rules: Vec<_> = outline
            .rules
            .iter()
            .map(|r| (r.name.as_str(), r.global, r.private, r.refers.as_slice(), r.modules.len()))
            .collect();
        assert_eq!(
            rules,
            [
                ("first", true, false, &[][..], 0),
                ("second", false, true, &[0][..], 1),
                // A variable of the same name: one too many does no harm.
                ("third", false, false, &[0, 1][..], 0),
            ]
        );
        assert!(text[outline.rules[0].span.clone()].starts_with("global rule first"));
        assert!(text[outline.rules[1].span.clone()].ends_with("and $a }"));
        assert_eq!(&text[outline.imports[1].span.clone()], "import \"math\"");
    }

    #[test]
    fn what_is_not_understood_has_no_outline() {
        for text in [
            "rule a { condition: ",
            "include \"x\" rule a { condition: true }",
            "rule a { condition: true } rule a { condition: true }",
            "rule a { condition: true } rule b { condition: any of (a*) }",
        ] {
            assert_eq!(Outline::of(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Outline::of(b"rule a { condition: true } \xff"), None);
        assert_eq!(Outline::of(b"").unwrap().rules.len(), 0);
    }
}
