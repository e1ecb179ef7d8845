//! The collector on one page: which stage is made from what, and in which order they end.
//!
//! ```text
//! agents ==QUIC==> ingest -> store -> sinks -> SIEM
//!                     identity ^         ^ cursors
//!                 outside: looks at all of them; admin socket and /metrics: ask it
//! ```
//!
//! State folder (0700): `lock`, `identity/`, `store/`, `cursors/`, `connections`, `vidette.sock`, and the default sink's
//! `alerts.jsonl`. Start: lock, socket, identity, store, ingest, sinks, and then commands are answered — so that nothing
//! is accepted that could not be stored and nobody is told to join a collector that can't listen. End: ingest first, so that nothing new comes;
//! then the sinks, each with its grace time; then the store, which has committed all that was acknowledged.

use crate::backup;
use crate::cli::output;
use crate::cli::socket::{answers::Office, server, socket_path};
use crate::config::{Config, PORT_DEFAULT};
use crate::identity::Identity;
use crate::ingest::{self, Fleet, Ingest, Tally};
use crate::outside::{self, Lookout, Sources};
use crate::service::Service;
use crate::sinks::Sinks;
use crate::stop::{self, Stop};
use crate::store::{self, Handle, Store};
use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::io::IsTerminal;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;
use vidette_protocol::join::Address;

/// For the sinks to end: their own grace time and then some.
const SINKS_END_MAX: Duration = Duration::from_secs(10);

/// How often the stages are asked whether they still work.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// For the store's last commit.
const STORE_END_MAX: Duration = Duration::from_secs(5);

/// Runs the collector until it is told to stop, or a stage fails.
///
/// # Errors
/// One sentence: what could not start, or what failed.
pub async fn run(config: Config, mut stop: Stop) -> anyhow::Result<()> {
    let config = Config { state: prepare(&config.state)?, ..config };
    let _lock = lock(&config.state)?;
    // Bound before anything runs, so that what prevents a start is said before anything has to be ended.
    let socket = server::bind(&socket_path(&config.state))?;
    let identity = Identity::open(&config.state.join("identity"))?;
    let store = store::open(store::Config {
        folder: config.state.join(store::FOLDER),
        retention_days: config.retention_days,
    })?;
    let metrics = config.metrics.map(outside::http::bind).transpose()?;
    let (fleet, tally) = (Fleet::default(), Tally::default());
    let ingest = listen(&config, &identity, &store.handle(), (&fleet, &tally))?;
    let advertise = advertised(&config, ingest.address())?;
    let (sinks_stopper, sinks_stop) = stop::channel();
    let sinks = Sinks::start(&config.sinks, &config.state.join("cursors"), &store.handle(), &sinks_stop)?;
    let lookout = Lookout::new(Sources {
        identity: identity.clone(),
        store: store.handle(),
        fleet: fleet.clone(),
        tally,
        sinks: sinks.overview(),
        connections_max: ingest::CONNECTIONS_MAX,
        heartbeat_s: config.heartbeat_s,
    });
    let own_id = identity.own_id();
    let office = Office {
        identity,
        store: store.handle(),
        fleet,
        notices: Some(ingest.notices()),
        sinks: sinks.overview(),
        lookout: lookout.clone(),
        listen: ingest.address(),
        advertise,
    };
    let (socket_stopper, socket_stop) = stop::channel();
    announce(&config, &office);
    let page =
        metrics.map(|port| tokio::spawn(outside::http::serve(port, lookout.clone(), socket_stop.clone())));
    let commands = tokio::spawn(server::serve(socket, office, socket_stop));
    let recalling = store.handle();
    drop(tokio::task::spawn_blocking(move || {
        if let Err(error) = recalling.recall() {
            tracing::warn!(error = %format!("{error:#}"), "could not count the alerts of the last day");
        }
    }));

    let checking = store.handle();
    drop(tokio::task::spawn_blocking(move || checking.keep_checking()));

    let service = Service::of_this_process();
    service.tell("READY=1");
    let beating = tokio::spawn(service.clone().beat(store.handle(), own_id));

    let failed = tokio::select! {
        () = stop.wait() => None,
        name = a_failed_stage(&store, &ingest, &commands, page.as_ref()) => Some(name),
    };
    service.tell("STOPPING=1");
    beating.abort();
    let _ = beating.await;
    lookout.stopping();
    ingest.stop().await;
    sinks_stopper.stop();
    let ending = tokio::task::spawn_blocking(move || sinks.join());
    if tokio::time::timeout(SINKS_END_MAX, ending).await.is_err() {
        tracing::warn!("a sink did not end in time; it goes on from its cursor at the next start");
    }
    socket_stopper.stop();
    let _ = commands.await;
    if let Some(page) = page {
        let _ = page.await;
    }
    drop(lookout);
    let _ = std::fs::remove_file(socket_path(&config.state));
    // It ends when the last handle is gone; whatever was acknowledged is committed already.
    let closing = tokio::task::spawn_blocking(move || store.join());
    if tokio::time::timeout(STORE_END_MAX, closing).await.is_err() {
        tracing::warn!("the store was still in use; what it acknowledged is committed");
    }
    tracing::info!("stopped; everything acknowledged is stored");
    if let Some(name) = failed {
        bail!("the stage `{name}` failed; what it was doing is in the log above");
    }
    Ok(())
}

/// The name of the first stage that ended by itself, which none does unless something broke.
async fn a_failed_stage(
    store: &Store,
    ingest: &Ingest,
    commands: &JoinHandle<()>,
    page: Option<&JoinHandle<()>>,
) -> &'static str {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let ended = [
            ("store", store.is_finished()),
            ("ingest", ingest.is_finished()),
            ("commands", commands.is_finished()),
            ("metrics", page.is_some_and(JoinHandle::is_finished)),
        ];
        if let Some((name, _)) = ended.into_iter().find(|(_, ended)| *ended) {
            return name;
        }
    }
}

