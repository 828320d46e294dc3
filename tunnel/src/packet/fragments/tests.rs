use proptest::prelude::*;

use super::*;
use crate::netstack::tests::lab::{POD_V4, POD_V6, address, pattern};
use crate::netstack::tests::packets::datagram;

fn whole(pod: &str, length: usize) -> Vec<u8> {
    let mut packet = datagram(5_000, address(pod), &pattern(length, 1));
    if packet[0] >> 4 == 4 {
        let mut ip = Ipv4Packet::new_unchecked(&mut packet);
        ip.set_dont_frag(false);
        ip.set_ident(7);
        ip.fill_checksum();
    }
    packet
}

#[test]
fn packets_are_cut_to_the_mtu() {
    for pod in [POD_V4, POD_V6] {
        let packet = whole(pod, 60_000);
        let pieces = fragments(&packet, 1_500, 7);
        assert!(pieces.len() > 40);
        assert!(pieces.iter().all(|piece| piece.len() <= 1_500));
        assert!(pieces.iter().all(|piece| piece.len() > 100));
    }
}

#[test]
fn the_largest_v6_datagram_is_put_together() {
    let packet = whole(POD_V6, 65_527);
    let mut reassembler = Reassembler::default();
    let now = Instant::now();
    let pieces = fragments(&packet, 65_535, 7);
    assert_eq!(pieces.len(), 2);
    assert_eq!(reassembler.push(&pieces[0], now), None);
    assert!(reassembler.push(&pieces[1], now) == Some(packet));
}

#[test]
fn fragments_of_different_packets_are_not_mixed() {
    for pod in [POD_V4, POD_V6] {
        let packet = whole(pod, 2_000);
        let mut reassembler = Reassembler::default();
        let now = Instant::now();
        let (one, two) = (fragments(&packet, 1_500, 1), fragments(&packet, 1_500, 2));
        assert_eq!(reassembler.push(&one[0], now), None);
        assert_eq!(reassembler.push(&two[1], now), None);
        assert!(reassembler.push(&one[1], now).is_some());
        assert!(reassembler.push(&two[0], now).is_some());
        assert_eq!(reassembler.bytes, 0);
    }
}

#[test]
fn packet_whose_fragments_overlap_is_dropped() {
    for pod in [POD_V4, POD_V6] {
        let packet = whole(pod, 4_000);
        let (large, small) = (fragments(&packet, 1_500, 7), fragments(&packet, 800, 7));
        let mut reassembler = Reassembler::default();
        let now = Instant::now();
        assert_eq!(reassembler.push(&large[0], now), None);
        assert_eq!(reassembler.push(&small[1], now), None);
        for piece in &large[1..] {
            assert_eq!(reassembler.push(piece, now), None);
        }
    }
}

#[test]
fn fragments_wait_for_half_a_minute() {
    let packet = whole(POD_V4, 2_000);
    let pieces = fragments(&packet, 1_500, 7);
    let mut reassembler = Reassembler::default();
    let now = Instant::now();
    assert_eq!(reassembler.push(&pieces[0], now), None);
    let late = now + EXPIRY - Duration::from_millis(1);
    assert!(reassembler.push(&pieces[1], late).is_some());
    assert_eq!(reassembler.push(&pieces[0], now), None);
    assert_eq!(reassembler.push(&pieces[1], now + EXPIRY), None);
}

#[test]
fn memory_of_incomplete_packets_is_bounded() {
    let packet = whole(POD_V6, 60_000);
    let mut reassembler = Reassembler::default();
    let now = Instant::now();
    for identification in 0..10_000 {
        let last = fragments(&packet, 1_500, identification).pop().unwrap();
        assert_eq!(reassembler.push(&last, now), None);
        assert!(reassembler.bytes <= MAX_BYTES);
        assert!(reassembler.incomplete.len() <= MAX_PACKETS);
    }
    // The newest is still there.
    let mut rest = fragments(&packet, 1_500, 9_999);
    rest.pop();
    let done = rest.iter().filter_map(|piece| reassembler.push(piece, now));
    assert_eq!(done.count(), 1);
}

#[test]
fn fragments_that_contradict_each_other_are_dropped() {
    let packet = whole(POD_V4, 4_000);
    let (large, other) = (
        fragments(&packet, 1_500, 7),
        fragments(&packet[..3_000], 1_500, 7),
    );
    let now = Instant::now();
    // Two ends.
    let mut reassembler = Reassembler::default();
    assert_eq!(reassembler.push(large.last().unwrap(), now), None);
    assert_eq!(reassembler.push(other.last().unwrap(), now), None);
    assert!(reassembler.incomplete.is_empty());
    // An end before what has arrived.
    assert_eq!(reassembler.push(&large[2], now), None);
    assert_eq!(
        reassembler.push(&fragments(&packet[..1_000], 800, 7)[1], now),
        None
    );
    assert!(reassembler.incomplete.is_empty());
}

proptest! {
    #[test]
    fn fragments_in_any_order_and_number_become_the_packet(
        v6 in any::<bool>(),
        length in 0_usize..20_000,
        mtu in 68_usize..9_000,
        order in any::<prop::sample::Index>(),
        seed in any::<u64>(),
        copies in any::<bool>(),
    ) {
        let packet = whole(if v6 { POD_V6 } else { POD_V4 }, length);
        let mut pieces = fragments(&packet, mtu, 7);
        if copies {
            pieces.extend(pieces.clone());
        }
        let mut rng = crate::netstack::tests::lab::Rng(seed | 1);
        for at in (1..pieces.len()).rev() {
            pieces.swap(at, rng.next() as usize % (at + 1));
        }
        let first = order.index(pieces.len());
        pieces.rotate_left(first);
        let mut reassembler = Reassembler::default();
        let now = Instant::now();
        let done: Vec<_> = pieces.iter().filter_map(|piece| reassembler.push(piece, now)).collect();
        prop_assert!(!done.is_empty());
        prop_assert!(done.iter().all(|whole| *whole == packet));
    }

    #[test]
    fn no_bytes_make_the_reassembler_panic(
        start in prop::sample::select(vec![0x45_u8, 0x46, 0x60]),
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 40..96), 1..8),
    ) {
        let mut reassembler = Reassembler::default();
        let now = Instant::now();
        for mut bytes in pieces {
            let length = bytes.len() as u16;
            bytes[0] = start;
            if start == 0x60 {
                bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes());
                bytes[6] = 44;
                bytes[8..40].fill(1);
                if bytes.len() >= 48 {
                    bytes[44..48].fill(0);
                }
            } else {
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[4..6].fill(0);
                bytes[12..20].fill(1);
                Ipv4Packet::new_unchecked(&mut bytes).fill_checksum();
            }
            let _ = reassembler.push(&bytes, now);
        }
    }
}
