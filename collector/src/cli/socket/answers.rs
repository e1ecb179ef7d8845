//! What is answered to what. The only place of the commands that looks into the stages.
//!
//! Everything that touches a disk runs on a blocking thread, makes one answer line at a time and waits until
//! the asker has taken it. Pages are read one by one, so that no snapshot of the store is held while somebody reads.

use super::{Answer, Query, Request};
use crate::cli::events::{LIMIT_MAX, Row};
use crate::cli::summary::summary;
use crate::cli::{agents, status, tokens};
use crate::identity::{AgentRecord, Identity, TokenWish, unix_s_now};
use crate::ingest::{Fleet, Notice, Notices};
use crate::outside::{Lookout, findings};
use crate::sinks::{Overview, formats};
use crate::store::{Filter, Handle, Stored};
use anyhow::{Context, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use vidette_protocol::ecs;
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::join::{Address, Invitation};
use vidette_protocol::wire;

/// Events read at a time.
const PAGE_EVENTS_MAX: usize = 256;

/// Everything that can be asked about.
#[derive(Debug, Clone)]
pub struct Office {
    /// Agents and tokens.
    pub identity: Identity,
    /// Events.
    pub store: Handle,
    /// Connections.
    pub fleet: Fleet,
    /// Where the collector says what was done; `None` where nothing is stored.
    pub notices: Option<Notices>,
    /// Sinks.
    pub sinks: Overview,
    /// What all of them are like, in sum.
    pub lookout: Lookout,
    /// Where agents connect to.
    pub listen: SocketAddr,
    /// What join lines say.
    pub advertise: Address,
}

/// Nothing of that name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Missing(String);

/// Answers until all is said or the asker is gone.
pub async fn answer(request: Request, office: Office, lines: Sender<Answer>) {
    let result = match request {
        Request::Follow { query } => office.follow(query, &lines).await,
        other => {
            let (office, lines) = (office.clone(), lines.clone());
            let work = move || office.answer(other, &lines);
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()))
        }
    };
    let last = match result {
        Ok(()) => Answer::End,
        Err(error) if error.is::<Missing>() => Answer::NotFound(error.to_string()),
        Err(error) => Answer::Error(format!("{error:#}")),
    };
    // The asker may be gone.
    let _ = lines.send(last).await;
}

impl Office {
    fn answer(&self, request: Request, lines: &Sender<Answer>) -> anyhow::Result<()> {
        match request {
            Request::Status => send(lines, &self.status()?),
            Request::TokensCreate { for_s, label, address, uses, group } => {
                let wish = TokenWish { ttl: Duration::from_secs(for_s), uses, label, group };
                send(lines, &self.create(wish, address)?)
            }
            Request::TokensList => {
                let now = unix_s_now();
                self.identity
                    .tokens()?
                    .into_iter()
                    .try_for_each(|token| send(lines, &tokens::Row::new(token, now)))
            }
            Request::TokensRevoke { id } => send(lines, &self.revoke(&id)?),
            Request::AgentsList => self.agents()?.iter().try_for_each(|agent| send(lines, agent)),
            Request::AgentsShow { agent } => send(lines, &self.agent(&agent)?),
            Request::AgentsRevoke { agent } => send(lines, &self.shut_out(&agent)?),
            Request::Events { query, limit } => {
                let filter = self.filter(query)?;
                let mut each = |stored: &Stored| send(lines, &row(stored));
                self.each(&filter, limit.min(LIMIT_MAX), &mut each).map(|_| ())
            }
            Request::Event { id } => send(lines, &row(&self.event(&id)?)),
            Request::SinksList => {
                let newest = *self.store.changed().borrow();
                self.sinks.all(newest).iter().try_for_each(|sink| send(lines, sink))
            }
            Request::Ca { step } => send(lines, &self.ca(step)?),
            Request::Follow { .. } => bail!("following has its own way"),
        }
    }