/// Makes the state folder, or checks it: ours, and closed to everybody else. Gives the way to it without links: it may be one itself,
/// which systemd makes for `DynamicUser=`, but SQLite then refuses what lies below (`SQLITE_OPEN_NOFOLLOW`).
fn prepare(state: &Path) -> anyhow::Result<PathBuf> {
    let next = "check that vidette may write there, or choose another folder with --state";
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(state)
        .with_context(|| format!("could not make the state folder {}; {next}", state.display()))?;
    if backup::is_half_restored(state) {
        bail!(
            "a restore into {} was not finished, it has a folder `{}`: move away what is there and restore again",
            state.display(),
            backup::RESTORING
        );
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(state, flags, Mode::empty())
        .with_context(|| format!("could not open the state folder {}; {next}", state.display()))?;
    let stat = rustix::fs::fstat(&folder)?;
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != me {
        bail!(
            "the state folder {} belongs to user {}, not to {me} who runs this; {next}",
            state.display(),
            stat.st_uid
        );
    }
    if stat.st_mode & 0o077 != 0 {
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(0o700)).with_context(|| {
            format!("could not close the state folder {} to other users", state.display())
        })?;
        tracing::warn!(folder = %state.display(), "the state folder was open to other users; it is closed now");
    }
    std::fs::canonicalize(state)
        .with_context(|| format!("could not follow the way to the state folder {}; {next}", state.display()))
}

/// One collector for a state folder. The lock lasts as long as the descriptor, however the process ends.
fn lock(state: &Path) -> anyhow::Result<OwnedFd> {
    let path = state.join("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).with_context(|| {
        format!(
            "could not write {}; check that vidette may write there, or choose another --state",
            path.display()
        )
    })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!(
                "another `vidette serve` uses {}; stop it, or choose another folder with --state",
                state.display()
            )
        }
        Err(error) => Err(error).with_context(|| format!("could not lock {}", path.display())),
    }
}

/// The configured address; or all of IPv6 and IPv4, or all of IPv4 on a host without IPv6.
fn listen(
    config: &Config,
    identity: &Identity,
    store: &Handle,
    (fleet, tally): (&Fleet, &Tally),
) -> anyhow::Result<Ingest> {
    let wanted = config.listen;
    let start = |listen: SocketAddr| {
        let heartbeat_s = config.heartbeat_s;
        let (tally, remember) = (tally.clone(), Some(config.state.clone()));
        let config = ingest::Config { heartbeat_s, tally, remember, ..ingest::Config::new(listen) };
        ingest::start(&config, identity.clone(), store.clone(), fleet.clone())
    };
    let first = wanted.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, PORT_DEFAULT).into());
    let result = match start(first) {
        Err(error) if wanted.is_none() && !is_taken(&error) => {
            tracing::info!(error = format!("{error:#}"), "no IPv6 here; listening on IPv4 only");
            start((Ipv4Addr::UNSPECIFIED, PORT_DEFAULT).into())
        }
        other => other,
    };
    match result {
        Err(error) if is_taken(&error) => {
            bail!(
                "UDP port {} is taken; stop what uses it (`ss -ulpn`), or choose another with --listen",
                first.port()
            )
        }
        Err(error) => {
            Err(error.context(format!("could not listen on {first}; choose another address with --listen")))
        }
        Ok(ingest) => Ok(ingest),
    }
}

fn is_taken(error: &anyhow::Error) -> bool {
    let taken = rustix::io::Errno::ADDRINUSE;
    error.chain().any(|cause| {
        cause.downcast_ref::<rustix::io::Errno>() == Some(&taken)
            || cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
                == Some(taken.raw_os_error())
    })
}

/// What join lines say: as configured, else this host's name, else the address listened on.
fn advertised(config: &Config, listen: SocketAddr) -> anyhow::Result<Address> {
    if let Some(text) = &config.advertise {
        return text.parse().with_context(|| format!("could not use `advertise` {text:?}"));
    }
    if !listen.ip().is_unspecified() {
        return Ok(Address { host: listen.ip().to_string(), port: listen.port() });
    }
    let names = rustix::system::uname();
    let named = format!("{}:{}", names.nodename().to_string_lossy(), listen.port());
    Ok(named.parse().unwrap_or_else(|_| Address { host: "localhost".into(), port: listen.port() }))
}

fn announce(config: &Config, office: &Office) {
    let pin = data_encoding::HEXLOWER.encode(&office.identity.pin());
    tracing::info!(listen = %office.listen, advertise = %office.advertise, pin, state = %config.state.display(), "the collector is running");
    if std::io::stderr().is_terminal() {
        let state = if config.state == Path::new(crate::config::STATE_DEFAULT) {
            String::new()
        } else {
            format!(" --state {}", config.state.display())
        };
        output::hint(&format!(
            "\nVidette listens on UDP {} (hosts are told {}).\nIts key's pin is {pin}.\nNext, in another terminal: vidette tokens create{state}\n^C ends it.\n",
            office.listen, office.advertise
        ));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_state_folder_is_made_and_closed() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        prepare(&state).unwrap();
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o755)).unwrap();
        prepare(&state).unwrap();
        assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(folder.path().join("file"), "").unwrap();
        let error = format!("{:#}", prepare(&folder.path().join("file")).unwrap_err());
        assert!(error.contains("file") && error.contains("--state"), "{error}");
    }

    #[test]
    fn a_second_collector_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let error = lock(folder.path()).unwrap_err().to_string();
        assert!(error.contains("another `vidette serve`"), "{error}");
        drop(first);
        lock(folder.path()).unwrap();
    }
}
