//! What each misbehaviour does, and what came of it. A deed ends when it is cut off, or after a few seconds.

use super::client::{self, Channel, Papers, Session, leave, wide};
use super::packing::{bomb, stored};
use super::{Ending, Misbehaviour};
use anyhow::{Context, bail};
use prost::Message;
use quinn::{Connection, ConnectionError, Endpoint, TransportConfig, VarInt};
use std::future::Future;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use vidette_protocol::COLLECTOR_NAME;
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, event::Kind, to_agent, to_collector};

/// How long the collector may take to cut somebody off: the longest of its patience, and a loaded machine.
const CUT_WAIT: Duration = Duration::from_secs(90);
/// Streams and connections that are tried.
const STREAMS: usize = 100_000;
const CONNECTIONS: usize = 2_000;
const HANDSHAKES: usize = 1_000;

/// Does it; a flood lasts for `flood`.
pub(super) async fn run(
    misbehaviour: Misbehaviour,
    papers: &Papers,
    flood: Duration,
) -> anyhow::Result<Ending> {
    match misbehaviour {
        Misbehaviour::OtherIds => other_ids(papers).await,
        Misbehaviour::OtherEpoch => with_batch(papers, |batch| batch.epoch ^= 1).await,
        Misbehaviour::NumberReuse => number_reuse(papers).await,
        Misbehaviour::NumberJumps => number_jumps(papers).await,
        Misbehaviour::NumbersBeyond => {
            // Everything before it is skipped, so that it is no hole.
            with_batch(papers, |batch| (batch.first_seq, batch.skipped) = (u64::MAX - 8, u64::MAX - 9)).await
        }
        Misbehaviour::OneByteFrames => with_bytes(papers, &[0, 0, 0, 1, 0xff].repeat(1000)).await,
        Misbehaviour::SlowDrip => slow_drip(papers).await,
        Misbehaviour::HugeLength => with_bytes(papers, &u32::MAX.to_be_bytes()).await,
        Misbehaviour::EndlessStream => endless_stream(papers, flood).await,
        Misbehaviour::ManyStreams => many_streams(papers, flood).await,
        Misbehaviour::ZstdBomb => {
            with_batch(papers, |batch| (batch.events, batch.events_bytes) = (bomb(1_000_000), 4 << 20)).await
        }
        Misbehaviour::EmptyEvents => with_batch(papers, empty_events).await,
        Misbehaviour::EmptyRules => empty_rules(papers).await,
        Misbehaviour::SmallAndLarge => with_batch(papers, small_and_large).await,
        Misbehaviour::InvalidUtf8 => invalid_utf8(papers).await,
        Misbehaviour::Times => times(papers).await,
        Misbehaviour::TenfoldRate => tenfold_rate(papers, flood).await,
        Misbehaviour::ManyConnections => many_connections(papers).await,
        Misbehaviour::HalfOpen => half_open(papers, flood).await,
        Misbehaviour::Silent => silent(papers).await,
        Misbehaviour::NoAnswersTaken => no_answers_taken(papers).await,
    }
}

/// How a connection was closed.
async fn cut_off(connection: &Connection) -> anyhow::Result<Ending> {
    let closed = tokio::time::timeout(CUT_WAIT, connection.closed()).await.context("it was not cut off")?;
    match closed {
        ConnectionError::ApplicationClosed(close) => Ok(Ending::CutOff {
            code: close.error_code.into_inner(),
            reason: String::from_utf8_lossy(&close.reason).into_owned(),
        }),
        other => bail!("it ended otherwise: {other}"),
    }
}

/// Does it until it is cut off, or says what came of it.
async fn or_cut_off<T>(
    connection: &Connection,
    deed: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Result<T, Ending>> {
    match deed.await {
        Ok(done) => Ok(Ok(done)),
        // Somebody who is cut off finds it out by an error.
        Err(error) => match tokio::time::timeout(Duration::from_secs(2), connection.closed()).await {
            Ok(_) => cut_off(connection).await.map(Err),
            Err(_) => Err(error),
        },
    }
}

/// A batch that is right but for one change, as the first thing that is said.
async fn with_batch(papers: &Papers, change: impl FnOnce(&mut wire::Batch)) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let mut batch = session.batch(Class::Alert, 1, vec![client::event(&papers.name, "changed")])?;
    change(&mut batch);
    let said = session.alerts.say(to_collector::Message::Batch(batch)).await;
    if said.is_err() && session.connection.close_reason().is_none() {
        said?;
    }
    cut_off(&session.connection).await
}

