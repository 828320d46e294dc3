//! `docs/benchmarks.md`: its table, and its picture.

use std::fs;

use anyhow::{Context, Result, ensure};
use kvpn_tests::bench::figures::ALL;
use kvpn_tests::bench::{Pace, Report};
use kvpn_tests::lab::layout::Layout;

use super::{picture, table};

const BEGIN: &str = "<!-- cargo xtask bench --docs: begin -->\n";
const END: &str = "<!-- cargo xtask bench --docs: end -->\n";

/// Refuses a report that is not of a full run: what is published must not depend
/// on who looked at what last.
fn check(report: &Report) -> Result<()> {
    let (about, full) = (&report.about, Pace::FULL);
    let missing = ALL
        .iter()
        .filter(|figure| !report.figures.contains_key(figure.key))
        .count();
    ensure!(
        missing == 0 && about.rounds >= full.rounds && about.seconds >= full.seconds,
        "--docs takes a full run, with all {} figures and at least {} rounds of {} s; this one \
         has {} figures and {} rounds of {} s. Run `cargo xtask bench --docs`",
        ALL.len(),
        full.rounds,
        full.seconds,
        ALL.len() - missing,
        about.rounds,
        about.seconds
    );
    Ok(())
}

/// Writes both, and leaves the rest of the document alone.
pub(super) fn write(report: &Report) -> Result<()> {
    check(report)?;
    let docs = Layout::new().repository().join("docs");
    let path = docs.join("benchmarks.md");
    let old = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let new = replace(&old, &section(report)).context("docs/benchmarks.md has no place for it")?;
    fs::write(&path, new).with_context(|| format!("write {}", path.display()))?;
    let path = docs.join("benchmarks.svg");
    fs::write(&path, picture::svg(report)).with_context(|| format!("write {}", path.display()))
}

fn section(report: &Report) -> String {
    let about = &report.about;
    format!(
        "![kvpn beside the raw pipe and the direct way](benchmarks.svg)\n\n\
         Medians of {rounds} rounds of {seconds} s, each round all ways one after the other; \
         ratios are medians of the rounds' own. Build profile `{profile}`, Linux {kernel}, \
         {cpus} CPUs for everything together.\n\n{table}",
        rounds = about.rounds,
        seconds = table::short(about.seconds),
        profile = about.profile,
        kernel = about.kernel,
        cpus = about.cpus,
        table = table::markdown(report),
    )
}

/// Puts a section between the marks.
fn replace(document: &str, section: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{section}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::tests::report;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let document = format!("# Title\n{BEGIN}old\n{END}the rest\n");
        let new = replace(&document, "new\n").unwrap();
        assert_eq!(new, format!("# Title\n{BEGIN}new\n{END}the rest\n"));
        assert_eq!(replace("# Title\n", "new\n"), None);
    }

    #[test]
    fn only_a_full_run_is_published() {
        let mut report = report();
        let error = check(&report).unwrap_err().to_string();
        assert!(error.contains("this one has 5 figures"), "{error}");
        assert!(error.ends_with("`cargo xtask bench --docs`"), "{error}");
        let result = report.figures["tcp_up_8"].clone();
        for figure in ALL {
            let key = figure.key.to_owned();
            report.figures.insert(key, result.clone());
        }
        assert!(check(&report).is_ok());
        report.about.seconds = Pace::QUICK.seconds;
        assert!(check(&report).is_err());
    }

    #[test]
    fn section_says_how_it_was_measured() {
        let section = section(&report());
        assert!(
            section.contains("Medians of 5 rounds of 3.00 s"),
            "{section}"
        );
        assert!(
            section.contains("| 1 flow down (`tcp_down_1`) |"),
            "{section}"
        );
    }
}
