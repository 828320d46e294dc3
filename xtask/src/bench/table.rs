//! Figures as a table: for a terminal, and for documents.

use kvpn_tests::bench::figures::{Figure, Floor};
use kvpn_tests::bench::{FigureResult, Report, Verdict};

const HEAD: [&str; 8] = [
    "figure", "kvpn", "direct", "pipe", "cp", "ratio", "floor", "",
];

/// For a terminal.
pub(super) fn text(report: &Report) -> String {
    let rows: Vec<[String; 8]> = std::iter::once(HEAD.map(str::to_owned))
        .chain(
            report
                .shown()
                .map(|(figure, result)| row(figure.key, figure, result)),
        )
        .collect();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = format!("{:<1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// For a document.
pub(super) fn markdown(report: &Report) -> String {
    let mut text = String::from(
        "| figure | kvpn | direct | pipe | cp | ratio | floor | |\n|---|---:|---:|---:|---:|---:|---:|---|\n",
    );
    for (figure, result) in report.shown() {
        let title = format!("{} (`{}`)", figure.title, figure.key);
        text += &format!("| {} |\n", row(&title, figure, result).join(" | "));
    }
    text
}

fn row(name: &str, figure: &Figure, result: &FigureResult) -> [String; 8] {
    let value = |value: Option<f64>| value.map(short).unwrap_or_default();
    let ratio = result.ratio.zip(result.ratio_to.as_ref());
    let verdict = match result.verdict(figure) {
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
        Verdict::Free => "",
    };
    [
        name.to_owned(),
        format!("{} {}", short(result.kvpn), result.unit),
        value(result.direct),
        value(result.pipe),
        value(result.cp),
        ratio
            .map(|(ratio, base)| format!("{} of {base}", short(ratio)))
            .unwrap_or_default(),
        floors(figure),
        verdict.to_owned(),
    ]
}

fn floors(figure: &Figure) -> String {
    let sign = if figure.more_is_better { "≥" } else { "≤" };
    let floors = figure.floors.iter().map(|floor| match *floor {
        Floor::Ratio(bound) => format!("{sign} {} of {}", short(bound), base(figure)),
        Floor::Added(bound) => format!("{sign} {} more than {}", short(bound), base(figure)),
        Floor::Value(bound) => format!("{sign} {}", short(bound)),
    });
    floors.collect::<Vec<_>>().join(", ")
}

fn base(figure: &Figure) -> &'static str {
    figure.base.map_or("nothing", |way| way.name())
}

/// Three digits, as more would say what was not measured.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let whole = text.split('.').next().map_or(0, str::len);
    if whole <= 4 {
        return text;
    }
    // Thousands, as people read them.
    let grouped: Vec<&str> = text
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|chunk| std::str::from_utf8(chunk).ok())
        .collect();
    grouped.join(",")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a run wrote, of some figures.
    pub(in crate::bench) fn report() -> Report {
        serde_json::from_str(
            r#"{
                "about": {
                    "kvpn": "0.1.0", "profile": "release", "kernel": "6.1.0",
                    "cpus": 2, "rounds": 5, "seconds": 3.0
                },
                "tcp_down_1": {
                    "unit": "Gbit/s", "kvpn": 3.412, "direct": 27.1, "pipe": 4.0,
                    "ratio": 0.853, "ratio_to": "pipe", "rounds": {}
                },
                "tcp_up_8": {
                    "unit": "Gbit/s", "kvpn": 2.0, "direct": 25.0, "pipe": 6.0,
                    "ratio": 0.333, "ratio_to": "pipe", "rounds": {}
                },
                "pingpong_p50_us": {
                    "unit": "µs", "kvpn": 190.0, "direct": 52.0, "pipe": 80.0,
                    "ratio": 2.375, "ratio_to": "pipe", "rounds": {}
                },
                "connects_per_s": {
                    "unit": "/s", "kvpn": 12650.0, "direct": 21000.0,
                    "ratio": 0.602, "ratio_to": "direct", "rounds": {}
                },
                "idle_flow_bytes_session": {"unit": "bytes", "kvpn": 9216.0, "rounds": {}}
            }"#,
        )
        .unwrap()
    }

    #[test]
    fn table_for_a_terminal() {
        insta::assert_snapshot!(text(&report()));
    }

    #[test]
    fn table_for_documents() {
        insta::assert_snapshot!(markdown(&report()));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(0.034_56), "0.0346");
        assert_eq!(short(0.853_2), "0.85");
        assert_eq!(short(52.04), "52.0");
        assert_eq!(short(2_500.0), "2500");
        assert_eq!(short(16_384.0), "16,384");
        assert_eq!(short(1_234_567.0), "1,234,567");
        assert_eq!(short(0.0), "0");
    }
}
