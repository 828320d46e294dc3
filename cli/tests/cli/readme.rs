//! The README tells what the binary does.

use kvpn_proto::Reason;

fn readme() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_exit_code_is_documented() {
    let readme = readme();
    let documented: Vec<(u8, &str)> = readme
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let code = cells.next()?.trim().parse().ok()?;
            let reason = cells.next()?.trim().trim_matches('`');
            Some((code, reason))
        })
        .filter(|(code, _)| *code != 0)
        .collect();
    let reasons: Vec<(u8, &str)> = Reason::ALL
        .iter()
        .map(|reason| (reason.exit_code(), reason.as_str()))
        .collect();
    assert_eq!(documented, reasons);
}
