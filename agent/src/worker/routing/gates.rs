//! In which classes of files a rule's condition can be true, from the parsed condition alone.
//!
//! Every expression is given a bound for each class: whether it can be true there, whether false, whether undefined.
//! The bounds are combined as the scanner combines values: what is undefined counts as false in `and`, `or` and at the
//! end of a condition, and makes everything else around it undefined. What is not understood can be anything. So a
//! bound may only ever be too wide, and a rule is then scanned where it need not be.
//!
//! Assumes a rule without errors. Goes to `outline`.

use super::bytes::{Reader, Want, beginnings};
use super::classes::Classes;
use super::modules::{self, Blank};
use std::ops::Range;
use yara_x_parser::ast::{
    BinaryExpr, Expr, ForIn, FuncCall, Iterable, MatchAnchor, Of, OfItems, Pattern, PatternMatch, PatternSet,
    Quantifier, Rule, With, WithSpan as _,
};

/// Expressions within expressions that are looked into; what is deeper can be anything.
const DEPTH_MAX: usize = 64;

/// What is known of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// In which classes it can match.
    pub classes: Classes,
    /// Operands of `and` and `or` that are not true in every class, and where they can be. In all other classes
    /// `false` may stand in their place: these two take what is undefined for false.
    pub operands: Vec<(Range<usize>, Classes)>,
}

/// Reads the rule's condition. `earlier` knows the rules that stand before it in its file.
#[must_use]
pub fn gate(rule: &Rule<'_>, imports: &[&str], earlier: &dyn Fn(&str) -> Option<Classes>) -> Gate {
    let patterns = rule.patterns.as_deref().unwrap_or_default();
    let mut view = View { patterns, imports, earlier, locals: Vec::new(), operands: Vec::new(), depth: 0 };
    let classes = view.truth(&rule.condition).yes;
    Gate { classes, operands: view.operands }
}

/// How a condition can come out, for each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Truth {
    yes: Classes,
    no: Classes,
    undefined: Classes,
}

impl Truth {
    const ANY: Self = Self { yes: Classes::ALL, no: Classes::ALL, undefined: Classes::ALL };

    /// Of which only this is known.
    fn at_most(yes: Classes) -> Self {
        Self { yes, ..Self::ANY }
    }
}

/// What is certain of a value, for each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Value {
    /// It is undefined.
    undefined: Classes,
    /// It is undefined, or false, or 0.
    zero: Classes,
}

impl Value {
    const ANY: Self = Self { undefined: Classes::NONE, zero: Classes::NONE };

    fn undefined(classes: Classes) -> Self {
        Self { undefined: classes, zero: classes }
    }

    fn truth(self) -> Truth {
        Truth { yes: !self.zero, no: !self.undefined, undefined: Classes::ALL }
    }
}

/// Comparisons of numbers that are told apart.
#[derive(Debug, Clone, Copy)]
enum Order {
    Eq,
    Ne,
    Lt,
    Gt,
    Le,
    Ge,
}

impl Order {
    fn holds(self, left: i128, right: i128) -> bool {
        match self {
            Self::Eq => left == right,
            Self::Ne => left != right,
            Self::Lt => left < right,
            Self::Gt => left > right,
            Self::Le => left <= right,
            Self::Ge => left >= right,
        }
    }
}

/// What the names in a condition stand for.
struct View<'a> {
    patterns: &'a [Pattern<'a>],
    imports: &'a [&'a str],
    earlier: &'a dyn Fn(&str) -> Option<Classes>,
    /// Variables of loops and of `with`, which hide rules and modules.
    locals: Vec<String>,
    operands: Vec<(Range<usize>, Classes)>,
    depth: usize,
}

