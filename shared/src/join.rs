//! The line that a fleet admin pastes on a host: where the collector is, how to know it, and a token.
//!
//! `vidette tokens create` prints it, `vidette-agent join` reads it from standard input, so that the token
//! is never an argument of a program. The next step is `JoinRequest` in the contract.
//!
//! Its form is `vidette://HOST:PORT/?pin=<64 hex>&token=<32 base32>`. The pin is the SHA-256 of the
//! collector's CA's SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).

use std::fmt;
use std::str::FromStr;

/// The random part of a join token. Bytes.
pub const TOKEN_BYTES: usize = 20;
/// The longest line that is looked at. Bytes.
pub const INVITATION_BYTES_MAX: usize = 512;
/// A host's name or address in it: DNS's own limit (RFC 1035 section 2.3.4). Bytes.
pub const HOST_BYTES_MAX: usize = 253;

const SCHEME: &str = "vidette://";

/// A join token: whoever has it may enrol one host. Never shown by `Debug`, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; TOKEN_BYTES]);

/// Where a collector listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// Everything a host needs to join. `Display` shows the token: it is the line itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Where the collector is.
    pub address: Address,
    /// SHA-256 of its CA's SubjectPublicKeyInfo.
    pub pin: [u8; 32],
    /// Good for one host.
    pub token: Secret,
}

/// A text that is no invitation. Says what is wrong, never what the text was.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("this is not a join line: {0}; copy the whole line that `vidette tokens create` printed")]
pub struct InvitationError(&'static str);

/// A text that is no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "this is not a collector's address: {0}; write HOST:PORT, such as `collector.example.org:7443` or `[2001:db8::1]:7443`"
)]
pub struct AddressError(&'static str);

impl Secret {
    /// From the bytes of a random source.
    #[must_use]
    pub fn new(bytes: [u8; TOKEN_BYTES]) -> Self {
        Self(bytes)
    }

    /// What goes on the wire.
    #[must_use]
    pub fn bytes(&self) -> &[u8; TOKEN_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError("it has no port"))?;
        let port: u16 = if port.bytes().all(|byte| byte.is_ascii_digit()) { port.parse().ok() } else { None }
            .filter(|port| *port > 0)
            .ok_or(AddressError("the port is not a number from 1 to 65535"))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or(AddressError("a bracket is not closed"))?;
                inner
                    .parse::<std::net::Ipv6Addr>()
                    .map_err(|_| AddressError("no IPv6 address is in the brackets"))?;
                inner
            }
            None => checked_name(host)?,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

fn checked_name(host: &str) -> Result<&str, AddressError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() {
        Err(AddressError("it has no host"))
    } else if host.len() > HOST_BYTES_MAX {
        Err(AddressError("the host's name is too long"))
    } else if host.contains(':') {
        Err(AddressError("an IPv6 address needs brackets"))
    } else if !host.bytes().all(allowed) {
        Err(AddressError("the host's name has a character that no host's name has"))
    } else {
        Ok(host)
    }
}

impl Invitation {
    /// The whole line to paste in a shell on the host. The token goes through a pipe, not an argument.
    #[must_use]
    pub fn line(&self) -> String {
        format!("echo '{self}' | sudo vidette-agent join")
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pin = data_encoding::HEXLOWER.encode(&self.pin);
        let token = data_encoding::BASE32_NOPAD.encode(&self.token.0);
        write!(f, "{SCHEME}{}/?pin={pin}&token={token}", self.address)
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation")
            .field("address", &self.address)
            .field("pin", &data_encoding::HEXLOWER.encode(&self.pin))
            .field("token", &self.token)
            .finish()
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;
    fn from_str(text: &str) -> Result<Self, InvitationError> {
        if text.len() > INVITATION_BYTES_MAX {
            return Err(InvitationError("it is too long"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(InvitationError("it does not start with vidette://"))?;
        let (address, query) =
            rest.split_once("/?").ok_or(InvitationError("it ends before the pin and the token"))?;
        let (pin, token) = query.split_once('&').ok_or(InvitationError("it ends before the token"))?;
        let pin = pin.strip_prefix("pin=").ok_or(InvitationError("the pin is missing"))?;
        let token = token.strip_prefix("token=").ok_or(InvitationError("the token is missing"))?;
        let pin = data_encoding::HEXLOWER.decode(pin.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let token =
            data_encoding::BASE32_NOPAD.decode(token.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(Self {
            address: address.parse().map_err(|AddressError(why)| InvitationError(why))?,
            pin: pin.ok_or(InvitationError("the pin is not 64 hex digits"))?,
            token: Secret(token.ok_or(InvitationError("the token is cut short or changed"))?),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample(address: &str) -> Invitation {
        Invitation {
            address: address.parse().unwrap(),
            pin: [0x5a; 32],
            token: Secret::new([7; TOKEN_BYTES]),
        }
    }

    #[test]
    fn a_line_is_read_back_as_it_was_written() {
        for address in ["collector.example.org:7443", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            let invitation = sample(address);
            assert_eq!(invitation.address.to_string(), address);
            assert_eq!(invitation.to_string().parse::<Invitation>(), Ok(invitation));
        }
    }

    #[test]
    fn any_one_change_of_shape_is_refused_without_showing_the_token() {
        let good = sample("c:1").to_string();
        let token = data_encoding::BASE32_NOPAD.encode(&[7; TOKEN_BYTES]);
        for bad in [
            String::new(),
            good.replace("vidette", "https"),
            good.replace("/?", "?"),
            good.replace("pin=5a", "pin="),
            good.replace("pin=5a", "pin=5A"),
            good.replace("&token", "&tokens"),
            good[..good.len() - 1].to_owned(),
            format!("{good} "),
            format!("{good}&x=1"),
            good.replace("c:1", "c:0"),
            good.replace("c:1", "c:+1"),
            good.replace("c:1", "c"),
            good.replace("c:1", "c d:1"),
            good.replace("c:1", "'$(x)':1"),
            good.replace("c:1", "::1:1"),
            good.replace("c:1", "[::g]:1"),
            "x".repeat(INVITATION_BYTES_MAX + 1),
        ] {
            let error = bad.parse::<Invitation>().unwrap_err().to_string();
            assert!(!error.contains(&token) && error.contains("vidette tokens create"), "{bad}: {error}");
        }
    }

    #[test]
    fn debug_hides_the_token() {
        let shown = format!("{:?}", sample("c:1"));
        assert!(!shown.contains("OBY") && !shown.contains("7, 7") && shown.contains("not shown"), "{shown}");
    }
}
