//! How fast flows move, from two looks at them.

use std::collections::HashMap;
use std::time::Instant;

use kvpn_proto::v1::Flow;

/// Bytes per second in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// What the last look saw.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    last: Option<Look>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    /// Bytes sent and received.
    flows: HashMap<u64, (u64, u64)>,
}

impl Rates {
    /// The rates since the last look, by the flows' ids; none at the first.
    pub(crate) fn update(&mut self, flows: &[Flow], now: Instant) -> HashMap<u64, Rate> {
        let look = Look {
            at: now,
            flows: flows
                .iter()
                .map(|flow| (flow.id, (flow.bytes_sent, flow.bytes_received)))
                .collect(),
        };
        let rates = match &self.last {
            Some(before) => rates(before, &look),
            None => HashMap::new(),
        };
        self.last = Some(look);
        rates
    }
}

fn rates(before: &Look, after: &Look) -> HashMap<u64, Rate> {
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
    if seconds <= 0.0 {
        return HashMap::new();
    }
    let per_second = |bytes: u64| (bytes as f64 / seconds).round() as u64;
    let rate = |(id, (sent, received)): (&u64, &(u64, u64))| {
        // What was not there has moved everything since.
        let (sent_before, received_before) = before.flows.get(id).copied().unwrap_or_default();
        let rate = Rate {
            sent: per_second(sent.saturating_sub(sent_before)),
            received: per_second(received.saturating_sub(received_before)),
        };
        (*id, rate)
    };
    after.flows.iter().map(rate).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn flow(id: u64, bytes_sent: u64, bytes_received: u64) -> Flow {
        Flow {
            id,
            bytes_sent,
            bytes_received,
            ..Flow::default()
        }
    }

    #[test]
    fn rate_is_what_moved_since_the_last_look() {
        let mut rates = Rates::default();
        let start = Instant::now();
        assert!(rates.update(&[flow(1, 100, 0)], start).is_empty());
        let flows = [flow(1, 300, 50), flow(2, 10, 0)];
        let found = rates.update(&flows, start + Duration::from_secs(2));
        let rate = |sent, received| Rate { sent, received };
        assert_eq!(found[&1], rate(100, 25));
        assert_eq!(found[&2], rate(5, 0));
    }

    #[test]
    fn two_looks_at_once_tell_no_rate() {
        let mut rates = Rates::default();
        let now = Instant::now();
        rates.update(&[flow(1, 0, 0)], now);
        assert!(rates.update(&[flow(1, 9, 9)], now).is_empty());
    }
}
