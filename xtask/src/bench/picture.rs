//! Ratios as bars: how near kvpn comes to what it is compared with, and where the
//! floor is.

use kvpn_tests::bench::figures::{Figure, Floor};
use kvpn_tests::bench::{FigureResult, Report, Verdict};

use super::table::short;

const WIDTH: f64 = 860.0;
const TOP: f64 = 56.0;
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;
/// Where bars begin, and how long one is that is as good as it gets.
const LEFT: f64 = 330.0;
const FULL: f64 = 330.0;
/// The longest bar, as a share of a full one.
const LONGEST: f64 = 1.15;

/// A picture that is readable on light and dark pages.
pub(super) fn svg(report: &Report) -> String {
    let rows: Vec<(&Figure, &FigureResult, f64)> = report
        .shown()
        .filter_map(|(figure, result)| Some((figure, result, result.ratio?)))
        .collect();
    let height = TOP + ROW * rows.len() as f64 + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"16\" fill=\"#1f2328\">kvpn beside the raw pipe and \
         the direct way: longer is better</text>\n\
         <text x=\"16\" y=\"43\" fill=\"#59636e\">full length: as good as what it is compared \
         with; the mark: the floor</text>\n"
    );
    let mut y = TOP;
    for (figure, result, ratio) in rows {
        bar(&mut svg, y, figure, result, ratio);
        y += ROW;
    }
    line(&mut svg, LEFT + FULL, TOP, y, "#59636e");
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, y: f64, figure: &Figure, result: &FigureResult, ratio: f64) {
    let colour = match result.verdict(figure) {
        Verdict::Met => "#1a7f37",
        Verdict::Missed => "#cf222e",
        Verdict::Free => "#0969da",
    };
    let length = FULL * goodness(figure, ratio);
    let text = y + BAR - 3.0;
    let base = result.ratio_to.as_deref().unwrap_or_default();
    svg.push_str(&format!(
            "<text x=\"16\" y=\"{text}\" fill=\"#1f2328\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{text}\" fill=\"#59636e\">{} {}, {} of {base}</text>\n",
            escape(figure.title),
            LEFT + FULL * LONGEST + 8.0,
            short(result.kvpn),
            escape(&result.unit),
            short(ratio),
    ));
    for floor in figure.floors {
        if let Floor::Ratio(bound) = floor {
            let x = LEFT + FULL * goodness(figure, *bound);
            line(svg, x, y - 2.0, y + BAR + 2.0, "#1f2328");
        }
    }
}

/// 1 for as good as what it is compared with; of times, shorter is longer.
fn goodness(figure: &Figure, ratio: f64) -> f64 {
    let good = match figure.more_is_better {
        true => ratio,
        false => 1.0 / ratio,
    };
    good.clamp(0.0, LONGEST)
}

fn line(svg: &mut String, x: f64, from: f64, to: f64, colour: &str) {
    svg.push_str(&format!(
            "<line x1=\"{x:.1}\" y1=\"{from}\" x2=\"{x:.1}\" y2=\"{to}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n"
    ));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::tests::report;

    #[test]
    fn picture_of_some_figures() {
        insta::assert_snapshot!(svg(&report()));
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a < b & c"), "a &lt; b &amp; c");
    }

    #[test]
    fn shorter_times_make_longer_bars() {
        let time = Figure::find("pingpong_p50_us").unwrap();
        let speed = Figure::find("tcp_up_1").unwrap();
        assert!((goodness(time, 2.0) - 0.5).abs() < 1e-9);
        assert!((goodness(speed, 0.5) - 0.5).abs() < 1e-9);
        assert!((goodness(speed, 9.0) - LONGEST).abs() < 1e-9);
    }
}
