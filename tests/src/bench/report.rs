//! What was measured, as JSON with keys that stay.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::figures::{ALL, Figure, Floor, Way};
use super::rig::Pace;
use super::stats::{median, median_ratio};

/// The rounds' values of a figure, by way, and what else is worth knowing.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    ways: BTreeMap<Way, Vec<f64>>,
    detail: BTreeMap<String, Vec<Value>>,
}

/// The rounds' values of all figures, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    figures: BTreeMap<&'static str, Series>,
}

impl Samples {
    /// Adds the value of a round.
    pub(super) fn add(&mut self, key: &'static str, way: Way, value: f64) {
        let series = self.figures.entry(key).or_default();
        series.ways.entry(way).or_default().push(value);
    }

    /// Adds something worth knowing about a round.
    pub(super) fn note(&mut self, key: &'static str, name: impl Into<String>, value: Value) {
        let series = self.figures.entry(key).or_default();
        series.detail.entry(name.into()).or_default().push(value);
    }

    /// What the last round gave, for people.
    pub(super) fn describe_last(&self, key: &str) -> Option<String> {
        let ways = &self.figures.get(key)?.ways;
        let last = ways.iter().filter_map(|(way, values)| {
            let last = values.last()?;
            Some(format!("{} {}", way.name(), round(*last)))
        });
        Some(last.collect::<Vec<_>>().join(", "))
    }

    /// What a round gave last.
    pub(super) fn last(&self, key: &str, way: Way) -> Option<f64> {
        self.figures.get(key)?.ways.get(&way)?.last().copied()
    }
}

/// A figure as it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Result {
    pub unit: String,
    /// The median of the rounds, each way that makes sense.
    pub kvpn: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipe: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cp: Option<f64>,
    /// The median of the rounds' own ratios of kvpn to the way in `ratio_to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to: Option<String>,
    /// Every round's value by way.
    pub rounds: BTreeMap<String, Vec<f64>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, Vec<Value>>,
}

/// Whether a figure is as good as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Met,
    Missed,
    /// There is no floor under it.
    Free,
}

/// On what and how it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub kvpn: String,
    pub profile: String,
    pub kernel: String,
    pub cpus: usize,
    pub rounds: usize,
    pub seconds: f64,
}

/// All that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub about: About,
    #[serde(flatten)]
    pub figures: BTreeMap<String, Result>,
}

impl Report {
    pub(super) fn of(samples: &Samples, pace: &Pace) -> Self {
        let figures = ALL.iter().filter_map(|figure| {
            let series = samples.figures.get(figure.key)?;
            Some((figure.key.to_owned(), Result::of(figure, series)?))
        });
        Self {
            about: About::here(pace),
            figures: figures.collect(),
        }
    }

    /// What was measured of them, as they are shown.
    pub fn shown(&self) -> impl Iterator<Item = (&'static Figure, &Result)> {
        ALL.iter()
            .filter_map(|figure| Some((figure, self.figures.get(figure.key)?)))
    }
}

impl Result {
    fn of(figure: &Figure, series: &Series) -> Option<Self> {
        let rounds = |way| series.ways.get(&way).map(Vec::as_slice);
        let kvpn = rounds(Way::Kvpn)?;
        let base = figure.base.filter(|way| series.ways.contains_key(way));
        let ratio = base.and_then(|way| median_ratio(kvpn, rounds(way)?));
        Some(Self {
            unit: figure.unit.to_owned(),
            kvpn: round(median(kvpn)?),
            direct: rounds(Way::Direct).and_then(median).map(round),
            pipe: rounds(Way::Pipe).and_then(median).map(round),
            cp: rounds(Way::Copy).and_then(median).map(round),
            ratio: ratio.map(round),
            ratio_to: base.map(|way| way.name().to_owned()),
            rounds: series
                .ways
                .iter()
                .map(|(way, values)| {
                    let values = values.iter().copied().map(round);
                    (way.name().to_owned(), values.collect())
                })
                .collect(),
            detail: series.detail.clone(),
        })
    }

    /// Whether all floors of its figure are met.
    pub fn verdict(&self, figure: &Figure) -> Verdict {
        let mut verdict = Verdict::Free;
        for floor in figure.floors {
            let met = match *floor {
                Floor::Value(bound) => figure.meets(self.kvpn, bound),
                // Nothing to compare with is as bad as missed.
                Floor::Ratio(bound) => self.ratio.is_some_and(|ratio| figure.meets(ratio, bound)),
                Floor::Added(bound) => {
                    let added = self.direct.map(|direct| self.kvpn - direct);
                    added.is_some_and(|added| figure.meets(added, bound))
                }
            };
            if !met {
                return Verdict::Missed;
            }
            verdict = Verdict::Met;
        }
        verdict
    }
}

impl About {
    fn here(pace: &Pace) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kvpn: env!("CARGO_PKG_VERSION").to_owned(),
            profile: "release".to_owned(),
            kernel: kernel.trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            rounds: pace.rounds,
            seconds: pace.seconds,
        }
    }
}

/// Four significant digits; the rest is noise.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let factor = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let mut samples = Samples::default();
        for (kvpn, direct, pipe) in [(3.0, 20.0, 4.0), (2.5, 22.0, 5.0), (3.8, 21.0, 4.0)] {
            samples.add("tcp_down_1", Way::Kvpn, kvpn);
            samples.add("tcp_down_1", Way::Direct, direct);
            samples.add("tcp_down_1", Way::Pipe, pipe);
        }
        samples.add("idle_flow_bytes_session", Way::Kvpn, 12_345.678);
        samples.note("idle_flow_bytes_session", "opened_s", 1.5.into());
        samples
    }

    fn report() -> Report {
        let mut report = Report::of(&samples(), &Pace::QUICK);
        // Of whatever machine the test runs on.
        report.about.kernel = "6.1.0".to_owned();
        report.about.cpus = 2;
        report
    }

    #[test]
    fn keys_of_the_json_stay() {
        insta::assert_json_snapshot!(report());
    }

    #[test]
    fn what_is_written_can_be_read() {
        let report = report();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn every_floor_counts() {
        let figure = Figure::find("connects_per_s").unwrap();
        let verdict = |kvpn, direct| {
            let mut samples = Samples::default();
            samples.add(figure.key, Way::Kvpn, kvpn);
            samples.add(figure.key, Way::Direct, direct);
            Report::of(&samples, &Pace::QUICK).figures[figure.key].verdict(figure)
        };
        assert_eq!(verdict(3_000.0, 6_000.0), Verdict::Met);
        assert_eq!(verdict(3_000.0, 20_000.0), Verdict::Missed);
        assert_eq!(verdict(2_000.0, 4_000.0), Verdict::Missed);
    }

    #[test]
    fn figure_without_a_floor_is_free() {
        let figure = Figure::find("udp_pps").unwrap();
        let mut samples = Samples::default();
        samples.add(figure.key, Way::Kvpn, 1.0);
        let report = Report::of(&samples, &Pace::QUICK);
        assert_eq!(report.figures[figure.key].verdict(figure), Verdict::Free);
    }

    #[test]
    fn four_digits_are_enough() {
        assert_eq!(round(12_345.678), 12_350.0);
        assert_eq!(round(0.012_345_6), 0.012_35);
        assert_eq!(round(0.0), 0.0);
    }
}
