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
    /// Modules that its condition names, by their place among the imports; more do no harm.
    pub modules: Vec<usize>,
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
    in_condition: Vec<&'t str>,
}

impl Outline {
    /// `None` when the text is not wholly understood: then it can only be taken as it is.
    #[must_use]
    pub fn of(text: &[u8]) -> Option<Self> {
        let ast = AST::from(text);
        let includes = ast.items().any(|item| matches!(item, Item::Include(_)));
        if !ast.errors().is_empty() || includes {
            return None;
        }
        let (words, import_spans) = words(text)?;
        let modules: Vec<&str> = ast.imports().map(|import| import.module_name).collect();
        if words.len() != ast.rules().count() || import_spans.len() != modules.len() {
            return None;
        }
        let mut known: HashMap<&str, (usize, Classes)> = HashMap::new();
        let mut rules = Vec::with_capacity(words.len());
        for (rule, words) in ast.rules().zip(words) {
            let classes =
                gates::classes(rule, &modules, &|name| known.get(name).map(|(_, classes)| *classes));
            let refers = words.in_condition.iter().filter_map(|word| known.get(word));
            let refers = sorted(refers.map(|(index, _)| *index).collect());
            let named = (0..modules.len()).filter(|index| words.in_condition.contains(&modules[*index]));
            if known.insert(rule.identifier.name, (rules.len(), classes)).is_some() {
                return None;
            }
            rules.push(Rule {
                name: rule.identifier.name.to_owned(),
                span: words.span,
                global: rule.flags.contains(RuleFlags::Global),
                private: rule.flags.contains(RuleFlags::Private),
                refers,
                modules: named.collect(),
                classes,
            });
        }
        let imports = modules.iter().zip(import_spans);
        let imports = imports.map(|(module, span)| Import { module: (*module).to_owned(), span }).collect();
        Some(Self { rules, imports })
    }
}

/// Every rule's words, and where the imports stand.
fn words(text: &[u8]) -> Option<(Vec<Words<'_>>, Vec<Range<usize>>)> {
    let mut rules: Vec<Words<'_>> = Vec::new();
    let mut imports = Vec::new();
    let mut in_condition = false;
    for event in Parser::new(text) {
        match event {
            Event::Begin { kind: SyntaxKind::RULE_DECL, span } => {
                rules.push(Words { span: span.range(), in_condition: Vec::new() });
                in_condition = false;
            }
            Event::Begin { kind: SyntaxKind::IMPORT_STMT, span } => imports.push(span.range()),
            Event::Token { kind: SyntaxKind::CONDITION_KW, .. } => in_condition = true,
            Event::Token { kind: SyntaxKind::IDENT, span } if in_condition => {
                let word = std::str::from_utf8(text.get(span.range())?).ok()?;
                rules.last_mut()?.in_condition.push(word);
            }
            Event::Error { .. } => return None,
            Event::Begin { .. } | Event::End { .. } | Event::Token { .. } => {}
        }
    }
    Some((rules, imports))
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
            .map(|r| (r.name.as_str(), r.global, r.private, r.refers.as_slice(), r.modules.as_slice()))
            .collect();
        assert_eq!(
            rules,
            [
                ("first", true, false, &[][..], &[][..]),
                ("second", false, true, &[0][..], &[0][..]),
                // A variable of the same name: one too many does no harm.
                ("third", false, false, &[0, 1][..], &[][..]),
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