/// Bytes on the stream of alerts.
async fn with_bytes(papers: &Papers, bytes: &[u8]) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let _ = session.alerts.send.write_all(bytes).await; // it may be cut off in the middle
    cut_off(&session.connection).await
}

async fn acknowledged(channel: &mut Channel, upto: u64) -> anyhow::Result<()> {
    loop {
        match channel.hear().await? {
            to_agent::Message::Ack(ack) if ack.seq >= upto => return Ok(()),
            to_agent::Message::Ack(_) => {}
            other => bail!("{other:?} instead of an acknowledgement"),
        }
    }
}

async fn other_ids(papers: &Papers) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let mut events = Vec::new();
    for number in 0..20 {
        // The contract has no field for an agent's id; a newer one might, and a host's name is one for people.
        let mut event = client::event("honest-0", &format!("forged {number}"));
        event.extend_from_slice(b"\xa2\x06\x1000000000000000ff");
        events.push(event);
    }
    let batch = session.batch(Class::Alert, 1, events)?;
    session.alerts.say(to_collector::Message::Batch(batch)).await?;
    acknowledged(&mut session.alerts, 20).await?;
    leave(&session.connection);
    Ok(Ending::Bounded("20 events stored as its own".into()))
}

async fn number_reuse(papers: &Papers) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    for round in 0..200 {
        let events =
            (1..=10).map(|seq| client::event(&papers.name, &format!("round {round} seq {seq}"))).collect();
        let batch = session.batch(Class::Alert, 1, events)?;
        session.alerts.say(to_collector::Message::Batch(batch)).await?;
        acknowledged(&mut session.alerts, 10).await?;
    }
    leave(&session.connection);
    Ok(Ending::Bounded("200 times acknowledged up to 10".into()))
}

async fn number_jumps(papers: &Papers) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let mut answers = 0;
    for round in 1..=2000_u64 {
        let batch =
            session.batch(Class::Alert, round * 1_000_000_007, vec![client::event(&papers.name, "jump")])?;
        session.alerts.say(to_collector::Message::Batch(batch)).await?;
        if round == 1 {
            match session.alerts.hear().await? {
                to_agent::Message::Nack(nack) if nack.expected == 1 => answers += 1,
                other => bail!("{other:?} instead of a nack"),
            }
        }
    }
    leave(&session.connection);
    Ok(Ending::Bounded(format!("2000 jumps, {answers} sent back to 1")))
}

async fn slow_drip(papers: &Papers) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let deed = async {
        session.alerts.send.write_all(&4096_u32.to_be_bytes()).await?;
        session.telemetry.send.write_all(&[0, 0]).await?;
        for _ in 0..4000 {
            session.alerts.send.write_all(&[0x12]).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    let connection = session.connection.clone();
    match or_cut_off(&connection, deed).await? {
        Err(ending) => Ok(ending),
        Ok(()) => bail!("it dripped to its end"),
    }
}

async fn endless_stream(papers: &Papers, flood: Duration) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let status = wire::Status { rules_version: "x".repeat(200), ..Default::default() };
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < flood {
        let said = session.control.say(to_collector::Message::Status(status.clone()));
        match tokio::time::timeout(flood, said).await {
            Ok(said) => said?,
            Err(_) => break,
        }
        sent += 1;
    }
    let rate = sent as f64 / start.elapsed().as_secs_f64();
    leave(&session.connection);
    Ok(Ending::Bounded(format!("slowed to {rate:.0} a second")))
}

