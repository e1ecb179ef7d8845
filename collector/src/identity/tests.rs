//! What `Identity` promises, against a real folder and database; time is injected.
#![allow(clippy::unwrap_used)]

use super::*;
use rcgen::{CertificateParams, KeyPair};
use std::os::unix::fs::PermissionsExt;
use vidette_protocol::limits::NAME_BYTES_MAX;
use vidette_protocol::wire::{Join, Joined, Renew};

const NOW: i64 = 1_800_000_000;

pub(super) fn csr() -> Vec<u8> {
    csr_of(&KeyPair::generate().unwrap())
}

fn csr_of(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

pub(super) fn request(token: &Secret) -> Join {
    Join {
        token: token.bytes().to_vec(),
        csr_der: csr(),
        host_name: b"web-1".to_vec(),
        agent_version: "0.1.0".into(),
        os: "Linux 6.18".into(),
        host_mark: Vec::new(),
    }
}

fn wish(uses: u32) -> TokenWish {
    TokenWish { uses, group: Some("web".into()), ..TokenWish::one(TOKEN_TTL_DEFAULT, Some("rack 1".into())) }
}

fn agent_of(joined: &Joined) -> AgentId {
    joined.agent_id.parse().unwrap()
}

fn shown(joined: &Joined) -> Shown {
    Identity::shown(&joined.certificates_der[0]).unwrap()
}

fn nobody(agent: AgentId) -> Shown {
    Shown { agent, serial: Vec::new(), generation: None, key: [0; 32], expires_unix_s: 0 }
}

fn host(number: u8) -> SocketAddr {
    ([192, 0, 2, number], 7).into()
}

/// As an agent of this version asks.
fn renewal(key: &KeyPair) -> Renew {
    Renew { csr_der: csr_of(key), kept: true }
}

fn refusal(not_renewed: NotRenewed) -> JoinRefusal {
    assert_eq!(not_renewed.sign, None);
    code(not_renewed.refused)
}

fn enrolled(identity: &Identity) -> Joined {
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
    identity.join(&request(&secret), NOW).unwrap()
}

fn fresh() -> (tempfile::TempDir, Identity) {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::open(&folder.path().join("identity")).unwrap();
    (folder, identity)
}

fn code(refused: JoinRefused) -> JoinRefusal {
    JoinRefusal::try_from(refused.code).unwrap()
}

#[test]
fn a_token_enrols_one_host_once() {
    let (_folder, identity) = fresh();
    let (secret, info) = identity.create_token_at(TOKEN_TTL_DEFAULT, Some("rack 1".into()), NOW).unwrap();
    let joined = identity.join(&request(&secret), NOW + 1).unwrap();
    let agent: AgentId = joined.agent_id.parse().unwrap();
    assert_eq!(Identity::agent_of(&joined.certificates_der[0]).unwrap(), agent);
    assert_eq!(joined.expires_unix_s, NOW + 1 + AGENT_LIFE_S);
    assert_eq!(code(identity.join(&request(&secret), NOW + 2).unwrap_err()), JoinRefusal::TokenUsed);
    let token = identity.tokens().unwrap().remove(0);
    assert_eq!((token.id, token.used_by, token.used_unix_s), (info.id, Some(agent), Some(NOW + 1)));
    let record = identity.agent(agent).unwrap().unwrap();
    assert_eq!(
        (record.host_name.as_slice(), record.certificate_expires_unix_s),
        (&b"web-1"[..], NOW + 1 + AGENT_LIFE_S)
    );
    assert_eq!(identity.find("web-1").unwrap(), identity.find(&joined.agent_id[..6]).unwrap());
    assert!(identity.find("").unwrap().is_empty());
}

#[test]
fn unknown_expired_and_revoked_tokens_are_told_apart() {
    let (_folder, identity) = fresh();
    let stranger = Secret::new([9; TOKEN_BYTES]);
    assert_eq!(code(identity.join(&request(&stranger), NOW).unwrap_err()), JoinRefusal::TokenUnknown);
    let (secret, info) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
    assert_eq!(code(identity.join(&request(&secret), NOW + 3600).unwrap_err()), JoinRefusal::TokenExpired);
    assert!(identity.revoke_token(&info.id).unwrap());
    assert!(!identity.revoke_token(&info.id).unwrap());
    assert_eq!(code(identity.join(&request(&secret), NOW).unwrap_err()), JoinRefusal::TokenRevoked);
    assert!(identity.agents().unwrap().is_empty());
}

#[test]
fn a_refused_request_does_not_use_the_token_up() {
    let (_folder, identity) = fresh();
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
    let garbage = Join { csr_der: b"garbage".to_vec(), ..request(&secret) };
    assert_eq!(code(identity.join(&garbage, NOW).unwrap_err()), JoinRefusal::BadRequest);
    let long = Join { host_name: vec![b'a'; NAME_BYTES_MAX + 1], ..request(&secret) };
    assert_eq!(code(identity.join(&long, NOW).unwrap_err()), JoinRefusal::BadRequest);
    identity.join(&request(&secret), NOW).unwrap();
}

#[test]
fn one_token_used_by_many_at_once_enrols_one() {
    let (_folder, identity) = fresh();
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
    let joined: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| usize::from(identity.join(&request(&secret), NOW).is_ok())))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!((joined, identity.agents().unwrap().len()), (1, 1));
}

