//! The README tells what the binary does.

use kvpn_proto::Reason;

use crate::kvpn::{User, finish};

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

#[tokio::test]
async fn file_that_is_shown_can_be_brought_up() {
    let readme = readme();
    let (_, file) = readme.split_once("```yaml\n# kvpn.yaml\n").unwrap();
    let (file, _) = file.split_once("```").unwrap();
    let user = User::new();
    std::fs::write(user.path("kvpn.yaml"), file).unwrap();
    let mut up = user.command("up --print");
    up.current_dir(user.path("")).env("USER", "alice");
    let finished = finish(up.spawn().unwrap()).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(finished.stdout.contains("--http-header x-user=alice"));
}