    fn create(&self, wish: TokenWish, address: Option<String>) -> anyhow::Result<tokens::Created> {
        let address = match address {
            Some(text) => text.parse().with_context(|| format!("could not use --address {text:?}"))?,
            None => self.advertise.clone(),
        };
        let (token, info) = self.identity.create_token_as(wish, unix_s_now())?;
        let line = Invitation { address, pin: self.identity.pin(), token }.to_string();
        let uses = info.uses_max;
        tracing::info!(token = info.id, uses, expires_unix_s = info.expires_unix_s, "a join token was made");
        Ok(tokens::Created { line, id: info.id, expires_unix_s: info.expires_unix_s, uses })
    }

    fn revoke(&self, id: &str) -> anyhow::Result<tokens::Row> {
        let is_revoked = self.identity.revoke_token(id)?;
        let known = self.identity.tokens()?.into_iter().find(|token| token.id == id);
        let Some(token) = known else {
            return Err(
                Missing(format!("no token has the id {id:?}; `vidette tokens list` shows them")).into()
            );
        };
        let row = tokens::Row::new(token, unix_s_now());
        if !is_revoked && row.state != "revoked" {
            bail!("token {id} is {}, there is nothing left to revoke", row.state);
        }
        tracing::info!(token = id, "a join token was revoked");
        Ok(row)
    }

    fn agents(&self) -> anyhow::Result<Vec<agents::Row>> {
        let lasts = self.lasts();
        let agents = self.lookout.agents()?;
        let rows = agents
            .iter()
            .map(|(record, judged)| agents::Row::new(record, judged, lasts.get(&record.id).cloned()));
        Ok(rows.collect())
    }

    /// The certificate is refused from now on; then the live connection is cut, so that it can't come back in between.
    fn shut_out(&self, text: &str) -> anyhow::Result<agents::Revoked> {
        let record = self.one(text)?;
        let is_news = self.identity.revoke_agent(record.id)?;
        let was_connected = self.fleet.cut(record.id);
        if is_news {
            tracing::info!(agent = %record.id, was_connected, "an agent was revoked");
            if let Some(notices) = &self.notices {
                let (agent, host_name) = (record.id, record.host_name.clone());
                notices.tell(&Notice::Revoked { agent, host_name, was_connected });
            }
        }
        Ok(agents::Revoked {
            id: record.id.to_string(),
            host: vidette_protocol::escape::terminal(&record.host_name),
            was_connected,
            was_revoked_before: !is_news,
        })
    }

    fn one(&self, text: &str) -> anyhow::Result<AgentRecord> {
        let mut found = self.found(text)?;
        if found.len() > 1 {
            let ids: Vec<String> = found.iter().map(|agent| agent.id.to_string()).collect();
            bail!("{} agents fit {text:?}: {}; name one by its id", ids.len(), ids.join(", "));
        }
        found.pop().with_context(|| format!("no agent fits {text:?}"))
    }

    fn agent(&self, text: &str) -> anyhow::Result<agents::Row> {
        let record = self.one(text)?;
        let last = self.fleet.member(record.id).as_ref().map(agents::Last::new);
        Ok(agents::Row::new(&record, &self.lookout.judge(&record), last))
    }

    fn found(&self, text: &str) -> anyhow::Result<Vec<AgentRecord>> {
        let found = self.identity.find(text)?;
        if found.is_empty() {
            return Err(Missing(format!(
                "no agent is or runs on {text:?}; `vidette agents list` shows them"
            ))
            .into());
        }
        Ok(found)
    }

    fn event(&self, id: &str) -> anyhow::Result<Stored> {
        let mut reader = self.store.reader()?;
        let found = if let Ok(number) = id.trim_start_matches('#').parse::<u64>() {
            let next = reader.after(number.saturating_sub(1), &Class::ALL, 1)?;
            next.into_iter().find(|stored| stored.id == number)
        } else {
            reader.one(id.parse::<EventId>()?)?
        };
        found.ok_or_else(|| {
            Missing(format!("no event {id} is stored; it may have been removed by its age")).into()
        })
    }

