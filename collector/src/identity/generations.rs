//! Which copy of an identity is the right one: the two-phase counter of certificates. Pure.
//!
//! Every certificate has a generation. A renewal from generation g issues g+1 and confirms nothing: the answer may be lost.
//! The first session (or the next renewal) with g+1 proves that its agent has it on disk, and confirms it; from then on g is
//! superseded. An agent keeps the key of a renewal on disk before it asks, so that it asks again with the same key after
//! whatever happens to it. Hence these are signs of two hosts with one identity:
//!
//! | sign | what was seen |
//! |---|---|
//! | `Superseded` | a session or renewal with g, after g+1 was confirmed |
//! | `TwoKeys` | a renewal from g with a key, while g+1 was issued to another key |
//! | `OtherKey` | a certificate of generation g with another key than g was issued to |
//!
//! A host that is set back to an older snapshot looks the same, because it is the same. What looks similar and is none:
//!
//! | what | why it is let through |
//! |---|---|
//! | a session with g while g+1 is not confirmed | the answer with g+1 may be lost or be under way |
//! | a repeated renewal with the same key | the answer was lost: it is given again, the same generation |
//! | a late renewal whose key has a generation already | an echo of what was answered meanwhile; refused without an alarm |
//! | a generation that is newer than all that are known | this collector was restored from a backup; it is taken over |
//! | another key from an agent that does not say that it keeps keys | one of version 0.1: its answer was lost |
//!
//! `register` reads what is needed, `joining` and `Identity::greet` do what is decided here.

/// SHA-256 of a public key.
pub(super) type Digest = [u8; 32];

/// What the register knows of an agent's certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The highest generation that was issued; 0 for none.
    pub(super) newest: u64,
    /// To which key, where that is known.
    pub(super) newest_key: Option<Digest>,
    /// The highest one that was confirmed; 0 for none.
    pub(super) confirmed: u64,
    /// The key to which the generation that is shown was issued, where that is known.
    pub(super) shown_key: Option<Digest>,
}

/// A certificate as it is presented. Its owner has proved its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Presented {
    pub(super) generation: u64,
    pub(super) key: Digest,
}

/// A request for the next certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// The new key.
    pub(super) key: Digest,
    /// The highest generation that was issued to this key already.
    pub(super) issued_as: Option<u64>,
    /// The agent says that it keeps the key, and would ask again with the same.
    pub(super) kept: bool,
}

/// Why an agent is taken for copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// A certificate was presented after its successor was in use.
    Superseded,
    /// Two keys were to be certified as the successor of one certificate.
    TwoKeys,
    /// A certificate has another key than its generation was issued to.
    OtherKey,
}

/// What a session begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnHello {
    /// As before.
    Current,
    /// For the first time with this generation: it is confirmed now.
    Confirm,
    /// With a generation that is not known here: it is taken over.
    Adopt,
    /// With a copied identity.
    Sign(Evidence),
}

/// What becomes of a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnRenewal {
    /// A new generation. Before that, the presented one is confirmed, or taken over when it is not known.
    Issue { generation: u64 },
    /// The same generation again for the same key.
    Again { generation: u64 },
    /// The request was answered long ago.
    Echo,
    /// The new key is not new.
    SameKey,
    /// A copied identity.
    Sign(Evidence),
}

/// Judges the beginning of a session.
pub(super) fn hello(known: &Known, shown: &Presented) -> OnHello {
    if known.shown_key.is_some_and(|key| key != shown.key) {
        OnHello::Sign(Evidence::OtherKey)
    } else if shown.generation > known.newest {
        OnHello::Adopt
    } else if shown.generation > known.confirmed {
        OnHello::Confirm
    } else if shown.generation == known.confirmed {
        OnHello::Current
    } else {
        OnHello::Sign(Evidence::Superseded)
    }
}

