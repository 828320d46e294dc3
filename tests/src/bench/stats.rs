//! Medians and percentiles.

/// The median; of an even number, the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sort(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 0 => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

/// The median of the quotients of each pair, which a machine that grows slower
/// from round to round leaves alone.
pub fn median_ratio(values: &[f64], bases: &[f64]) -> Option<f64> {
    let pairs = values.iter().zip(bases).filter(|(_, base)| **base > 0.0);
    let ratios: Vec<f64> = pairs.map(|(value, base)| value / base).collect();
    median(&ratios)
}

/// The smallest value that at least that share of the values does not exceed.
pub fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let sorted = sort(values);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn sort(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn ratio_is_of_the_same_round() {
        // The machine halves its speed after the first round.
        let ratio = median_ratio(&[8.0, 4.0, 4.0], &[10.0, 5.0, 5.0]);
        assert_eq!(ratio, Some(0.8));
        assert_eq!(median_ratio(&[1.0], &[0.0]), None);
        assert_eq!(median_ratio(&[1.0], &[]), None);
    }

    #[test]
    fn percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 1.0), Some(100.0));
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
