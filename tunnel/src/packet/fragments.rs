//! Fragments of IP packets: those of the host become packets again, and packets
//! that are too long for the host become fragments.
//!
//! As in RFC 815 fragments arrive in any order; as in RFC 5722 a packet whose
//! fragments overlap is dropped, for IPv4 too. An exact copy is ignored.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6Packet};

use super::Ignored;

/// How long the fragments of a packet wait for the missing ones: as long
/// as Linux waits. RFC 1122 section 3.3.2 and RFC 8200 section 4.5 would have 60 s,
/// but these come over no network.
const EXPIRY: Duration = Duration::from_secs(30);

/// How many incomplete packets, and how many bytes of them, are kept.
const MAX_PACKETS: usize = 256;
const MAX_BYTES: usize = 4 << 20;

/// The most that the payload of all fragments may add up to.
const MAX_PAYLOAD: usize = 65_535;

const FRAGMENT_HEADER: usize = 8;

/// Puts fragments together.
#[derive(Debug, Default)]
pub(crate) struct Reassembler {
    incomplete: HashMap<Key, Incomplete>,
    bytes: usize,
}

/// What fragments of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    from: IpAddr,
    to: IpAddr,
    identification: u32,
    /// RFC 8200 leaves it out for IPv6, where it is 0 here.
    protocol: u8,
}

#[derive(Debug)]
struct Incomplete {
    since: Instant,
    /// The first fragment's, changed to that of the whole packet.
    header: Vec<u8>,
    payload: Vec<u8>,
    /// Start and end of what has arrived, in order.
    arrived: Vec<(usize, usize)>,
    /// Length of the whole payload, once the last fragment has arrived.
    length: Option<usize>,
}

struct Fragment<'a> {
    key: Key,
    header: Vec<u8>,
    start: usize,
    is_last: bool,
    payload: &'a [u8],
}

impl Reassembler {
    /// Takes a fragment; returns the packet that it completes.
    pub(crate) fn push(&mut self, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
        let fragment = match read(packet) {
            Ok(fragment) => fragment,
            Err(reason) => {
                tracing::trace!(%reason, "fragment ignored");
                return None;
            }
        };
        if fragment.start == 0 && fragment.is_last {
            // RFC 6946: complete by itself, whatever else waits.
            return assemble(fragment.header, fragment.payload);
        }
        self.forget_old(now);
        let key = fragment.key;
        let mut incomplete = match self.incomplete.remove(&key) {
            Some(incomplete) => {
                self.bytes -= incomplete.payload.len();
                incomplete
            }
            None => Incomplete::new(now),
        };
        incomplete.add(fragment)?;
        if incomplete.is_complete() {
            return assemble(incomplete.header, &incomplete.payload);
        }
        while self.incomplete.len() >= MAX_PACKETS
            || self.bytes + incomplete.payload.len() > MAX_BYTES
        {
            self.forget_oldest()?;
        }
        self.bytes += incomplete.payload.len();
        self.incomplete.insert(key, incomplete);
        None
    }

    fn forget_old(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.incomplete.retain(|_, incomplete| {
            let keep = now < incomplete.since + EXPIRY;
            if !keep {
                *bytes -= incomplete.payload.len();
            }
            keep
        });
    }

    fn forget_oldest(&mut self) -> Option<()> {
        let oldest = self.incomplete.iter().min_by_key(|(_, it)| it.since)?;
        let key = *oldest.0;
        let oldest = self.incomplete.remove(&key)?;
        self.bytes -= oldest.payload.len();
        Some(())
    }
}

impl Incomplete {
    fn new(since: Instant) -> Self {
        Self {
            since,
            header: Vec::new(),
            payload: Vec::new(),
            arrived: Vec::new(),
            length: None,
        }
    }

    /// `None` when the fragment contradicts those before it.
    fn add(&mut self, fragment: Fragment<'_>) -> Option<()> {
        let (start, end) = (fragment.start, fragment.start + fragment.payload.len());
        if self.arrived.contains(&(start, end)) {
            return Some(());
        }
        if self.arrived.iter().any(|it| start < it.1 && it.0 < end) {
            return None;
        }
        if fragment.is_last {
            if self.length.is_some() || self.payload.len() > end {
                return None;
            }
            self.length = Some(end);
        } else if self.length.is_some_and(|length| end > length) {
            return None;
        }
        if start == 0 {
            self.header = fragment.header;
        }
        if self.payload.len() < end {
            self.payload.resize(end, 0);
        }
        self.payload[start..end].copy_from_slice(fragment.payload);
        let place = self.arrived.partition_point(|it| it.0 < start);
        self.arrived.insert(place, (start, end));
        Some(())
    }

    fn is_complete(&self) -> bool {
        let arrived: usize = self.arrived.iter().map(|(start, end)| end - start).sum();
        self.length == Some(arrived)
    }
}

