//! How many clients without a name come from one address, so that one host can't fill every handshake.
//!
//! Holds only addresses that have a handshake or a join going on, so it is as bounded as those are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes and joins at a time from one address. Many hosts may share one.
const STRANGERS_MAX: u32 = 64;

/// The handle. Clones share everything.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<HashMap<IpAddr, u32>>>);

/// One client's place; dropping it makes room.
#[derive(Debug)]
pub(super) struct Stranger {
    crowd: Crowd,
    address: IpAddr,
}

impl Crowd {
    /// A place for one more, unless that address has too many already.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Stranger> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= STRANGERS_MAX {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Stranger { crowd: self.clone(), address })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
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
        let crowd = Crowd::default();
        let (one, other) =
            (IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::from(Ipv4Addr::new(192, 0, 2, 2)));
        let mut all: Vec<_> = (0..STRANGERS_MAX + 5).filter_map(|_| crowd.enter(one)).collect();
        assert_eq!(all.len(), STRANGERS_MAX as usize);
        assert!(crowd.enter(other).is_some());
        all.pop();
        assert!(crowd.enter(one).is_some());
        drop(all);
        assert!(crowd.0.lock().is_ok_and(|counts| counts.is_empty()));
    }
}
