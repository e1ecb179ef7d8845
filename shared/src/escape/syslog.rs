//! RFC 5424: header fields are short printable ASCII, parameter values are quoted UTF-8.

use super::{backslashed, terminal};

/// HOSTNAME, characters (RFC 5424 §6).
pub const SYSLOG_HOSTNAME_MAX: usize = 255;
/// APP-NAME, characters.
pub const SYSLOG_APP_NAME_MAX: usize = 48;
/// PROCID, characters.
pub const SYSLOG_PROCID_MAX: usize = 128;
/// MSGID, characters.
pub const SYSLOG_MSGID_MAX: usize = 32;

/// What belongs between the quotes of a PARAM-VALUE (RFC 5424 §6.3.3): as [`terminal`] shows it, with
/// `"`, `\` and `]` escaped as the RFC asks.
#[must_use]
pub fn syslog_param(bytes: &[u8]) -> String {
    backslashed(&terminal(bytes), &['"', '\\', ']'])
}

/// A HOSTNAME: [`syslog_header`] of at most [`SYSLOG_HOSTNAME_MAX`] characters.
#[must_use]
pub fn syslog_hostname(bytes: &[u8]) -> String {
    syslog_header(bytes, SYSLOG_HOSTNAME_MAX)
}

/// A header field of at most `max` characters of PRINTUSASCII (RFC 5424 §6: %d33-126). Each other byte
/// becomes `_`; nothing at all becomes the NILVALUE `-`. Not reversible.
#[must_use]
pub fn syslog_header(bytes: &[u8], max: usize) -> String {
    let text: String = bytes
        .iter()
        .take(max)
        .map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '_' })
        .collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::hostile::{SEEDS, assert_harmless, bytes, undo_backslashes, undo_terminal};
    use super::*;

    #[test]
    fn the_three_characters_of_the_rfc_are_escaped() {
        assert_eq!(syslog_param(b"a\"b]c"), "a\\\"b\\]c");
        assert_eq!(syslog_param(b"a\\b\n"), "a\\\\\\\\b\\\\n");
    }

    #[test]
    fn a_value_never_closes_itself_and_can_be_read_back() {
        for seed in 0..SEEDS {
            let name = bytes(seed);
            let value = syslog_param(&name);
            assert_harmless(seed, &value);
            // Read as a receiver does: the first quote or bracket without a backslash ends the value.
            let mut escaped = false;
            for c in value.chars() {
                assert!(escaped || !matches!(c, '"' | ']'), "seed {seed}: {value}");
                escaped = !escaped && c == '\\';
            }
            assert!(!escaped, "seed {seed}: {value}");
            assert_eq!(undo_terminal(&undo_backslashes(&value)), name, "seed {seed}");
        }
    }

    #[test]
    fn header_fields_are_printable_ascii_within_their_limit() {
        assert_eq!(syslog_hostname(b""), "-");
        assert_eq!(syslog_hostname("höst 1\n".as_bytes()), "h__st_1_");
        for seed in 0..SEEDS {
            let field = syslog_header(&bytes(seed), SYSLOG_MSGID_MAX);
            assert!((1..=SYSLOG_MSGID_MAX).contains(&field.len()), "seed {seed}");
            assert!(field.bytes().all(|byte| (33..=126).contains(&byte)), "seed {seed}: {field}");
        }
    }
}
