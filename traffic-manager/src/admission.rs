//! How many connections may be open at once from callers that are not known:
//! anybody in the cluster reaches the ports.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts the connections of a port.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    total: usize,
    per_address: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The place of one connection, which others may have once this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Admission,
    ip: IpAddr,
}

impl Admission {
    /// So many at once in all, and from one address.
    pub(crate) fn new(total: usize, per_address: usize) -> Self {
        Self {
            total,
            per_address,
            open: Arc::default(),
        }
    }

    /// A place for a connection from an address, if there is one.
    pub(crate) fn admit(&self, ip: IpAddr) -> Option<Admitted> {
        let mut open = self.lock();
        let total: usize = open.values().sum();
        let from_there = open.get(&ip).copied().unwrap_or(0);
        if total >= self.total || from_there >= self.per_address {
            return None;
        }
        open.insert(ip, from_there + 1);
        drop(open);
        Some(Admitted {
            admission: self.clone(),
            ip,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.admission.lock();
        if let Some(count) = open.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 1, 0, last].into()
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let admission = Admission::new(3, 2);
        let first = admission.admit(ip(1));
        let second = admission.admit(ip(1));
        assert!(first.is_some() && second.is_some());
        assert!(admission.admit(ip(1)).is_none());
        let other = admission.admit(ip(2));
        assert!(other.is_some());
        assert!(admission.admit(ip(3)).is_none(), "all places are taken");
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_ends() {
        let admission = Admission::new(1, 1);
        let admitted = admission.admit(ip(1));
        assert!(admission.admit(ip(2)).is_none());
        drop(admitted);
        assert!(admission.admit(ip(2)).is_some());
        assert!(admission.lock().is_empty());
    }
}
