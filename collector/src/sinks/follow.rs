//! The loop of one sink: read a page after the cursor, send it, wait for more. On trouble: back off, with jitter,
//! open the output again and go on from the durable cursor, for ever.

use super::cursor::{Cursor, CursorFile};
use super::formats::{self, Record};
use super::jsonl::Jsonl;
use super::syslog::Connection;
use super::{Board, State};
use crate::config::{self, Output, Sink};
use crate::stop::Stop;
use crate::store::{Handle, Reader, Stored};
use anyhow::{Context, bail};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

/// Events read at a time: with the largest events 32 MiB.
const PAGE_EVENTS_MAX: usize = 128;
/// First wait after a failure, and its bound.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How often is asked what has settled.
const SETTLE_TICK: Duration = Duration::from_millis(250);
/// Without news from the store it is looked at all the same this often.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Time to finish after "stop".
const GRACE_MAX: Duration = Duration::from_secs(5);

/// What the thread of a sink owns.
#[derive(Debug)]
pub struct Follow {
    /// Its settings.
    pub sink: Sink,
    /// Folder of the cursors.
    pub folder: PathBuf,
    /// Where the events are.
    pub store: Handle,
    /// When to end.
    pub stop: Stop,
    /// Where to say how it goes.
    pub board: Board,
}

impl Follow {
    /// Runs until told to stop. Blocks: this is the sink's thread.
    pub fn run(mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                return self.failed(&anyhow::Error::new(error).context("could not start a runtime"));
            }
        };
        runtime.block_on(self.keep_trying());
        // Not waiting for a name server that does not answer.
        runtime.shutdown_background();
        self.board.change(|status| status.state = State::Stopped);
    }

    async fn keep_trying(&mut self) {
        let mut failures = 0;
        while !self.stop.is_set() {
            let before = self.board.read(0).position;
            let Err(error) = self.attempt().await else { return };
            self.failed(&error);
            failures = if self.board.read(0).position > before { 0 } else { failures + 1 };
            tokio::select! {
                biased;
                () = self.stop.wait() => {}
                () = tokio::time::sleep(backoff(failures, rand::random())) => {}
            }
        }
    }

    async fn attempt(&mut self) -> anyhow::Result<()> {
        match self.sink.output.clone() {
            Output::Jsonl(config) => self.write_file(&config).await,
            Output::Syslog(config) => self.feed_receiver(&config).await,
        }
    }

    async fn write_file(&mut self, config: &config::Jsonl) -> anyhow::Result<()> {
        let mut file = Jsonl::open(config, self.cursor_file()?)?;
        let mut pages = Pages::open(self, file.position())?;
        self.running(file.position());
        loop {
            let page = pages.next(&self.board)?;
            if page.is_empty() {
                tokio::select! {
                    biased;
                    () = self.stop.wait() => return Ok(()),
                    () = pages.more() => {}
                }
                continue;
            }
            file.put(&page.iter().map(formats::json_line).collect::<Vec<_>>())?;
            self.sent(file.position(), page.len());
            if self.stop.is_set() {
                return Ok(());
            }
        }
    }

    async fn feed_receiver(&mut self, config: &config::Syslog) -> anyhow::Result<()> {
        let cursor = self.cursor_file()?;
        let position = cursor.load()?.unwrap_or_default().id;
        let mut pages = Pages::open(self, position)?;
        let mut stop = self.stop.clone();
        let mut connection = tokio::select! {
            biased;
            () = stop.wait() => return Ok(()),
            connection = Connection::open(config) => connection?,
        };
        self.running(position);
        loop {
            if let Some(settled) = connection.settle(Instant::now())? {
                self.settled(&cursor, settled)?;
            }
            let page = if connection.has_room() { pages.next(&self.board)? } else { Vec::new() };
            if page.is_empty() {
                let is_settled = connection.is_settled();
                tokio::select! {
                    biased;
                    () = stop.wait() => break,
                    error = connection.ended() => return Err(error),
                    () = pages.more(), if connection.has_room() => {}
                    () = tokio::time::sleep(SETTLE_TICK), if !is_settled => {}
                }
                continue;
            }
            let records: Vec<Record> =
                page.iter().map(|stored| formats::syslog(stored, config.facility)).collect();
            {
                // A message is not cut off in the middle because the collector ends: it gets its grace time.
                let mut put = std::pin::pin!(connection.put(&records));
                tokio::select! {
                    biased;
                    put = &mut put => put?,
                    () = stop.wait() => timeout(GRACE_MAX, put).await.context("the receiver took nothing while stopping")??,
                }
            }
            self.board.change(|status| status.sent += page.len() as u64);
        }
        if let Some(settled) = connection.close(GRACE_MAX).await {
            self.settled(&cursor, settled)?;
        }
        Ok(())
    }

    fn cursor_file(&self) -> anyhow::Result<CursorFile> {
        CursorFile::open(&self.folder, &self.sink.name)
    }

    fn running(&self, position: u64) {
        tracing::info!(sink = self.sink.name, position, "the sink is running");
        self.board.change(|status| {
            status.state = State::Running;
            status.position = position;
        });
    }

    fn settled(&self, cursor: &CursorFile, id: u64) -> anyhow::Result<()> {
        cursor.save(&Cursor { id, file: None })?;
        self.sent(id, 0);
        Ok(())
    }

    fn sent(&self, position: u64, count: usize) {
        let now = now_unix_ns();
        self.board.change(|status| {
            status.position = position;
            status.sent += count as u64;
            status.last_sent_unix_ns = Some(now);
        });
    }

    fn failed(&self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        // The same trouble again is no news.
        if self.board.read(0).last_error.as_ref() == Some(&text) {
            tracing::debug!(sink = self.sink.name, error = text, "the sink failed again");
        } else {
            tracing::warn!(sink = self.sink.name, error = text, "the sink failed and will try again");
        }
        self.board.change(|status| {
            status.state = State::Retrying;
            status.errors += 1;
            status.last_error = Some(text);
            status.last_error_unix_ns = Some(now_unix_ns());
        });
    }
}

