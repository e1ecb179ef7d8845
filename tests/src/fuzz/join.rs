//! The target `join`: bytes as a join or renewal request, through the frame, the decoder and the collector's decision; and
//! the line that a host is enrolled with, through its parser.
//!
//! Promises: nothing is issued but for a token that is good; a refusal is short; a line that is read is written as it was
//! meant. What is issued names a fresh agent and nothing that was asked for.

use super::bytes::name;
use super::inside::{Judged, ensure, error_mark, observe, some_bytes};
use super::{Observed, Target};
use anyhow::Context as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use std::net::Ipv4Addr;
use std::time::Duration;
use vidette_agent::host::Host;
use vidette_collector::identity::{Identity, Shown, unix_s_now};
use vidette_protocol::frame::{self, Decoder};
use vidette_protocol::id::AgentId;
use vidette_protocol::join::{Address, Invitation, Secret};
use vidette_protocol::limits::{JOIN_BYTES_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX};
use vidette_protocol::wire::{self, JoinRefusal, join_request};

/// The collector's patience with tokens, which here live long.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// What begins a line instead of a frame.
const LINE: &[u8] = b"vidette:";

/// Lengths, tags, parts of lines.
const WORDS: &[&[u8]] = &[
    b"vidette://",
    b"/?pin=",
    b"&token=",
    b":7441",
    b"[::1]:1",
    b"\x00\x00\x80\x00",
    b"\x00\x00\x80\x01",
    b"\x0a\x00",
    b"\x12\x00",
    b"\x30\x82",
    b"\xff\xff\xff\xff",
];

/// A collector's identity in a folder that vanishes.
#[derive(Debug)]
pub struct Join {
    identity: Identity,
    _folder: tempfile::TempDir,
}

impl Join {
    /// With a CA of its own.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(memory_folder())?;
        let identity = Identity::open(&folder.path().join("identity"))?;
        Ok(Self { identity, _folder: folder })
    }

    fn judge(&self, input: &[u8]) -> Judged {
        if input.starts_with(LINE) {
            return line(input);
        }
        let mut decoder = Decoder::new(JOIN_BYTES_MAX);
        decoder.push(input);
        let request = match decoder.next::<wire::JoinRequest>() {
            Err(error) => return Ok(vec![error_mark(&error)]),
            Ok(None) => return Ok(vec!["unfinished".into()]),
            Ok(Some(request)) => request,
        };
        match request.message {
            None => Ok(vec!["nothing".into()]),
            Some(join_request::Message::Renew(renew)) => {
                let shown = Shown {
                    agent: AgentId([9; 16]),
                    serial: Vec::new(),
                    generation: None,
                    key: [9; 32],
                    expires_unix_s: 0,
                };
                let from = (Ipv4Addr::LOCALHOST, 1).into();
                let renewed = self.identity.renew(&shown, &renew, from, unix_s_now());
                answered(renewed.map_err(|not_renewed| not_renewed.refused))
            }
            Some(join_request::Message::Join(join)) => self.join(&join),
            Some(join_request::Message::Leave(wire::Leave {})) => {
                answered(self.identity.leave(AgentId([9; 16]), unix_s_now()).map(|_| wire::Joined::default()))
            }
        }
    }

    fn join(&self, join: &wire::Join) -> Judged {
        let long = [join.host_name.len(), join.agent_version.len(), join.os.len()];
        let is_long = long.into_iter().any(|bytes| bytes > NAME_BYTES_MAX);
        let unknown = self.identity.join(join, unix_s_now());
        ensure(unknown.is_err(), "a certificate for a token that nobody made")?;
        let was_bad = matches!(&unknown, Err(refused) if refused.code == JoinRefusal::BadRequest as i32);
        ensure(was_bad || !is_long, "a name over its limit was let through")?;
        answered(unknown)
    }
}

