//! How many clients without a name come from one address, so that one host can't fill every handshake; and fewer from an
//! address that an agent was cut off at, because a handshake costs more than any refusal saves.
//!
//! Holds only addresses that have a handshake or a join going on, so it is as bounded as those are, and a limited number
//! of addresses of offenders.

use super::rate::Rate;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Handshakes and joins at a time from one address. Many hosts may share one.
const STRANGERS_MAX: u32 = 64;
/// With so many, the next from that address must show that it can receive there (RFC 9000 section 8.1.2), which costs next to
/// nothing: who begins handshakes and does not go on with them gets no further.
const UNSHOWN_MAX: u32 = 8;
/// Handshakes a second from an address at which somebody misbehaves. Others may share it, and must still get in.
const WATCHED_PER_S: u32 = 100;
/// So many may come at once.
const WATCHED_BURST: u32 = 200;
/// An address is watched for so long after the last offence.
const WATCHED_FOR: Duration = Duration::from_secs(60);
/// Addresses that are watched; with more, those that are longest quiet are let go.
const WATCHED_MAX: usize = 4096;
/// A host is given a whole network of this size (RFC 6177 section 2). Bits.
const IPV6_PREFIX_BITS: u32 = 64;

/// The handle. Clones share everything.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<Addresses>>);

#[derive(Debug, Default)]
struct Addresses {
    strangers: HashMap<IpAddr, u32>,
    watched: HashMap<IpAddr, (Instant, Rate)>,
}

/// One client's place; dropping it makes room.
#[derive(Debug)]
pub(super) struct Stranger {
    crowd: Crowd,
    address: IpAddr,
}

impl Crowd {
    /// A place for one more, unless that address has too many already, or is watched and comes too often.
    pub(super) fn enter(&self, address: IpAddr, now: Instant) -> Option<Stranger> {
        let address = network(address);
        let mut addresses = self.lock();
        if addresses.is_too_often(address, now) {
            return None;
        }
        let count = addresses.strangers.entry(address).or_default();
        if *count >= STRANGERS_MAX {
            return None;
        }
        *count += 1;
        drop(addresses);
        Some(Stranger { crowd: self.clone(), address })
    }

    /// Whether the next from that address must show that it is there.
    pub(super) fn must_show(&self, address: IpAddr) -> bool {
        self.lock().strangers.get(&network(address)).is_some_and(|count| *count >= UNSHOWN_MAX)
    }

    /// Somebody misbehaved at that address.
    pub(super) fn watch(&self, address: IpAddr, now: Instant) {
        let mut addresses = self.lock();
        let fresh = || (now, Rate::new(WATCHED_PER_S, WATCHED_BURST, now));
        addresses.watched.entry(network(address)).or_insert_with(fresh).0 = now;
        if addresses.watched.len() > WATCHED_MAX {
            addresses.watched.retain(|_, (last, _)| now.saturating_duration_since(*last) < WATCHED_FOR);
        }
        while addresses.watched.len() > WATCHED_MAX {
            let oldest =
                addresses.watched.iter().min_by_key(|(_, (last, _))| *last).map(|(address, _)| *address);
            oldest.and_then(|address| addresses.watched.remove(&address));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Addresses {
    fn is_too_often(&mut self, address: IpAddr, now: Instant) -> bool {
        match self.watched.get_mut(&address) {
            None => false,
            Some((last, _)) if now.saturating_duration_since(*last) >= WATCHED_FOR => {
                self.watched.remove(&address);
                false
            }
            Some((_, rate)) => rate.take(now).is_err(),
        }
    }
}

/// What counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - IPV6_PREFIX_BITS))))
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut addresses = self.crowd.lock();
        if let Some(count) = addresses.strangers.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.strangers.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn one_address_has_a_limit_others_do_not_feel_it_and_nothing_stays_behind() {
        let (crowd, now) = (Crowd::default(), Instant::now());
        let (one, other) =
            (IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::from(Ipv4Addr::new(192, 0, 2, 2)));
        let mut all: Vec<_> = (0..STRANGERS_MAX + 5).filter_map(|_| crowd.enter(one, now)).collect();
        assert_eq!(all.len(), STRANGERS_MAX as usize);
        assert!(crowd.enter(other, now).is_some());
        all.pop();
        assert!(crowd.enter(one, now).is_some());
        drop(all);
        assert!(crowd.lock().strangers.is_empty());
    }

    #[test]
    fn who_has_some_handshakes_open_must_show_its_address_and_others_need_not() {
        let (crowd, now) = (Crowd::default(), Instant::now());
        let (one, other) =
            (IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::from(Ipv4Addr::new(192, 0, 2, 2)));
        let mut open: Vec<_> = (0..UNSHOWN_MAX - 1).filter_map(|_| crowd.enter(one, now)).collect();
        assert!(!crowd.must_show(one));
        open.extend(crowd.enter(one, now));
        assert!(crowd.must_show(one) && !crowd.must_show(other));
        open.pop();
        assert!(!crowd.must_show(one), "those who are done do not count");
    }

    #[test]
    fn a_watched_address_is_slowed_and_later_forgotten() {
        let (crowd, start) = (Crowd::default(), Instant::now());
        let one = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
        let came = |at: Instant| (0..1000).filter(|_| crowd.enter(one, at).is_some()).count();
        assert_eq!(came(start), 1000);
        crowd.watch(one, start);
        assert_eq!(came(start), WATCHED_BURST as usize);
        assert_eq!(came(start + Duration::from_secs(1)), WATCHED_PER_S as usize);
        assert_eq!(came(start + WATCHED_FOR), 1000);
        assert!(crowd.lock().watched.is_empty());
        for number in 0..2 * WATCHED_MAX as u32 {
            crowd.watch(IpAddr::from(Ipv4Addr::from_bits(number)), start);
        }
        assert!(crowd.lock().watched.len() <= WATCHED_MAX);
    }

    #[test]
    fn a_host_with_a_network_of_its_own_is_one_address() {
        let of = |text: &str| network(text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
