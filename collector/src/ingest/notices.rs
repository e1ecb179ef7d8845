//! What the collector itself has to say: who joined, left, was revoked, or is there twice. Stored as events, so that it
//! goes to every sink like what agents say.
//!
//! They stand under an id of the collector's own (`Identity::own_id`) and an epoch that is new at every start, as if from
//! an agent on this host. Whoever tells does not wait: a bounded queue, one task that commits in order and tries again
//! while the store can't be written. What finds the queue full is counted, and the count is the next event. A collector
//! that is killed loses what was not committed yet: every fact told here is in the register or the log too.

use super::Commits;
use super::session::{Arrival, Committed, Received};
use crate::identity::{CloneSign, Evidence};
use prost::Message;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::limits::NAME_BYTES_MAX;
use vidette_protocol::wire::{self, event::Kind};
use vidette_protocol::{check, escape};

/// Notices that wait for the store.
pub const NOTICES_MAX: usize = 1024;
/// After a failed commit. Milliseconds.
const RETRY_MS: u64 = 500;

/// Something that the collector saw or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A host has joined and is this agent now.
    Joined {
        /// The new one.
        agent: AgentId,
        /// As it says.
        host_name: Vec<u8>,
        /// Where it came from.
        address: SocketAddr,
        /// What its token put it into.
        group: Option<String>,
        /// Older agents that seem to be of the same host, by their ids.
        replaces: Vec<String>,
    },
    /// An agent has left by itself.
    Left {
        /// Which.
        agent: AgentId,
        /// Where it said so.
        address: SocketAddr,
    },
    /// Somebody shut an agent out.
    Revoked {
        /// Which.
        agent: AgentId,
        /// As it says.
        host_name: Vec<u8>,
        /// Its live connection was cut.
        was_connected: bool,
    },
    /// An agent's identity was copied: all copies are set aside.
    Cloned(CloneSign),
    /// An agent has a newer certificate than this collector knows of.
    Ahead {
        /// Which.
        agent: AgentId,
        /// Where it comes from.
        address: SocketAddr,
        /// Of its certificate.
        generation: u64,
        /// The newest that was known.
        newest: u64,
    },
    /// Two live connections with the certificate of one agent.
    Twice {
        /// Which.
        agent: AgentId,
        /// Where the one that was cut comes from.
        older: SocketAddr,
        /// Where the one that goes on comes from.
        newer: SocketAddr,
        /// How often it was so before, since it was told last.
        untold: u64,
    },
    /// Somebody went a step in the replacement of the CA.
    Ca {
        /// Which.
        change: CaChange,
        /// The CA that it is about: SHA-256 of its root's public key.
        pin: [u8; 32],
        /// Agents that can't connect any more because of it.
        locked_out: u64,
    },
    /// An agent was not heard for two heartbeats.
    Silent(Absent),
    /// An agent that was called silent is heard again.
    Back(Absent),
    /// Many at once were not heard for two heartbeats.
    ManySilent {
        /// How many.
        count: usize,
        /// Some of them.
        named: Vec<Absent>,
    },
    /// Many at once are heard again.
    ManyBack {
        /// How many.
        count: usize,
        /// Some of them.
        named: Vec<Absent>,
    },
}

/// A step in the replacement of the CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaChange {
    /// Agents are told to trust the next one.
    Prepared,
    /// The next one issues.
    Activated,
    /// The one before is trusted no longer.
    Retired,
    /// The next one is forgotten.
    Withdrawn,
}

impl CaChange {
    /// As events name it.
    #[must_use]
    pub fn action(self) -> &'static str {
        match self {
            Self::Prepared => "ca-prepared",
            Self::Activated => "ca-activated",
            Self::Retired => "ca-retired",
            Self::Withdrawn => "ca-withdrawn",
        }
    }
}

/// An agent that is, or was, away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absent {
    /// Which.
    pub agent: AgentId,
    /// As it says.
    pub host_name: Vec<u8>,
    /// For how long.
    pub time: Duration,
    /// Where it was connected from last.
    pub address: Option<SocketAddr>,
    /// Its connection is there all the same.
    pub is_connected: bool,
    /// Its last word was that it stops.
    pub said_goodbye: bool,
    /// Why it was refused since it was heard last.
    pub refused: Option<String>,
}

