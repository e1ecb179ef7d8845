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
        bail!(
            "the socket's path {} is over {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter --state",
            path.display()
        );
    }
    match rustix::fs::lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
            std::fs::remove_file(path)
                .with_context(|| format!("could not remove the old socket {}", path.display()))?;
        }
        Ok(_) => bail!("{} is in the way and is no socket; move it away", path.display()),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("could not look at {}", path.display())),
    }
    // The folder is 0700, so nobody else reaches it before its mode is set.
    let listener =
        UnixListener::bind(path).with_context(|| format!("could not make the socket {}", path.display()))?;
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
            let refusal =
                Answer::Error(format!("{CONNECTIONS_MAX} commands are being served already; end one first"));
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
    if !may_ask(uid, rustix::process::geteuid().as_raw()) {
        bail!(
            "user {uid} may not use the admin socket; run this as root or as the user that runs `vidette serve`"
        );
    }
    Ok(())
}

fn may_ask(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::socket::client::{ask, ask_one};
    use crate::cli::socket::{Query, socket_path};
    use crate::identity::Identity;
    use crate::ingest::{Fleet, Tally};
    use crate::outside::{Lookout, Sources};
    use crate::sinks::Overview;
    use crate::stop::{self, Stopper};
    use crate::store;
    use std::io::{BufRead, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream as Blocking;

    struct Served {
        folder: tempfile::TempDir,
        _store: store::Store,
        _stopper: Stopper,
    }

    fn served() -> Served {
        let folder = tempfile::tempdir().unwrap();
        let store =
            store::open(store::Config { folder: folder.path().join("store"), retention_days: None }).unwrap();
        let identity = Identity::open(&folder.path().join("identity")).unwrap();
        let lookout = Lookout::new(Sources {
            identity: identity.clone(),
            store: store.handle(),
            fleet: Fleet::default(),
            tally: Tally::default(),
            sinks: Overview::default(),
            connections_max: 1,
            heartbeat_s: 60,
        });
        let office = Office {
            identity,
            store: store.handle(),
            fleet: Fleet::default(),
            notices: None,
            sinks: Overview::default(),
            lookout,
            listen: "127.0.0.1:7441".parse().unwrap(),
            advertise: "localhost:7441".parse().unwrap(),
        };
        let listener = bind(&socket_path(folder.path())).unwrap();
        let (stopper, stop) = stop::channel();
        tokio::spawn(serve(listener, office, stop));
        Served { folder, _store: store, _stopper: stopper }
    }

    /// The first answer line to these bytes.
    fn said(socket: &Path, bytes: &[u8], hang_up: bool) -> String {
        let mut stream = Blocking::connect(socket).unwrap();
        // It may refuse before everything is written.
        let _ = stream.write_all(bytes);
        if hang_up {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut line = String::new();
        let _ = std::io::BufReader::new(stream).read_line(&mut line);
        line
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn garbage_is_refused_and_the_next_one_is_served() {
        let served = served();
        let socket = socket_path(served.folder.path());
        let long = vec![b'x'; REQUEST_BYTES_MAX * 2];
        let table: [(&[u8], &str); 8] = [
            (b"\n", "no request"),
            (b"GET / HTTP/1.1\r\n\r\n", "no request"),
            (b"{}\n", "no request"),
            (b"{\"ask\":\"shell\",\"run\":\"id\"}\n", "no request"),
            (b"{\"ask\":\"events\",\"limit\":1,\"query\":{\"zzz\":1}}\n", "no request"),
            (b"\xff\xfe\x00\n", "no request"),
            (b"{\"ask\":\"status\"}", "no end"),
            (&long, "no end"),
        ];
        for (bytes, expected) in table {
            let place = socket.clone();
            let bytes = bytes.to_vec();
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            let answer = tokio::task::spawn_blocking(move || said(&place, &bytes, true)).await.unwrap();
            assert!(
                answer.starts_with("{\"error\":") && answer.contains(expected),
                "{shown:?} gave {answer:?}"
            );
        }
        let status = move || ask_one::<serde_json::Value>(&socket, &Request::Status);
        let status = tokio::task::spawn_blocking(status).await.unwrap().unwrap();
        assert_eq!(status["listen"], "127.0.0.1:7441");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_not_there_and_what_is_wrong_are_told_apart() {
        let served = served();
        let socket = socket_path(served.folder.path());
        let work = move || {
            let error = |request| ask_one::<serde_json::Value>(&socket, &request).unwrap_err();
            let missing = [
                Request::AgentsShow { agent: "nobody".into() },
                Request::AgentsRevoke { agent: "nobody".into() },
                Request::Event { id: "77".into() },
                Request::TokensRevoke { id: "zzz".into() },
                Request::Events {
                    query: Query { host: Some("nowhere".into()), ..Query::default() },
                    limit: 1,
                },
            ];
            for request in missing {
                let error = error(request.clone());
                assert!(error.is::<crate::cli::socket::client::NotFound>(), "{request:?}: {error:#}");
            }
            let wrong = [
                Request::Event { id: "a/b".into() },
                Request::TokensCreate {
                    for_s: 60,
                    label: None,
                    address: Some("nowhere".into()),
                    uses: 1,
                    group: None,
                },
                Request::TokensCreate {
                    for_s: 60,
                    label: Some("x".repeat(300)),
                    address: None,
                    uses: 1,
                    group: None,
                },
                Request::TokensCreate { for_s: 60, label: None, address: None, uses: 0, group: None },
                Request::TokensCreate {
                    for_s: 60,
                    label: None,
                    address: None,
                    uses: 2,
                    group: Some(String::new()),
                },
                Request::Events {
                    query: Query { severity: Some("bad".into()), ..Query::default() },
                    limit: 1,
                },
                Request::Events {
                    query: Query { classes: vec!["all".into()], ..Query::default() },
                    limit: 1,
                },
            ];
            for request in wrong {
                let error = error(request.clone());
                assert!(!error.is::<crate::cli::socket::client::NotFound>(), "{request:?}: {error:#}");
            }
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn more_commands_than_places_are_told_so() {
        let served = served();
        let socket = socket_path(served.folder.path());
        let work = move || {
            let follow = Request::Follow { query: Query::default() };
            let mut followers: Vec<_> =
                (0..CONNECTIONS_MAX).map(|_| ask(&socket, &follow).unwrap()).collect();
            let answer = said(&socket, b"{\"ask\":\"status\"}\n", false);
            assert!(answer.contains("commands are being served already"), "{answer}");
            followers.pop();
            let until = std::time::Instant::now() + Duration::from_secs(20);
            while !said(&socket, b"{\"ask\":\"status\"}\n", false).starts_with("{\"row\":") {
                assert!(std::time::Instant::now() < until, "a place becomes free when a follower hangs up");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        tokio::task::spawn_blocking(work).await.unwrap();
    }

    #[tokio::test]
    async fn the_socket_is_private_and_replaces_only_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let path = socket_path(folder.path());
        drop(bind(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("in the way"));
        assert!(
            bind(&folder.path().join("x".repeat(200))).unwrap_err().to_string().contains("shorter --state")
        );
    }

    #[test]
    fn only_root_and_the_servers_own_user_may_ask() {
        assert!(may_ask(0, 1000) && may_ask(1000, 1000) && may_ask(0, 0));
        assert!(!may_ask(1001, 1000) && !may_ask(65534, 0));
    }
}
