//! Rule sources to rules, inside the worker. Each file is its own namespace; a file with an error is left out as a
//! whole and told, the others go on.
//!
//! Assumes nothing of the sources: compilers have crashed, which is why this runs in the sandbox.

use super::clip;
use super::messages::{PROBLEMS_BYTES_MAX, PROBLEMS_MAX, Problem, RuleFile};
use super::routing::{
    self,
    classes::{COUNT, Class},
};
use prost::Message as _;
use vidette_protocol::limits::{PATH_BYTES_MAX, TEXT_BYTES_MAX};
use yara_x::errors::CompileError;
use yara_x::{Compiler, Rules, SourceCode};
use yara_x_parser::Parser;
use yara_x_parser::ast::AST;
use yara_x_parser::cst::{Event, SyntaxKind};

/// Modules that no rule may import: one prints, two need data that an agent does not have.
const MODULES_BANNED: [&str; 3] = ["console", "vt", "cuckoo"];

/// Classes whose rules are at least so many of all get all of them: compiling nearly the same again costs more than a
/// few rules too many. Percent.
const NEARLY_ALL_PERCENT: usize = 75;
/// Brackets within brackets from which on it is looked whether the parser took the rule.
const DEPTH_SUSPECT: usize = 32;

/// What came of it.
#[derive(Debug)]
pub struct Compiled {
    /// Of every file without an error.
    pub rules: Rules,
    /// Errors first, then warnings.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub left_out: u32,
    /// The files without an error, by their numbers.
    pub usable: Vec<usize>,
}

/// Compiles them all, then, when some had errors, again without those: an error leaves the other rules of its file
/// behind in the compiler. Calls `begin` with the number of each file before it is touched.
#[must_use]
pub fn compile(files: &[RuleFile], begin: &mut dyn FnMut(usize)) -> Compiled {
    let mut usable: Vec<usize> = (0..files.len()).collect();
    let mut problems = Vec::new();
    loop {
        let mut compiler = compiler();
        let count = usable.len();
        usable.retain(|number| {
            let Some(file) = files.get(*number) else { return false };
            begin(*number);
            match add(&mut compiler, file) {
                Ok(()) => true,
                Err(errors) => {
                    problems.extend(errors);
                    false
                }
            }
        });
        if usable.len() == count {
            let good: Vec<&RuleFile> = usable.iter().filter_map(|number| files.get(*number)).collect();
            problems.extend(warnings(&compiler, &good));
            let left_out = bound(&mut problems);
            return Compiled { rules: compiler.build(), problems, left_out, usable };
        }
    }
}

/// Hands on the rules for each class of files, see `routing`: together they find what `all` finds.
///
/// # Errors
/// A set does not compile though all rules together do; or those of `take`.
pub fn by_class(
    all: Rules,
    files: &[RuleFile],
    usable: &[usize],
    begin: &mut dyn FnMut(usize),
    mut take: impl FnMut(u32, &Rules) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let good: Vec<RuleFile> = usable.iter().filter_map(|number| files.get(*number)).cloned().collect();
    let plan = routing::plan(&good);
    if plan.sets.len() < 2 {
        return take(u32::MAX, &all);
    }
    // What no class has belongs to all other files.
    let other = 1 << Class::Other.index();
    let classes = |set: &routing::Set| {
        let unused = if set.classes & other == 0 { 0 } else { !((1 << COUNT) - 1) };
        set.classes | unused
    };
    let (nearly_all, sets): (Vec<_>, Vec<_>) =
        plan.sets.iter().partition(|set| set.rules * 100 >= all.iter().count() * NEARLY_ALL_PERCENT);
    let together = nearly_all.iter().fold(0, |bits, set| bits | classes(set));
    if together != 0 {
        take(together, &all)?;
    }
    // It holds much memory, and the other sets are small.
    drop(all);
    for set in sets {
        let number =
            |name: &str| usable.iter().copied().find(|at| files.get(*at).is_some_and(|f| f.name == name));
        let compiled = compile(&set.files, &mut |at| {
            // By its number among all files.
            if let Some(number) = set.files.get(at).and_then(|file| number(&file.name)) {
                begin(number);
            }
        });
        anyhow::ensure!(
            compiled.usable.len() == set.files.len(),
            "a part of the rules does not compile alone"
        );
        take(classes(set), &compiled.rules)?;
    }
    Ok(())
}

fn compiler() -> Compiler<'static> {
    let mut compiler = Compiler::new();
    compiler
        .enable_includes(false)
        .error_on_slow_pattern(true)
        .error_on_slow_loop(true)
        .max_warnings(PROBLEMS_MAX);
    for module in MODULES_BANNED {
        compiler.ban_module(
            module,
            format!("module `{module}` is not allowed"),
            "remove the import".to_owned(),
        );
    }
    compiler
}

fn add(compiler: &mut Compiler<'_>, file: &RuleFile) -> Result<(), Vec<Problem>> {
    let known = compiler.errors().len();
    compiler.new_namespace(&file.name);
    let source = SourceCode::from(file.text.as_slice()).with_origin(file.name.as_str());
    let added = compiler.add_source(source).is_ok();
    let errors: Vec<Problem> =
        compiler.errors().iter().skip(known).map(|error| of_error(file, error)).collect();
    if added && !loses_rules(&file.text) {
        return Ok(());
    }
    if errors.is_empty() {
        // The compiler passes over rules without a word where they are nested too deep.
        let hint = "nest conditions less deep, or split the file to find the rule";
        return Err(vec![problem(file, None, "", "the compiler passes over a rule", hint, true)]);
    }
    Err(errors)
}

