//! The server's side of `vidette ca …`: does it, says so in the log, and tells it as an event.

use super::answers::Office;
use crate::cli::ca::{Changed, Row, Step};
use crate::identity::unix_s_now;
use crate::ingest::{CaChange, Notice};
use serde_json::Value;

impl Office {
    /// One row.
    pub(super) fn ca(&self, step: Step) -> anyhow::Result<Value> {
        let now = unix_s_now();
        let changed = match step {
            Step::Show => return Ok(serde_json::to_value(Row::new(&self.identity.cas(now)?))?),
            Step::Request => {
                let request = Some(self.identity.request_ca(now)?);
                tracing::info!("a key for the next CA was made; it waits for its certificate");
                Changed { request, ..Changed::done(None) }
            }
            Step::Prepare => self.told(CaChange::Prepared, self.identity.prepare_ca(now)?, 0),
            Step::Certificate(pem) => self.told(CaChange::Prepared, self.identity.complete_ca(&pem, now)?, 0),
            Step::Activate => self.told(CaChange::Activated, self.identity.activate_ca(now)?, 0),
            Step::Withdraw => match self.identity.withdraw_ca(now)? {
                Some(pin) => self.told(CaChange::Withdrawn, pin, 0),
                None => Changed::done(None),
            },
            Step::Retire { only_look: true, .. } => Changed::retired(&self.identity.may_retire_ca(now)?),
            Step::Retire { force, only_look: false } => {
                let retired = self.identity.retire_ca(force, now)?;
                if retired.is_done {
                    self.told(CaChange::Retired, retired.pin, retired.behind.len());
                }
                Changed::retired(&retired)
            }
        };
        Ok(serde_json::to_value(changed)?)
    }

    fn told(&self, change: CaChange, pin: [u8; 32], locked_out: usize) -> Changed {
        let hex = data_encoding::HEXLOWER.encode(&pin);
        tracing::warn!(pin = hex, locked_out, "{}", change.action());
        if let Some(notices) = &self.notices {
            notices.tell(&Notice::Ca { change, pin, locked_out: locked_out as u64 });
        }
        Changed::done(Some(pin))
    }
}
