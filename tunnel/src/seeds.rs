//! Seeds of the simulations. `KVPN_SEED` runs a single one, `KVPN_SEEDS` says
//! how many there are.

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
