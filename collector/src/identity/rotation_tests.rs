//! What the replacement of a CA promises, against a real folder; agents are checked as TLS checks them.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::identity::tests::{csr, request};
use crate::identity::{Sign, TOKEN_TTL_DEFAULT, authorities, sign_offline};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::UnixTime;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use std::path::Path;
use std::time::Duration;
use vidette_protocol::wire::{Join, Joined, Renew, Status};

const NOW: i64 = 1_800_000_000;

fn open(folder: &Path) -> Identity {
    Identity::open_at(&folder.join("identity"), NOW).unwrap()
}

fn fresh() -> (tempfile::TempDir, Identity) {
    let folder = tempfile::tempdir().unwrap();
    let identity = open(folder.path());
    (folder, identity)
}

fn join(identity: &Identity, now: i64) -> (AgentId, Joined) {
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, now).unwrap();
    // Each on a host of its own: one that joins anew replaces its older self, which does not count any more.
    let host_name = secret.bytes().to_vec();
    let joined = identity.join(&Join { host_name, ..request(&secret) }, now).unwrap();
    (joined.agent_id.parse().unwrap(), joined)
}

/// Whether an agent that trusts these roots takes the collector for its own.
fn accepts(roots: &[Vec<u8>], identity: &Identity, now: i64) -> bool {
    let own = identity.own();
    let mut store = RootCertStore::empty();
    roots.iter().for_each(|root| store.add(root.clone().into()).unwrap());
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let (leaf, chain) = own.cert.split_first().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap()));
    let leaf = ParsedCertificate::try_from(leaf).unwrap();
    verify_server_cert_signed_by_trust_anchor(&leaf, &store, chain, now, algorithms).is_ok()
}

/// Whether the collector takes a certificate for one of its agents'.
fn takes(identity: &Identity, joined: &Joined, now: i64) -> bool {
    let mut store = RootCertStore::empty();
    identity.issuers().into_iter().for_each(|issuer| store.add(issuer).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap()));
    verifier.verify_client_cert(&joined.certificates_der[0].clone().into(), &[], now).is_ok()
}

/// As an agent asks that keeps no key before it asks: whoever asks twice is no copy.
fn renewed(identity: &Identity, joined: &Joined, now: i64) -> Joined {
    let shown = Identity::shown(&joined.certificates_der[0]).unwrap();
    let renew = Renew { csr_der: csr(), kept: false };
    identity.renew(&shown, &renew, ([192, 0, 2, 1], 7).into(), now).unwrap()
}

/// An agent connects, says what it trusts, takes what it is told, and renews when it is told.
fn connects(identity: &Identity, agent: AgentId, joined: &mut Joined, now: i64) {
    assert!(takes(identity, joined, now) && accepts(&joined.roots_der, identity, now));
    let roots = identity.roots().borrow().clone();
    identity.shows(agent, &joined.certificates_der[0]);
    joined.roots_der = roots.ders.clone();
    identity.trusts(agent, &roots.digests);
    if !roots.issued(&joined.certificates_der[0]) {
        *joined = renewed(identity, joined, now);
        identity.shows(agent, &joined.certificates_der[0]);
    }
}

fn why(identity: &Identity, now: i64) -> Vec<(AgentId, &'static str)> {
    identity.cas(now).unwrap().behind.iter().map(|one| (one.agent, one.why)).collect()
}

