//! What `kvpn up`, `down` and `init` do with a session that is there.

use nix::sys::signal::Signal;

use crate::fake_session::FakeSession;
use crate::kvpn::{Finished, User, finish, send, wait_for};

const LEFT: &str = "leave shop web-x false";

/// Writes a file, and gives the arguments that name it.
fn with_file(user: &User, command: &str, text: &str) -> String {
    let file = user.path("kvpn.yaml");
    std::fs::write(&file, text).unwrap();
    format!("{command} -f {}", file.display())
}

async fn up(user: &User, text: &str) -> Finished {
    user.run(&with_file(user, "up", text)).await
}

#[tokio::test]
async fn commands_run_side_by_side_and_the_first_end_is_the_end_of_all() {
    let user = User::new();
    let session = FakeSession::start(&user);
    std::fs::create_dir(user.path("api")).unwrap();
    let text = "
engagements:
  - intercept: web
    ports: [8080:http]
    run: |
      printf 'out\\nlast'
      echo \"$GREETING in $(basename \"$PWD\")\" >&2
      exit 7
    directory: api
  - wiretap: web
    ports: [9090]
    run: [sleep, 60]
";
    let finished = up(&user, text).await;
    assert_eq!(finished.code, 7, "{finished:?}");
    assert_eq!(finished.stdout, "web   | out\nweb   | last\n");
    let stderr = &finished.stderr;
    assert!(stderr.contains("\nweb   | it's in api\n"), "{stderr}");
    assert!(stderr.contains("Already connected"), "{stderr}");
    assert!(stderr.contains("Intercepting Deployment/web"), "{stderr}");
    let environment = "environment shop web-x";
    let expected = [
        "intercept web 127.0.0.1:8080 http",
        environment,
        "wiretap web 127.0.0.1:9090 ",
        environment,
        LEFT,
        LEFT,
    ];
    assert_eq!(session.calls(), expected, "it quits what was there before");
}

#[tokio::test]
async fn interrupt_is_passed_to_the_commands() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let ready = user.path("ready");
    let text = format!(
        "
engagements:
  - intercept: web
    ports: [9090]
    run: trap 'exit 9' INT; touch {}; while :; do sleep 0.02; done
",
        ready.display()
    );
    let line = with_file(&user, "up", &text);
    let kvpn = user.command(&line).spawn().unwrap();
    wait_for(&ready).await;
    send(&kvpn, Signal::SIGINT);
    assert_eq!(finish(kvpn).await.code, 9);
    assert_eq!(session.calls().last().unwrap(), LEFT);
}

#[tokio::test]
async fn engagement_that_somebody_ends_ends_the_commands() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let text = "engagements: [{intercept: revoked, ports: [9090], run: sleep 60}]";
    let finished = up(&user, text).await;
    assert_eq!(finished.code, 143, "{finished:?}");
    assert!(
        finished.stderr.contains("was deleted by bob"),
        "{finished:?}"
    );
}

#[tokio::test]
async fn failure_of_one_takes_down_the_others() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let text = "engagements:\n  - ingest: web\n  - intercept: taken\n    ports: [9090]\n";
    let finished = up(&user, text).await;
    assert_eq!(finished.code, 35, "{finished:?}");
    let told = "kvpn.yaml:3: bob intercepts port 80 of Deployment/web";
    assert!(finished.stderr.contains(told), "{finished:?}");
    let expected = ["ingest web", "intercept taken 127.0.0.1:9090 ", LEFT];
    assert_eq!(session.calls(), expected);
}

#[tokio::test]
async fn what_is_there_just_so_is_left_alone() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let text = "engagements: [{intercept: deploy/web, ports: [8080]}]";
    let finished = up(&user, text).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(finished.stdout.contains("Intercepting Deployment/web"));
    assert!(finished.stderr.contains("kvpn down"), "{finished:?}");
    assert_eq!(session.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn without_running_all_stays() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let text = "engagements: [{intercept: web, ports: [9090], run: touch ran}]";
    let line = with_file(&user, "up --no-run -o json", text);
    let finished = user.run(&line).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let told: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(told["connections"][0]["alreadyConnected"], true);
    assert_eq!(told["engagements"][0]["workload"], "Deployment/web");
    assert_eq!(session.calls(), ["intercept web 127.0.0.1:9090 "]);
    assert!(!user.path("ran").exists());
}

