//! A wire that loses, repeats and reorders packets.

use std::time::Duration;

use smoltcp::socket::tcp::State;

use super::lab::{Lab, Meddler, POD_V4, POD_V6, Rng, exchange_bytes, read};
use crate::netstack::NetstackConfig;
use crate::seeds::seeds;

/// Loses, repeats or holds back some packets; what is held back comes later.
fn unreliable(seed: u64, percent: u64) -> Meddler {
    let mut rng = Rng::new(seed);
    let mut held = Vec::new();
    Box::new(move |packets| {
        let mut arriving = Vec::new();
        for packet in packets {
            if rng.chance(percent) {
                continue;
            }
            if rng.chance(percent) {
                arriving.push(packet.clone());
            }
            if rng.chance(percent) {
                held.push(packet);
            } else {
                arriving.push(packet);
                arriving.append(&mut held);
            }
        }
        arriving
    })
}

#[test]
fn bytes_and_ends_survive_an_unreliable_wire() {
    for seed in seeds(12) {
        let pod = if seed % 2 == 0 { POD_V4 } else { POD_V6 };
        run(seed, pod);
    }
}

fn run(seed: u64, pod: &str) {
    // Small packets, so that there are many.
    let mut lab = Lab::with(NetstackConfig {
        mtu: 1_500,
        seed,
        ..NetstackConfig::default()
    });
    lab.meddle(unreliable(2 * seed, 3), unreliable(2 * seed + 1, 3));
    let host = lab.connect(pod);
    while lab.new_flows.is_empty() {
        lab.skip();
    }
    let flow = lab.pending().accept(lab.now);
    while lab.socket(host).state() != State::Established {
        lab.skip();
    }

    exchange_bytes(&mut lab, host, &flow, 512 << 10);

    lab.socket(host).close();
    while read(&lab, &flow, &mut [0; 1]).is_none() {
        lab.skip();
    }
    assert_eq!(read(&lab, &flow, &mut [0; 1]).unwrap().unwrap(), 0);
    flow.shutdown_write(lab.now);
    drop(flow);
    while lab.socket(host).may_recv() {
        lab.skip();
    }
    lab.mend();
    lab.pass(Duration::from_secs(120));
    assert_eq!(lab.netstack.counters().open_flows, 0);
}