#[test]
fn the_ca_is_replaced_and_who_was_away_through_everything_follows() {
    let (folder, identity) = fresh();
    let (own_id, old) = (identity.own_id(), identity.pin());
    let (here, mut here_has) = join(&identity, NOW);
    let (away, mut away_has) = join(&identity, NOW);
    connects(&identity, here, &mut here_has, NOW);
    let told = identity.roots();
    let new = identity.prepare_ca(NOW + 10).unwrap();
    assert!(
        told.has_changed().unwrap() && new != old && identity.pin() == old,
        "nothing is issued by it yet"
    );
    assert_eq!(told.borrow().ders.len(), 2);
    connects(&identity, here, &mut here_has, NOW + 11);
    let picture = identity.cas(NOW + 12).unwrap();
    let seen: Vec<_> = picture.cas.iter().map(|ca| (ca.state, ca.pin, ca.confirmed, ca.holders)).collect();
    assert_eq!(seen, [(CaState::Active, old, 1, 2), (CaState::Prepared, new, 1, 0)]);

    assert_eq!(identity.activate_ca(NOW + 20).unwrap(), new);
    assert_eq!((identity.pin(), identity.own_id()), (new, own_id), "its own events keep their name");
    assert_eq!(why(&identity, NOW + 21).len(), 2);
    connects(&identity, here, &mut here_has, NOW + 21);
    assert_eq!(why(&identity, NOW + 22), [(away, "has not confirmed the new CA")]);
    let refused = identity.retire_ca(false, NOW + 22).unwrap();
    assert!(!refused.is_done && refused.behind.len() == 1 && refused.pin == old);

    drop(identity);
    let identity = open(folder.path());
    assert_eq!((identity.pin(), identity.own_id()), (new, own_id), "after a restart");
    assert_eq!(why(&identity, NOW + 23).len(), 1, "and it knows who has followed");
    assert!(accepts(&[away_has.roots_der[0].clone()], &identity, NOW + 23), "who knows only the old root");
    connects(&identity, away, &mut away_has, NOW + 24);
    assert!(identity.retire_ca(false, NOW + 25).unwrap().is_done);
    for (agent, has) in [(here, &mut here_has), (away, &mut away_has)] {
        connects(&identity, agent, has, NOW + 26);
        assert_eq!(has.roots_der.len(), 1);
    }
    let picture = identity.cas(NOW + 27).unwrap();
    assert_eq!((picture.cas.len(), picture.cas[0].confirmed, picture.cas[0].holders), (1, 2, 2));
    assert_eq!(identity.own().cert.len(), 2, "the way by the old CA is gone");
}

#[test]
fn force_locks_out_whom_it_names_and_nobody_else() {
    let (_folder, identity) = fresh();
    let (here, mut here_has) = join(&identity, NOW);
    let (away, away_has) = join(&identity, NOW);
    let others: Vec<(AgentId, Joined)> = (0..3).map(|_| join(&identity, NOW)).collect();
    assert!(identity.revoke_agent(others[0].0).unwrap());
    identity.leave(others[1].0, NOW).unwrap();
    identity.prepare_ca(NOW).unwrap();
    identity.activate_ca(NOW + 1).unwrap();
    connects(&identity, here, &mut here_has, NOW + 2);
    let named: Vec<AgentId> = why(&identity, NOW + 3).into_iter().map(|(agent, _)| agent).collect();
    let mut expected = vec![away, others[2].0];
    expected.sort(); // all joined in one second
    assert_eq!(named, expected, "revoked and left ones do not count");
    let later = NOW + super::super::AGENT_LIFE_S + RENEW_GRACE_S + 1;
    assert_eq!(why(&identity, later), [], "nor one that must be joined again anyway");
    let retired = identity.retire_ca(true, NOW + 3).unwrap();
    assert!(retired.is_done && retired.behind.len() == 2);
    assert!(!takes(&identity, &away_has, NOW + 4) && !accepts(&away_has.roots_der, &identity, NOW + 4));
    connects(&identity, here, &mut here_has, NOW + 4);
}

