//! Which versions work together.

/// Version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Tells whether two versions (`MAJOR.MINOR.PATCH`, a leading `v` allowed) may
/// talk to each other: the same major, and the same minor while that is 0.
pub fn compatible(ours: &str, theirs: &str) -> bool {
    match (parse(ours), parse(theirs)) {
        (Some((0, minor)), Some(theirs)) => theirs == (0, minor),
        (Some((major, _)), Some((their_major, _))) => major == their_major,
        (None, _) | (_, None) => false,
    }
}

fn parse(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.strip_prefix('v').unwrap_or(version).split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minors_of_a_zero_major_differ() {
        assert!(compatible("0.1.0", "v0.1.7"));
        assert!(!compatible("0.1.0", "0.2.0"));
        assert!(!compatible("0.1.0", "1.1.0"));
    }

    #[test]
    fn minors_of_a_later_major_work_together() {
        assert!(compatible("1.2.0", "1.9.3-rc.1"));
        assert!(!compatible("1.2.0", "2.2.0"));
    }

    #[test]
    fn what_is_no_version_fits_nothing() {
        assert!(!compatible("0.1.0", ""));
        assert!(!compatible("latest", "latest"));
    }
}