/// The handle. Clones share everything.
#[derive(Debug, Clone)]
pub struct Notices {
    queue: mpsc::Sender<Said>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Said {
    Event(Box<wire::Event>),
    Flush(oneshot::Sender<()>),
}

impl Notices {
    /// And the task that stores what is told, to be spawned. It ends with the last handle.
    pub(super) fn new<S: Commits>(own: AgentId, store: S) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(NOTICES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let keeper = Keeper { own, epoch: rand::random(), next: 1, store, lost: lost.clone() };
        (Self { queue, lost }, keeper.keep(waiting))
    }

    /// Tells it; never waits.
    pub fn tell(&self, notice: &Notice) {
        if self.queue.try_send(Said::Event(Box::new(event(notice)))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all that was told is committed, but not for longer than `time`.
    pub(super) async fn flush(&self, time: Duration) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            if self.queue.send(Said::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        let _ = tokio::time::timeout(time, flush).await;
    }
}

struct Keeper<S> {
    own: AgentId,
    epoch: u64,
    next: u64,
    store: S,
    lost: Arc<AtomicU64>,
}

impl<S: Commits> Keeper<S> {
    async fn keep(mut self, mut waiting: mpsc::Receiver<Said>) {
        while let Some(said) = waiting.recv().await {
            match said {
                Said::Event(event) => self.store(*event).await,
                // Whoever asked may have stopped waiting.
                Said::Flush(done) => {
                    let _ = done.send(());
                }
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                tracing::error!(lost, "notices of the collector were lost: too many came at once");
                self.store(lost_event(lost)).await;
            }
        }
    }

    /// Again and again until it is committed.
    async fn store(&mut self, event: wire::Event) {
        let body = event.encode_to_vec();
        loop {
            let arrival = Arrival {
                agent: self.own,
                epoch: self.epoch,
                class: Class::Alert,
                first_seq: self.next,
                skipped: 0,
                events: vec![Received { event: event.clone(), body: body.clone() }],
            };
            match self.store.commit(arrival).await {
                Ok(Committed::Durable(_)) => {
                    self.next += 1;
                    return;
                }
                Ok(Committed::Hole { expected }) => self.next = expected,
                Err(error) => {
                    tracing::debug!(error = %format!("{error:#}"), "a notice waits for the store");
                    tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
                }
            }
        }
    }
}

fn event(notice: &Notice) -> wire::Event {
    let (action, severity, detail) = match notice {
        Notice::Joined { agent, host_name, address, group, replaces } => {
            let group = group.as_ref().map_or_else(String::new, |group| {
                format!(" in group {}", escape::terminal(group.as_bytes()))
            });
            let joined =
                format!("agent {agent} joined{group} on {} from {address}", escape::terminal(host_name));
            if replaces.is_empty() {
                ("agent-joined", wire::Severity::Info, joined)
            } else {
                let older = replaces.join(", ");
                (
                    "agent-joined",
                    wire::Severity::Low,
                    format!("{joined}; it replaces {older} of the same host"),
                )
            }
        }
        Notice::Left { agent, address } => {
            ("agent-left", wire::Severity::Medium, format!("agent {agent} left from {address}"))
        }
        Notice::Revoked { agent, host_name, was_connected } => {
            let cut = if *was_connected { "its live connection was cut" } else { "it was not connected" };
            let detail = format!("agent {agent} on {} was revoked; {cut}", escape::terminal(host_name));
            ("agent-revoked", wire::Severity::Medium, detail)
        }
        Notice::Cloned(sign) => ("agent-cloned", wire::Severity::High, copied(sign)),
        Notice::Ahead { agent, address, generation, newest } => (
            "agent-ahead",
            wire::Severity::Medium,
            format!(
                "agent {agent} came from {address} with certificate {generation}, and this collector knew of {newest} only: \
                 it was restored from a backup, and has taken the agent's over"
            ),
        ),
        Notice::Twice { agent, older, newer, untold } => {
            let more = if *untold > 0 { format!("; so were {untold} before") } else { String::new() };
            let detail = format!(
                "agent {agent} was connected from {older} and from {newer} at the same time with one certificate: its \
                 identity was copied; the newer connection goes on{more}; find the copy, then `vidette agents revoke \
                 {agent}` and join both hosts anew"
            );
            ("agent-connected-twice", wire::Severity::High, detail)
        }
        Notice::Ca { change, pin, locked_out } => ca(*change, pin, *locked_out),
        Notice::Silent(absent) if absent.said_goodbye => {
            ("agent-silent", wire::Severity::Medium, silent(absent))
        }
        Notice::Silent(absent) => ("agent-silent", wire::Severity::High, silent(absent)),
        Notice::Back(absent) => {
            let detail = format!("agent {} is heard again after {} s", named(absent), absent.time.as_secs());
            ("agent-back", wire::Severity::Info, detail)
        }
        Notice::ManySilent { count, named } => {
            let detail = format!("{count} agents were not heard for two heartbeats{}", some(named));
            ("agents-silent", wire::Severity::High, detail)
        }
        Notice::ManyBack { count, named } => {
            let detail = format!("{count} agents are heard again{}", some(named));
            ("agents-back", wire::Severity::Info, detail)
        }
    };
    audit(action, severity, detail)
}

fn copied(sign: &CloneSign) -> String {
    let CloneSign { agent, generation, newest, from, .. } = sign;
    let other = sign.other.as_deref().unwrap_or("an unknown address");
    let seen = match sign.evidence {
        Evidence::Superseded => {
            format!(
                "{from} came with certificate {generation}, and {other} has had certificate {newest} in use since"
            )
        }
        Evidence::TwoKeys => {
            format!("{from} and {other} each had a key of their own for the certificate after {generation}")
        }
        Evidence::OtherKey => {
            format!("{from} came with another certificate {generation} than the one of {other}")
        }
    };
    format!(
        "the identity of agent {agent} was copied, or its host was set back to an older snapshot: {seen}; every copy is \
         set aside; find the right host and run `vidette-agent join --again` on it"
    )
}

fn ca(change: CaChange, pin: &[u8; 32], locked_out: u64) -> (&'static str, wire::Severity, String) {
    let pin = data_encoding::HEXLOWER.encode(pin);
    let (severity, detail) = match (change, locked_out) {
        (CaChange::Prepared, _) => {
            (wire::Severity::Medium, format!("the CA {pin} is prepared: agents are told to trust it"))
        }
        (CaChange::Activated, _) => (wire::Severity::Medium, format!("the CA {pin} issues from now on")),
        (CaChange::Withdrawn, _) => {
            (wire::Severity::Medium, format!("the prepared CA {pin} is withdrawn: agents trust it no longer"))
        }
        (CaChange::Retired, 0) => {
            (wire::Severity::Medium, format!("the CA {pin} is retired: nobody needed it"))
        }
        (CaChange::Retired, count) => (
            wire::Severity::High,
            format!("the CA {pin} is retired by force: {count} agents are locked out until they join again"),
        ),
    };
    (change.action(), severity, detail)
}

fn silent(absent: &Absent) -> String {
    let mut detail = format!("agent {} was not heard for {} s", named(absent), absent.time.as_secs());
    if let Some(address) = absent.address {
        detail += &format!(", last from {address}");
    }
    if absent.said_goodbye {
        detail += "; before, it had said that it stops";
    } else if absent.is_connected {
        detail += "; its connection is there, and nobody speaks on it";
    }
    if let Some(refused) = &absent.refused {
        detail += &format!("; it was refused since: {}", escape::terminal(refused.as_bytes()));
    } else if !absent.said_goodbye {
        detail += "; look whether the host is up, whether its agent was stopped, and whether a firewall is in the way";
    }
    detail
}

fn named(absent: &Absent) -> String {
    if absent.host_name.is_empty() {
        return absent.agent.to_string();
    }
    format!("{} on {}", absent.agent, escape::terminal(&absent.host_name))
}

fn some(absent: &[Absent]) -> String {
    let names: Vec<String> = absent.iter().map(named).collect();
    format!(", among them {}; `vidette agents list` shows all", names.join(", "))
}

fn lost_event(lost: u64) -> wire::Event {
    let detail = format!("{lost} notices of the collector were not stored: too many came at once");
    audit("notices-lost", wire::Severity::High, detail)
}

fn audit(action: &str, severity: wire::Severity, detail: String) -> wire::Event {
    let system = rustix::system::uname();
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let uptime = Duration::new(
        u64::try_from(uptime.tv_sec).unwrap_or_default(),
        u32::try_from(uptime.tv_nsec).unwrap_or_default(),
    );
    let mut event = wire::Event {
        time_unix_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        uptime_ns: u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX),
        host_name: system.nodename().to_bytes().iter().copied().take(NAME_BYTES_MAX).collect(),
        boot_id: String::new(),
        severity: severity as i32,
        kind: Some(Kind::Audit(wire::Audit {
            action: action.to_owned(),
            outcome: "success".to_owned(),
            detail,
            process: None,
        })),
    };
    check::cut(&mut event);
    event
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Fails the first commits; keeps what it takes.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<Kept>>);