/// Of copied machines several look like one host: who is heard long after another one has joined is there all the same.
#[test]
fn one_that_was_replaced_counts_when_it_is_heard_afterwards() {
    let (_folder, identity) = fresh();
    let mut agents: Vec<(AgentId, Joined)> = (0..3)
        .map(|_| {
            let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
            let joined = identity.join(&request(&secret), NOW).unwrap();
            (joined.agent_id.parse().unwrap(), joined)
        })
        .collect();
    let (last, mut has) = agents.pop().unwrap();
    identity.prepare_ca(NOW).unwrap();
    identity.activate_ca(NOW + 1).unwrap();
    connects(&identity, last, &mut has, NOW + 2);
    let heard = |agent: AgentId, at: i64| {
        identity.pending().note(agent, Sign::Status(&Status::default()), at);
    };
    heard(agents[0].0, NOW + REPLACED_HEARD_S);
    assert_eq!(why(&identity, NOW + 200), [], "older selves, one of them not restarted at once");
    heard(agents[0].0, NOW + REPLACED_HEARD_S + 1);
    assert_eq!(why(&identity, NOW + 200), [(agents[0].0, "has not confirmed the new CA")]);
    assert!(!identity.retire_ca(false, NOW + 201).unwrap().is_done);
}

#[test]
fn who_joins_at_any_stage_is_in_place() {
    let (_folder, identity) = fresh();
    identity.prepare_ca(NOW).unwrap();
    let (_, during) = join(&identity, NOW + 1);
    assert_eq!(during.roots_der.len(), 2);
    identity.activate_ca(NOW + 2).unwrap();
    let (_, after) = join(&identity, NOW + 3);
    assert_eq!(why(&identity, NOW + 4).len(), 1, "only who has a certificate of the old one");
    for joined in [&during, &after] {
        assert!(takes(&identity, joined, NOW + 4) && accepts(&joined.roots_der, &identity, NOW + 4));
    }
    // A join line with the old pin: that key is among what the collector shows, and among the roots it gives.
    let shown: Vec<[u8; 32]> = identity.own().cert.iter().map(|der| pin_of(der).unwrap()).collect();
    let given: Vec<[u8; 32]> =
        after.roots_der.iter().map(|der| pin_of(&der.clone().into()).unwrap()).collect();
    let old = identity.cas(NOW).unwrap().cas[1].pin;
    assert!(shown.contains(&old) && given.contains(&old));
}

#[test]
fn an_agent_that_does_not_know_of_roots_has_followed_when_it_shows_a_new_certificate() {
    let (_folder, identity) = fresh();
    let (agent, joined) = join(&identity, NOW);
    identity.shows(agent, &joined.certificates_der[0]);
    identity.trusts(agent, &[]);
    identity.prepare_ca(NOW).unwrap();
    identity.activate_ca(NOW + 1).unwrap();
    assert_eq!(why(&identity, NOW + 2).len(), 1);
    let renewed = renewed(&identity, &joined, NOW + 3);
    assert_eq!(why(&identity, NOW + 3).len(), 1, "what was issued is not yet what it has");
    assert_eq!(renewed.roots_der.len(), 2);
    identity.shows(agent, &renewed.certificates_der[0]);
    assert!(identity.retire_ca(false, NOW + 4).unwrap().is_done);
}

#[test]
fn a_host_that_joins_anew_by_a_line_of_the_new_ca_is_known_by_the_mark_that_it_said() {
    let (_folder, identity) = fresh();
    let (agent, mut has) = join(&identity, NOW);
    identity.prepare_ca(NOW).unwrap();
    connects(&identity, agent, &mut has, NOW);
    let before = identity.roots().borrow().digests.clone();
    identity.is_marked(agent, &before, b"by the old pin");
    identity.activate_ca(NOW + 1).unwrap();
    identity.is_marked(agent, &before, b"of a CA that is not active");
    identity.is_marked(agent, &identity.roots().borrow().digests.clone(), b"by the new pin");
    identity.flush_seen().unwrap();
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW + 2).unwrap();
    let again = Join { host_mark: b"by the new pin".to_vec(), ..request(&secret) };
    assert_eq!(identity.join(&again, NOW + 2).unwrap().replaces, [agent.to_string()]);
}