    /// The newest `limit` events, newest first, and whether there were no more.
    fn each(
        &self,
        filter: &Filter,
        limit: u64,
        each: &mut dyn FnMut(&Stored) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let mut reader = self.store.reader()?;
        let (mut before, mut left) = (None, limit);
        while left > 0 {
            let size = PAGE_EVENTS_MAX.min(usize::try_from(left).unwrap_or(PAGE_EVENTS_MAX));
            let page = reader.page(filter, before, size)?;
            page.iter().try_for_each(&mut *each)?;
            let Some(last) = page.last().filter(|_| page.len() == size) else { return Ok(true) };
            before = Some(last.id);
            left = left.saturating_sub(page.len() as u64);
        }
        Ok(false)
    }

    async fn follow(&self, query: Query, lines: &Sender<Answer>) -> anyhow::Result<()> {
        let office = self.clone();
        let mut changed = self.store.changed();
        let mut after = *changed.borrow_and_update();
        let (filter, mut reader) =
            tokio::task::spawn_blocking(move || anyhow::Ok((office.filter(query)?, office.store.reader()?)))
                .await??;
        loop {
            let classes = filter.classes.clone();
            let (page, returned) = tokio::task::spawn_blocking(move || {
                let page = reader.after(after, &classes, PAGE_EVENTS_MAX);
                (page, reader)
            })
            .await?;
            reader = returned;
            let page = page?;
            if let Some(last) = page.last() {
                after = last.id;
                for stored in page.iter().filter(|stored| fits(&filter, stored)) {
                    lines.send(to_line(&row(stored))?).await.context("the asker is gone")?;
                }
            } else if changed.changed().await.is_err() {
                bail!("the collector is stopping");
            }
        }
    }

    fn filter(&self, query: Query) -> anyhow::Result<Filter> {
        let mut agents: Option<Vec<AgentId>> = None;
        for text in [&query.host, &query.agent].into_iter().flatten() {
            let found: Vec<AgentId> = self.found(text)?.into_iter().map(|agent| agent.id).collect();
            agents = Some(match agents {
                Some(before) => before.into_iter().filter(|agent| found.contains(agent)).collect(),
                None => found,
            });
        }
        let mut classes =
            query.classes.iter().map(|class| class.parse()).collect::<Result<Vec<Class>, _>>()?;
        if classes.is_empty() {
            classes = Class::ALL.to_vec();
        }
        Ok(Filter {
            agents,
            classes,
            kinds: query.kinds,
            severity_min: query.severity.as_deref().map(severity).transpose()?,
            rule: query.rule,
            since_unix_ns: query.since_unix_ns,
            until_unix_ns: query.until_unix_ns,
        })
    }

    fn status(&self) -> anyhow::Result<status::Row> {
        let picture = self.lookout.look(Duration::ZERO)?;
        let name =
            |number: i32| formats::severity(wire::Severity::try_from(number).unwrap_or_default()).to_owned();
        let alerts = picture.day.severities.iter().rev().filter(|(_, count)| *count > 0);
        Ok(status::Row {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: i64::try_from(picture.uptime_s).unwrap_or(i64::MAX),
            listen: self.listen.to_string(),
            advertise: self.advertise.to_string(),
            pin: data_encoding::HEXLOWER.encode(&self.identity.pin()),
            agents: picture.agents.enrolled,
            agents_connected: picture.agents.connected,
            agents_silent: picture.agents.silent,
            agents_limited: picture.agents.limited,
            fleet: picture.agents.clone(),
            heartbeat_s: picture.moment.heartbeat_s,
            gaps_24h: picture.day.gaps,
            store: self.figures(),
            store_checked_unix_ns: picture.store.checked_unix_ns,
            disk_free_bytes: picture.free_bytes,
            commits: picture.commits.count,
            commit_p50_us: picture.commits.p50_us,
            commit_p99_us: picture.commits.p99_us,
            alerts_24h: alerts.map(|(number, count)| (name(*number), *count)).collect(),
            alerts_24h_more: !picture.day.is_whole,
            sinks: picture.sinks.clone(),
            findings: findings::findings(&picture),
        })
    }

