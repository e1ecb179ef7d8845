//! The text of a file of rules without those that a set does not need, with `false` for what can't be true in its
//! classes and needs a module, and without the imports that are then unused: each module that is imported costs time
//! in every scan, as much as hundreds of rules.
//!
//! Assumes that the outline is the text's. What is cut leaves its line ends, so that the lines of all others stay.

use super::classes::Classes;
use super::outline::{Outline, Rule, within};
use crate::worker::messages::RuleFile;
use std::ops::Range;

/// The file with only the rules that are needed in these classes; `None` when there are none. Should the text that is
/// left say anything else than expected, the file is taken whole: too many rules cost time, and nothing else.
#[must_use]
pub fn cut(file: &RuleFile, outline: &Outline, needed: &[bool], classes: Classes) -> Option<RuleFile> {
    if !needed.contains(&true) {
        return None;
    }
    let used = modules(outline, needed, classes);
    let mut gone: Vec<(Range<usize>, &str)> = Vec::new();
    for (rule, needed) in outline.rules.iter().zip(needed) {
        if *needed {
            gone.extend(rule.idle_in(classes).into_iter().map(|part| (part, " false ")));
        } else {
            // So that what stood on both sides does not become one word.
            gone.push((rule.span.clone(), " "));
        }
    }
    let unused = outline.imports.iter().zip(&used).filter(|(_, used)| !**used);
    gone.extend(unused.map(|(import, _)| (import.span.clone(), " ")));
    gone.sort_by_key(|(span, _)| span.start);
    let cut = RuleFile { name: file.name.clone(), text: without(&file.text, &gone) };
    Some(if says(&cut.text, outline, needed, &used, classes) { cut } else { file.clone() })
}

/// For each import, whether one of these rules needs it in one of these classes.
#[must_use]
pub fn modules(outline: &Outline, needed: &[bool], classes: Classes) -> Vec<bool> {
    let mut used = vec![false; outline.imports.len()];
    for (rule, _) in outline.rules.iter().zip(needed).filter(|(_, needed)| **needed) {
        let idle = rule.idle_in(classes);
        for (module, place) in &rule.modules {
            used[*module] |= !idle.iter().any(|part| within(place, part));
        }
    }
    used
}

fn without(text: &[u8], gone: &[(Range<usize>, &str)]) -> Vec<u8> {
    let mut left = Vec::with_capacity(text.len());
    let mut from = 0;
    for (span, instead) in gone {
        left.extend_from_slice(text.get(from..span.start).unwrap_or_default());
        left.extend_from_slice(instead.as_bytes());
        let lines = text.get(span.clone()).unwrap_or_default().iter().filter(|byte| **byte == b'\n');
        left.extend(lines);
        from = span.end;
    }
    left.extend_from_slice(text.get(from..).unwrap_or_default());
    left
}

/// Whether the text has exactly these rules, which can match where they could, and these imports.
fn says(text: &[u8], outline: &Outline, needed: &[bool], used: &[bool], classes: Classes) -> bool {
    let Some(left) = Outline::of(text) else { return false };
    let rules = outline.rules.iter().zip(needed).filter_map(|(rule, needed)| needed.then_some(rule));
    let imports = outline.imports.iter().zip(used).filter_map(|(import, used)| used.then_some(import));
    left.rules.len() == rules.clone().count()
        && left.imports.len() == imports.clone().count()
        && left.imports.iter().zip(imports).all(|(a, b)| a.module == b.module)
        && left.rules.iter().zip(rules).all(|(a, b)| same(a, b, classes))
}

fn same(left: &Rule, before: &Rule, classes: Classes) -> bool {
    let uncut = before.idle_in(classes).is_empty();
    (&left.name, left.global, left.private, left.classes & classes)
        == (&before.name, before.global, before.private, before.classes & classes)
        && (!uncut || left.span.len() == before.span.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::classes::Class;
    use super::*;

    #[test]
    fn what_is_cut_leaves_its_lines() {
        let text = "import \"pe\"\nimport \"math\"rule a\n{ condition:\n true }rule b { condition: \n math.abs(1) == 1 } // c\nrule d { condition: pe.is_pe }";
        let file = RuleFile { name: "f".into(), text: text.into() };
        let outline = Outline::of(text.as_bytes()).unwrap();
        let cut = |needed| {
            cut(&file, &outline, needed, Classes::ALL).map(|file| String::from_utf8(file.text).unwrap())
        };
        assert_eq!(cut(&[false, false, false]), None);
        assert_eq!(cut(&[true, true, true]).unwrap(), text);
        let only_b = cut(&[false, true, false]).unwrap();
        assert_eq!(only_b, " \nimport \"math\" \n\nrule b { condition: \n math.abs(1) == 1 } // c\n ");
        let only_d = cut(&[false, false, true]).unwrap();
        assert_eq!(only_d, "import \"pe\"\n  \n\n \n // c\nrule d { condition: pe.is_pe }");
    }

    #[test]
    fn what_is_never_true_goes_with_its_module() {
        let check = |condition: &str, expected: &str| {
            let text = format!("import \"pe\" rule a {{ strings: $x = \"xxxx\" condition: {condition} }}");
            let file = RuleFile { name: "f".into(), text: text.into() };
            let outline = Outline::of(&file.text).unwrap();
            let classes = !Classes::of(&[Class::Pe]);
            let cut = String::from_utf8(cut(&file, &outline, &[true], classes).unwrap().text).unwrap();
            assert_eq!(cut.replace("strings: $x = \"xxxx\" ", ""), format!("{expected} }}"), "{condition}");
        };
        check("$x or pe.is_pe", "  rule a { condition: $x or  false ");
        check("$x or (pe.is_pe\n)", "  rule a { condition: $x or ( false \n)");
        check(
            "$x or pe.a == 1 or pe.b == (2)",
            "import \"pe\" rule a { condition: $x or pe.a == 1 or pe.b == (2)",
        );
        check("$x or ($x and pe.is_pe)", "  rule a { condition: $x or ($x and  false )");
        check("$x or (pe.a == 1 and pe.b == 2)", "  rule a { condition: $x or ( false )");
        check("$x or for any s in pe.sections : (s.name == \"y\")", "  rule a { condition: $x or  false ");
        check("$x or pe.imphash() == \"y\"", "  rule a { condition: $x or  false ");
        check("$x or (pe.exports(\"y\") and $x)", "  rule a { condition: $x or ( false  and $x)");
        check("$x or not pe.is_pe", "import \"pe\" rule a { condition: $x or not pe.is_pe");
        check("$x or $x at pe.entry_point", "import \"pe\" rule a { condition: $x or $x at pe.entry_point");
        check("$x or 1 of (pe.is_pe, $x)", "import \"pe\" rule a { condition: $x or 1 of (pe.is_pe, $x)");
    }
}
