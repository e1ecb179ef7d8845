//! Files that rules must match, made at run time, so that the tree itself holds none. All are harmless:
//! the test file of the anti-virus industry, a text that looks like a web shell, a program that only prints.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The EICAR test file, put together here.
#[must_use]
pub fn eicar() -> Vec<u8> {
    [r"X5O!P%@AP[4\PZX54(P^)7CC)7}$", "EICAR-STANDARD-", "ANTIVIRUS-TEST-FILE!", "$H+H*"]
        .concat()
        .into_bytes()
}

/// A page that would run what a visitor sends. It is written, never served.
#[must_use]
pub fn web_shell() -> Vec<u8> {
    [
        "<?php if(isset($_REQUEST['c'])) { ",
        "sys",
        "tem($_REQUEST['c']); ",
        "ev",
        "al(base64_decode($_POST['x'])); } ?>\n",
    ]
    .concat()
    .into_bytes()
}

/// A text that no rule may match.
#[must_use]
pub fn control() -> Vec<u8> {
    b"Buy bread, milk and two apples.\n".to_vec()
}

/// A dropper's life: write a program, run it, remove it, as fast as can be. The program prints one line;
/// what makes it suspicious is the text it carries after `exit`.
///
/// # Errors
/// When the folder can't be written or the program can't be run.
pub fn drop_and_run(path: &Path) -> anyhow::Result<()> {
    let mut text = b"#!/bin/sh\nexit 0\n".to_vec();
    text.extend(eicar());
    text.push(b'\n');
    let mut file = fs::File::create(path)?;
    file.write_all(&text)?;
    file.set_permissions(fs::Permissions::from_mode(0o700))?;
    drop(file);
    let run = Command::new(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    fs::remove_file(path)?;
    run?;
    Ok(())
}
