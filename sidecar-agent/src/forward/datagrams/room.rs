//! Room for datagrams that wait, shared among clients.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// What is added for each datagram, in bytes.
pub(super) const OVERHEAD: usize = 256;

/// So many bytes, of which no client gets more than are left for others: one that is alone
/// gets the half, and the more there are, the less each.
#[derive(Debug)]
pub(super) struct Room(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    taken: HashMap<IpAddr, usize>,
}

/// The place of a datagram that waits, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    client: IpAddr,
    size: usize,
}

impl Room {
    pub(super) fn new(free: usize) -> Arc<Self> {
        let taken = HashMap::new();
        Arc::new(Self(Mutex::new(State { free, taken })))
    }

    /// A place for a client's datagram of that length, if there is one.
    pub(super) fn take(self: &Arc<Self>, client: IpAddr, length: usize) -> Option<Place> {
        let size = length + OVERHEAD;
        let mut state = self.lock();
        let taken = state.taken.get(&client).copied().unwrap_or_default();
        if taken + size > state.free.checked_sub(size)? {
            return None;
        }
        state.free -= size;
        state.taken.insert(client, taken + size);
        Some(Place {
            room: Arc::clone(self),
            client,
            size,
        })
    }

    /// A datagram that has its place until nobody needs its bytes any more.
    pub(super) fn keep(self: &Arc<Self>, client: IpAddr, payload: Bytes) -> Option<Bytes> {
        let place = self.take(client, payload.len())?;
        let kept = Kept {
            payload,
            _place: place,
        };
        Some(Bytes::from_owner(kept))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes with their place.
struct Kept {
    payload: Bytes,
    _place: Place,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        state.free += self.size;
        if let Entry::Occupied(mut taken) = state.taken.entry(self.client) {
            *taken.get_mut() -= self.size;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 1_000 - OVERHEAD;

    fn client(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    /// How many datagrams of a client find a place, which they keep.
    fn fill(room: &Arc<Room>, number: u8, held: &mut Vec<Place>) -> usize {
        let before = held.len();
        while let Some(place) = room.take(client(number), LENGTH) {
            held.push(place);
        }
        held.len() - before
    }

    #[test]
    fn datagrams_wait_only_while_there_is_room() {
        let room = Room::new(10_000);
        let mut held = Vec::new();
        assert_eq!(fill(&room, 1, &mut held), 5, "the half");
        held.pop();
        assert_eq!(fill(&room, 1, &mut held), 1);
        held.clear();
        let State { free, taken } = &*room.lock();
        assert_eq!((*free, taken.len()), (10_000, 0));
    }

    #[test]
    fn few_clients_leave_room_for_others() {
        let room = Room::new(12_000);
        let (mut all, mut shares) = (Vec::new(), Vec::new());
        for number in 0..3 {
            shares.push(fill(&room, number, &mut all));
        }
        assert_eq!(shares, [6, 3, 1]);
        assert_eq!(all.len(), 10);
        // Who comes late gets more as soon as those before have had theirs.
        all.drain(..6);
        assert_eq!(fill(&room, 2, &mut all), 3);
        assert!(room.take(client(3), LENGTH).is_some());
    }

    #[test]
    fn datagram_has_its_place_until_its_last_copy_is_gone() {
        let room = Room::new(10_000);
        let payload = Bytes::from(vec![7; LENGTH]);
        let kept = room.keep(client(1), payload.clone()).unwrap();
        assert_eq!(kept, payload);
        let part = kept.slice(10..20);
        drop(kept);
        assert_eq!(room.lock().free, 9_000);
        drop(part);
        assert_eq!(room.lock().free, 10_000);
    }
}
