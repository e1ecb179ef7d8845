//! What is seen from outside: how the collector and its fleet do, for people, for Prometheus and for health checks.
//!
//! `Lookout::look` asks every stage and sums up (`picture`); `agents` judges one agent, `findings` says what needs
//! attention, `metrics` writes it down, `http` serves it. All but `http` and `process` decide without doing. The
//! commands of `cli` read the same picture, so that `vidette status` and a dashboard never disagree.

/// One agent: connected, silent, late, blind.
pub mod agents;
/// Everything at one moment.
pub mod picture;
/// What somebody should look at today, or now.
pub mod findings;
/// The picture in Prometheus' words.
pub mod metrics;
/// This process, from `/proc`.
pub mod process;
/// Whether it is alive, whether it can take events.
pub mod probes;
/// The listener.
pub mod http;

use crate::identity::{AgentRecord, Identity, unix_s_now};
use crate::ingest::{Fleet, Tally};
use crate::sinks::Overview;
use crate::store::Handle;
use crate::store::recent::{Day, Gaps};
use agents::{Brief, Judged, Moment};
use picture::Picture;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vidette_protocol::id::AgentId;

/// A picture for strangers may be so old: whoever asks more often is shown the same one, and costs nothing.
pub const PICTURE_AGE_MAX: Duration = Duration::from_secs(1);

/// The stages, for those who look.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Agents as they are registered.
    pub identity: Identity,
    /// Events.
    pub store: Handle,
    /// Connections.
    pub fleet: Fleet,
    /// What ingest counts.
    pub tally: Tally,
    /// Sinks.
    pub sinks: Overview,
    /// Places for connections.
    pub connections_max: usize,
    /// How often agents send a Status. Seconds.
    pub heartbeat_s: u32,
}

/// The handle. Clones share everything.
#[derive(Debug, Clone)]
pub struct Lookout(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sources: Sources,
    started: Instant,
    started_unix_s: i64,
    stopping: AtomicBool,
    last: Mutex<Option<(Instant, Arc<Picture>)>>,
}

impl Lookout {
    /// Starts to count the uptime.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        Self(Arc::new(Inner {
            sources,
            started: Instant::now(),
            started_unix_s: unix_s_now(),
            stopping: AtomicBool::new(false),
            last: Mutex::default(),
        }))
    }

    /// From now on it is not ready any more.
    pub fn stopping(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// Everything as it is now, or was not longer ago than `age_max`. Blocks: reads the register and sizes of files.
    ///
    /// # Errors
    /// When the register can't be read.
    pub fn look(&self, age_max: Duration) -> anyhow::Result<Arc<Picture>> {
        // The lock is held while it looks: many who ask at once cause one look.
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, picture)) = &*last
            && at.elapsed() < age_max
        {
            return Ok(picture.clone());
        }
        let picture = Arc::new(self.picture()?);
        *last = Some((Instant::now(), picture.clone()));
        Ok(picture)
    }

    /// Every agent that is registered, and what is to be thought of it. Blocks: reads the register.
    ///
    /// # Errors
    /// When the register can't be read.
    pub fn agents(&self) -> anyhow::Result<Vec<(AgentRecord, Judged)>> {
        self.judged(&self.0.sources.store.day())
    }

    /// What is to be thought of one agent.
    #[must_use]
    pub fn judge(&self, record: &AgentRecord) -> Judged {
        let brief = self.0.sources.fleet.member(record.id).as_ref().map(Brief::new);
        let gaps = self.0.sources.store.day().agents.get(&record.id).copied().unwrap_or_default();
        agents::judge(record, brief.as_ref(), gaps, &self.moment())
    }

    /// Alive: the thread that writes the store makes progress, or has nothing to do.
    ///
    /// # Errors
    /// One line: why not.
    pub fn alive(&self) -> Result<(), String> {
        probes::alive(self.0.sources.store.commits().work())
    }

    /// Ready: agents can connect, and what they send can be committed. Blocks: asks the file system.
    ///
    /// # Errors
    /// One line: why not.
    pub fn ready(&self) -> Result<(), String> {
        let sources = &self.0.sources;
        probes::ready(&probes::Signs {
            work: sources.store.commits().work(),
            failing: sources.store.commits().failing(),
            is_stopping: self.0.stopping.load(Ordering::Relaxed),
            connections: sources.tally.totals().open,
            connections_max: sources.connections_max as u64,
            free_bytes: sources.store.free_bytes(),
        })
    }

    fn picture(&self) -> anyhow::Result<Picture> {
        let sources = &self.0.sources;
        let day = sources.store.day();
        let agents = self.judged(&day)?;
        let commits = sources.store.commits();
        let own = sources.identity.own_info();
        Ok(Picture {
            moment: self.moment(),
            uptime_s: self.0.started.elapsed().as_secs(),
            agents: picture::sums(&agents),
            day,
            ingest: sources.tally.totals(),
            connections_max: sources.connections_max as u64,
            store: sources.store.sizes(),
            free_bytes: sources.store.free_bytes(),
            commits: commits.times(Instant::now()),
            work: commits.work(),
            failing: commits.failing(),
            sinks: sources.sinks.all(*sources.store.changed().borrow()),
            certificate_expires_unix_s: Some(own.expires_unix_s),
            certificate_trouble: own.trouble,
            ca_expires_unix_s: sources.identity.ca_expiry().ok(),
            process: process::read(),
        })
    }

    fn judged(&self, day: &Day) -> anyhow::Result<Vec<(AgentRecord, Judged)>> {
        let sources = &self.0.sources;
        let mut briefs: HashMap<AgentId, Brief> = HashMap::new();
        sources.fleet.for_each(|agent, member| {
            briefs.insert(agent, Brief::new(member));
        });
        let moment = self.moment();
        let judge = |record: AgentRecord| {
            let gaps: Gaps = day.agents.get(&record.id).copied().unwrap_or_default();
            let judged = agents::judge(&record, briefs.get(&record.id), gaps, &moment);
            (record, judged)
        };
        Ok(sources.identity.agents()?.into_iter().map(judge).collect())
    }

    fn moment(&self) -> Moment {
        Moment {
            now_unix_s: unix_s_now(),
            started_unix_s: self.0.started_unix_s,
            heartbeat_s: self.0.sources.heartbeat_s,
        }
    }
}