async fn many_streams(papers: &Papers, flood: Duration) -> anyhow::Result<Ending> {
    let session = Session::open(papers, wide()).await?;
    let mut tries = JoinSet::new();
    for _ in 3..STREAMS {
        let connection = session.connection.clone();
        tries.spawn(async move {
            let (mut send, _receive) = connection.open_bi().await?;
            send.write_all(b"x").await?;
            anyhow::Ok(())
        });
    }
    let mut opened = 3;
    let end = tokio::time::Instant::now() + flood;
    while let Ok(Some(tried)) = tokio::time::timeout_at(end, tries.join_next()).await {
        opened += usize::from(matches!(tried, Ok(Ok(()))));
    }
    let still = session.connection.close_reason().is_none();
    leave(&session.connection);
    Ok(Ending::Bounded(format!("{opened} of {STREAMS} streams, connected: {still}")))
}

/// As many as a frame holds without compression: two bytes each.
fn empty_events(batch: &mut wire::Batch) {
    let list = [0x0a, 0x00].repeat(500_000);
    batch.events_bytes = u32::try_from(list.len()).unwrap_or(u32::MAX);
    batch.events = stored(&list);
}

/// Every list full of entries of two bytes.
fn small_and_large(batch: &mut wire::Batch) {
    let rule = wire::RuleMatch {
        techniques: vec![String::new(); 64],
        tags: vec![String::new(); 64],
        patterns: vec![wire::PatternMatch::default(); 16],
        ..Default::default()
    };
    let detection = wire::Detection { rules: vec![rule; 64], ..Default::default() };
    let event = wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() };
    let events = vec![event.encode_to_vec(); 200];
    if let Ok(packed) = vidette_protocol::batch::pack(Class::Alert, batch.epoch, 1, 0, events) {
        *batch = packed;
    }
}

async fn empty_rules(papers: &Papers) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let detection =
        wire::Detection { rules: vec![wire::RuleMatch::default(); 100_000], ..Default::default() };
    let event = wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() };
    let mut reason = String::new();
    for _ in 0..50 {
        let batch = session.batch(Class::Alert, 1, vec![event.encode_to_vec()])?;
        session.alerts.say(to_collector::Message::Batch(batch)).await?;
        reason = match session.alerts.hear().await? {
            to_agent::Message::Reject(reject) => reject.reason,
            other => bail!("{other:?} instead of a refusal"),
        };
    }
    leave(&session.connection);
    Ok(Ending::Bounded(format!("50 events refused: {reason}")))
}

async fn invalid_utf8(papers: &Papers) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    // `boot_id`, a string.
    let batch = session.batch(Class::Alert, 1, vec![b"\x22\x04\xff\xfe\xc0\x80".to_vec()])?;
    session.alerts.say(to_collector::Message::Batch(batch)).await?;
    match session.alerts.hear().await? {
        to_agent::Message::Reject(reject) if reject.first_seq == 1 && reject.last_seq == 1 => {}
        other => bail!("{other:?} instead of a refusal"),
    }
    // A status with a `rules_version`, a string.
    session.control.send.write_all(b"\x00\x00\x00\x06\x1a\x04\x1a\x02\xff\xfe").await?;
    cut_off(&session.connection).await
}

async fn times(papers: &Papers) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let times = [i64::MIN, i64::MIN + 1, -1, 0, 1, 946_684_800_000_000_000, i64::MAX - 1, i64::MAX];
    let event = |time: &i64| client::event_at(&papers.name, &format!("at {time}"), *time);
    let batch = session.batch(Class::Alert, 1, times.iter().map(event).collect())?;
    session.alerts.say(to_collector::Message::Batch(batch)).await?;
    acknowledged(&mut session.alerts, times.len() as u64).await?;
    leave(&session.connection);
    Ok(Ending::Bounded(format!("acknowledged up to {}", times.len())))
}