#[test]
fn a_token_of_many_uses_lets_in_so_many_however_many_come_at_once() {
    for uses in 1..=6_u32 {
        let (_folder, identity) = fresh();
        let (secret, info) = identity.create_token_as(wish(uses), NOW).unwrap();
        let answers: Vec<Result<Joined, JoinRefused>> = std::thread::scope(|scope| {
            let tries: Vec<_> =
                (0..=uses + 2).map(|_| scope.spawn(|| identity.join(&request(&secret), NOW))).collect();
            tries.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let (joined, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!(joined.len(), uses as usize);
        for refused in refused {
            assert_eq!(code(refused.unwrap_err()), JoinRefusal::TokenUsed);
        }
        let agents = identity.agents().unwrap();
        assert_eq!(agents.len(), uses as usize);
        for agent in agents {
            assert_eq!((agent.group.as_deref(), agent.label.as_deref()), (Some("web"), Some("rack 1")));
        }
        let token = identity.tokens().unwrap().remove(0);
        assert_eq!((token.uses, token.uses_max, token.is_used_up()), (uses, uses, true));
        assert!(!identity.revoke_token(&info.id).unwrap(), "there is nothing left to revoke");
    }
}

#[test]
fn asking_again_with_the_same_key_is_the_same_use_for_the_tokens_life() {
    let (_folder, identity) = fresh();
    let (secret, info) = identity.create_token_as(wish(2), NOW).unwrap();
    let key = KeyPair::generate().unwrap();
    let ask = |at| identity.join(&Join { csr_der: csr_of(&key), ..request(&secret) }, at);
    let first = ask(NOW).unwrap();
    assert!(!first.repeated);
    for again in 1..i64::from(ANSWERS_MAX) {
        let answer = ask(NOW + again).unwrap();
        assert_eq!((agent_of(&answer), answer.repeated), (agent_of(&first), true));
        assert_ne!(answer.certificates_der, first.certificates_der);
    }
    assert_eq!(code(ask(NOW + 100).unwrap_err()), JoinRefusal::TokenUsed, "so many answers and no more");
    assert_eq!(identity.tokens().unwrap()[0].uses, 1);
    identity.join(&request(&secret), NOW).unwrap();
    assert_eq!((identity.tokens().unwrap()[0].uses, identity.agents().unwrap().len()), (2, 2));

    let (secret, _) = identity.create_token_as(wish(2), NOW).unwrap();
    let ask = |at| identity.join(&Join { csr_der: csr_of(&key), ..request(&secret) }, at);
    let other = ask(NOW).unwrap();
    assert!(!other.repeated && agent_of(&other) != agent_of(&first), "another token is another agent");
    assert_eq!(code(ask(NOW + 3600).unwrap_err()), JoinRefusal::TokenExpired);
    assert!(identity.revoke_agent(agent_of(&other)).unwrap());
    assert_eq!(code(ask(NOW).unwrap_err()), JoinRefusal::Revoked, "a revoked agent does not come back so");
    let open = identity.tokens().unwrap().into_iter().find(|token| token.id != info.id).unwrap();
    assert!(identity.revoke_token(&open.id).unwrap());
    assert_eq!(code(ask(NOW).unwrap_err()), JoinRefusal::TokenRevoked);
}

#[test]
fn a_host_that_joins_anew_points_at_its_older_self_and_takes_nothing_from_it() {
    let (_folder, identity) = fresh();
    let join = |name: &[u8], mark: &[u8]| {
        let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
        let join = Join { host_name: name.to_vec(), host_mark: mark.to_vec(), ..request(&secret) };
        let joined = identity.join(&join, NOW).unwrap();
        let shown = shown(&joined);
        (joined.agent_id, joined.replaces, shown)
    };
    let marked = join(b"web-1", b"m1");
    assert_eq!(join(b"web-1", b"m2").1, Vec::<String>::new(), "two hosts of one name with different marks");
    let renamed = join(b"web-2", b"m1");
    assert_eq!(renamed.1, std::slice::from_ref(&marked.0), "the mark counts, not the name");
    let nameless = join(b"db", b"");
    assert_eq!(join(b"db", b"").1, [nameless.0], "without marks the name does");
    for nobody in [&b"localhost"[..], b""] {
        join(nobody, b"");
        assert_eq!(join(nobody, b"").1, Vec::<String>::new(), "a name of nobody");
    }
    let old: AgentId = marked.0.parse().unwrap();
    let record = identity.agent(old).unwrap().unwrap();
    assert_eq!(record.replaced, Some((renamed.0.parse().unwrap(), NOW)));
    assert_eq!(
        identity.standing(old).unwrap(),
        Standing::Good,
        "whoever says a mark takes nothing from others"
    );
    identity.renew(&marked.2, &renewal(&KeyPair::generate().unwrap()), host(1), NOW).unwrap();
    let long = Join { host_mark: vec![1; 33], ..request(&Secret::new([9; TOKEN_BYTES])) };
    assert_eq!(code(identity.join(&long, NOW).unwrap_err()), JoinRefusal::BadRequest);
}

#[test]
fn who_has_left_is_neither_revoked_nor_unknown() {
    let (_folder, identity) = fresh();
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
    let joined = identity.join(&request(&secret), NOW).unwrap();
    let agent = agent_of(&joined);
    assert_eq!(identity.leave(agent, NOW + 1).unwrap().agent_id, agent.to_string());
    identity.leave(agent, NOW + 2).unwrap();
    assert_eq!(identity.agent(agent).unwrap().unwrap().left_unix_s, Some(NOW + 1));
    assert_eq!(identity.standing(agent).unwrap(), Standing::Left);
    let renew = renewal(&KeyPair::generate().unwrap());
    let refused = identity.renew(&shown(&joined), &renew, host(1), NOW).unwrap_err();
    assert_eq!(refusal(refused), JoinRefusal::Left);
    assert!(identity.revoke_agent(agent).unwrap());
    assert_eq!(identity.standing(agent).unwrap(), Standing::Revoked);
    for (agent, refusal) in [(agent, JoinRefusal::Revoked), (AgentId([7; 16]), JoinRefusal::Unknown)] {
        assert_eq!(code(identity.leave(agent, NOW).unwrap_err()), refusal);
    }
}

#[test]
fn a_revoked_or_unknown_agent_gets_no_new_certificate() {
    let (_folder, identity) = fresh();
    let joined = enrolled(&identity);
    let (agent, shown) = (agent_of(&joined), shown(&joined));
    let renew = renewal(&KeyPair::generate().unwrap());
    let renewed = identity.renew(&shown, &renew, host(1), NOW + 50).unwrap();
    assert_eq!(renewed.expires_unix_s, NOW + 50 + AGENT_LIFE_S);
    assert_eq!(identity.standing(agent).unwrap(), Standing::Good);
    assert!(identity.revoke_agent(agent).unwrap());
    assert_eq!(identity.standing(agent).unwrap(), Standing::Revoked);
    let refused = |shown: &Shown| refusal(identity.renew(shown, &renew, host(1), NOW + 60).unwrap_err());
    assert_eq!(refused(&shown), JoinRefusal::Revoked);
    assert_eq!(refused(&nobody(AgentId([0; 16]))), JoinRefusal::Unknown);
    assert_eq!(identity.standing(AgentId([0; 16])).unwrap(), Standing::Unknown);
}

#[test]
fn everything_survives_a_restart_and_no_secret_is_on_disk() {
    let (folder, identity) = fresh();
    let (secret, _) = identity.create_token(TOKEN_TTL_DEFAULT, None).unwrap();
    let (pin, reset) = (identity.pin(), identity.quic_keys().reset);
    drop(identity);
    let path = folder.path().join("identity");
    for entry in std::fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(TOKEN_BYTES).any(|window| window == secret.bytes()), "{:?}", entry.path());
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with("identity.db") {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
    }
    let again = Identity::open(&path).unwrap();
    assert_eq!((again.pin(), again.quic_keys().reset), (pin, reset));
    again.join(&request(&secret), unix_s_now()).unwrap();
}

#[test]
fn tokens_have_a_longest_life_and_debug_shows_no_key() {
    let (_folder, identity) = fresh();
    for ttl in [Duration::ZERO, TOKEN_TTL_MAX + Duration::from_secs(1)] {
        assert!(identity.create_token(ttl, None).is_err());
    }
    let shown = format!("{identity:?} {:?}", identity.quic_keys());
    assert!(!shown.contains("PRIVATE") && shown.contains("not shown"), "{shown}");
}

#[test]
fn what_an_agent_says_of_itself_reaches_its_record() {
    let (_folder, identity) = fresh();
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
    let agent: AgentId = identity.join(&request(&secret), NOW).unwrap().agent_id.parse().unwrap();
    let hello =
        vidette_protocol::wire::Hello { level: 2, host_name: b"new\xff".to_vec(), ..Default::default() };
    identity.seen(agent, Sign::Hello(&hello));
    let record = identity.agents().unwrap().remove(0);
    assert_eq!((record.level, record.host_name.as_slice()), (2, &b"new\xff"[..]));
}

#[test]
fn agents_are_found_by_host_name_and_by_the_start_of_their_id() {
    let (_folder, identity) = fresh();
    for _ in 0..40 {
        let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
        identity.join(&request(&secret), NOW).unwrap();
    }
    let all = identity.agents().unwrap();
    let host = String::from_utf8(all[0].host_name.clone()).unwrap();
    let id = all[17].id.to_string();
    let texts = [&host, &id, &id[..1], &id[..2], &id[..31], "", "x", "g0", "\u{e4}", &id.to_uppercase()];
    for text in texts.into_iter().chain([format!("{id}0").as_str(), "a", "F", "0"]) {
        let fits = |agent: &&super::AgentRecord| {
            agent.host_name == text.as_bytes() || (!text.is_empty() && agent.id.to_string().starts_with(text))
        };
        let expected: Vec<_> = all.iter().filter(fits).cloned().collect();
        assert_eq!(identity.find(text).unwrap(), expected, "{text:?}");
    }
}

/// The next certificate for another key.
fn next(identity: &Identity, of: &Joined, key: &KeyPair, from: u8) -> Result<Joined, NotRenewed> {
    identity.renew(&shown(of), &renewal(key), host(from), NOW + 1)
}

fn greeted(identity: &Identity, of: &Joined, from: u8) -> Greeting {
    identity.greet(&shown(of), host(from), NOW + 2).unwrap()
}

#[test]
fn a_renewal_is_confirmed_by_the_next_session_and_a_lost_answer_is_given_again() {
    let (_folder, identity) = fresh();
    let first = enrolled(&identity);
    assert!(!identity.is_current(&shown(&first)).unwrap(), "it has never come");
    assert_eq!(greeted(&identity, &first, 1), Greeting::Confirmed);
    assert!(identity.is_current(&shown(&first)).unwrap());

    let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let second = next(&identity, &first, &one, 1).unwrap();
    let again = next(&identity, &first, &one, 1).unwrap();
    assert_eq!((shown(&second).generation, shown(&again).generation), (Some(2), Some(2)));
    assert_ne!(second.certificates_der, again.certificates_der);
    assert_eq!(greeted(&identity, &first, 1), Greeting::Current, "the answer may be under way");
    assert_eq!(greeted(&identity, &again, 1), Greeting::Confirmed);
    assert_eq!(greeted(&identity, &second, 1), Greeting::Current, "either answer may have come");
    // Late, after it has been answered and used: no alarm.
    assert_eq!(refusal(next(&identity, &first, &one, 1).unwrap_err()), JoinRefusal::BadRequest);
    assert_eq!(refusal(next(&identity, &second, &one, 1).unwrap_err()), JoinRefusal::BadRequest);
    let third = next(&identity, &second, &two, 1).unwrap();
    assert_eq!(shown(&third).generation, Some(3));
    assert_eq!(identity.standing(agent_of(&first)).unwrap(), Standing::Good);
}

#[test]
fn every_sign_of_a_copy_names_both_sides_and_sets_all_copies_aside_once() {
    let (_folder, identity) = fresh();
    let first = enrolled(&identity);
    greeted(&identity, &first, 1);
    let keys: Vec<KeyPair> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
    let second = next(&identity, &first, &keys[0], 1).unwrap();

    let sign = next(&identity, &first, &keys[1], 2).unwrap_err();
    assert_eq!(code(sign.refused), JoinRefusal::Cloned);
    let sign = sign.sign.unwrap();
    assert_eq!((sign.evidence, sign.generation, sign.newest), (Evidence::TwoKeys, 1, 2));
    assert_eq!((sign.from, sign.other), (host(2), Some(host(1).to_string())));

    greeted(&identity, &second, 1);
    let Greeting::Copied(sign) = greeted(&identity, &first, 2) else { panic!("a superseded session") };
    assert_eq!((sign.evidence, sign.generation, sign.newest), (Evidence::Superseded, 1, 2));
    let sign = next(&identity, &first, &keys[2], 2).unwrap_err().sign.unwrap();
    assert_eq!(sign.evidence, Evidence::Superseded);

    let agent = agent_of(&first);
    assert!(identity.set_aside(agent, NOW + 5).unwrap());
    assert!(!identity.set_aside(agent, NOW + 6).unwrap(), "it is told once");
    assert_eq!(identity.standing(agent).unwrap(), Standing::Cloned);
    assert_eq!(identity.agent(agent).unwrap().unwrap().cloned_unix_s, Some(NOW + 5));
    assert_eq!(refusal(next(&identity, &second, &keys[2], 1).unwrap_err()), JoinRefusal::Cloned);
    assert_eq!(code(identity.leave(agent, NOW).unwrap_err()), JoinRefusal::Cloned);
    assert!(identity.revoke_agent(agent).unwrap());
    assert_eq!(identity.standing(agent).unwrap(), Standing::Revoked, "which is more");
}

#[test]
fn an_agent_that_does_not_keep_its_key_may_ask_with_another_and_a_copy_shows_all_the_same() {
    let (_folder, identity) = fresh();
    let first = enrolled(&identity);
    greeted(&identity, &first, 1);
    let ask = |key: &KeyPair| Renew { csr_der: csr_of(key), kept: false };
    let keys: Vec<KeyPair> = (0..2).map(|_| KeyPair::generate().unwrap()).collect();
    let renewed: Vec<Joined> =
        keys.iter().map(|key| identity.renew(&shown(&first), &ask(key), host(1), NOW).unwrap()).collect();
    assert_eq!(greeted(&identity, &renewed[1], 1), Greeting::Confirmed);
    assert!(matches!(greeted(&identity, &renewed[0], 2), Greeting::Copied(_)));
    let late = identity.renew(&shown(&first), &ask(&KeyPair::generate().unwrap()), host(1), NOW);
    assert_eq!(refusal(late.unwrap_err()), JoinRefusal::BadRequest);
}

#[test]
fn a_collector_of_an_older_backup_takes_over_what_its_agents_have() {
    let (folder, identity) = fresh();
    let first = enrolled(&identity);
    greeted(&identity, &first, 1);
    drop(identity);
    let live = folder.path().join("identity");
    let backup = folder.path().join("backup");
    std::fs::create_dir(&backup).unwrap();
    for entry in std::fs::read_dir(&live).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), backup.join(entry.file_name())).unwrap();
    }
    let identity = Identity::open(&live).unwrap();
    let keys: Vec<KeyPair> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
    let second = next(&identity, &first, &keys[0], 1).unwrap();
    let third = next(&identity, &second, &keys[1], 1).unwrap();
    greeted(&identity, &third, 1);

    let restored = Identity::open(&backup).unwrap();
    assert_eq!(greeted(&restored, &third, 1), Greeting::Adopted { generation: 3, newest: 1 });
    assert_eq!(greeted(&restored, &third, 1), Greeting::Current);
    assert_eq!(
        restored.agent(agent_of(&first)).unwrap().unwrap().certificate_expires_unix_s,
        third.expires_unix_s
    );
    assert_eq!(shown(&next(&restored, &third, &keys[2], 1).unwrap()).generation, Some(4));
    assert!(matches!(greeted(&restored, &second, 2), Greeting::Copied(_)), "a copy is one here too");
}

