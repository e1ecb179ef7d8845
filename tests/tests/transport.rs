//! A host joins over real QUIC, and whoever may not is told why. Agent and collector run in this process, on loopback.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vidette_agent::host::Host;
use vidette_agent::transport::{self, Credentials};
use vidette_collector::identity::{Identity, Standing, TOKEN_TTL_DEFAULT, unix_s_now};
use vidette_collector::ingest::session::{Arrival, Committed};
use vidette_collector::ingest::{self, Commits, Fleet, Ingest};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::join::{Address, Invitation, Secret};
use vidette_protocol::{ALPN, ALPN_JOIN, COLLECTOR_NAME, wire};
use vidette_tests::programs::free_port;

/// The last number and the bodies of one class of one outbox.
type Stored = (u64, Vec<Vec<u8>>);
type Everything = BTreeMap<(AgentId, u64, Class), Stored>;

/// What was committed, in memory: these tests are about the way to the store, `store` has its own.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Everything>>);

impl Commits for Memory {
    async fn commit(&self, arrival: Arrival) -> anyhow::Result<Committed> {
        let mut all = self.0.lock().unwrap();
        let (last, bodies) = all.entry((arrival.agent, arrival.epoch, arrival.class)).or_default();
        if arrival.first_seq - arrival.skipped > *last + 1 {
            return Ok(Committed::Hole { expected: *last + 1 });
        }
        for (seq, event) in (arrival.first_seq..).zip(arrival.events) {
            if seq > *last {
                *last = seq;
                bodies.push(event.body);
            }
        }
        Ok(Committed::Durable(*last))
    }

    async fn durable(&self, agent: AgentId, epoch: u64) -> anyhow::Result<Vec<(Class, u64)>> {
        let all = self.0.lock().unwrap();
        Ok(Class::ALL
            .into_iter()
            .filter_map(|class| Some((class, all.get(&(agent, epoch, class))?.0)))
            .collect())
    }
}

/// A collector on a port of its own, in a folder that vanishes.
struct Collector {
    _folder: tempfile::TempDir,
    store: Memory,
    identity: Identity,
    fleet: Fleet,
    ingest: Option<Ingest>,
    runtime: tokio::runtime::Runtime,
}

