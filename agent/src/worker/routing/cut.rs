//! The text of a file of rules without those that a set does not need, and without the imports that are then unused:
//! each module that is imported costs time in every scan.
//!
//! Assumes that the outline is the text's. What is cut leaves its line ends, so that the lines of all others stay.

use super::outline::Outline;
use crate::worker::messages::RuleFile;
use std::ops::Range;

/// The file with only the rules that are needed; `None` when there are none. Should the text that is left say anything
/// else than expected, the file is taken whole: too many rules cost time, and nothing else.
#[must_use]
pub fn cut(file: &RuleFile, outline: &Outline, needed: &[bool]) -> Option<RuleFile> {
    if !needed.contains(&true) {
        return None;
    }
    let used = modules(outline, needed);
    let mut gone: Vec<Range<usize>> = Vec::new();
    let unneeded = outline.rules.iter().zip(needed).filter(|(_, needed)| !**needed);
    gone.extend(unneeded.map(|(rule, _)| rule.span.clone()));
    let unused = outline.imports.iter().zip(&used).filter(|(_, used)| !**used);
    gone.extend(unused.map(|(import, _)| import.span.clone()));
    gone.sort_by_key(|span| span.start);
    let cut = RuleFile { name: file.name.clone(), text: without(&file.text, &gone) };
    Some(if says(&cut.text, outline, needed, &used) { cut } else { file.clone() })
}

/// For each import, whether one of these rules needs it.
#[must_use]
pub fn modules(outline: &Outline, needed: &[bool]) -> Vec<bool> {
    let mut used = vec![false; outline.imports.len()];
    for (rule, _) in outline.rules.iter().zip(needed).filter(|(_, needed)| **needed) {
        for module in &rule.modules {
            used[*module] = true;
        }
    }
    used
}

fn without(text: &[u8], gone: &[Range<usize>]) -> Vec<u8> {
    let mut left = Vec::with_capacity(text.len());
    let mut from = 0;
    for span in gone {
        left.extend_from_slice(text.get(from..span.start).unwrap_or_default());
        // So that what stood on both sides does not become one word.
        left.push(b' ');
        let lines = text.get(span.clone()).unwrap_or_default().iter().filter(|byte| **byte == b'\n');
        left.extend(lines);
        from = span.end;
    }
    left.extend_from_slice(text.get(from..).unwrap_or_default());
    left
}

/// Whether the text has exactly these rules, as they were, and these imports.
fn says(text: &[u8], outline: &Outline, needed: &[bool], used: &[bool]) -> bool {
    let Some(left) = Outline::of(text) else { return false };
    let rules = outline.rules.iter().zip(needed).filter_map(|(rule, needed)| needed.then_some(rule));
    let imports = outline.imports.iter().zip(used).filter_map(|(import, used)| used.then_some(import));
    left.rules.len() == rules.clone().count()
        && left.imports.len() == imports.clone().count()
        && left.imports.iter().zip(imports).all(|(a, b)| a.module == b.module)
        && left.rules.iter().zip(rules).all(|(a, b)| {
            (&a.name, a.global, a.private, a.classes, a.span.len())
                == (&b.name, b.global, b.private, b.classes, b.span.len())
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_leaves_its_lines() {
        let text = "import \"pe\"\nimport \"math\"rule a\n{ condition:\n true }rule b { condition: \n math.abs(1) == 1 } // c\nrule d { condition: pe.is_pe }";
        let file = RuleFile { name: "f".into(), text: text.into() };
        let outline = Outline::of(text.as_bytes()).unwrap();
        let cut = |needed| cut(&file, &outline, needed).map(|file| String::from_utf8(file.text).unwrap());
        assert_eq!(cut(&[false, false, false]), None);
        assert_eq!(cut(&[true, true, true]).unwrap(), text);
        let only_b = cut(&[false, true, false]).unwrap();
        assert_eq!(only_b, " \nimport \"math\" \n\nrule b { condition: \n math.abs(1) == 1 } // c\n ");
        let only_d = cut(&[false, false, true]).unwrap();
        assert_eq!(only_d, "import \"pe\"\n  \n\n \n // c\nrule d { condition: pe.is_pe }");
    }
}
