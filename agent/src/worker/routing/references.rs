//! Which rules of a file a set must hold so that those that can match in it keep their meaning.
//!
//! Each file of rules is its own namespace: nothing refers to another file. Assumes an outline whose references point
//! backwards, as the language demands.

use super::classes::{Class, Classes};
use super::outline::Outline;

/// Where the rules of this file can match at all: a global rule that does not match silences all.
#[must_use]
pub fn gate(outline: &Outline) -> Classes {
    outline.rules.iter().filter(|rule| rule.global).fold(Classes::ALL, |gate, rule| gate & rule.classes)
}

/// For each rule of the file, whether a set for this class needs it: those that can match and be reported, the global
/// ones beside them, and all that these refer to.
#[must_use]
pub fn needed(outline: &Outline, class: Class) -> Vec<bool> {
    let rules = &outline.rules;
    if !gate(outline).contains(class) {
        return vec![false; rules.len()];
    }
    let mut needed: Vec<bool> =
        rules.iter().map(|rule| !rule.private && rule.classes.contains(class)).collect();
    if needed.contains(&true) {
        for (needed, rule) in needed.iter_mut().zip(rules) {
            *needed |= rule.global;
        }
    }
    for index in (0..rules.len()).rev() {
        if needed[index] {
            for earlier in &rules[index].refers {
                needed[*earlier] = true;
            }
        }
    }
    needed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(text: &str, class: Class, expected: &[&str]) {
        let outline = Outline::of(text.as_bytes()).unwrap();
        let needed = needed(&outline, class);
        let names: Vec<&str> = outline
            .rules
            .iter()
            .zip(needed)
            .filter_map(|(rule, n)| n.then_some(rule.name.as_str()))
            .collect();
        assert_eq!(names, expected, "{class:?}: {text}");
    }

    const MZ: &str = "uint16(0) == 0x5A4D";

    #[test]
    fn what_a_rule_refers_to_comes_with_it() {
        let text = format!(
            "private rule deep {{ condition: filesize > 1 }} private rule unused {{ condition: true }}
             rule pe {{ condition: {MZ} and not deep }} rule top {{ condition: not pe and filesize < 9 }}
             rule zip {{ condition: uint16(0) == 0x4B50 and deep }}"
        );
        check(&text, Class::Pe, &["deep", "pe", "top"]);
        check(&text, Class::Zip, &["deep", "pe", "top", "zip"]);
        check(&text, Class::Other, &["deep", "pe", "top"]);
    }

    #[test]
    fn a_global_rule_goes_with_its_file_and_gates_it() {
        let small = format!("global rule small {{ condition: filesize < 9 }} rule pe {{ condition: {MZ} }}");
        check(&small, Class::Pe, &["small", "pe"]);
        check(&small, Class::Elf, &["small"]);
        let gated = format!("rule every {{ condition: true }} global rule pe {{ condition: {MZ} }}");
        check(&gated, Class::Pe, &["every", "pe"]);
        check(&gated, Class::Elf, &[]);
        let hidden = "private global rule g { condition: filesize < 9 } private rule p { condition: true }";
        check(hidden, Class::Elf, &[]);
    }
}
