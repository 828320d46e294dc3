//! By which names the cluster's addresses were asked for.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RData};

/// How many addresses are remembered.
const MAX_ADDRESSES: usize = 4_096;

/// The name last asked for of every address; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct AskedNames(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    names: HashMap<IpAddr, String>,
    /// The addresses in the order in which they were first told.
    order: VecDeque<IpAddr>,
}

impl AskedNames {
    /// Remembers which addresses were the answer to a name.
    pub(super) fn note(&self, asked: &Name, answer: &Message) {
        let mut asked = asked.to_lowercase();
        asked.set_fqdn(false);
        let asked = asked.to_string();
        let addresses = answer
            .answers
            .iter()
            .filter_map(|record| address(&record.data));
        let mut inner = self.lock();
        for address in addresses {
            inner.put(address, &asked);
        }
    }

    /// The name that was last asked for to get this address, without a dot at
    /// its end.
    pub(crate) fn of(&self, address: IpAddr) -> Option<String> {
        self.lock().names.get(&address).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn put(&mut self, address: IpAddr, name: &str) {
        if self.names.insert(address, name.to_owned()).is_some() {
            return;
        }
        self.order.push_back(address);
        if self.order.len() > MAX_ADDRESSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    if let RData::A(address) = data {
        Some(address.0.into())
    } else if let RData::AAAA(address) = data {
        Some(address.0.into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::OpCode;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::A;

    use super::*;

    fn answer(address: Ipv4Addr) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        let data = RData::A(A(address));
        message.add_answer(Record::from_rdata(Name::root(), 5, data));
        message
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn the_name_asked_for_last_is_told() {
        let names = AskedNames::default();
        let address = Ipv4Addr::new(10, 96, 0, 7);
        assert_eq!(names.of(address.into()), None);
        names.note(&name("web.shop.svc.cluster.local."), &answer(address));
        names.note(&name("Web.shop."), &answer(address));
        assert_eq!(names.of(address.into()).as_deref(), Some("web.shop"));
    }

    #[test]
    fn the_oldest_address_makes_room_for_the_newest() {
        let names = AskedNames::default();
        for index in 0..=MAX_ADDRESSES {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(index).unwrap());
            names.note(&name("web.shop."), &answer(address));
        }
        assert_eq!(names.of(Ipv4Addr::new(10, 0, 0, 0).into()), None);
        assert!(names.of(Ipv4Addr::new(10, 0, 0, 1).into()).is_some());
        assert_eq!(names.lock().names.len(), MAX_ADDRESSES);
    }
}
