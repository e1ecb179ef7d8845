//! The commands' end of the admin socket: blocking, one request a connection.

use super::{ANSWER_BYTES_MAX, Answer, Request};
use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// For the next line of an answer that ends by itself: a large store may have to be searched.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);

/// What was named is not there: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotFound(pub String);

/// Lines of one answer.
#[derive(Debug)]
pub struct Answers(BufReader<UnixStream>);

/// Asks the server at `socket`.
///
/// # Errors
/// When nobody answers there; the sentence says what to do.
pub fn ask(socket: &Path, request: &Request) -> anyhow::Result<Answers> {
    let mut stream = UnixStream::connect(socket).map_err(|error| unreachable_server(socket, &error))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.set_read_timeout(match request {
        Request::Follow { .. } => None,
        _ => Some(ANSWER_TIME_MAX),
    })?;
    match stream.write_all(&line) {
        Ok(()) => {}
        // It has already said why it won't listen.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => return Err(error).context("could not ask the collector"),
    }
    Ok(Answers(BufReader::new(stream)))
}

/// Asks for exactly one row.
///
/// # Errors
/// As [`ask`], [`NotFound`], and what the server says.
pub fn ask_one<T: DeserializeOwned>(socket: &Path, request: &Request) -> anyhow::Result<T> {
    ask(socket, request)?.read_row()?.context("the collector answered nothing; are both of the same version?")
}

/// Asks for all rows of a short list.
///
/// # Errors
/// As [`ask`], and what the server says.
pub fn ask_all<T: DeserializeOwned>(socket: &Path, request: &Request) -> anyhow::Result<Vec<T>> {
    let mut answers = ask(socket, request)?;
    let mut rows = Vec::new();
    while let Some(row) = answers.read_row()? {
        rows.push(row);
    }
    Ok(rows)
}

impl Answers {
    /// The next row; `None` after the last.
    ///
    /// # Errors
    /// [`NotFound`], what the server says, or a connection that broke.
    pub fn read_row<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(ANSWER_BYTES_MAX as u64).read_until(b'\n', &mut line);
        read.context("the collector did not answer in time; look at its log")?;
        if line.is_empty() {
            bail!("the collector hung up; it may have been stopped");
        }
        let unreadable = "the collector's answer can't be read; are both of the same version?";
        match serde_json::from_slice(&line).context(unreadable)? {
            Answer::Row(row) => Ok(Some(serde_json::from_value(row).context(unreadable)?)),
            Answer::End => Ok(None),
            Answer::NotFound(text) => Err(NotFound(text).into()),
            Answer::Error(text) => bail!(text),
        }
    }
}

fn unreachable_server(socket: &Path, error: &std::io::Error) -> anyhow::Error {
    let place = socket.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow::anyhow!(
            "no collector answers at {place}; start it with `vidette serve`, or name its state folder with --state"
        ),
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!(
                "you may not open {place}; run this as root or as the user that runs `vidette serve`"
            )
        }
        _ => anyhow::anyhow!("could not connect to {place}: {error}"),
    }
}
