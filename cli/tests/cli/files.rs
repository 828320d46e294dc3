//! What `kvpn` copies from a container and to it.

use std::fs;

use crate::fake_session::FakeSession;
use crate::kvpn::User;

const CALLS: [&str; 2] = ["ingest web", "leave shop web-x false"];

#[tokio::test]
async fn files_are_copied_from_the_container_and_to_it() {
    let user = User::new();
    let session = FakeSession::start(&user);
    fs::create_dir_all(user.path("files/data")).unwrap();
    fs::write(user.path("files/data/file"), "of the pod").unwrap();
    let copy = user.path("copy").display().to_string();

    let from = user.run(&format!("cp web:/data/file {copy}")).await;

    assert_eq!(from.code, 0, "{from:?}");
    let told = format!("Copied 1 file (10 B) from web:/data/file to {copy}\n");
    assert_eq!(from.stdout, told);
    assert_eq!(fs::read(user.path("copy")).unwrap(), b"of the pod");
    assert_eq!(session.calls(), CALLS);
    let to = user.run(&format!("cp {copy} web:data")).await;
    assert_eq!(to.code, 0, "{to:?}");
    let there = fs::read(user.path("files/data/copy")).unwrap();
    assert_eq!(there, b"of the pod");
    let listed = user.run("ls web:/data -o json").await;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    let entries = listed["entries"].as_array().unwrap();
    let names: Vec<_> = entries.iter().map(|entry| &entry["name"]).collect();
    assert_eq!(names, ["copy", "file"]);
    let missing = user.run("cp web:/data/missing /tmp").await;
    assert_eq!(missing.code, 2, "{missing:?}");
    let said = "web:/data/missing: No such file or directory";
    assert!(missing.stderr.contains(said), "{}", missing.stderr);
    assert_eq!(session.calls(), [CALLS; 4].concat());
}

#[tokio::test]
async fn nothing_is_engaged_for_what_cannot_be_copied() {
    let user = User::new();
    let session = FakeSession::start(&user);
    for line in [
        "cp a b",
        "cp web:/a api:/b",
        "cp /nonexistent/file web:/data",
    ] {
        let refused = user.run(line).await;
        assert_eq!(refused.code, 2, "{line}: {refused:?}");
    }
    assert_eq!(session.calls(), [""; 0]);
}
