//! Questions under another name, and answers back under the asked one.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::ProtoError;
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record};

/// The same question, asked under the name `full`.
pub(super) fn question(query: &[u8], full: &Name) -> Result<Vec<u8>, ProtoError> {
    let mut message = Message::from_vec(query)?;
    for query in &mut message.queries {
        query.set_name(full.clone());
    }
    message.to_vec()
}

/// Gives the records that belong to `full` the name that was asked for. What a
/// CNAME leads to keeps its name. The authorities go: their zone does not hold
/// the asked name, so a cache could not believe them (RFC 2308 section 5).
pub(super) fn answer(message: &mut Message, full: &Name, asked: &Name) {
    message.authorities.clear();
    for record in &mut message.answers {
        if record.name == *full {
            record.name = asked.clone();
        }
    }
}

/// The address that a name is the reverse of (RFC 1035 section 3.5, RFC 3596 section
/// 2.5).
pub(super) fn reverse_address(name: &Name) -> Option<IpAddr> {
    let subnet = name.parse_arpa_name().ok()?;
    (subnet.prefix_len() == subnet.max_prefix_len()).then(|| subnet.addr())
}

/// Gives addresses in records another form.
pub(super) fn addresses(message: &mut Message, change: impl Fn(IpAddr) -> IpAddr) {
    for record in message.answers.iter_mut().chain(&mut message.additionals) {
        let Some(address) = record.data.ip_addr() else {
            continue;
        };
        record.data = match change(address) {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
    }
}

/// Takes the time that an answer was kept off its times to live.
pub(super) fn age(message: &mut Message, kept: Duration) {
    let kept = u32::try_from(kept.as_secs()).unwrap_or(u32::MAX);
    for record in records(message) {
        record.ttl = record.ttl.saturating_sub(kept);
    }
}

/// Sets every time to live to nothing. Whoever else keeps an answer does not hear
/// of changes, and would have it still when the connection has ended.
pub(super) fn forbid_caching(message: &mut Message) {
    for record in records(message) {
        record.ttl = 0;
    }
}

fn records(message: &mut Message) -> impl Iterator<Item = &mut Record> {
    let sections = [
        &mut message.answers,
        &mut message.authorities,
        &mut message.additionals,
    ];
    sections.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, MessageType, OpCode, Query};
    use hickory_proto::rr::RecordType;
    use hickory_proto::rr::rdata::{CNAME, NS};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn question_keeps_id_flags_and_edns() {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name("web.shop."), RecordType::AAAA));
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.set_edns(edns);
        let full = name("web.shop.svc.cluster.local.");
        let asked = question(&message.to_vec().unwrap(), &full).unwrap();
        let asked = Message::from_vec(&asked).unwrap();
        assert_eq!(asked.metadata, message.metadata);
        assert_eq!(asked.edns, message.edns);
        assert_eq!(asked.queries[0].name(), &full);
        assert_eq!(asked.queries[0].query_type(), RecordType::AAAA);
    }

    #[test]
    fn answer_has_the_asked_name_but_keeps_what_a_cname_leads_to() {
        let full = name("ext.shop.svc.cluster.local.");
        let target = name("example.com.");
        let mut message = Message::response(1, OpCode::Query);
        message.add_answer(Record::from_rdata(
            full.clone(),
            5,
            RData::CNAME(CNAME(target.clone())),
        ));
        message.add_answer(Record::from_rdata(
            target.clone(),
            5,
            RData::A(A::new(192, 0, 2, 1)),
        ));
        message.add_authority(Record::from_rdata(
            name("cluster.local."),
            5,
            RData::NS(NS(name("ns.dns.cluster.local."))),
        ));
        answer(&mut message, &full, &name("ext.shop."));
        assert!(message.authorities.is_empty());
        assert_eq!(message.answers[0].name, name("ext.shop."));
        assert_eq!(message.answers[1].name, target);
    }

    #[test]
    fn addresses_are_changed_and_nothing_else() {
        let mut message = Message::response(1, OpCode::Query);
        let owner = name("web.shop.");
        let data = [
            RData::A(A::new(10, 96, 0, 7)),
            RData::AAAA(AAAA::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 7)),
            RData::CNAME(CNAME(name("example.com."))),
        ];
        for data in data.clone() {
            message.add_answer(Record::from_rdata(owner.clone(), 5, data));
        }
        let shown: IpAddr = "246.0.0.7".parse().unwrap();
        addresses(&mut message, |address| {
            if address.is_ipv4() { shown } else { address }
        });
        let changed: Vec<_> = message.answers.iter().map(|it| it.data.clone()).collect();
        assert_eq!(changed[0], RData::A(A::new(246, 0, 0, 7)));
        assert_eq!(changed[1..], data[1..]);
    }

    #[test]
    fn only_whole_addresses_have_a_reverse_name() {
        let reverse = |text| reverse_address(&name(text));
        assert_eq!(reverse("7.0.96.10.in-addr.arpa."), "10.96.0.7".parse().ok());
        assert_eq!(reverse("96.10.in-addr.arpa."), None);
        assert_eq!(reverse("web.shop."), None);
    }
}
