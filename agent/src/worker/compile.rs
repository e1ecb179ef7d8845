//! Rule sources to rules, inside the worker. Each file is its own namespace; a file with an error is left out as a
//! whole and told, the others go on.
//!
//! Assumes nothing of the sources: compilers have crashed, which is why this runs in the sandbox.

use super::messages::{PROBLEMS_MAX, Problem, RuleFile};
use super::problems::{self, Places};
use super::routing::{
    self,
    classes::{COUNT, Class},
};
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
/// behind in the compiler. Calls `begin` with the number of each file before it is touched, and with none before all are
/// worked on together.
#[must_use]
pub fn compile(files: &[RuleFile], begin: &mut dyn FnMut(Option<usize>)) -> Compiled {
    let mut usable: Vec<usize> = (0..files.len()).collect();
    let mut problems = Vec::new();
    loop {
        let mut compiler = compiler();
        let count = usable.len();
        usable.retain(|number| {
            let Some(file) = files.get(*number) else { return false };
            begin(Some(*number));
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
            problems.extend(problems::warnings(compiler.warnings(), &good));
            let left_out = problems::bound(&mut problems);
            begin(None);
            return Compiled { rules: compiler.build(), problems, left_out, usable };
        }
    }
}

/// Takes each file through everything, for nobody: the one that ends this process is then known by its number.
pub fn try_each(files: &[RuleFile], begin: &mut dyn FnMut(Option<usize>)) {
    for (number, file) in files.iter().enumerate() {
        let mut named = |_| begin(Some(number));
        let Compiled { rules, usable, .. } = compile(std::slice::from_ref(file), &mut named);
        let _ = by_class(rules, std::slice::from_ref(file), &usable, &mut named, |_, _| Ok(()));
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
    begin: &mut dyn FnMut(Option<usize>),
    mut take: impl FnMut(u32, &Rules) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let good: Vec<RuleFile> = usable.iter().filter_map(|number| files.get(*number)).cloned().collect();
    begin(None);
    let plan = routing::plan(&good, all.iter().count() * NEARLY_ALL_PERCENT / 100);
    if plan.sets.len() < 2 {
        return take(u32::MAX, &all);
    }
    // What no class has belongs to all other files.
    let other = 1 << Class::Other.index();
    let classes = |set: &routing::Set| {
        let unused = if set.classes & other == 0 { 0 } else { !((1 << COUNT) - 1) };
        set.classes | unused
    };
    let nearly_all = plan.sets.iter().filter(|set| set.files.is_none());
    let together = nearly_all.fold(0, |bits, set| bits | classes(set));
    if together != 0 {
        take(together, &all)?;
    }
    // It holds much memory, and the other sets are small.
    drop(all);
    let cut = plan.sets.iter().filter_map(|set| Some((set, set.files.as_ref()?)));
    for (set, parts) in cut {
        let number =
            |name: &str| usable.iter().copied().find(|at| files.get(*at).is_some_and(|f| f.name == name));
        // By its number among all files.
        let compiled = compile(parts, &mut |at| {
            begin(at.and_then(|at| parts.get(at)).and_then(|file| number(&file.name)));
        });
        anyhow::ensure!(compiled.usable.len() == parts.len(), "a part of the rules does not compile alone");
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
    let mut places = Places::of(file);
    let errors: Vec<Problem> =
        compiler.errors().iter().skip(known).map(|error| places.error(error)).collect();
    if added && !loses_rules(&file.text) {
        return Ok(());
    }
    Err(if errors.is_empty() { vec![places.passed_over()] } else { errors })
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
    fn it_is_always_said_what_is_worked_on() {
        let files = [file("a", GOOD), file("b", "rule {"), file("c", GOOD)];
        let mut told = Vec::new();
        let _ = compile(&files, &mut |number| told.push(number));
        // All, then those without an error; the last step is nobody's.
        assert_eq!(told, [Some(0), Some(1), Some(2), Some(0), Some(2), None]);
        told.clear();
        try_each(&files, &mut |number| told.push(number));
        told.dedup();
        assert_eq!(told, [Some(0), Some(1), Some(2)], "each step has a name");
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error_with_a_place() {
        let compiled =
            compiled(&[RuleFile { name: "x".into(), text: b"rule a { condition: true }\n\xff".to_vec() }]);
        assert_eq!((compiled.problems[0].line, compiled.rules.iter().count()), (2, 0));
    }
}
