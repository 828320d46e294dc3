//! What the two ends of a connection are going to do.

use std::time::Duration;

use kvpn_proto::flow::DialError;

use crate::netstack::tests::lab::Rng;

/// A connection's whole story, but for what the wire does to it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) v6: bool,
    pub(super) port: u16,
    /// How long after the beginning of the simulation the host connects.
    pub(super) start: Duration,
    /// Seeds of the bytes that both ends send.
    pub(super) seed: u64,
    /// How many bytes the host sends.
    pub(super) up: usize,
    /// How many bytes the cluster sends; those of the host when it echoes.
    pub(super) down: usize,
    pub(super) echo: bool,
    pub(super) answer: Answer,
    pub(super) end: End,
    /// The host ends its direction before the cluster does.
    pub(super) host_first: bool,
    /// The cluster waits with its end for that of the host.
    pub(super) cluster_last: bool,
    pub(super) host_pace: Pace,
    pub(super) cluster_pace: Pace,
}

/// What becomes of the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The dial takes that long, and succeeds.
    Accept(Duration),
    /// The dial takes that long, and fails.
    Refuse(Duration, DialError),
    /// The dial is forgotten; the one for the repeated SYN succeeds.
    Forget(Duration),
    /// The host has given up when the dial succeeds.
    TooLate(Duration),
}

/// How an accepted connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With a FIN of either side.
    Orderly,
    /// With the host's RST, after so many bytes of both directions.
    HostAborts(usize),
    /// With the cluster's RST.
    ClusterResets(usize),
    /// The holder of the flow vanishes.
    HolderDrops(usize),
}

/// How an end reads and writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How much at once.
    pub(super) chunk: usize,
    /// How often; as often as possible when zero.
    pub(super) every: Duration,
}

impl Plan {
    pub(super) fn random(rng: &mut Rng, port: u16) -> Self {
        let host_pace = Pace::random(rng);
        let cluster_pace = Pace::random(rng);
        let most = host_pace.most().min(cluster_pace.most());
        let (up, down) = (size(rng, most), size(rng, most));
        let at = rng.below((up + down + 1) as u64) as usize;
        let wait = Duration::from_millis(rng.below(200));
        Self {
            v6: rng.chance(50),
            port,
            start: Duration::from_millis(rng.below(20_000)),
            seed: rng.below(1 << 30),
            up,
            down,
            echo: rng.chance(25),
            answer: match rng.below(20) {
                0 | 1 => Answer::Refuse(wait, error(rng)),
                2 => Answer::Forget(wait),
                3 => Answer::TooLate(wait),
                // The host repeats its SYN meanwhile.
                4 | 5 => Answer::Accept(50 * wait),
                _ => Answer::Accept(wait),
            },
            end: match rng.below(10) {
                0 => End::HostAborts(at),
                1 => End::ClusterResets(at),
                2 => End::HolderDrops(at),
                _ => End::Orderly,
            },
            host_first: rng.chance(50),
            cluster_last: rng.chance(50),
            host_pace,
            cluster_pace,
        }
        .consistent()
    }

    /// An echo answers what it gets, so it cannot be the first to end, nor can
    /// its client wait for that.
    fn consistent(mut self) -> Self {
        if self.echo {
            self.down = self.up;
            (self.host_first, self.cluster_last) = (true, true);
            // Of what is echoed, all may be lost.
            if let End::HostAborts(at) | End::ClusterResets(at) | End::HolderDrops(at) =
                &mut self.end
            {
                *at = (*at).min(self.up);
            }
        }
        // Someone must begin.
        self.host_first |= self.cluster_last;
        self
    }
}

impl Pace {
    /// Keeps its window open.
    pub(super) const QUICK: Self = Self {
        chunk: 1 << 20,
        every: Duration::ZERO,
    };

    fn random(rng: &mut Rng) -> Self {
        let slow = rng.chance(20);
        Self {
            chunk: 1 + rng.below(if slow { 5_000 } else { 100_000 }) as usize,
            every: Duration::from_millis(if slow { 10 + rng.below(500) } else { 0 }),
        }
    }

    /// How many bytes such an end moves in a bearable time.
    fn most(self) -> usize {
        if self.every.is_zero() {
            usize::MAX
        } else {
            100 * self.chunk
        }
    }
}

fn size(rng: &mut Rng, most: usize) -> usize {
    let largest = [0, 1, 3_000, 100_000, 400_000][rng.below(5) as usize];
    (rng.below(largest + 1) as usize).min(most)
}

fn error(rng: &mut Rng) -> DialError {
    [
        DialError::Refused,
        DialError::Refused,
        DialError::HostUnreachable,
        DialError::NetworkUnreachable,
        DialError::Prohibited,
        DialError::TimedOut,
    ][rng.below(6) as usize]
}