/// Reads a fragment whose IPv6 fragment header follows the IPv6 header.
fn read(packet: &[u8]) -> Result<Fragment<'_>, Ignored> {
    let fragment = match packet.first().map(|first| first >> 4) {
        Some(4) => read_v4(packet)?,
        Some(6) => read_v6(packet)?,
        Some(_) | None => return Err(Ignored::Malformed),
    };
    let length = fragment.payload.len();
    if length == 0
        || (!fragment.is_last && !length.is_multiple_of(8))
        || fragment.start + length > MAX_PAYLOAD
    {
        return Err(Ignored::Malformed);
    }
    Ok(fragment)
}

fn read_v4(bytes: &[u8]) -> Result<Fragment<'_>, Ignored> {
    let packet = Ipv4Packet::new_checked(bytes)?;
    if !packet.verify_checksum() {
        return Err(Ignored::Checksum);
    }
    let mut header = bytes[..packet.header_len().into()].to_vec();
    let mut whole = Ipv4Packet::new_unchecked(&mut header);
    whole.set_more_frags(false);
    whole.set_dont_frag(false);
    whole.set_frag_offset(0);
    Ok(Fragment {
        key: Key {
            from: packet.src_addr().into(),
            to: packet.dst_addr().into(),
            identification: packet.ident().into(),
            protocol: packet.next_header().into(),
        },
        header,
        start: packet.frag_offset().into(),
        is_last: !packet.more_frags(),
        payload: packet.payload(),
    })
}

fn read_v6(bytes: &[u8]) -> Result<Fragment<'_>, Ignored> {
    let packet = Ipv6Packet::new_checked(bytes)?;
    let (extension, payload) = packet
        .payload()
        .split_first_chunk::<FRAGMENT_HEADER>()
        .ok_or(Ignored::Malformed)?;
    let [next_header, _, high, low, identification @ ..] = *extension;
    let mut header = bytes[..IPV6_HEADER_LEN].to_vec();
    Ipv6Packet::new_unchecked(&mut header).set_next_header(next_header.into());
    Ok(Fragment {
        key: Key {
            from: packet.src_addr().into(),
            to: packet.dst_addr().into(),
            identification: u32::from_be_bytes(identification),
            protocol: 0,
        },
        header,
        start: (u16::from_be_bytes([high, low]) & !7).into(),
        is_last: low & 1 == 0,
        payload,
    })
}

fn assemble(mut header: Vec<u8>, payload: &[u8]) -> Option<Vec<u8>> {
    if header[0] >> 4 == 4 {
        let length = u16::try_from(header.len() + payload.len()).ok()?;
        let mut packet = Ipv4Packet::new_unchecked(&mut header);
        packet.set_total_len(length);
        packet.fill_checksum();
    } else {
        let length = u16::try_from(payload.len()).ok()?;
        Ipv6Packet::new_unchecked(&mut header).set_payload_len(length);
    }
    header.extend_from_slice(payload);
    Some(header)
}

/// Cuts a packet that we have made, and that has neither options nor extension
/// headers, into packets of at most `mtu` bytes.
pub(crate) fn fragments(packet: &[u8], mtu: usize, identification: u32) -> Vec<Vec<u8>> {
    let is_v4 = packet[0] >> 4 == 4;
    let (header, room) = if is_v4 {
        (20, mtu.saturating_sub(20))
    } else {
        (
            IPV6_HEADER_LEN,
            mtu.saturating_sub(IPV6_HEADER_LEN + FRAGMENT_HEADER),
        )
    };
    let (header, payload) = packet.split_at(header);
    let room = (room & !7).max(8);
    let pieces = payload.chunks(room).enumerate().map(|(index, piece)| {
        let start = (index * room) as u16;
        let is_last = usize::from(start) + piece.len() == payload.len();
        if is_v4 {
            fragment_v4(header, piece, start, is_last, identification as u16)
        } else {
            fragment_v6(header, piece, start, is_last, identification)
        }
    });
    pieces.collect()
}

fn fragment_v4(header: &[u8], piece: &[u8], start: u16, is_last: bool, ident: u16) -> Vec<u8> {
    let mut bytes = [header, piece].concat();
    let length = bytes.len() as u16;
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
    packet.set_total_len(length);
    packet.set_ident(ident);
    packet.set_dont_frag(false);
    packet.set_more_frags(!is_last);
    packet.set_frag_offset(start);
    packet.fill_checksum();
    bytes
}

fn fragment_v6(header: &[u8], piece: &[u8], start: u16, is_last: bool, ident: u32) -> Vec<u8> {
    let next_header = header[6];
    let place = (start | u16::from(!is_last)).to_be_bytes();
    let extension = [&[next_header, 0][..], &place, &ident.to_be_bytes()].concat();
    let mut bytes = [header, &extension, piece].concat();
    let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
    packet.set_next_header(IpProtocol::Ipv6Frag);
    packet.set_payload_len((FRAGMENT_HEADER + piece.len()) as u16);
    bytes
}

#[cfg(test)]
mod tests;
