//! Agents that do nothing wrong: one alert each, now and then, and how long its acknowledgement takes.

use super::client::{self, Papers, Session, leave};
use anyhow::{Context, bail};
use quinn::TransportConfig;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::wire::{self, to_agent, to_collector};

/// What one of them had acknowledged.
#[derive(Debug, Clone)]
pub struct Served {
    /// Who.
    pub agent: AgentId,
    /// Which outbox.
    pub epoch: u64,
    /// Everything up to this number was acknowledged.
    pub acknowledged: u64,
}

/// Some of them, at work.
#[derive(Debug)]
pub struct Crew {
    runtime: tokio::runtime::Runtime,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<anyhow::Result<Served>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// One alert.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// When it was sent.
    pub sent: Instant,
    /// How long its acknowledgement took; `None` when the agent was refused instead, or nothing came.
    pub took: Option<Duration>,
}

impl Crew {
    /// Sets them to work: each sends an alert, waits until it is acknowledged, and goes on after `interval`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(papers: Vec<Papers>, interval: Duration) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stop, stopping) = watch::channel(false);
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let count = u32::try_from(papers.len().max(1)).unwrap_or(u32::MAX);
        let mut tasks = Vec::new();
        for (index, papers) in (0..).zip(papers) {
            let late = interval * index / count;
            tasks.push(runtime.spawn(work(papers, interval, late, stopping.clone(), asked.clone())));
        }
        Ok(Self { runtime, stop, tasks, asked })
    }

    /// How long each acknowledgement took since this was asked last, shortest first.
    #[must_use]
    pub fn take_times(&self) -> Vec<Duration> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        let mut times: Vec<Duration> = asked.iter().filter_map(|asked| asked.took).collect();
        times.sort_unstable();
        times
    }

    /// Ends their work.
    ///
    /// # Errors
    /// When one of them was refused anything.
    pub fn stop(self) -> anyhow::Result<Vec<Served>> {
        self.end().0.into_iter().collect()
    }

    /// Ends their work: how each of them fared, and every alert that was not taken by [`Crew::take_times`].
    #[must_use]
    pub fn end(self) -> (Vec<anyhow::Result<Served>>, Vec<Asked>) {
        self.stop.send_replace(true);
        let tasks = self.tasks;
        let ends = self.runtime.block_on(async {
            let mut ends = Vec::new();
            for task in tasks {
                ends.push(task.await.unwrap_or_else(|panicked| Err(panicked.into())));
            }
            ends
        });
        (ends, std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The value below which `part` of all lie.
#[must_use]
pub fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let index = (sorted.len() as f64 * part) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

async fn work(
    papers: Papers,
    interval: Duration,
    late: Duration,
    mut stopping: watch::Receiver<bool>,
    asked: Arc<Mutex<Vec<Asked>>>,
) -> anyhow::Result<Served> {
    let mut limits = TransportConfig::default();
    limits.keep_alive_interval(Some(Duration::from_secs(5)));
    let mut session = Session::open(&papers, limits).await?;
    tokio::time::sleep(late).await;
    let mut seq = 0;
    while !*stopping.borrow() {
        seq += 1;
        let event = client::event(&papers.name, &format!("{} {seq}", papers.name));
        let batch = session.batch(Class::Alert, seq, vec![event])?;
        let sent = Instant::now();
        let answered = answer(&mut session, batch, seq).await;
        let took = answered.is_ok().then(|| sent.elapsed());
        asked.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { sent, took });
        answered.with_context(|| papers.name.clone())?;
        let _ = tokio::time::timeout(interval, stopping.wait_for(|stop| *stop)).await;
    }
    leave(&session.connection);
    session.endpoint.wait_idle().await;
    Ok(Served { agent: papers.agent, epoch: session.epoch, acknowledged: seq })
}

/// Sends a batch, and waits until everything up to `seq` is acknowledged.
async fn answer(session: &mut Session, batch: wire::Batch, seq: u64) -> anyhow::Result<()> {
    session.alerts.say(to_collector::Message::Batch(batch)).await?;
    match session.alerts.hear().await? {
        to_agent::Message::Ack(ack) if ack.seq == seq => Ok(()),
        other => bail!("{other:?} instead of an acknowledgement of {seq}"),
    }
}
