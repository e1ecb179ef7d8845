//! A receiver of RFC 5424 messages with octet counting (RFC 6587 §3.4.1) over plain TCP, for the demo and
//! the tests. It parses by the RFC and not by what our sender writes.

use anyhow::{Context, bail, ensure};
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// A message that is longer is none of ours. Bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Messages that wait for the reader.
const MESSAGES_MAX: usize = 100_000;

/// One message, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Facility times 8 plus severity.
    pub priority: u8,
    /// As it stands.
    pub timestamp: String,
    /// As it stands; `-` when nil.
    pub host: String,
    /// As it stands.
    pub application: String,
    /// As it stands.
    pub message_id: String,
    /// Name and value of every parameter, unescaped.
    pub parameters: Vec<(String, String)>,
    /// The free text.
    pub text: String,
    /// All of it, as received.
    pub raw: Vec<u8>,
}

/// Listens on a free port of the loopback address and gives every message to the channel.
///
/// # Errors
/// When it can't listen.
pub fn receive() -> anyhow::Result<(u16, Receiver<Message>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let (sender, receiver) = sync_channel(MESSAGES_MAX);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                if let Err(error) = read(stream, &sender) {
                    eprintln!("syslog receiver: {error:#}");
                }
            });
        }
    });
    Ok((port, receiver))
}

fn read(stream: TcpStream, sender: &SyncSender<Message>) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut count = Vec::new();
        reader.by_ref().take(8).read_until(b' ', &mut count)?;
        if count.is_empty() {
            return Ok(());
        }
        let count: usize = std::str::from_utf8(&count)?.trim_end().parse().context("no octet count")?;
        ensure!(count <= MESSAGE_BYTES_MAX, "a message of {count} bytes");
        let mut raw = vec![0; count];
        reader.read_exact(&mut raw)?;
        sender.send(parse(&raw)?)?;
    }
}

/// Takes a message apart (RFC 5424 §6).
///
/// # Errors
/// When it does not follow the format.
pub fn parse(raw: &[u8]) -> anyhow::Result<Message> {
    let text = std::str::from_utf8(raw).context("not UTF-8")?;
    let rest = text.strip_prefix('<').context("no PRI")?;
    let (priority, rest) = rest.split_once('>').context("no PRI")?;
    let rest = rest.strip_prefix("1 ").context("not version 1")?;
    let mut fields = rest.splitn(6, ' ');
    let mut field = |name: &str| fields.next().map(str::to_owned).with_context(|| format!("no {name}"));
    let (timestamp, host, application) = (field("TIMESTAMP")?, field("HOSTNAME")?, field("APP-NAME")?);
    let (_process, message_id, rest) = (field("PROCID")?, field("MSGID")?, field("STRUCTURED-DATA")?);
    let (parameters, text) = structured_data(&rest)?;
    Ok(Message {
        priority: priority.parse().context("PRI is no number")?,
        timestamp,
        host,
        application,
        message_id,
        parameters,
        text: text.trim_start_matches(' ').trim_start_matches('\u{feff}').to_owned(),
        raw: raw.to_vec(),
    })
}

fn structured_data(text: &str) -> anyhow::Result<(Vec<(String, String)>, &str)> {
    if let Some(rest) = text.strip_prefix('-') {
        return Ok((Vec::new(), rest));
    }
    let mut parameters = Vec::new();
    let mut rest = text;
    while let Some(element) = rest.strip_prefix('[') {
        let name_end = element.find([' ', ']']).context("an element without an end")?;
        rest = &element[name_end..];
        while let Some(parameter) = rest.strip_prefix(' ') {
            let (name, value) = parameter.split_once("=\"").context("a parameter without a value")?;
            let (value, after) = quoted(value)?;
            parameters.push((name.to_owned(), value));
            rest = after;
        }
        rest = rest.strip_prefix(']').context("an element without an end")?;
    }
    Ok((parameters, rest))
}

/// A parameter's value: `\"`, `\\` and `\]` stand for the second character (RFC 5424 §6.3.3).
fn quoted(text: &str) -> anyhow::Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            ']' => bail!("an unescaped ] in a value"),
            '\\' => match characters.next() {
                Some((_, escaped @ ('"' | '\\' | ']'))) => value.push(escaped),
                Some((_, other)) => value.extend(['\\', other]),
                None => bail!("a value that ends in a backslash"),
            },
            other => value.push(other),
        }
    }
    bail!("a value without an end")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_taken_apart() {
        let raw = br#"<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut="3" eventSource="App\]li\"c"] An entry"#;
        let message = parse(raw).unwrap();
        assert_eq!(message.priority, 165);
        assert_eq!(message.message_id, "ID47");
        assert_eq!(message.parameters[1], ("eventSource".into(), "App]li\"c".into()));
        assert_eq!(message.text, "An entry");
    }
}