/// The store, page by page, for the classes of one sink.
struct Pages {
    reader: Reader,
    changed: watch::Receiver<u64>,
    sink: Sink,
    after: u64,
}

impl Pages {
    fn open(follow: &Follow, after: u64) -> anyhow::Result<Self> {
        let changed = follow.store.changed();
        let reader = follow.store.reader().context("could not open the store for reading")?;
        let newest = *changed.borrow();
        if after > newest {
            // A store that was replaced counts from 1 again: going on would leave out its first events silently.
            bail!(
                "the cursor stands at event {after}, but the newest stored is {newest}: it belongs to another store; \
                 delete {} to send everything that this one holds",
                follow.folder.join(&follow.sink.name).display()
            );
        }
        Ok(Self { reader, changed, sink: follow.sink.clone(), after })
    }

    /// What comes next; empty when there is nothing yet.
    fn next(&mut self, board: &Board) -> anyhow::Result<Vec<Stored>> {
        let newest = *self.changed.borrow_and_update();
        let page = self
            .reader
            .after(self.after, &self.sink.classes, PAGE_EVENTS_MAX)
            .context("could not read the store")?;
        match page.last() {
            Some(last) => self.after = last.id,
            None => board.change(|status| status.caught_up = newest),
        }
        Ok(page)
    }

    /// Waits for news. Safe to drop and call again.
    async fn more(&mut self) {
        match timeout(IDLE_MAX, self.changed.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // The store is gone: the program is ending.
            Ok(Err(_)) => tokio::time::sleep(IDLE_MAX).await,
        }
    }
}

fn now_unix_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

/// Between half of and the whole wait: doubling up to its bound. `random` is in 0..1.
fn backoff(failures: u32, random: f64) -> Duration {
    let whole = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_no_further() {
        let mut last = Duration::ZERO;
        for failures in 0..100 {
            let (least, most) = (backoff(failures, 0.0), backoff(failures, 1.0));
            assert!(least * 2 == most && most <= BACKOFF_MAX && most >= last);
            last = most;
        }
        assert_eq!(last, BACKOFF_MAX);
    }
}