async fn tenfold_rate(papers: &Papers, flood: Duration) -> anyhow::Result<Ending> {
    let mut session = Session::open(papers, wide()).await?;
    let events: Vec<Vec<u8>> = (0..4096).map(|number| client::telemetry(&papers.name, number)).collect();
    let (start, mut next, mut acked) = (Instant::now(), 1_u64, 0_u64);
    let mut batch = session.batch(Class::Telemetry, next, events)?;
    // New events as fast as they are stored: four batches wait, as the protocol has it.
    while start.elapsed() < flood / 2 {
        batch.first_seq = next;
        session.telemetry.say(to_collector::Message::Batch(batch.clone())).await?;
        next += 4096;
        while next - 1 - acked >= 4 * 4096 {
            match session.telemetry.hear().await? {
                to_agent::Message::Ack(ack) => acked = acked.max(ack.seq),
                other => bail!("{other:?} instead of an acknowledgement"),
            }
        }
    }
    let stored = acked as f64 / start.elapsed().as_secs_f64();
    // Old ones again, as fast as they are read: they cost all but the disk.
    let (again, mut sent) = (Instant::now(), 0_u64);
    while again.elapsed() < flood / 2 {
        let said = session.telemetry.say(to_collector::Message::Batch(batch.clone()));
        match tokio::time::timeout(flood, said).await {
            Ok(said) => said?,
            Err(_) => break,
        }
        sent += 4096;
    }
    let read = sent as f64 / again.elapsed().as_secs_f64();
    leave(&session.connection);
    Ok(Ending::Bounded(format!("slowed to {stored:.0} new events a second, {read:.0} old ones offered")))
}

async fn many_connections(papers: &Papers) -> anyhow::Result<Ending> {
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let mut kept = Vec::new();
    let mut word = None;
    let (mut refused, mut failed) = (0, 0);
    for _ in 0..CONNECTIONS {
        let config = papers.config(TransportConfig::default())?;
        match endpoint.connect_with(config, papers.collector, COLLECTOR_NAME)?.await {
            Ok(connection) => {
                tokio::task::yield_now().await;
                kept.push(connection);
            }
            Err(_) => failed += 1,
        }
    }
    for connection in &kept {
        if let Ok(Ending::CutOff { code, reason }) = cut_off(connection).await {
            refused += 1;
            if word.is_none() && reason.contains("too many") {
                word = Some(Ending::CutOff { code, reason: reason.clone() });
            }
        }
    }
    eprintln!("{CONNECTIONS} connections: {failed} without a handshake, {refused} closed");
    word.with_context(|| format!("nobody was told of too many connections; {failed} failed"))
}

/// The first datagram of many clients, caught on its way to nobody and sent from sockets that hear no answer.
async fn half_open(papers: &Papers, flood: Duration) -> anyhow::Result<Ending> {
    let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (mut buffer, mut begun, mut waiting) = ([0; 2048], 0, Vec::new());
    for _ in 0..HANDSHAKES {
        let config = papers.config(TransportConfig::default())?;
        // Kept: one that is dropped says goodbye.
        waiting.push(endpoint.connect_with(config, nobody.local_addr()?, COLLECTOR_NAME)?);
        let (bytes, _) = nobody.recv_from(&mut buffer).await?;
        sender.send_to(&buffer[..bytes], papers.collector).await?;
        begun += 1;
    }
    tokio::time::sleep(flood).await;
    Ok(Ending::Bounded(format!("{begun} handshakes begun")))
}

async fn silent(papers: &Papers) -> anyhow::Result<Ending> {
    let (_endpoint, connection) = papers.dial(wide()).await?;
    cut_off(&connection).await
}

async fn no_answers_taken(papers: &Papers) -> anyhow::Result<Ending> {
    let mut limits = wide();
    limits.stream_receive_window(VarInt::from_u32(256));
    let mut session = Session::open(papers, limits).await?;
    let connection = session.connection.clone();
    let deed = async {
        let batch = session.batch(Class::Alert, 1, vec![client::event(&papers.name, "unheard")])?;
        for _ in 0..2000 {
            session.alerts.say(to_collector::Message::Batch(batch.clone())).await?;
        }
        session.connection.closed().await;
        bail!("closed")
    };
    match or_cut_off::<()>(&connection, deed).await? {
        Err(ending) => Ok(ending),
        Ok(()) => bail!("it was not cut off"),
    }
}