    fn figures(&self) -> BTreeMap<String, u64> {
        let figures = self.store.figures();
        BTreeMap::from([
            ("events".to_owned(), figures.events),
            ("bytes".to_owned(), figures.bytes),
            ("wal_bytes".to_owned(), figures.wal_bytes),
        ])
    }

    fn lasts(&self) -> BTreeMap<AgentId, agents::Last> {
        self.fleet.snapshot().iter().map(|(agent, member)| (*agent, agents::Last::new(member))).collect()
    }
}

fn row(stored: &Stored) -> Row {
    let event = formats::decoded(stored);
    Row { summary: summary(stored, &event), record: ecs::record(formats::origin(stored), &event) }
}

/// What [`crate::store::Reader::page`] asks of the database, asked of one event.
fn fits(filter: &Filter, stored: &Stored) -> bool {
    let event = formats::decoded(stored);
    let matched = |rule: &String| match &event.kind {
        Some(wire::event::Kind::Detection(detection)) => {
            detection.rules.iter().any(|found| found.name == *rule || found.id == *rule)
        }
        _ => false,
    };
    filter.agents.as_ref().is_none_or(|agents| agents.contains(&stored.event.agent))
        && (filter.kinds.is_empty() || filter.kinds.iter().any(|kind| kind == formats::kind(&event)))
        && filter.severity_min.is_none_or(|least| event.severity >= least as i32)
        && filter.rule.as_ref().is_none_or(matched)
}

fn severity(text: &str) -> anyhow::Result<wire::Severity> {
    let all = [
        wire::Severity::Info,
        wire::Severity::Low,
        wire::Severity::Medium,
        wire::Severity::High,
        wire::Severity::Critical,
    ];
    all.into_iter()
        .find(|severity| formats::severity(*severity) == text)
        .with_context(|| format!("{text:?} is no severity; write info, low, medium, high or critical"))
}

fn to_line<T: Serialize>(row: &T) -> anyhow::Result<Answer> {
    Ok(Answer::Row(serde_json::to_value(row)?))
}

fn send<T: Serialize>(lines: &Sender<Answer>, row: &T) -> anyhow::Result<()> {
    lines.blocking_send(to_line(row)?).ok().context("the asker is gone")
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn a_follower_sees_what_a_list_would_show() {
        let rules = vec![wire::RuleMatch { name: "EICAR".into(), ..Default::default() }];
        let kind = wire::event::Kind::Detection(wire::Detection { rules, ..Default::default() });
        let event =
            wire::Event { severity: wire::Severity::Medium as i32, kind: Some(kind), ..Default::default() };
        let agent = AgentId([1; 16]);
        let id = EventId { agent, epoch: 1, class: Class::Alert, seq: 1 };
        let stored =
            Stored { id: 1, event: id, received_unix_ns: 0, body: event.encode_to_vec(), damaged: false };
        let all = Filter { classes: vec![Class::Alert], ..Filter::default() };
        let table = [
            (all.clone(), true),
            (Filter { agents: Some(vec![agent]), ..all.clone() }, true),
            (Filter { agents: Some(Vec::new()), ..all.clone() }, false),
            (Filter { kinds: vec!["gap".into(), "detection".into()], ..all.clone() }, true),
            (Filter { kinds: vec!["gap".into()], ..all.clone() }, false),
            (Filter { severity_min: Some(wire::Severity::Medium), ..all.clone() }, true),
            (Filter { severity_min: Some(wire::Severity::High), ..all.clone() }, false),
            (Filter { rule: Some("EICAR".into()), ..all.clone() }, true),
            (Filter { rule: Some("eicar".into()), ..all }, false),
        ];
        for (filter, expected) in table {
            assert_eq!(fits(&filter, &stored), expected, "{filter:?}");
        }
    }
}
