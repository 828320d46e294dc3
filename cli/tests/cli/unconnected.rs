//! What `kvpn` says where no session runs.

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use crate::kvpn::{User, finish};

const NOT_CONNECTED: &str = "error: not connected to a cluster\nhint: run `kvpn connect` first\n";

#[tokio::test]
async fn quit_succeeds_without_a_connection() {
    let user = User::new();
    let quit = user.run("quit").await;
    assert_eq!((quit.code, quit.stdout.as_str()), (0, "Not connected\n"));
    assert_eq!(quit.stderr, "");
}

#[tokio::test]
async fn status_without_a_connection_is_an_answer_with_an_exit_code() {
    let user = User::new();
    let text = user.run("status").await;
    assert_eq!((text.code, text.stdout.as_str()), (13, "Not connected\n"));
    assert_eq!(text.stderr, "");

    let json = user.run("status -o json").await;
    assert_eq!(json.code, 13);
    assert_eq!(json.stdout, "{\n  \"connected\": false\n}\n");
    assert_eq!(json.stderr, "");
}

#[tokio::test]
async fn commands_that_need_a_connection_say_so() {
    let user = User::new();
    for command in [
        "list",
        "flows",
        "flows --watch",
        "leave",
        "leave web",
        "leave --all",
        "intercept web --port 8080",
    ] {
        let finished = user.run(command).await;
        assert_eq!(finished.code, 13, "{command}");
        assert_eq!(finished.stderr, NOT_CONNECTED, "{command}");
        assert_eq!(finished.stdout, "", "{command}");
    }
}

#[tokio::test]
async fn errors_are_documents_where_documents_are_asked_for() {
    let user = User::new();
    let finished = user.run("list -o json").await;
    assert_eq!(finished.code, 13);
    assert_eq!(finished.stdout, "");
    assert_eq!(
        finished.stderr,
        r#"{
  "error": {
    "reason": "NotConnected",
    "message": "not connected to a cluster",
    "nextStep": "run `kvpn connect` first",
    "exitCode": 13
  }
}
"#
    );
}

#[tokio::test]
async fn socket_of_a_dead_session_counts_as_none() {
    let user = User::new();
    let socket = user.session_socket();
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    assert_eq!(user.run("status").await.code, 13);
    assert_eq!(user.run("quit").await.code, 0);
}

#[tokio::test]
async fn usage_errors_exit_with_2() {
    let user = User::new();
    for arguments in [
        "status --nonsense",
        "nonsense",
        "intercept web",
        "intercept web --port http",
        "status -o xml",
        "",
    ] {
        let finished = user.run(arguments).await;
        assert_eq!(finished.code, 2, "{arguments}");
        assert_eq!(finished.stdout, "", "{arguments}");
    }
}

#[tokio::test]
async fn version_needs_nobody() {
    let user = User::new();
    let finished = user.run("version").await;
    assert_eq!(finished.code, 0);
    let client = format!("Client:          {}\n", env!("CARGO_PKG_VERSION"));
    assert!(finished.stdout.starts_with(&client), "{finished:?}");
}

#[tokio::test]
async fn closed_pipe_is_no_failure() {
    let user = User::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = user.command("quit -o json");
    command.stdout(Stdio::from(writer));
    let finished = finish(command.spawn().unwrap()).await;
    assert_eq!(finished.stderr, "");
    assert_eq!(finished.code, 0);
}

#[tokio::test]
async fn missing_kvpnd_is_told() {
    let user = User::new();
    // The environment names one that is not there.
    let finished = user.run("connect").await;
    assert_eq!(finished.code, 10);
    assert!(
        finished.stderr.starts_with("error: cannot run "),
        "{finished:?}"
    );
    assert!(
        finished.stderr.contains("\nhint: install kvpnd"),
        "{finished:?}"
    );

    // It is neither beside kvpn nor on the PATH.
    let lonely = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = lonely.path().join("kvpn");
    std::fs::hard_link(env!("CARGO_BIN_EXE_kvpn"), &program).unwrap();
    let mut command = user.command_of(&program);
    command
        .arg("connect")
        .env_remove("KVPN_DAEMON_BINARY")
        .env("PATH", lonely.path());
    let finished = finish(command.spawn().unwrap()).await;
    assert_eq!(finished.code, 10);
    let error = "error: cannot find the program kvpnd\n";
    assert!(finished.stderr.starts_with(error), "{finished:?}");
}

#[tokio::test]
async fn doctor_tells_the_first_failure_by_its_exit_code() {
    let user = User::new();
    user.install_daemon(
        r#"echo '{"name":"Root daemon","outcome":"failure","reason":"DaemonNotRunning","message":"it does not run","nextStep":"start it"}'
echo '{"name":"Kubeconfig","outcome":"failure","reason":"NoKubeconfig","message":"there is none","nextStep":"get one"}'"#,
    );
    let text = user.run("doctor").await;
    assert_eq!(text.code, 10, "{text:?}");
    assert_eq!(text.stderr, "");
    assert_eq!(
        text.stdout,
        "failure  Root daemon: it does not run\n         hint: start it\n\
         failure  Kubeconfig: there is none\n         hint: get one\n\
         skipped  Connection: not connected\n"
    );
    let json = user.run("doctor -o json").await;
    assert_eq!(json.code, 10);
    let result: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(result["ok"], false);
    assert_eq!(result["checks"][0]["reason"], "DaemonNotRunning");
    assert_eq!(result["checks"][2]["outcome"], "skipped");
}

#[tokio::test]
async fn doctor_without_a_fitting_kvpnd_says_so() {
    let user = User::new();
    let missing = user.run("doctor").await;
    assert_eq!(missing.code, 10, "{missing:?}");
    assert!(missing.stdout.starts_with("failure  Program kvpnd: "));
    user.install_daemon("echo 'error: unrecognized subcommand' >&2; exit 2");
    let old = user.run("doctor").await;
    assert_eq!(old.code, 26, "{old:?}");
}

#[tokio::test]
async fn doctor_tells_a_kvpnd_that_dies_at_its_checks() {
    let user = User::new();
    for (script, how) in [("kill -KILL $$", "signal: 9"), ("exit 101", "101")] {
        user.install_daemon(script);
        let dead = user.run("doctor").await;
        assert_eq!(dead.code, 1, "{dead:?}");
        let start = "failure  Program kvpnd: kvpnd has not ended its checks: ";
        assert!(dead.stdout.starts_with(start), "{dead:?}");
        assert!(dead.stdout.contains(how), "{dead:?}");
    }
}