#[tokio::test]
async fn what_is_wrong_in_a_file_is_told_before_anything_is_asked() {
    let user = User::new();
    let session = FakeSession::start(&user);
    for (text, told) in [
        (
            "engagements:\n  - intercept: web\n    prots: [8080]\n",
            ["kvpn.yaml:3: there is no key `prots`", "`ports`"],
        ),
        (
            "engagements:\n  - intercept: web\n    ports: [8080, http]\n",
            ["kvpn.yaml:3: ports: `http`", "kvpn intercept --help"],
        ),
        (
            "engagements:\n  - ingest: ${KVPN_NO_SUCH}\n",
            ["kvpn.yaml:2: ", "variable KVPN_NO_SUCH is not set"],
        ),
        (
            "engagements:\n  - ingest: web\n    run: pwd\n    directory: nowhere\n",
            ["kvpn.yaml:2: ", "nowhere is no directory"],
        ),
        (
            "engagements:\n  - ingest: web\n    env: {exclude: [A]}\n",
            ["kvpn.yaml:2: ", "--env-exclude leaves variables out"],
        ),
        (
            "connections: [{namespace: bank}]\n",
            ["kvpn.yaml:1: ", "already connected to context dev"],
        ),
    ] {
        let finished = up(&user, text).await;
        assert!([2, 12].contains(&finished.code), "{finished:?}");
        for told in told {
            assert!(finished.stderr.contains(told), "{told}: {finished:?}");
        }
    }
    let missing = user.run("up -f /nonexistent/kvpn.yaml").await;
    assert_eq!(missing.code, 2, "{missing:?}");
    assert_eq!(session.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn commands_are_printed_and_not_run() {
    let user = User::new();
    let session = FakeSession::start(&user);
    std::fs::create_dir(user.path("below")).unwrap();
    with_file(
        &user,
        "",
        "engagements: [{intercept: web, ports: [8080], run: [./a b]}]",
    );
    // Found from below.
    let mut command = user.command("up --print");
    command.current_dir(user.path("below"));
    let finished = finish(command.spawn().unwrap()).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let (first, second) = finished.stdout.split_once('\n').unwrap();
    assert_eq!(first, "kvpn connect");
    let line = "&& kvpn intercept web --name default --port 8080 -- './a b') &\n";
    assert!(second.starts_with("(cd /"), "{second}");
    assert!(second.ends_with(line), "{second}");
    assert_eq!(session.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn down_ends_the_connections_of_the_file() {
    let user = User::new();
    let session = FakeSession::start(&user);
    // Which variables there are makes no difference.
    let line = with_file(&user, "down", "engagements: [{ingest: \"${NO_SUCH}\"}]");
    let finished = user.run(&line).await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(session.calls(), ["quit"]);
    let again = user.run(&line).await;
    assert_eq!((again.code, &*again.stdout), (0, "Not connected\n"));
}

#[tokio::test]
async fn init_writes_a_file_that_is_not_there() {
    let user = User::new();
    let session = FakeSession::start(&user);
    std::fs::create_dir(user.path("web")).unwrap();
    std::fs::write(user.path("web/go.mod"), "").unwrap();
    let init = |arguments: &str| {
        let mut command = user.command(arguments);
        command.current_dir(user.path(""));
        finish(command.spawn().unwrap())
    };
    let printed = init("init --print").await;
    assert_eq!(printed.code, 0, "{printed:?}");
    assert!(printed.stdout.contains("- intercept: deployment/web\n"));
    assert!(printed.stdout.contains("run: go run .\n"));
    let written = init("init").await;
    assert_eq!(written.code, 0, "{written:?}");
    let text = std::fs::read_to_string(user.path("kvpn.yaml")).unwrap();
    assert_eq!(text, printed.stdout);
    assert_eq!(init("init").await.code, 2, "it is written over");
    assert_eq!(session.calls(), ["list ", "list "]);
}

#[tokio::test]
async fn schema_is_the_one_in_the_repository() {
    let told = User::new().run("up --schema").await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kvpn.schema.json");
    assert_eq!(told.stdout, std::fs::read_to_string(path).unwrap());
}