impl Collector {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::open(&folder.path().join("identity")).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut collector = Self {
            _folder: folder,
            store: Memory::default(),
            identity,
            fleet: Fleet::new(),
            ingest: None,
            runtime,
        };
        collector.listen((Ipv4Addr::LOCALHOST, free_port().unwrap()).into());
        collector
    }

    fn listen(&mut self, address: SocketAddr) {
        let _in = self.runtime.enter();
        let config = ingest::Config::new(address);
        // The socket of one that was stopped closes when its last task is dropped, a moment later.
        let end = Instant::now() + Duration::from_secs(10);
        self.ingest = Some(loop {
            let started =
                ingest::start(&config, self.identity.clone(), self.store.clone(), self.fleet.clone());
            match started {
                Ok(ingest) => break ingest,
                Err(error) => assert!(Instant::now() < end, "{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        });
    }

    fn address(&self) -> SocketAddr {
        self.ingest.as_ref().unwrap().address()
    }

    fn invite_with(&self, token: Secret) -> Invitation {
        let address = Address { host: self.address().ip().to_string(), port: self.address().port() };
        Invitation { address, pin: self.identity.pin(), token }
    }

    fn invite(&self) -> Invitation {
        self.invite_with(self.identity.create_token(TOKEN_TTL_DEFAULT, None).unwrap().0)
    }
}

/// A host with a state folder.
struct HostFolder(tempfile::TempDir);

impl HostFolder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn join(&self, invitation: &Invitation) -> Result<Credentials, String> {
        transport::join(invitation, &Host::read(), &self.state(), false).map_err(|error| format!("{error:#}"))
    }
}

/// `text` holds each of `words`.
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn a_host_joins_once_and_is_registered() {
    let collector = Collector::start();
    let host = HostFolder::new();
    let invitation: Invitation = collector.invite().to_string().parse().unwrap();
    let joined = host.join(&invitation).unwrap();
    let stored = Credentials::load(&host.state()).unwrap();
    assert_eq!(stored.agent, joined.agent);
    let record = collector.identity.agent(joined.agent).unwrap().unwrap();
    assert_eq!(record.host_name, Host::read().name);
    assert_eq!(record.certificate_expires_unix_s, stored.expires_unix_s);

    says(&host.join(&collector.invite()).unwrap_err(), &["joined", "already", "--again"]);
    let used = HostFolder::new().join(&invitation).unwrap_err();
    says(&used, &["used before", "vidette tokens create"]);
}

#[test]
fn every_refusal_of_a_join_has_its_own_words_and_stores_nothing() {
    let collector = Collector::start();
    let yesterday = unix_s_now() - 86_400;
    let (expired, _) = collector.identity.create_token_at(TOKEN_TTL_DEFAULT, None, yesterday).unwrap();
    let (revoked, info) = collector.identity.create_token(TOKEN_TTL_DEFAULT, None).unwrap();
    assert!(collector.identity.revoke_token(&info.id).unwrap());
    let other = Collector::start();
    let wrong_pin = Invitation { pin: other.identity.pin(), ..collector.invite() };
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    let unreachable =
        Invitation { address: Address { host: "127.0.0.1".into(), port }, ..collector.invite() };
    let cases = [
        (collector.invite_with(Secret::new([1; 20])), vec!["unknown", "vidette tokens create"]),
        (collector.invite_with(expired), vec!["expired", "vidette tokens create"]),
        (collector.invite_with(revoked), vec!["revoked", "vidette tokens create"]),
        (wrong_pin, vec!["not the one of the join line", "pinned"]),
        (unreachable, vec!["could not reach", "127.0.0.1", "UDP port"]),
    ];
    for (invitation, words) in cases {
        let host = HostFolder::new();
        says(&host.join(&invitation).unwrap_err(), &words);
        assert!(Credentials::load(&host.state()).is_err());
    }
    assert!(collector.identity.agents().unwrap().is_empty());
}

#[test]
fn a_taken_port_is_named() {
    let collector = Collector::start();
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::open(&folder.path().join("identity")).unwrap();
    let _in = collector.runtime.enter();
    let config = ingest::Config::new(collector.address());
    let error = ingest::start(&config, identity, Memory::default(), Fleet::new()).unwrap_err();
    says(&format!("{error:#}"), &[&collector.address().to_string(), "another program", "listen"]);
}

/// A key and a certificate, as an agent that is not ours would hold them.
struct Papers(rustls::pki_types::CertificateDer<'static>, rustls::pki_types::PrivateKeyDer<'static>);

/// Enrols without the agent's code, `ago_s` seconds ago.
fn papers(collector: &Collector, ago_s: i64) -> (AgentId, Papers) {
    let then = unix_s_now() - ago_s;
    let (token, _) = collector.identity.create_token_at(TOKEN_TTL_DEFAULT, None, then).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let join =
        wire::Join { token: token.bytes().to_vec(), csr_der: csr.der().to_vec(), ..Default::default() };
    let joined = collector.identity.join(&join, then).unwrap();
    let certificate = joined.certificates_der[0].clone().into();
    (joined.agent_id.parse().unwrap(), Papers(certificate, key.serialize_der().try_into().unwrap()))
}

/// Connects as anybody might, with nothing of the agent's code.
async fn dial(to: SocketAddr, trust: &Identity, papers: Option<Papers>, alpn: &[u8]) -> quinn::Connection {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trust.ca().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match papers {
        Some(Papers(certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    endpoint.connect_with(config, to, COLLECTOR_NAME).unwrap().await.unwrap()
}

/// How the collector ended it: an application's close code, or 0x100 and a TLS alert.
async fn end(connection: &quinn::Connection) -> (u64, String) {
    let closed = tokio::time::timeout(Duration::from_secs(10), connection.closed()).await.unwrap();
    match closed {
        quinn::ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
        }
        quinn::ConnectionError::ConnectionClosed(close) => (u64::from(close.error_code), String::new()),
        other => panic!("{other}"),
    }
}

#[test]
fn a_session_needs_a_good_certificate_of_this_collector_and_each_lack_has_its_own_answer() {
    let (collector, other) = (Collector::start(), Collector::start());
    let (revoked, revoked_papers) = papers(&collector, 0);
    assert!(collector.identity.revoke_agent(revoked).unwrap());
    let unregistered = {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        Papers(certificate.der().clone(), key.serialize_der().try_into().unwrap())
    };
    let unknown_ca = 0x100 + 48;
    let cases = [
        ("none", None, wire::RefuseCode::Unknown as u64, "certificate"),
        ("expired", Some(papers(&collector, 2 * 86_400).1), wire::RefuseCode::Expired as u64, "expired"),
        ("expired long ago", Some(papers(&collector, 40 * 86_400).1), 0x100 + 45, ""),
        ("revoked", Some(revoked_papers), wire::RefuseCode::Revoked as u64, "revoked"),
        ("of another CA", Some(papers(&other, 0).1), unknown_ca, ""),
        ("of its own making", Some(unregistered), unknown_ca, ""),
    ];
    for (name, papers, code, word) in cases {
        let (got, reason) = collector.runtime.block_on(async {
            end(&dial(collector.address(), &collector.identity, papers, ALPN).await).await
        });
        assert_eq!(got, code, "{name}: {reason}");
        says(&reason, &[word]);
    }
    assert_eq!(collector.fleet.connected(), 0);
}

#[test]
fn a_host_that_was_off_for_days_can_renew_and_a_stranger_can_not() {
    let collector = Collector::start();
    let (agent, papers) = papers(&collector, 5 * 86_400);
    let ask = |papers: Option<Papers>| {
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        let renew = wire::Renew { csr_der: csr.der().to_vec(), kept: true };
        let request = wire::JoinRequest { message: Some(wire::join_request::Message::Renew(renew)) };
        collector.runtime.block_on(async {
            let connection = dial(collector.address(), &collector.identity, papers, ALPN_JOIN).await;
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            send.write_all(&vidette_protocol::frame::encode(&request)).await.unwrap();
            let bytes = receive.read_to_end(1 << 16).await.unwrap();
            let mut decoder = vidette_protocol::frame::Decoder::default();
            decoder.push(&bytes);
            decoder.next::<wire::JoinAnswer>().unwrap().unwrap().message.unwrap()
        })
    };
    match ask(Some(papers)) {
        wire::join_answer::Message::Joined(joined) => assert_eq!(joined.agent_id, agent.to_string()),
        other => panic!("{other:?}"),
    }
    match ask(None) {
        wire::join_answer::Message::Refused(refused) => says(&refused.reason, &["present the certificate"]),
        other => panic!("something for a stranger: {other:?}"),
    }
}

/// As the collector's register knows it, with its successor in use.
fn superseded(collector: &Collector) -> (AgentId, Papers) {
    let (agent, papers) = papers(collector, 0);
    let (shown, from, now) = (Identity::shown(&papers.0).unwrap(), ([127, 0, 0, 1], 9).into(), unix_s_now());
    collector.identity.greet(&shown, from, now).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let renew = wire::Renew { csr_der: csr.der().to_vec(), kept: true };
    let renewed = collector.identity.renew(&shown, &renew, from, now).unwrap();
    let newer = Identity::shown(&renewed.certificates_der[0]).unwrap();
    collector.identity.greet(&newer, from, now).unwrap();
    (agent, papers)
}

/// Datagrams of one client to the collector, and back until it is cut. Dropping it ends its threads.
struct Relay {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    fn start(collector: SocketAddr) -> Self {
        let [near, far] = [(); 2].map(|()| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            // How often it looks whether it is over.
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            Arc::new(socket)
        });
        let address = near.local_addr().unwrap();
        let (is_cut, is_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let client = Arc::new(OnceLock::new());
        let there = {
            let (near, far, is_over, client) = (near.clone(), far.clone(), is_over.clone(), client.clone());
            std::thread::spawn(move || {
                let mut datagram = [0; 65_535];
                while !is_over.load(Ordering::SeqCst) {
                    if let Ok((length, from)) = near.recv_from(&mut datagram) {
                        client.get_or_init(|| from);
                        // The collector may be gone by then; a datagram may always be lost.
                        let _ = far.send_to(&datagram[..length], collector);
                    }
                }
            })
        };
        let back = {
            let (is_cut, is_over) = (is_cut.clone(), is_over.clone());
            std::thread::spawn(move || {
                let mut datagram = [0; 65_535];
                while !is_over.load(Ordering::SeqCst) {
                    if let Ok(length) = far.recv(&mut datagram)
                        && !is_cut.load(Ordering::SeqCst)
                        && let Some(client) = client.get()
                    {
                        let _ = near.send_to(&datagram[..length], client);
                    }
                }
            })
        };
        Self { address, is_cut, is_over, threads: vec![there, back] }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_superseded_certificate_is_an_alarm_only_while_somebody_is_there() {
    let collector = Collector::start();
    let (agent, Papers(certificate, key)) = superseded(&collector);
    let hello = wire::Hello { protocol: 1, epoch: 1, ..Default::default() };
    let message = Some(wire::to_collector::Message::Hello(hello));
    let hello = vidette_protocol::frame::encode(&wire::ToCollector { message });
    // A late connection of an agent that has renewed since: its Hello arrives, and nobody is there any more to answer.
    let relay = Relay::start(collector.address());
    let papers = Papers(certificate.clone(), key.clone_key());
    let kept = collector.runtime.block_on(dial(relay.address, &collector.identity, Some(papers), ALPN));
    eventually("it is there", || collector.fleet.connected() == 1);
    relay.is_cut.store(true, Ordering::SeqCst);
    let speaks = async {
        let (mut send, receive) = kept.open_bi().await.unwrap();
        send.write_all(&hello).await.unwrap();
        (send, receive)
    };
    let streams = collector.runtime.block_on(speaks);
    // Its repeated Hello keeps the connection from being idle: what ends it is that it was asked.
    eventually("it is gone", || collector.fleet.connected() == 0);
    assert!(collector.fleet.member(agent).is_some_and(|member| member.hello.is_none()));
    assert_eq!(collector.identity.standing(agent).unwrap(), Standing::Good);
    drop((streams, kept));
    // And a copy.
    let papers = Papers(certificate.clone(), key.clone_key());
    let (code, reason) = collector.runtime.block_on(async {
        let connection = dial(collector.address(), &collector.identity, Some(papers), ALPN).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&hello).await.unwrap();
        end(&connection).await
    });
    assert_eq!(code, wire::RefuseCode::Cloned as u64, "{reason}");
    assert_eq!(collector.identity.standing(agent).unwrap(), Standing::Cloned);
    let papers = Papers(certificate.clone(), key.clone_key());
    let (code, reason) = collector.runtime.block_on(async {
        end(&dial(collector.address(), &collector.identity, Some(papers), ALPN).await).await
    });
    assert_eq!(code, wire::RefuseCode::Cloned as u64, "{reason}");
    says(&reason, &["copied", "join the right host again"]);
}

/// Waits until `what` holds.
fn eventually(name: &str, mut what: impl FnMut() -> bool) {
    for _ in 0..400 {
        if what() {
            return;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("{name} did not happen within 10 s");
}

#[test]
fn garbage_and_oversized_frames_cut_one_agent_and_no_other() {
    let collector = Collector::start();
    let huge = u32::MAX.to_be_bytes().to_vec();
    let garbage = [&[0, 0, 0, 3][..], &[0xff; 3]].concat();
    let (good, good_papers) = papers(&collector, 0);
    let honest =
        collector.runtime.block_on(dial(collector.address(), &collector.identity, Some(good_papers), ALPN));
    eventually("the honest agent connects", || collector.fleet.connected() == 1);
    for bytes in [huge, garbage] {
        let (agent, papers) = papers(&collector, 0);
        let (code, reason) = collector.runtime.block_on(async {
            let connection = dial(collector.address(), &collector.identity, Some(papers), ALPN).await;
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            send.write_all(&bytes).await.unwrap();
            end(&connection).await
        });
        assert_eq!(code, wire::RefuseCode::Misbehaved as u64, "{reason}");
        says(&reason, &["broke the protocol", "frame"]);
        assert!(collector.fleet.member(agent).unwrap().refused.is_some());
    }
    assert!(honest.close_reason().is_none());
    assert!(collector.fleet.member(good).unwrap().connected_unix_s.is_some());
    assert!(collector.identity.revoke_agent(good).unwrap() && collector.fleet.cut(good));
    let (code, _) = collector.runtime.block_on(end(&honest));
    assert_eq!(code, wire::RefuseCode::Revoked as u64);
}

#[test]
fn events_go_from_the_outbox_to_the_store_across_a_restart_and_a_late_join() {
    let mut collector = Collector::start();
    let host = HostFolder::new();
    let (events, input) = crossbeam_channel::bounded(64);
    let config = vidette_agent::outbox::Config {
        folder: host.state().join("outbox"),
        bytes_max: 64 << 20,
        host: Host::read(),
    };
    let outbox = vidette_agent::outbox::start(config, Arc::default(), input).unwrap();
    let (stopper, stop) = vidette_agent::stop::channel();
    let transport = transport::start(
        transport::Config { state: host.state() },
        outbox.handle(),
        Arc::new(wire::Status::default),
        Arc::new(|| wire::Hello { os: "test".into(), ..Default::default() }),
        stop,
    )
    .unwrap();
    let state = transport.state();
    let send = |name: &str| {
        let audit = wire::Audit { action: name.into(), ..Default::default() };
        let kind = wire::event::Kind::Audit(audit);
        let moment = vidette_agent::host::Moment::now();
        events.send(Host::read().event(moment, wire::Severity::Info, kind)).unwrap();
    };
    send("before-join");
    eventually("it waits to be joined", || matches!(&*state.borrow(), transport::State::NotJoined { .. }));
    let agent = host.join(&collector.invite()).unwrap().agent;
    let stored = |store: &Memory| {
        let all = store.0.lock().unwrap();
        all.iter().filter(|((who, ..), _)| *who == agent).map(|(_, (_, bodies))| bodies.len()).sum::<usize>()
    };
    eventually("the first event is stored", || stored(&collector.store) == 1);
    assert!(matches!(&*state.borrow(), transport::State::Connected { agent: who, .. } if *who == agent));
    eventually("the hello is known", || collector.fleet.member(agent).unwrap().hello.is_some());

    let address = collector.address();
    let ingest = collector.ingest.take().unwrap();
    collector.runtime.block_on(ingest.stop());
    send("while-it-is-down");
    eventually("it notices", || !matches!(&*state.borrow(), transport::State::Connected { .. }));
    collector.listen(address);
    eventually("the second event is stored", || stored(&collector.store) == 2);

    send("at-the-end");
    eventually("the third event is stored", || stored(&collector.store) == 3);
    eventually("nothing waits", || outbox.handle().figures().events == 0);
    stopper.stop();
    assert!(transport.join());
    drop(events);
    outbox.join();
}
