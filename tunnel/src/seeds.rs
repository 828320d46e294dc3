//! Reproducible randomness, and the seeds of simulations. `KVPN_SEED` runs a
//! single one, `KVPN_SEEDS` says how many there are.

/// Gives the seeds to run, and prints each: the last one printed is the one
/// that failed.
pub(crate) fn seeds(usual: u64) -> impl Iterator<Item = u64> {
    let number = |name| {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse::<u64>().expect("a number"))
    };
    let seeds = match number("KVPN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("KVPN_SEEDS").unwrap_or(usual),
    };
    seeds.inspect(|seed| eprintln!("KVPN_SEED={seed}"))
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed | 1);
    (0..length).map(|_| rng.next() as u8).collect()
}

/// A generator for reproducible tests (xorshift64*).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One of the numbers below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}
