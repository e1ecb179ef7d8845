//! A fleet that loses its collector to a kill comes back by itself: everybody is told by the new one that the old connection
//! is gone, also who never says anything; nobody waits for a time-out, nobody is refused.

#![allow(clippy::unwrap_used)]

use crossbeam_channel::Sender;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use vidette_agent::host::Host;
use vidette_agent::outbox::{self, Outbox};
use vidette_agent::stop::{self, Stopper};
use vidette_agent::transport::{self, State, Transport};
use vidette_protocol::wire;
use vidette_tests::fleet::agents::{Board, Swarm};
use vidette_tests::fleet::identities::Identities;
use vidette_tests::programs::{Collector, wait_for};

const AGENTS: usize = 300;
/// With the agent's own transport.
const REAL_AGENTS: usize = 50;

#[test]
fn a_killed_collector_is_noticed_by_all_and_all_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let identities = Identities::make(AGENTS).unwrap();
    identities.install(&folder.path().join("collector")).unwrap();
    let mut collector = Collector::start(folder.path(), "").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let board = Arc::new(Board::default());
    let mut fleet = JoinSet::new();
    runtime.block_on(async {
        // More of them on one address than may shake hands at a time. Who is silent hears only what it is told.
        let swarm = Swarm::new(&identities, collector.port, 2).unwrap().without_keep_alive();
        let swarm = Arc::new(swarm);
        for number in 0..AGENTS {
            let talk = number.is_multiple_of(3).then_some(Duration::from_secs(1));
            fleet.spawn(swarm.clone().live(number, board.clone(), talk));
        }
    });
    let all_up = || Ok((board.up.load(Ordering::Relaxed) == AGENTS).then_some(()));
    wait_for("everybody's first session", all_up).unwrap();
    collector.kill().unwrap();
    collector.resume().unwrap();
    let noticed = || Ok((board.noticed.lock().unwrap().len() >= AGENTS).then_some(()));
    wait_for("everybody's notice", noticed).unwrap();
    wait_for("everybody's return", all_up).unwrap();
    let reason = board.reason.lock().unwrap().clone();
    assert_eq!(board.refused.load(Ordering::Relaxed), 0, "{reason}");
    assert_eq!(board.unanswered.load(Ordering::Relaxed), 0, "nobody has to wait for a time-out");
    runtime.block_on(fleet.shutdown());
}

/// `vidette-agent` without its sensors.
struct Agent {
    transport: Transport,
    stopper: Stopper,
    outbox: Outbox,
    input: Sender<wire::Event>,
}

impl Agent {
    fn start(folder: &Path, collector: &Collector) -> Self {
        let state = folder.join("state");
        transport::join(&collector.invitation().unwrap().parse().unwrap(), &Host::read(), &state, false)
            .unwrap();
        let (input, events) = crossbeam_channel::bounded(1);
        let config = outbox::Config { folder: state.join("outbox"), bytes_max: 64 << 20, host: Host::read() };
        let outbox = outbox::start(config, Arc::default(), events).unwrap();
        let (stopper, stop) = stop::channel();
        let transport = transport::start(
            transport::Config { state },
            outbox.handle(),
            Arc::new(wire::Status::default),
            Arc::new(wire::Hello::default),
            stop,
        );
        Self { transport: transport.unwrap(), stopper, outbox, input }
    }

    fn connected_since(&self) -> Option<Instant> {
        match &*self.transport.state().borrow() {
            State::Connected { since, .. } => Some(*since),
            State::NotJoined { .. } | State::Connecting { .. } | State::Refused { .. } => None,
        }
    }

    fn end(self) {
        self.stopper.stop();
        assert!(self.transport.join());
        drop(self.input);
        self.outbox.join();
    }
}

#[test]
fn silent_agents_come_back_to_a_collector_that_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut collector = Collector::start(folder.path(), "").unwrap();
    let agents: Vec<Agent> = (0..REAL_AGENTS)
        .map(|number| Agent::start(&folder.path().join(number.to_string()), &collector))
        .collect();
    let all_since = |moment: Instant| {
        let is_back = move |agent: &Agent| agent.connected_since().is_some_and(|since| since > moment);
        move |agents: &[Agent]| Ok(agents.iter().all(is_back).then_some(()))
    };
    let ever = all_since(Instant::now() - Duration::from_secs(3600));
    wait_for("everybody's first session", || ever(&agents)).unwrap();
    let remembered = collector.state.join("connections");
    wait_for("everybody is remembered", || Ok((places(&remembered) == REAL_AGENTS).then_some(()))).unwrap();
    for kills in 1..=2 {
        let killed = Instant::now();
        collector.kill().unwrap();
        assert_eq!(places(&remembered), REAL_AGENTS, "a kill leaves them there");
        collector.resume().unwrap();
        let back = all_since(killed);
        wait_for("everybody's return", || back(&agents)).unwrap();
        let told = || collector.said().matches("told agents that were connected").count();
        wait_for("those of before are told", || Ok((told() == kills).then_some(()))).unwrap();
        let only_new = || Ok((places(&remembered) == REAL_AGENTS).then_some(()));
        wait_for("and forgotten", only_new).unwrap();
    }
    collector.program.as_mut().unwrap().stop().unwrap();
    assert_eq!(places(&remembered), 0, "to whom goodbye was said nothing has to be said");
    agents.into_iter().for_each(Agent::end);
}

/// Connections that the file names: places of 48 bytes, the first of which is the address family.
fn places(file: &Path) -> usize {
    let bytes = std::fs::read(file).unwrap_or_default();
    bytes.chunks_exact(48).filter(|place| place[0] != 0).count()
}
