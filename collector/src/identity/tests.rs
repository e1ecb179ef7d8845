//! What `Identity` promises, against a real folder and database; time is injected.
#![allow(clippy::unwrap_used)]

use super::*;
use rcgen::{CertificateParams, KeyPair};
use std::os::unix::fs::PermissionsExt;

const NOW: i64 = 1_800_000_000;

fn csr() -> Vec<u8> {
    CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn request(token: &Secret) -> Join {
    Join {
        token: token.bytes().to_vec(),
        csr_der: csr(),
        host_name: b"web-1".to_vec(),
        agent_version: "0.1.0".into(),
        os: "Linux 6.18".into(),
    }
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
fn a_revoked_or_unknown_agent_gets_no_new_certificate() {
    let (_folder, identity) = fresh();
    let (secret, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, NOW).unwrap();
    let agent: AgentId = identity.join(&request(&secret), NOW).unwrap().agent_id.parse().unwrap();
    let renew = Renew { csr_der: csr() };
    assert_eq!(identity.renew(agent, &renew, NOW + 50).unwrap().expires_unix_s, NOW + 50 + AGENT_LIFE_S);
    assert_eq!(identity.standing(agent).unwrap(), Standing::Good);
    assert!(identity.revoke_agent(agent).unwrap());
    assert_eq!(identity.standing(agent).unwrap(), Standing::Revoked);
    assert_eq!(code(identity.renew(agent, &renew, NOW + 60).unwrap_err()), JoinRefusal::Revoked);
    assert_eq!(code(identity.renew(AgentId([0; 16]), &renew, NOW).unwrap_err()), JoinRefusal::Revoked);
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