/// Judges a renewal.
pub(super) fn renewal(known: &Known, shown: &Presented, request: &Request) -> OnRenewal {
    if known.shown_key.is_some_and(|key| key != shown.key) {
        return OnRenewal::Sign(Evidence::OtherKey);
    }
    match request.issued_as {
        _ if request.key == shown.key => return OnRenewal::SameKey,
        Some(generation) if generation <= shown.generation => return OnRenewal::SameKey,
        Some(generation) if generation == known.newest && generation > known.confirmed => {
            return OnRenewal::Again { generation };
        }
        Some(_) => return OnRenewal::Echo,
        None => {}
    }
    if shown.generation >= known.newest {
        return OnRenewal::Issue { generation: shown.generation + 1 };
    }
    let is_superseded = shown.generation < known.confirmed;
    match (is_superseded, request.kept) {
        (true, true) => OnRenewal::Sign(Evidence::Superseded),
        // Late, or a copy: that shows when it begins a session.
        (true, false) => OnRenewal::Echo,
        (false, true) if known.newest_key.is_some() => OnRenewal::Sign(Evidence::TwoKeys),
        (false, _) => OnRenewal::Issue { generation: known.newest + 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const OLD: Digest = [1; 32];
    const NEW: Digest = [2; 32];
    const OTHER: Digest = [3; 32];

    fn known(newest: u64, confirmed: u64) -> Known {
        Known { newest, newest_key: Some(NEW), confirmed, shown_key: None }
    }

    fn shown(generation: u64) -> Presented {
        Presented { generation, key: OLD }
    }

    fn asks(key: Digest, issued_as: Option<u64>, kept: bool) -> Request {
        Request { key, issued_as, kept }
    }

    #[test]
    fn every_case_of_a_hello() {
        let wrong_key = Known { shown_key: Some(OTHER), ..known(5, 5) };
        let table = [
            (known(5, 5), 5, OnHello::Current),
            (known(6, 5), 5, OnHello::Current),
            (known(6, 5), 6, OnHello::Confirm),
            (known(2, 0), 1, OnHello::Confirm),
            (known(5, 5), 6, OnHello::Adopt),
            (known(5, 5), 9, OnHello::Adopt),
            (known(0, 0), 1, OnHello::Adopt),
            (known(6, 6), 5, OnHello::Sign(Evidence::Superseded)),
            (known(7, 6), 5, OnHello::Sign(Evidence::Superseded)),
            (wrong_key, 5, OnHello::Sign(Evidence::OtherKey)),
        ];
        for (known, generation, expected) in table {
            assert_eq!(hello(&known, &shown(generation)), expected, "{known:?} {generation}");
        }
    }

    #[test]
    fn every_case_of_a_renewal() {
        let unknown_key = Known { newest_key: None, ..known(6, 5) };
        let wrong_key = Known { shown_key: Some(OTHER), ..known(5, 5) };
        let table = [
            (known(5, 5), 5, asks(OTHER, None, true), OnRenewal::Issue { generation: 6 }),
            (known(5, 4), 5, asks(OTHER, None, true), OnRenewal::Issue { generation: 6 }),
            (known(5, 5), 8, asks(OTHER, None, true), OnRenewal::Issue { generation: 9 }),
            (known(6, 5), 5, asks(NEW, Some(6), true), OnRenewal::Again { generation: 6 }),
            (known(6, 6), 5, asks(NEW, Some(6), true), OnRenewal::Echo),
            (known(7, 6), 5, asks(NEW, Some(6), true), OnRenewal::Echo),
            (known(6, 5), 5, asks(OTHER, None, true), OnRenewal::Sign(Evidence::TwoKeys)),
            (known(6, 5), 5, asks(OTHER, None, false), OnRenewal::Issue { generation: 7 }),
            (unknown_key, 5, asks(OTHER, None, true), OnRenewal::Issue { generation: 7 }),
            (known(6, 6), 5, asks(OTHER, None, true), OnRenewal::Sign(Evidence::Superseded)),
            (known(6, 6), 5, asks(OTHER, None, false), OnRenewal::Echo),
            (known(5, 5), 5, asks(OLD, None, true), OnRenewal::SameKey),
            (known(5, 5), 5, asks(NEW, Some(5), true), OnRenewal::SameKey),
            (wrong_key, 5, asks(NEW, None, true), OnRenewal::Sign(Evidence::OtherKey)),
        ];
        for (known, generation, request, expected) in table {
            assert_eq!(
                renewal(&known, &shown(generation), &request),
                expected,
                "{known:?} {generation} {request:?}"
            );
        }
    }

    /// A register in memory: what the SQL of the real one answers.
    #[derive(Clone, Default)]
    struct Book {
        issued: Vec<(u64, Digest)>,
        confirmed: u64,
    }

    impl Book {
        fn known(&self, shown: &Presented) -> Known {
            let newest = self.issued.iter().max_by_key(|(generation, _)| *generation);
            let key_of = |wanted| self.issued.iter().find(|(one, _)| *one == wanted).map(|(_, key)| *key);
            Known {
                newest: newest.map_or(0, |(generation, _)| *generation),
                newest_key: newest.map(|(_, key)| *key),
                confirmed: self.confirmed,
                shown_key: key_of(shown.generation),
            }
        }

        fn take(&mut self, shown: &Presented) {
            if !self.issued.contains(&(shown.generation, shown.key)) {
                self.issued.push((shown.generation, shown.key));
            }
            self.confirmed = self.confirmed.max(shown.generation);
        }

        fn hello(&mut self, shown: &Presented) -> Option<Evidence> {
            match hello(&self.known(shown), shown) {
                OnHello::Current => None,
                OnHello::Confirm | OnHello::Adopt => {
                    self.take(shown);
                    None
                }
                OnHello::Sign(sign) => Some(sign),
            }
        }

        /// The generation that is given, or the sign.
        fn renew(&mut self, shown: &Presented, key: Digest) -> Result<Option<u64>, Evidence> {
            let issued_as = self.issued.iter().filter(|(_, one)| *one == key).map(|(at, _)| *at).max();
            match renewal(&self.known(shown), shown, &Request { key, issued_as, kept: true }) {
                OnRenewal::Issue { generation } => {
                    self.take(shown);
                    self.issued.push((generation, key));
                    Ok(Some(generation))
                }
                OnRenewal::Again { generation } => Ok(Some(generation)),
                OnRenewal::Echo | OnRenewal::SameKey => Ok(None),
                OnRenewal::Sign(sign) => Err(sign),
            }
        }
    }

    /// A host: what is on its disk.
    #[derive(Clone)]
    struct Host {
        now: Presented,
        pending: Option<Digest>,
    }

    /// One step of a host's life, cut short anywhere. `Err` is an alarm.
    fn live(host: &mut Host, book: &mut Book, random: &mut StdRng) -> Result<(), Evidence> {
        if random.random_bool(0.4) {
            return book.hello(&host.now).map_or(Ok(()), Err);
        }
        let key = *host.pending.get_or_insert_with(|| random.random());
        if random.random_bool(0.2) {
            return Ok(()); // killed before it asked
        }
        let answer = book.renew(&host.now, key)?;
        if random.random_bool(0.3) {
            return Ok(()); // the answer was lost, or the host was killed before it stored it
        }
        if let Some(generation) = answer {
            *host = Host { now: Presented { generation, key }, pending: None };
        }
        Ok(())
    }

    #[test]
    fn one_host_never_raises_an_alarm_and_two_copies_do_within_one_renewal() {
        for seed in 0..400_u64 {
            println!("seed {seed}");
            let mut random = StdRng::seed_from_u64(seed);
            let first = Presented { generation: 1, key: random.random() };
            let mut host = Host { now: first, pending: None };
            let mut book = Book { issued: vec![(1, first.key)], confirmed: 0 };
            let mut backup = book.clone();
            for step in 0..60 {
                let calm = live(&mut host, &mut book, &mut random);
                assert_eq!(calm, Ok(()), "seed {seed}, step {step}: one host alone");
                match random.random_range(0..20) {
                    0 => backup = book.clone(),
                    1 => book = backup.clone(), // the collector forgets what came after its backup
                    _ => {}
                }
            }
            // From here on there are two with one folder. Each renews twice: once with what it had in common.
            let mut copies = [host.clone(), host];
            let mut alarm = None;
            for (round, which) in [0, 1, 0, 1, 0, 1].into_iter().enumerate() {
                let Some(copy) = copies.get_mut(which) else { continue };
                let key = *copy.pending.get_or_insert_with(|| random.random());
                let renewed = book.renew(&copy.now, key).map(|answer| {
                    if let Some(generation) = answer {
                        *copy = Host { now: Presented { generation, key }, pending: None };
                    }
                });
                let greeted = book.hello(&copy.now).map_or(Ok(()), Err);
                if let Err(sign) = renewed.and(greeted) {
                    alarm = Some((round, sign));
                    break;
                }
            }
            assert!(alarm.is_some(), "seed {seed}: two copies and no alarm");
        }
    }
}