impl Target for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    fn batch(&self) -> usize {
        64
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        if random.random_bool(0.3) {
            let token = Secret::new(random.random());
            let hosts = ["collector.example.org", "192.0.2.1", "2001:db8::1", "a-b_c.d"];
            let address =
                Address { host: hosts[random.random_range(0..4)].to_owned(), port: random.random() };
            return Invitation { address, pin: random.random(), token }.to_string().into_bytes();
        }
        frame::encode(&request(random))
    }

    fn words(&self) -> &'static [&'static [u8]] {
        WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        let mut observed = Vec::with_capacity(inputs.len());
        for input in inputs {
            let mut one = observe(|| self.judge(input));
            // Now and then the same with a token that is good.
            if let Some(joined) = self.invited(input)?
                && let Err(broken) = joined
            {
                one = Observed::found(super::Kind::Limit, broken);
            }
            observed.push(one);
        }
        Ok(observed)
    }
}

impl Join {
    /// What comes of a request whose certificate request begins as one does, with a token for it.
    fn invited(&self, input: &[u8]) -> anyhow::Result<Option<Judged>> {
        let body = input.get(frame::HEADER_BYTES..).unwrap_or_default();
        let Ok(request) = <wire::JoinRequest as prost::Message>::decode(body) else { return Ok(None) };
        let Some(join_request::Message::Join(mut join)) = request.message else { return Ok(None) };
        // Each that is taken is a row for good.
        if !join.csr_der.starts_with(b"\x30\x81") || !input.len().is_multiple_of(16) {
            return Ok(None);
        }
        let (token, info) = self.identity.create_token(TOKEN_LIFE, None)?;
        join.token = token.bytes().to_vec();
        let issued = self.identity.join(&join, unix_s_now());
        if issued.is_err() {
            self.identity.revoke_token(&info.id).context("could not take a token back")?;
        }
        Ok(Some(match issued {
            Err(refused) => answered(Err(refused)),
            Ok(joined) => {
                let named = joined.certificates_der.first().map(|leaf| Identity::agent_of(leaf));
                let fits = matches!(named, Some(Ok(agent)) if agent.to_string() == joined.agent_id);
                ensure(fits, "a certificate that names another agent").map(|()| vec!["issued".into()])
            }
        }))
    }
}

fn answered(answer: Result<wire::Joined, wire::JoinRefused>) -> Judged {
    match answer {
        Ok(_) => Err("a certificate for nobody".into()),
        Err(refused) => {
            ensure(refused.reason.len() <= TEXT_BYTES_MAX, "a long refusal")?;
            Ok(vec![format!("{:?}", JoinRefusal::try_from(refused.code)), error_mark(&refused.reason)])
        }
    }
}

fn line(input: &[u8]) -> Judged {
    let text = String::from_utf8_lossy(input);
    match text.parse::<Invitation>() {
        Err(error) => {
            ensure(!format!("{error:#}{error:?}").contains("token="), "an error shows the line")?;
            Ok(vec![error_mark(&error)])
        }
        Ok(invitation) => {
            ensure(
                invitation.to_string().parse() == Ok(invitation),
                "a line is another one after it was written",
            )?;
            Ok(vec!["line".into()])
        }
    }
}

/// A request of a host, right in most of its parts.
pub fn request(random: &mut StdRng) -> wire::JoinRequest {
    let csr_der = if random.random_bool(0.8) { super::csr::request(random) } else { some_bytes(random, 8) };
    let host = Host::read();
    let message = if random.random_bool(0.05) {
        join_request::Message::Leave(wire::Leave {})
    } else if random.random_bool(0.2) {
        join_request::Message::Renew(wire::Renew { csr_der, kept: random.random() })
    } else {
        join_request::Message::Join(wire::Join {
            token: some_bytes(random, 5),
            csr_der,
            host_name: some_bytes(random, 9),
            agent_version: name(random),
            os: host.os,
            host_mark: some_bytes(random, 6),
        })
    };
    wire::JoinRequest { message: Some(message) }
}

/// Where files cost no disk; the usual place where there is none such.
pub fn memory_folder() -> std::path::PathBuf {
    let shared = std::path::Path::new("/dev/shm");
    if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() }
}
