//! A worker that compiles: takes rule sources, writes compiled rules into the file that it is handed, says what came
//! of them, and waits to be ended.
//!
//! Its memory goes with it: what compiling needs is many times what scanning does. Before each rule file it says which
//! one it takes, so that the parent knows which one killed it.

use super::compile::{self, Compiled};
use super::inside::{end_on_panic, enter, receive, say};
use super::messages::{self, Ask, Compile, CompiledSet, Loaded, RuleFile, RuleFiles, Say};
use super::{RULES_BYTES_MAX, channel, problems};
use crate::sys::sandbox::{Duty, Violation};
use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;

/// Runs until the parent closes the socket.
///
/// # Errors
/// One sentence; the parent has been told as well where that was possible.
pub fn run(violation: Violation) -> Result<ExitCode> {
    let socket = rustix::stdio::stdin();
    let _ = rustix::thread::set_name(c"vidette-compile");
    end_on_panic(socket);
    enter(socket, violation, Duty::Compile)?;
    let Some((request, files, out)) = receive_rules(socket)? else { return Ok(ExitCode::SUCCESS) };
    let answer = compile_all(socket, request, &files, &out)?;
    say(socket, Say::Compiled(answer))?;
    // Ended by its parent, who has to read the answer first.
    let _ = channel::receive(socket, &mut [0; 1]);
    Ok(ExitCode::SUCCESS)
}

fn receive_rules(socket: BorrowedFd<'_>) -> Result<Option<(Compile, Vec<RuleFile>, OwnedFd)>> {
    let Some((ask, descriptors)) = receive(socket)? else { return Ok(None) };
    let Ask::Compile(request) = ask else { bail!("the agent asked a compiling worker for something else") };
    let Ok([memory, out]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        bail!("the agent sent no rules, or no file for what comes of them")
    };
    let mut bytes = Vec::new();
    loop {
        bytes.reserve(1 << 20);
        let at = bytes.len() as u64;
        let read = rustix::io::pread(&memory, rustix::buffer::spare_capacity(&mut bytes), at);
        if read.context("could not read the rules")? == 0 {
            break;
        }
        ensure!(bytes.len() <= 2 * RULES_BYTES_MAX, "the agent sent too many rules");
    }
    let files = RuleFiles::decode(bytes.as_slice()).context("could not read the rules")?;
    ensure!(files.is_bounded(), "the agent sent too many rule files");
    Ok(Some((request, files.files, out)))
}

fn compile_all(
    socket: BorrowedFd<'_>,
    request: Compile,
    files: &[RuleFile],
    out: &OwnedFd,
) -> Result<messages::Compiled> {
    let mut begin = |number: Option<usize>| {
        let number = number.and_then(|number| u32::try_from(number).ok());
        // The parent is gone when this fails; the end of the socket is noticed later.
        let _ = say(socket, Say::Compiling(number.unwrap_or(messages::JOINTLY)));
    };
    if request.each {
        compile::try_each(files, &mut begin);
    }
    let Compiled { rules, mut problems, left_out, usable } = compile::compile(files, &mut begin);
    problems.extend(problems::unknown_severities(&rules, files));
    let left_out = left_out.saturating_add(problems::bound(&mut problems));
    let loaded = Loaded {
        version: request.version,
        rules: u32::try_from(rules.iter().count()).unwrap_or(u32::MAX),
        problems,
        problems_left_out: left_out,
    };
    let mut writer = Writer { out, at: 0, sets: Vec::new() };
    let sorted =
        compile::by_class(rules, files, &usable, &mut begin, |classes, rules| writer.write(classes, rules));
    if sorted.is_err() {
        // Slower and right: every file with all rules. What was written before is left where it is.
        let (at, sets) = (writer.at, Vec::new());
        writer = Writer { out, at, sets };
        writer.write(u32::MAX, &compile::compile(files, &mut begin).rules)?;
    }
    Ok(messages::Compiled { loaded: Some(loaded), sets: writer.sets })
}

/// Sets, one behind the other.
struct Writer<'a> {
    out: &'a OwnedFd,
    at: u64,
    sets: Vec<CompiledSet>,
}

impl Writer<'_> {
    fn write(&mut self, classes: u32, rules: &yara_x::Rules) -> Result<()> {
        let bytes = rules.serialize().context("could not serialize the rules")?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let written = rustix::io::write(self.out, rest).context("could not write the compiled rules")?;
            rest = rest.get(written..).unwrap_or_default();
        }
        let length = bytes.len() as u64;
        self.sets.push(CompiledSet {
            classes,
            offset: self.at,
            length,
            blake3: blake3::hash(&bytes).as_bytes().to_vec(),
            rules: u32::try_from(rules.iter().count()).unwrap_or(u32::MAX),
        });
        self.at += length;
        Ok(())
    }
}