#[test]
fn a_host_that_asks_again_with_its_join_line_is_not_behind_its_own_renewals() {
    let (_folder, identity) = fresh();
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
    let key = KeyPair::generate().unwrap();
    let ask = || identity.join(&Join { csr_der: csr_of(&key), ..request(&secret) }, NOW).unwrap();
    let (first, again) = (ask(), ask());
    assert_eq!((shown(&first).generation, shown(&again).generation), (Some(1), Some(1)));
    greeted(&identity, &first, 1);
    let second = next(&identity, &first, &KeyPair::generate().unwrap(), 1).unwrap();
    greeted(&identity, &second, 1);
    let anew = ask();
    assert_eq!(shown(&anew).generation, Some(3));
    assert_eq!(greeted(&identity, &anew, 1), Greeting::Confirmed);
}

#[test]
fn what_came_into_use_is_written_down_with_who_was_seen_and_a_kill_before_that_raises_no_alarm() {
    let (folder, identity) = fresh();
    let first = enrolled(&identity);
    greeted(&identity, &first, 1);
    let second = next(&identity, &first, &KeyPair::generate().unwrap(), 1).unwrap();
    greeted(&identity, &second, 1);
    drop(identity);
    let path = folder.path().join("identity");
    let identity = Identity::open(&path).unwrap();
    assert_eq!(greeted(&identity, &first, 1), Greeting::Current, "a collector that was killed knows less");
    assert_eq!(greeted(&identity, &second, 1), Greeting::Confirmed);
    identity.flush_seen().unwrap();
    drop(identity);
    let identity = Identity::open(&path).unwrap();
    assert!(identity.is_current(&shown(&second)).unwrap());
    let Greeting::Copied(sign) = greeted(&identity, &first, 2) else { panic!("it is superseded") };
    assert_eq!(sign.other, Some(host(1).to_string()));
}
