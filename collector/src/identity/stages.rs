//! Where the replacement of a CA stands, and what may follow. Pure.
//!
//! ```text
//! Alone --request--> Requested --complete--> Prepared --activate--> Rotated --retire--> Alone
//!   \------------------prepare---------------^   |
//!   ^--------------------withdraw----------------/  (also from Requested)
//! ```
//!
//! There are never more than two CAs: one that issues, and one that is to follow or that went before.
//! `authorities` does on disk what is allowed here.

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// One CA, as after the first start.
    Alone,
    /// A key waits for the certificate that an offline CA shall give it.
    Requested,
    /// The next CA is handed out to agents; the active one still issues.
    Prepared,
    /// The new CA issues; the one before is still trusted.
    Rotated,
}

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make the next CA here.
    Prepare,
    /// Make a key and ask an offline CA for its certificate.
    Request,
    /// That certificate has come.
    Complete,
    /// Issue from the next CA.
    Activate,
    /// Trust the CA before no longer.
    Retire,
    /// Forget the next CA.
    Withdraw,
}

impl Stage {
    /// What comes of a step.
    ///
    /// # Errors
    /// One sentence with the next step: it can't be done now.
    pub fn after(self, step: Step) -> Result<Self, &'static str> {
        match (self, step) {
            (Self::Alone, Step::Prepare) => Ok(Self::Prepared),
            // The same request again: it may have been lost.
            (Self::Alone | Self::Requested, Step::Request) => Ok(Self::Requested),
            (Self::Requested, Step::Complete) => Ok(Self::Prepared),
            (Self::Prepared, Step::Activate) => Ok(Self::Rotated),
            (Self::Rotated, Step::Retire) | (Self::Requested | Self::Prepared, Step::Withdraw) => {
                Ok(Self::Alone)
            }
            (Self::Alone, Step::Complete) => {
                Err("no request was made here; begin with `vidette ca prepare --request FILE`")
            }
            (Self::Alone | Self::Rotated, Step::Activate) => {
                Err("nothing is prepared; run `vidette ca prepare` first")
            }
            (Self::Alone, Step::Retire) => Err("there is no old CA to retire; `vidette ca show` shows all"),
            (Self::Alone | Self::Rotated, Step::Withdraw) => {
                Err("nothing is prepared that could be withdrawn")
            }
            (Self::Requested, Step::Prepare) => Err(
                "a request waits for its certificate; give it with `vidette ca prepare --certificate FILE`, or run \
                 `vidette ca withdraw`",
            ),
            (Self::Requested, Step::Activate) => Err(
                "the request still waits for its certificate; give it with `vidette ca prepare --certificate FILE`",
            ),
            (Self::Requested | Self::Prepared, Step::Retire) => Err(
                "the next CA is not active yet; run `vidette ca activate` first, or `vidette ca withdraw`",
            ),
            (Self::Prepared, Step::Prepare | Step::Request | Step::Complete) => Err(
                "the next CA is prepared already; run `vidette ca activate`, or `vidette ca withdraw` to begin anew",
            ),
            (Self::Rotated, Step::Prepare | Step::Request | Step::Complete) => {
                Err("the old CA is still trusted; run `vidette ca retire` before the next one is prepared")
            }
        }
    }

    /// In one word, for people and programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Requested => "requested",
            Self::Prepared => "prepared",
            Self::Rotated => "rotated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::{Alone, Prepared, Requested, Rotated};
    use Step::{Activate, Complete, Prepare, Request, Retire, Withdraw};

    #[test]
    fn only_these_steps_lead_on_and_every_refusal_says_what_to_do() {
        let allowed = [
            (Alone, Prepare, Prepared),
            (Alone, Request, Requested),
            (Requested, Request, Requested),
            (Requested, Complete, Prepared),
            (Requested, Withdraw, Alone),
            (Prepared, Activate, Rotated),
            (Prepared, Withdraw, Alone),
            (Rotated, Retire, Alone),
        ];
        for stage in [Alone, Requested, Prepared, Rotated] {
            for step in [Prepare, Request, Complete, Activate, Retire, Withdraw] {
                let wanted = allowed.iter().find(|(from, by, _)| (*from, *by) == (stage, step));
                match (stage.after(step), wanted) {
                    (Ok(next), Some((_, _, expected))) => assert_eq!(next, *expected, "{stage:?} {step:?}"),
                    (Err(why), None) => assert!(why.len() > 20, "{stage:?} {step:?}: {why}"),
                    (got, wanted) => panic!("{stage:?} {step:?}: {got:?}, wanted {wanted:?}"),
                }
            }
        }
    }
}