/// More rules begin in a text than the parser makes of it. That costs as much as parsing: it is asked only where
/// something is nested deep.
fn loses_rules(text: &[u8]) -> bool {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest < DEPTH_SUSPECT {
        return false;
    }
    let begins = |event: &Event| matches!(event, Event::Token { kind: SyntaxKind::RULE_KW, .. });
    Parser::new(text).filter(begins).count() > AST::from(text).rules().count()
}

fn of_error(file: &RuleFile, error: &CompileError) -> Problem {
    let label = error.labels().next().map(|label| (label.span().start(), label.text().to_owned()));
    let hint = match error {
        CompileError::IncludeNotAllowed(_) => "put the included rules into the file itself".to_owned(),
        CompileError::SlowPattern(_) => "give the pattern at least four fixed bytes in a row".to_owned(),
        CompileError::PotentiallySlowLoop(_) => "loop over fewer items, not over the whole file".to_owned(),
        // What the compiler says of the place is enough for all others, of which there will be more.
        _ => label.as_ref().map(|(_, text)| text.clone()).unwrap_or_default(),
    };
    problem(file, label.map(|(at, _)| at), error.code(), error.title(), &hint, true)
}

fn warnings(compiler: &Compiler<'_>, files: &[&RuleFile]) -> Vec<Problem> {
    let of_warning = |warning: &yara_x::warnings::Warning| {
        let (origin, at, text) = warning.labels().next().map(|label| {
            (label.origin().map(str::to_owned), label.span().start(), label.text().to_owned())
        })?;
        let file = files.iter().find(|file| Some(&file.name) == origin.as_ref())?;
        Some(problem(file, Some(at), warning.code(), warning.title(), &text, false))
    };
    compiler.warnings().iter().filter_map(of_warning).collect()
}

fn problem(file: &RuleFile, at: Option<usize>, code: &str, title: &str, hint: &str, error: bool) -> Problem {
    let (line, column) = at.map_or((0, 0), |at| position(&file.text, at));
    let message = if hint.is_empty() { title.to_owned() } else { format!("{title}: {hint}") };
    Problem {
        file: clip(&file.name, PATH_BYTES_MAX),
        line,
        column,
        code: code.to_owned(),
        message: clip(&message, TEXT_BYTES_MAX),
        error,
    }
}

/// Line and column, both from 1; the column in characters.
fn position(text: &[u8], at: usize) -> (u32, u32) {
    let before = &text[..at.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// Cuts the list to what an answer holds; says how many went.
fn bound(problems: &mut Vec<Problem>) -> u32 {
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

    fn file(name: &str, text: &str) -> RuleFile {
        RuleFile { name: name.into(), text: text.into() }
    }

    fn compiled(files: &[RuleFile]) -> Compiled {
        compile(files, &mut |_| {})
    }

    const GOOD: &str = "rule good { condition: true }";

    #[test]
    fn a_file_with_an_error_is_left_out_as_a_whole() {
        let compiled = compiled(&[
            file("a", GOOD),
            file("b", "rule first { condition: true }\nrule { }"),
            file("c", GOOD),
        ]);
        assert_eq!(compiled.rules.iter().count(), 2);
        let problem = &compiled.problems[0];
        assert_eq!((problem.file.as_str(), problem.line, problem.error), ("b", 2, true), "{problem:?}");
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        let cases = [
            ("include \"x\"\n", "include"),
            ("import \"console\"\n", "console"),
            ("import \"vt\"\n", "vt"),
            ("rule slow { strings: $a = /[a-z]+/ condition: $a }", "slow pattern"),
            ("rule loop { condition: for all i in (0..filesize) : (uint8(i) == 1) }", "slow loop"),
        ];
        for (text, expected) in cases {
            let compiled = compiled(&[file("x", text), file("good", GOOD)]);
            let messages: Vec<&str> =
                compiled.problems.iter().filter(|p| p.error).map(|p| p.message.as_str()).collect();
            assert!(messages.iter().any(|message| message.contains(expected)), "{text}: {messages:?}");
            assert_eq!(compiled.rules.iter().count(), 1, "{text}");
        }
    }

    #[test]
    fn what_is_passed_over_without_a_word_is_still_told() {
        let deep = format!(
            "rule a {{ condition: {}true{} }}",
            "for all i in (0..1) : (".repeat(1000),
            ")".repeat(1000)
        );
        for text in [deep.clone(), format!("rule before {{ condition: true }}\n{deep}")] {
            let compiled = compiled(&[file("deep", &text), file("good", GOOD)]);
            assert_eq!(compiled.rules.iter().count(), 1);
            assert!(compiled.problems.iter().any(|p| p.error && p.file == "deep"), "{:?}", compiled.problems);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error_with_a_place() {
        let compiled =
            compiled(&[RuleFile { name: "x".into(), text: b"rule a { condition: true }\n\xff".to_vec() }]);
        assert_eq!((compiled.problems[0].line, compiled.rules.iter().count()), (2, 0));
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