#[test]
fn withdrawn_is_as_if_it_had_never_been() {
    let (_folder, identity) = fresh();
    let (agent, mut has) = join(&identity, NOW);
    let next = identity.prepare_ca(NOW).unwrap();
    connects(&identity, agent, &mut has, NOW);
    assert_eq!(identity.withdraw_ca(NOW).unwrap(), Some(next));
    connects(&identity, agent, &mut has, NOW);
    assert_eq!(has.roots_der.len(), 1);
    assert!(identity.activate_ca(NOW).is_err() && identity.retire_ca(true, NOW).is_err());
    let again = identity.prepare_ca(NOW).unwrap();
    assert_ne!(again, next);
}

#[test]
fn a_root_whose_key_is_elsewhere_comes_by_request_and_goes_again() {
    let (folder, identity) = fresh();
    let root = folder.path().join("root");
    let (agent, mut has) = join(&identity, NOW);
    connects(&identity, agent, &mut has, NOW);
    for round in 0..2 {
        let at = NOW + round * 100;
        let first = identity.request_ca(at).unwrap();
        let (_, was) =
            sign_offline(&folder.path().join("other"), &first, at).map(|made| (made.0, made.1)).unwrap();
        let (text, pin, is_new) = sign_offline(&root, &identity.request_ca(at).unwrap(), at).unwrap();
        assert!(is_new == (round == 0) && was != pin);
        let half = text.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().to_owned();
        let other = identity_text(&folder.path().join("third"), at);
        for wrong in ["", "garbage", &half, &format!("{half}{half}"), &other] {
            assert!(identity.complete_ca(wrong, at).is_err(), "{wrong}");
        }
        assert_eq!(identity.complete_ca(&text, at).unwrap(), pin);
        connects(&identity, agent, &mut has, at + 1);
        assert_eq!(identity.activate_ca(at + 2).unwrap(), pin);
        assert!(accepts(&[has.roots_der.last().unwrap().clone()], &identity, at + 2), "by the way of before");
        connects(&identity, agent, &mut has, at + 3);
        assert!(identity.retire_ca(false, at + 4).unwrap().is_done, "{:?}", why(&identity, at + 4));
        connects(&identity, agent, &mut has, at + 5);
        let ca = identity.cas(at + 5).unwrap().cas.remove(0);
        assert!(ca.pin == pin && ca.signs != pin && ca.holders == 1);
    }
}

/// A certificate for a request of another collector.
fn identity_text(folder: &Path, now: i64) -> String {
    let other = Identity::open_at(&folder.join(now.to_string()), now).unwrap();
    sign_offline(&folder.join("root"), &other.request_ca(now).unwrap(), now).unwrap().0
}