    /// How many more commits fail, and what was taken.
    type Kept = (u32, Vec<(u64, wire::Event)>);

    impl Commits for Disk {
        async fn commit(&self, arrival: Arrival) -> anyhow::Result<Committed> {
            let mut disk = self.0.lock().unwrap();
            if disk.0 > 0 {
                disk.0 -= 1;
                anyhow::bail!("full");
            }
            assert_eq!((arrival.agent, arrival.class), (AgentId([9; 16]), Class::Alert));
            let seq = arrival.first_seq;
            disk.1.extend(arrival.events.into_iter().map(|received| (seq, received.event)));
            Ok(Committed::Durable(seq))
        }

        async fn durable(&self, _: AgentId, _: u64) -> anyhow::Result<Vec<(Class, u64)>> {
            Ok(Vec::new())
        }
    }

    fn details(disk: &Disk) -> Vec<(u64, String)> {
        let disk = disk.0.lock().unwrap();
        let detail = |event: &wire::Event| match &event.kind {
            Some(Kind::Audit(audit)) => format!("{} {}", audit.action, audit.detail),
            other => panic!("{other:?}"),
        };
        disk.1.iter().map(|(seq, event)| (*seq, detail(event))).collect()
    }

    fn joined(host_name: &[u8], replaces: &[&str]) -> Notice {
        Notice::Joined {
            agent: AgentId([1; 16]),
            host_name: host_name.to_vec(),
            address: ([192, 0, 2, 1], 7).into(),
            group: Some("we\u{1b}b".into()),
            replaces: replaces.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    #[tokio::test]
    async fn a_full_disk_delays_notices_and_a_full_queue_is_told() {
        let disk = Disk::default();
        disk.0.lock().unwrap().0 = 2;
        let (notices, task) = Notices::new(AgentId([9; 16]), disk.clone());
        for _ in 0..NOTICES_MAX + 5 {
            notices.tell(&joined(b"a", &[]));
        }
        tokio::spawn(task);
        notices.flush(Duration::from_secs(60)).await;
        notices.flush(Duration::from_secs(60)).await;
        let said = details(&disk);
        assert_eq!(said.len(), NOTICES_MAX + 1);
        assert!(said.iter().map(|(seq, _)| *seq).eq(1..=said.len() as u64), "in order, without holes");
        let lost: Vec<&String> = said.iter().map(|(_, text)| text).filter(|t| t.contains("lost")).collect();
        assert!(lost.len() == 1 && lost[0].contains("5 notices"), "{lost:?}");
    }

    #[test]
    fn what_hosts_say_is_harmless_and_both_addresses_are_named() {
        let text = |notice: &Notice| match event(notice).kind {
            Some(Kind::Audit(audit)) => audit.detail,
            other => panic!("{other:?}"),
        };
        let said = text(&joined(b"h\x1b[2J\xff", &["aa", "bb"]));
        assert!(
            !said.contains('\u{1b}') && said.contains("aa, bb") && said.contains("192.0.2.1:7"),
            "{said}"
        );
        let (older, newer) = (([192, 0, 2, 1], 1).into(), ([192, 0, 2, 2], 2).into());
        let twice = Notice::Twice { agent: AgentId([1; 16]), older, newer, untold: 3 };
        let said = text(&twice);
        for part in ["192.0.2.1:1", "192.0.2.2:2", "0101010101", "so were 3 before"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(event(&twice).severity, wire::Severity::High as i32);
        let long = joined(&vec![0xff; NAME_BYTES_MAX], &["f".repeat(32).as_str(); 16]);
        assert_eq!(check::event(&event(&long)), Ok(()), "it is within the limits of every event");
    }
}
