//! Bytes that can be told apart by where they stand, made anew by whoever checks
//! them.

/// Fills a buffer with the bytes of a stream, from an offset on. Streams differ
/// by their seed.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let mut position = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let skip = (position % 8) as usize;
        let word = mix(seed, position / 8).to_le_bytes();
        let size = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(size);
        now.copy_from_slice(&word[skip..skip + size]);
        position += size as u64;
        rest = later;
    }
}

/// Whether a buffer holds the bytes of a stream, from an offset on.
pub fn matches(seed: u64, offset: u64, buffer: &[u8]) -> bool {
    let mut expected = vec![0; buffer.len()];
    fill(seed, offset, &mut expected);
    expected == buffer
}

/// One step of SplitMix64.
fn mix(seed: u64, index: u64) -> u64 {
    let step = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut word = seed.wrapping_add(step);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_the_whole() {
        let mut whole = [0; 100];
        fill(7, 0, &mut whole);
        for (offset, size) in [(0, 3), (3, 8), (13, 50), (63, 37)] {
            assert!(matches(7, offset as u64, &whole[offset..offset + size]));
            assert!(!matches(8, offset as u64, &whole[offset..offset + size]));
            assert!(!matches(
                7,
                offset as u64 + 1,
                &whole[offset..offset + size]
            ));
        }
    }
}