#[test]
fn a_kill_at_any_step_of_any_change_leaves_a_collector_that_starts_and_is_trusted() {
    type Change = fn(&Identity) -> anyhow::Result<()>;
    let prepare: Change = |identity| identity.prepare_ca(NOW).map(drop);
    let request: Change = |identity| identity.request_ca(NOW).map(drop);
    let activate: Change = |identity| identity.activate_ca(NOW).map(drop);
    let retire: Change = |identity| identity.retire_ca(true, NOW).map(drop);
    let withdraw: Change = |identity| identity.withdraw_ca(NOW).map(drop);
    let table: [(&[Change], Change); 6] = [
        (&[], prepare),
        (&[], request),
        (&[prepare], activate),
        (&[prepare], withdraw),
        (&[prepare, activate], retire),
        (&[prepare, activate, retire], prepare),
    ];
    let mut kills = 0;
    for (before, change) in table {
        for steps in 0.. {
            let (folder, identity) = fresh();
            let (_, joined) = join(&identity, NOW);
            let knows_first = before.len() < 3;
            before.iter().for_each(|change| change(&identity).unwrap());
            let stage = identity.authorities().stage();
            identity.0.vault.faults.stop_after(steps);
            let done = change(&identity).is_ok();
            let was_stopped = identity.0.vault.faults.is_stopped();
            drop(identity);
            let identity = open(folder.path());
            let now = identity.authorities().stage();
            assert!(!done || was_stopped || now != stage, "it said that it was done");
            // Whoever is trusted by somebody before or after is trusted now, unless it was retired.
            if knows_first && !(before.len() == 2 && now == Stage::Alone) {
                assert!(accepts(&joined.roots_der, &identity, NOW + 1), "{steps} steps to {now:?}");
                assert!(takes(&identity, &joined, NOW + 1));
                renewed(&identity, &joined, NOW + 1);
            }
            let (_, new) = join(&identity, NOW + 1);
            assert!(takes(&identity, &new, NOW + 1) && accepts(&new.roots_der, &identity, NOW + 1));
            let names = std::fs::read_dir(folder.path().join("identity")).unwrap();
            let has_key = names.flatten().any(|entry| entry.file_name() == "ca-key.pem");
            let has_all = folder.path().join("identity").join(authorities::FILE).exists();
            assert!(has_key != has_all, "the first key is in one place only after a start");
            kills += u32::from(was_stopped);
            if !was_stopped {
                break;
            }
        }
    }
    assert!(kills > 30, "{kills}");
}

#[test]
fn a_damaged_file_is_named_and_an_older_vidette_does_not_make_another_ca() {
    let (folder, identity) = fresh();
    identity.prepare_ca(NOW).unwrap();
    drop(identity);
    let place = folder.path().join("identity");
    let text = std::fs::read_to_string(place.join(authorities::FILE)).unwrap();
    for damaged in ["", "{", &text.replace("\"format\": 1", "\"format\": 2"), &text.replace("N PRIVATE", "")]
    {
        std::fs::write(place.join(authorities::FILE), damaged).unwrap();
        let error = format!("{:#}", Identity::open(&place).unwrap_err());
        assert!(error.contains(authorities::FILE) && error.contains("backup"), "{error}");
    }
    std::fs::remove_file(place.join(authorities::FILE)).unwrap();
    let error = format!("{:#}", Identity::open(&place).unwrap_err());
    assert!(error.contains("ca-key.pem is missing"), "{error}");
}

#[test]
fn a_disk_that_takes_nothing_keeps_no_collector_from_starting() {
    let (folder, identity) = fresh();
    let first = identity.own();
    drop(identity);
    let later = NOW + authority::OWN_LIFE_S / 2;
    std::os::unix::fs::symlink("/dev/full", folder.path().join("identity/collector.pem.new")).unwrap();
    let identity = Identity::open_at(&folder.path().join("identity"), later).unwrap();
    let info = identity.own_info();
    assert!(info.trouble.unwrap().contains("stored") && info.expires_unix_s > later);
    assert_ne!(identity.own().cert, first.cert, "a fresh one is served from memory");
    std::fs::remove_file(folder.path().join("identity/collector.pem.new")).unwrap();
    identity.maintain(later + 60).unwrap();
    assert_eq!(identity.own_info().trouble, None);
}

#[test]
fn no_key_is_shown_and_a_path_length_of_the_root_does_not_bar_the_way_to_the_next() {
    let (_folder, identity) = fresh();
    let old = identity.ca();
    let (_, parsed) = x509_parser::parse_x509_certificate(&old).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap().value.path_len_constraint;
    assert_eq!(constraints, Some(0), "a root as the first versions made it");
    identity.prepare_ca(NOW).unwrap();
    identity.activate_ca(NOW).unwrap();
    assert!(accepts(&[old.to_vec()], &identity, NOW), "rustls-webpki asks a trust anchor for no path length");
    let shown = format!("{identity:?} {:?}", identity.authorities());
    assert!(!shown.contains("PRIVATE") && !shown.contains("KeyPair"), "{shown}");
}