impl View<'_> {
    fn truth(&mut self, expr: &Expr<'_>) -> Truth {
        if self.depth == DEPTH_MAX {
            return Truth::ANY;
        }
        self.depth += 1;
        let truth = self.truth_of(expr);
        self.depth -= 1;
        truth
    }

    fn truth_of(&mut self, expr: &Expr<'_>) -> Truth {
        match expr {
            Expr::True { .. } => Truth { yes: Classes::ALL, no: Classes::NONE, undefined: Classes::NONE },
            Expr::False { .. } => Truth { yes: Classes::NONE, no: Classes::ALL, undefined: Classes::NONE },
            Expr::And(and) => self.and(&and.operands),
            Expr::Or(or) => self.or(&or.operands),
            Expr::Not(not) => {
                let Truth { yes, no, undefined } = self.truth(&not.operand);
                Truth { yes: no, no: yes, undefined }
            }
            Expr::Defined(defined) => {
                let Truth { yes, no, undefined } = self.truth(&defined.operand);
                Truth { yes: yes | no, no: undefined, undefined: Classes::NONE }
            }
            Expr::Eq(both) => self.order(Order::Eq, both),
            Expr::Ne(both) => self.order(Order::Ne, both),
            Expr::Lt(both) => self.order(Order::Lt, both),
            Expr::Gt(both) => self.order(Order::Gt, both),
            Expr::Le(both) => self.order(Order::Le, both),
            Expr::Ge(both) => self.order(Order::Ge, both),
            Expr::Contains(both)
            | Expr::IContains(both)
            | Expr::StartsWith(both)
            | Expr::IStartsWith(both)
            | Expr::EndsWith(both)
            | Expr::IEndsWith(both)
            | Expr::IEquals(both)
            | Expr::Matches(both) => self.both(both).truth(),
            Expr::Ident(ident) => match (self.is_local(ident.name), (self.earlier)(ident.name)) {
                // A global rule may silence a rule where its own condition is true.
                (false, Some(yes)) => Truth { yes, no: Classes::ALL, undefined: Classes::NONE },
                _ => Truth::ANY,
            },
            Expr::PatternMatch(found) => self.pattern(found),
            Expr::Of(of) => self.of(of),
            Expr::ForOf(each) => {
                let body = self.truth(&each.body);
                at_least_one(&each.quantifier, body.yes)
            }
            Expr::ForIn(each) => self.for_in(each),
            Expr::With(with) => self.with(with),
            // All others are values.
            _ => self.value(expr).truth(),
        }
    }

    fn and(&mut self, operands: &[Expr<'_>]) -> Truth {
        let mut all = Truth { yes: Classes::ALL, no: Classes::NONE, undefined: Classes::NONE };
        for operand in operands {
            let one = self.operand(operand);
            all.yes &= one.yes;
            all.no |= one.no | one.undefined;
        }
        all
    }

    fn operand(&mut self, operand: &Expr<'_>) -> Truth {
        let truth = self.truth(operand);
        if truth.yes != Classes::ALL {
            self.operands.push((start(operand)..operand.span().end(), truth.yes));
        }
        truth
    }

    fn or(&mut self, operands: &[Expr<'_>]) -> Truth {
        let mut any = Truth { yes: Classes::NONE, no: Classes::ALL, undefined: Classes::NONE };
        for operand in operands {
            let one = self.operand(operand);
            any.yes |= one.yes;
            any.no &= one.no | one.undefined;
        }
        any
    }

    /// `uint16(0) == 0x5A4D` and the like exactly; else what is known of the values.
    fn order(&mut self, order: Order, both: &BinaryExpr<'_>) -> Truth {
        for (read, number, swapped) in [(&both.lhs, &both.rhs, false), (&both.rhs, &both.lhs, true)] {
            let Some(number) = constant(number) else { continue };
            if let (Order::Eq | Order::Ne, Some(same)) = (order, bytes_are(read, number)) {
                return if matches!(order, Order::Eq) {
                    same
                } else {
                    Truth { yes: same.no, no: same.yes, ..same }
                };
            }
            let value = self.value(read);
            let (left, right) = if swapped { (number, 0) } else { (0, number) };
            let mut truth = Truth { yes: !value.undefined, no: !value.undefined, undefined: Classes::ALL };
            if order.holds(left, right) {
                truth.no &= !value.zero;
            } else {
                truth.yes &= !value.zero;
            }
            return truth;
        }
        self.both(both).truth()
    }

    /// Of an operation that is undefined when one of its operands is.
    fn both(&mut self, both: &BinaryExpr<'_>) -> Value {
        Value::undefined(self.value(&both.lhs).undefined | self.value(&both.rhs).undefined)
    }

    fn pattern(&mut self, found: &PatternMatch<'_>) -> Truth {
        let named = |pattern: &&Pattern<'_>| pattern.identifier().name == found.identifier.name;
        let pattern = self.patterns.iter().find(named);
        self.anchored(pattern.as_slice(), found.anchor.as_ref()).unwrap_or(Truth::ANY)
    }

    /// One of these patterns at this place; `None` when nothing is known.
    fn anchored(&mut self, patterns: &[&Pattern<'_>], anchor: Option<&MatchAnchor<'_>>) -> Option<Truth> {
        match anchor? {
            MatchAnchor::At(at) => {
                let Some(at) = constant(&at.expr) else {
                    return Some(self.value(&at.expr).truth_of_place());
                };
                let at = usize::try_from(at).ok()?;
                if patterns.is_empty() {
                    return None;
                }
                let mut yes = Classes::NONE;
                for pattern in patterns {
                    for bytes in beginnings(pattern)? {
                        yes |= Want { at, bytes }.fit().same;
                    }
                }
                Some(Truth { yes, no: Classes::ALL, undefined: Classes::NONE })
            }
            MatchAnchor::In(within) => {
                let lower = self.value(&within.range.lower_bound);
                let upper = self.value(&within.range.upper_bound);
                Some(Value::undefined(lower.undefined | upper.undefined).truth_of_place())
            }
        }
    }

    fn of(&mut self, of: &Of<'_>) -> Truth {
        match &of.items {
            OfItems::PatternSet(set) => {
                let patterns = members(self.patterns, set);
                let yes =
                    self.anchored(&patterns, of.anchor.as_ref()).map_or(Classes::ALL, |truth| truth.yes);
                at_least_one(&of.quantifier, yes)
            }
            OfItems::BoolExprTuple(tuple) => {
                let all = matches!(of.quantifier, Quantifier::All { .. });
                // Their own kind of operands: here what is undefined and what is false may differ.
                let recorded = self.operands.len();
                let truth = if all { self.and(tuple) } else { self.or(tuple) };
                self.operands.truncate(recorded);
                at_least_one(&of.quantifier, truth.yes)
            }
        }
    }

    fn for_in(&mut self, each: &ForIn<'_>) -> Truth {
        let never = match &each.iterable {
            Iterable::Range(range) => {
                self.value(&range.lower_bound).undefined | self.value(&range.upper_bound).undefined
            }
            // A list that is missing is empty, and nothing is true of any of its members.
            Iterable::Expr(list) => self.value(list).undefined,
            Iterable::ExprTuple(_) => Classes::NONE,
        };
        let outside = self.locals.len();
        self.locals.extend(each.variables.iter().map(|variable| variable.name.to_owned()));
        let body = self.truth(&each.body);
        self.locals.truncate(outside);
        at_least_one(&each.quantifier, body.yes & !never)
    }

    fn with(&mut self, with: &With<'_>) -> Truth {
        let outside = self.locals.len();
        self.locals.extend(with.declarations.iter().map(|local| local.identifier.name.to_owned()));
        let body = self.truth(&with.body);
        self.locals.truncate(outside);
        body
    }

    fn value(&mut self, expr: &Expr<'_>) -> Value {
        if self.depth == DEPTH_MAX {
            return Value::ANY;
        }
        self.depth += 1;
        let value = self.value_of(expr);
        self.depth -= 1;
        value
    }

    fn value_of(&mut self, expr: &Expr<'_>) -> Value {
        match expr {
            Expr::FieldAccess(_) | Expr::Lookup(_) => self.field(expr),
            Expr::FuncCall(call) => self.call(call),
            Expr::Add(many) | Expr::Sub(many) | Expr::Mul(many) | Expr::Div(many) | Expr::Mod(many) => {
                let undefined = |all, operand| all | self.value(operand).undefined;
                Value::undefined(many.operands().fold(Classes::NONE, undefined))
            }
            Expr::Shl(both)
            | Expr::Shr(both)
            | Expr::BitwiseAnd(both)
            | Expr::BitwiseOr(both)
            | Expr::BitwiseXor(both) => self.both(both),
            Expr::Minus(one) | Expr::BitwiseNot(one) => Value::undefined(self.value(&one.operand).undefined),
            // Of all others nothing is known.
            _ => Value::ANY,
        }
    }

    /// `pe.machine`, `pe.sections[0].name`, `pe.version_info["x"]`.
    fn field(&self, expr: &Expr<'_>) -> Value {
        let Some(module) = self.root(expr) else { return Value::ANY };
        let Some(parses) = modules::parses(module) else { return Value::ANY };
        match expr {
            Expr::FieldAccess(path) => match path.operands.last() {
                Some(Expr::Ident(last)) => blank(modules::field(last.name), !parses),
                _ => Value::ANY,
            },
            // The list or dictionary that it would look into is empty.
            Expr::Lookup(_) => Value::undefined(!parses),
            _ => Value::ANY,
        }
    }

    fn call(&mut self, call: &FuncCall<'_>) -> Value {
        let Some(object) = &call.object else {
            let reads =
                call.args.len() == 1 && call.identifier.name.trim_start_matches('u').starts_with("int");
            return if reads { Value::undefined(self.value(&call.args[0]).undefined) } else { Value::ANY };
        };
        let Some(module) = self.root(object) else { return Value::ANY };
        let Some(parses) = modules::parses(module) else { return Value::ANY };
        blank(modules::function(module, call.identifier.name), !parses)
    }

    /// The module that a path of fields and look-ups starts from.
    fn root<'e>(&self, expr: &'e Expr<'_>) -> Option<&'e str> {
        match expr {
            Expr::Ident(ident) => {
                let name = ident.name;
                let hidden = self.is_local(name) || (self.earlier)(name).is_some();
                (!hidden && self.imports.contains(&name)).then_some(name)
            }
            Expr::FieldAccess(path) => {
                let (first, rest) = path.operands.split_first()?;
                rest.iter().all(|part| matches!(part, Expr::Ident(_))).then(|| self.root(first)).flatten()
            }
            Expr::Lookup(lookup) => self.root(&lookup.primary),
            // Functions, and what is no path.
            _ => None,
        }
    }

    fn is_local(&self, name: &str) -> bool {
        self.locals.iter().any(|local| local == name)
    }
}

impl Value {
    /// Of a pattern at this place: where the place is undefined, it can't be found.
    fn truth_of_place(self) -> Truth {
        Truth::at_most(!self.undefined)
    }
}

/// Where an expression starts. The parser has a call start at the function's own name, behind the module's.
fn start(expr: &Expr<'_>) -> usize {
    let own = expr.span().start();
    expr.children().next().map_or(own, |first| own.min(start(first)))
}

fn members<'p>(patterns: &'p [Pattern<'p>], set: &PatternSet<'_>) -> Vec<&'p Pattern<'p>> {
    let named = |pattern: &&Pattern<'_>| match set {
        PatternSet::Them { .. } => true,
        PatternSet::Set(items) => items.iter().any(|item| item.matches(pattern.identifier())),
    };
    patterns.iter().filter(named).collect()
}

fn blank(blank: Blank, classes: Classes) -> Value {
    match blank {
        Blank::Undefined => Value::undefined(classes),
        Blank::Zero => Value { undefined: Classes::NONE, zero: classes },
        Blank::Anything => Value::ANY,
    }
}

/// Of a quantifier over things of which at least one must be true, or any number.
fn at_least_one(quantifier: &Quantifier<'_>, yes: Classes) -> Truth {
    match quantifier {
        Quantifier::All { .. } | Quantifier::Any { .. } => Truth::at_most(yes),
        Quantifier::Expr(number) if constant(number).is_some_and(|number| number > 0) => Truth::at_most(yes),
        Quantifier::None { .. } | Quantifier::Percentage(_) | Quantifier::Expr(_) => Truth::ANY,
    }
}

/// Whether the bytes that an expression reads are the ones that give this number; `None` when it is no such expression.
fn bytes_are(expr: &Expr<'_>, number: i128) -> Option<Truth> {
    let (call, mask) = match expr {
        Expr::FuncCall(call) => (call, None),
        Expr::BitwiseAnd(both) => match (&both.lhs, &both.rhs) {
            (Expr::FuncCall(call), mask) | (mask, Expr::FuncCall(call)) => (call, Some(constant(mask)?)),
            _ => return None,
        },
        _ => return None,
    };
    let (None, [at]) = (&call.object, call.args.as_slice()) else { return None };
    let reader = Reader::named(call.identifier.name)?;
    if mask.is_some_and(|mask| !reader.covers(mask)) {
        return None;
    }
    let at = usize::try_from(constant(at)?).ok()?;
    Some(match reader.wants(at, number, mask) {
        None => Truth { yes: Classes::NONE, no: Classes::ALL, undefined: Classes::ALL },
        Some(want) => {
            let fit = want.fit();
            Truth { yes: fit.same, no: fit.different, undefined: fit.short }
        }
    })
}

fn constant(expr: &Expr<'_>) -> Option<i128> {
    match expr {
        // Beyond 63 bits the sign bit is one like the others.
        Expr::LiteralInteger(literal) if literal.is_unsigned => {
            Some(i128::from(literal.value.cast_unsigned()))
        }
        Expr::LiteralInteger(literal) => Some(i128::from(literal.value)),
        Expr::Minus(minus) => match &minus.operand {
            Expr::LiteralInteger(literal) if !literal.is_unsigned => Some(-i128::from(literal.value)),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::classes::Class::{
        self, Dex, Elf, Fat, Lnk, MachO, Ole, Other, Pdf, Pe, Rtf, Script, Zip,
    };
    use super::super::outline::Outline;
    use super::*;

    /// The classes of the last rule of a file.
    fn of(text: &str) -> Classes {
        Outline::of(text.as_bytes()).unwrap_or_else(|| panic!("{text}")).rules.last().unwrap().classes
    }

    fn check(condition: &str, expected: Classes) {
        let text = format!(
            r#"import "pe" import "elf" import "macho" import "dotnet" import "lnk" import "dex" import "math"
            rule zip {{ condition: uint16(0) == 0x4B50 }} rule any_file {{ condition: filesize > 1 }}
            rule it {{ strings: $mz = "MZ" $elf = {{ 7F 45 4? 46 }} $doc = "<?php" $re = /MZ/ $x = "MZ" xor
            $wide = "MZ" wide $both = "PK" ascii wide $case = "dEx" nocase $jump = {{ 50 [1-2] 4B }}
            condition: {condition} }}"#
        );
        assert_eq!(of(&text), expected, "{condition}");
    }

    fn only(classes: &[Class]) -> Classes {
        Classes::of(classes)
    }

    fn but(classes: &[Class]) -> Classes {
        !Classes::of(classes)
    }

    #[test]
    fn numbers_at_fixed_places_gate() {
        let all = Classes::ALL;
        for (condition, expected) in [
            ("uint16(0) == 0x5A4D", only(&[Pe])),
            ("0x5A4D == uint16(0)", only(&[Pe])),
            ("(uint16be(0x00) == 0x4D5A)", only(&[Pe])),
            ("int16(0) == 0x5a4d and filesize < 2MB", only(&[Pe])),
            ("uint32(0) == 0x464c457f", only(&[Elf])),
            ("uint16(0) == 0x5A4D and uint32(uint32(0x3C)) == 0x4550", only(&[Pe])),
            ("uint16(0) == 0x5A4D or uint32be(0) == 0x7F454C46", only(&[Pe, Elf])),
            ("uint16(0) == 0x5A4D and uint16(0) == 0x4B50", only(&[])),
            ("uint32be(0) == 0xCAFEBABE", only(&[Fat])),
            ("uint16(0) == 0xfacf", only(&[MachO])),
            ("uint32(0) == 0x74725c7b", only(&[Rtf])),
            ("uint16(0) == 0xcfd0", only(&[Ole])),
            ("uint16(0) == 0x5025", only(&[Pdf])),
            ("uint16(0) == 0x2123", only(&[Script])),
            ("uint16(0) == 0x004c", only(&[Lnk])),
            ("uint32be(0) == 0x6465780A", only(&[Dex])),
            ("uint32(0) == 0x12345678", only(&[Other])),
            ("uint8(0) == 0x4D", only(&[Pe, Other])),
            ("uint8(1) == 0x5A", only(&[Pe, Other])),
            ("uint8(0) == 0x64", only(&[Dex, Other])),
            ("uint16(0) & 0xFF == 0x4D", only(&[Pe, Other])),
            ("0xFFFF & uint16(0) == 0x5A4D", only(&[Pe])),
            ("uint16(0) == 0x15A4D", only(&[])),
            ("uint16(0) == -1", only(&[])),
            ("int16(0) == -1", only(&[Other])),
            ("uint16(0) != 0x5A4D", but(&[Pe])),
            ("not uint16(0) == 0x5A4D", but(&[Pe])),
            ("not (uint16(0) != 0x5A4D)", only(&[Pe])),
            ("uint32(0) != 0x464c457f", all),
            ("not uint32(0) == 0x464c457f and uint8(0) == 0x7f", only(&[Elf, Other])),
            ("defined uint16(0)", all),
            ("not defined uint16(0)", all),
            ("not defined (uint16(0) == 0x5A4D)", only(&[Other])),
            ("not defined (uint16(0) == 0x5A4D and true)", only(&[])),
            ("uint16(2) == 0x5A4D", only(&[Pe, Elf, MachO, Fat, Zip, Ole, Pdf, Rtf, Script, Lnk, Other])),
            ("uint16(0) > 0x5A4C", all),
            ("uint16(filesize) == 0x5A4D", all),
            ("uint16(100) == 0x5A4D", all),
            ("filesize < 2", all),
            ("true", all),
            ("false or uint16(0) == 0x5A4D", only(&[Pe])),
            ("not true", only(&[])),
        ] {
            check(condition, expected);
        }
    }

    #[test]
    fn patterns_at_fixed_places_gate() {
        let all = Classes::ALL;
        for (condition, expected) in [
            ("$mz at 0", only(&[Pe])),
            ("$elf at 0", only(&[Elf])),
            ("$doc at 0", only(&[Other])),
            ("$mz at 1", only(&[Other])),
            ("$mz at 2", but(&[Dex])),
            ("$wide at 0", only(&[Other])),
            ("$both at 0", only(&[Zip, Other])),
            ("$case at 0", only(&[Dex, Other])),
            ("$jump at 0", only(&[Zip, Other])),
            ("$re at 0", all),
            ("$x at 0", all),
            ("$mz", all),
            ("$mz in (0..1)", all),
            ("not $mz at 0", all),
            ("any of ($mz, $elf) at 0", only(&[Pe, Elf])),
            ("2 of ($mz, $elf) at 0", only(&[Pe, Elf])),
            ("any of ($m*) at 0", only(&[Pe])),
            ("any of them at 0", all),
            ("none of ($mz) at 0", all),
            ("0 of ($mz) at 0", all),
            ("any of (uint16(0) == 0x5A4D, $elf at 0)", only(&[Pe, Elf])),
            ("all of (uint16(0) == 0x5A4D, $elf)", only(&[Pe])),
            ("none of (uint16(0) == 0x5A4D, $elf)", all),
            ("for any of ($mz) : (uint16(0) == 0x5A4D and $)", only(&[Pe])),
            ("for none of ($mz) : (uint16(0) == 0x5A4D and $)", all),
            ("for any i in (1..3) : (uint8(i) == 1 and $mz at 0)", only(&[Pe])),
            ("for 2 i in (1..3) : (uint8(i) == 1 and $mz at 0)", only(&[Pe])),
            ("for all i in (1..3) : (uint8(i) == 1 and $mz at 0)", only(&[Pe])),
            ("for 10% i in (1..3) : (uint8(i) == 1 and $mz at 0)", all),
            ("with i = 1 : (uint8(i) == 1 and $mz at 0)", only(&[Pe])),
        ] {
            check(condition, expected);
        }
    }

    #[test]
    fn modules_gate_where_their_parser_must_fail() {
        let all = Classes::ALL;
        let mach = only(&[MachO, Fat]);
        for (condition, expected) in [
            ("pe.is_pe", only(&[Pe])),
            ("not pe.is_pe", all),
            ("pe.number_of_sections == 0", only(&[Pe])),
            ("pe.number_of_sections != 1", only(&[Pe])),
            ("not pe.number_of_sections == 1", only(&[Pe])),
            ("defined pe.number_of_sections", only(&[Pe])),
            ("not defined pe.number_of_sections", all),
            ("pe.MACHINE_I386 == 332", all),
            ("pe.machine == pe.MACHINE_I386", only(&[Pe])),
            ("pe.sections[0].name == \".text\"", only(&[Pe])),
            ("pe.version_info[\"x\"] contains \"y\"", only(&[Pe])),
            ("for any s in pe.sections : (s.name == \"x\")", only(&[Pe])),
            ("for all s in pe.sections : (s.name == \"x\")", only(&[Pe])),
            ("for none s in pe.sections : (s.name == \"x\")", all),
            ("for any i in (0..pe.number_of_sections - 1) : (true)", only(&[Pe])),
            ("for any pe in (1..2) : (pe == 2)", all),
            ("pe.imphash() == \"x\"", only(&[Pe])),
            ("pe.imports(\"a\")", only(&[Pe])),
            ("pe.imports(\"a\") == 0", all),
            ("pe.imports(\"a\") > 2", only(&[Pe])),
            ("2 < pe.imports(\"a\")", only(&[Pe])),
            ("not pe.exports(\"a\")", all),
            ("pe.rich_signature.toolid(1) == 1", only(&[Pe])),
            ("uint32(pe.entry_point) == 1", only(&[Pe])),
            ("pe.timestamp + 1 < 5", only(&[Pe])),
            ("$mz at pe.entry_point", only(&[Pe])),
            ("$mz in (pe.entry_point..9)", only(&[Pe])),
            ("dotnet.is_dotnet", only(&[Pe])),
            ("elf.type == elf.ET_EXEC", only(&[Elf])),
            ("elf.telfhash() == \"x\"", all),
            ("macho.cputype == 7", mach),
            ("macho.has_import(\"x\")", mach),
            ("lnk.is_lnk", only(&[Lnk])),
            ("dex.is_dex or elf.type == 2", only(&[Dex, Elf])),
            ("math.entropy(0, filesize) > 7.0", all),
            ("pe.is_pe and math.entropy(0, filesize) > 7.0", only(&[Pe])),
        ] {
            check(condition, expected);
        }
    }

    #[test]
    fn rules_gate_those_that_refer_to_them() {
        for (condition, expected) in [
            ("zip", only(&[Zip])),
            ("zip and any_file", only(&[Zip])),
            ("not zip", Classes::ALL),
            ("1 of (zip, $elf at 0)", only(&[Zip, Elf])),
            ("for any zip in (1..2) : (zip == 2)", Classes::ALL),
            ("it_is_unknown", Classes::ALL),
        ] {
            check(condition, expected);
        }
    }

    #[test]
    fn what_is_very_deep_is_anything() {
        let deep = format!("{}uint16(0) == 0x5A4D{}", "not (".repeat(200), ")".repeat(200));
        check(&deep, Classes::ALL);
    }
}
