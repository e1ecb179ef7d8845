//! Events that carry a marker, so that each can be told from every other wherever it turns up.

use prost::Message;
use rand::Rng;
use rand::rngs::StdRng;
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, event::Kind};

/// One that was appended, as the oracle remembers it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appended {
    pub(crate) marker: u64,
    pub(crate) class: Class,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) poison: bool,
}

/// A random event with this marker.
pub(crate) fn make(marker: u64, rng: &mut StdRng) -> wire::Event {
    let text = format!("m{marker} {}", "x".repeat(rng.random_range(0..400)));
    let kind = match rng.random_range(0..4) {
        0 | 1 => Kind::Audit(wire::Audit { action: "sim".into(), detail: text, ..Default::default() }),
        2 => Kind::File(wire::FileEvent { detail: text, ..Default::default() }),
        _ => {
            let process = wire::Process { executable: text.into_bytes(), ..Default::default() };
            Kind::Process(wire::ProcessEvent { process: Some(process), ..Default::default() })
        }
    };
    wire::Event { kind: Some(kind), time_unix_ns: rng.random(), ..Default::default() }
}

/// What a stored body is.
pub(crate) enum Read {
    Marked(u64),
    Gap(wire::Gap),
    Other,
}

pub(crate) fn read(body: &[u8]) -> Result<Read, String> {
    let event =
        wire::Event::decode(body).map_err(|error| format!("a stored event can't be decoded: {error}"))?;
    let text = match event.kind {
        Some(Kind::Gap(gap)) => return Ok(Read::Gap(gap)),
        Some(Kind::Audit(audit)) => audit.detail.into_bytes(),
        Some(Kind::File(file)) => file.detail.into_bytes(),
        Some(Kind::Process(process)) => process.process.unwrap_or_default().executable,
        Some(Kind::Detection(_) | Kind::Health(_)) | None => return Ok(Read::Other),
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let marker = text.strip_prefix('m').and_then(|rest| rest.split(' ').next()?.parse().ok());
    marker.map(Read::Marked).ok_or_else(|| format!("a stored event without marker: {text}"))
}
