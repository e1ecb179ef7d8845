//! The server's end of the admin socket: who may ask, how much, and for how long. What is answered is in `answers`.

use super::answers::{self, Office};
use super::{ANSWER_BYTES_MAX, Answer, REQUEST_BYTES_MAX, Request};
use crate::stop::Stop;
use anyhow::{Context, bail};
use rustix::fs::{FileType, Mode};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// Commands that are served at a time, followers among them.
const CONNECTIONS_MAX: usize = 32;
/// For the request line to arrive.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// For one answer line to be taken.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// Answer lines made ahead of the asker.
const LINES_AHEAD_MAX: usize = 16;
/// unix(7): `sun_path`, with its final zero. Bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// A pause after a failed accept, so that a lack of descriptors is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the socket with mode 0600. A socket left by a dead server is replaced: the caller holds the state folder's
/// lock, so nobody listens on it.
///
/// # Errors
/// When something else is in its place, or the path is too long.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        bail!("the socket's path {} is over {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter --state", path.display());
    }
    match rustix::fs::lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
            std::fs::remove_file(path).with_context(|| format!("could not remove the old socket {}", path.display()))?;
        }
        Ok(_) => bail!("{} is in the way and is no socket; move it away", path.display()),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("could not look at {}", path.display())),
    }
    // The folder is 0700, so nobody else reaches it before its mode is set.
    let listener = UnixListener::bind(path).with_context(|| format!("could not make the socket {}", path.display()))?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o600))
        .with_context(|| format!("could not protect the socket {}", path.display()))?;
    Ok(listener)
}

/// Serves commands until told to stop. Safe to drop.
pub async fn serve(listener: UnixListener, office: Office, mut stop: Stop) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.wait() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept a command; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            let refusal = Answer::Error(format!("{CONNECTIONS_MAX} commands are being served already; end one first"));
            let _ = write(&mut { stream }, &refusal).await;
            continue;
        };
        let (office, stop) = (office.clone(), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = converse(stream, office, stop).await {
                tracing::debug!(error = format!("{error:#}"), "a command was cut off");
            }
            drop(place);
        });
    }
}

async fn converse(mut stream: UnixStream, office: Office, mut stop: Stop) -> anyhow::Result<()> {
    if let Err(error) = admit(&stream) {
        tracing::warn!(%error, "somebody was refused on the admin socket");
        return write(&mut stream, &Answer::Error(error.to_string())).await;
    }
    let request = match timeout(REQUEST_TIME_MAX, read(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return write(&mut stream, &Answer::Error(format!("{error:#}"))).await,
        Err(_) => return write(&mut stream, &Answer::Error("no request came in time".into())).await,
    };
    let (sender, mut lines) = mpsc::channel(LINES_AHEAD_MAX);
    let answering = tokio::spawn(answers::answer(request, office, sender));
    let result = async {
        loop {
            let line = tokio::select! {
                biased;
                () = stop.wait() => return write(&mut stream, &Answer::Error("the collector is stopping".into())).await,
                () = hung_up(&stream) => return Ok(()),
                line = lines.recv() => line,
            };
            let Some(line) = line else { return Ok(()) };
            write(&mut stream, &line).await?;
        }
    }
    .await;
    // Whoever answers finds the channel closed; a follower that waits for news would not notice.
    answering.abort();
    result
}

/// Root and the server's own user (unix(7): `SO_PEERCRED`, filled in by the kernel at connect).
fn admit(stream: &UnixStream) -> anyhow::Result<()> {
    let uid = stream.peer_cred().context("could not see who is asking")?.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        bail!("user {uid} may not use the admin socket; run this as root or as the user that runs `vidette serve`");
    }
    Ok(())
}

async fn read(stream: &mut UnixStream) -> anyhow::Result<Request> {
    let mut line = Vec::new();
    let mut bounded = BufReader::new(stream.take(REQUEST_BYTES_MAX as u64));
    bounded.read_until(b'\n', &mut line).await.context("could not read the request")?;
    if line.last() != Some(&b'\n') {
        bail!("the request has no end within {REQUEST_BYTES_MAX} bytes");
    }
    serde_json::from_slice(&line).context("this is no request that this version knows")
}

/// Askers say one thing only: the end of the stream, or anything more, is their end.
async fn hung_up(stream: &UnixStream) {
    let mut more = [0; 1];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut more) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

async fn write(stream: &mut UnixStream, answer: &Answer) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    if line.len() >= ANSWER_BYTES_MAX {
        line = serde_json::to_vec(&Answer::Error("an answer was too large to send".into()))?;
    }
    line.push(b'\n');
    timeout(WRITE_TIME_MAX, stream.write_all(&line)).await.context("the asker took nothing")??;
    Ok(())
}
