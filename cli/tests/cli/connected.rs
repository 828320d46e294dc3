//! What `kvpn` asks a session, and what it makes of the answers.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::fake_session::FakeSession;
use crate::kvpn::{DEADLINE, User, finish, send, wait_for};
use crate::starting::{ready, say};

#[tokio::test]
async fn connecting_twice_changes_nothing() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let finished = user.run("connect").await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(
        finished.stdout,
        "Already connected to context dev, namespace shop (https://10.1.0.1:6443/)\n"
    );
    assert_eq!(session.calls(), [""; 0]);
}

#[tokio::test]
async fn connection_to_another_cluster_is_refused() {
    let user = User::new();
    let session = FakeSession::start(&user);
    for arguments in [
        "connect --context prod",
        "list --context prod",
        "intercept web --port 8080 --context prod",
        "leave --all --context prod",
        "status --context prod",
        "quit --context prod",
    ] {
        let finished = user.run(arguments).await;
        assert_eq!(finished.code, 12, "{arguments}: {finished:?}");
        assert_eq!(
            finished.stderr,
            "error: connected to context dev (https://10.1.0.1:6443/), not to context prod\n\
             hint: run `kvpn quit` to end that connection first\n"
        );
    }
    assert_eq!(session.calls(), [""; 0]);
}

#[tokio::test]
async fn current_context_of_the_kubeconfig_is_the_one_asked_for() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let kubeconfig = |server: &str| {
        let text = format!(
            "current-context: dev\n\
             contexts: [{{name: dev, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n"
        );
        std::fs::create_dir_all(user.path(".kube")).unwrap();
        std::fs::write(user.path(".kube/config"), text).unwrap();
    };
    kubeconfig("https://10.1.0.1:6443");
    assert_eq!(user.run("connect").await.code, 0);
    kubeconfig("https://10.9.9.9:6443");
    let finished = user.run("connect").await;
    assert_eq!(finished.code, 12, "{finished:?}");
}

#[tokio::test]
async fn other_subnets_need_a_new_connection() {
    let user = User::new();
    let session = FakeSession::start(&user);
    for flag in [
        "--also-proxy",
        "--never-proxy",
        "--allow-conflicting-subnets",
    ] {
        let finished = user.run(&format!("connect {flag} 192.0.2.0/24")).await;
        assert_eq!(finished.code, 12, "{finished:?}");
        assert_eq!(
            finished.stderr,
            format!(
                "error: already connected to context dev; {flag} is for a new connection\n\
                 hint: run `kvpn quit` first to connect with other names or subnets\n"
            )
        );
    }
    assert_eq!(session.calls(), [""; 0]);
}

#[tokio::test]
async fn other_namespace_needs_a_new_connection_but_no_new_one_to_list() {
    let user = User::new();
    let session = FakeSession::start(&user);
    assert_eq!(user.run("connect -n bank").await.code, 12);
    assert_eq!(user.run("connect -n shop").await.code, 0);

    let list = user.run("list -n bank").await;
    assert_eq!(list.code, 0);
    assert_eq!(
        list.stdout,
        "NAME             READY   SERVICES   ENGAGED BY\n\
         Deployment/web   3/3     -          -\n"
    );
    assert_eq!(session.calls(), ["list bank"]);
}

#[tokio::test]
async fn intercept_tells_its_warnings_and_its_outcome() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let text = user.run("intercept web --port 8080:http").await;
    assert_eq!(text.code, 0, "{text:?}");
    assert_eq!(
        text.stdout,
        "Intercepting Deployment/web port 80 (container 8080) -> 127.0.0.1:8080, 3/3 pods\n"
    );
    assert_eq!(text.stderr, "warning: nothing listens on 127.0.0.1:8080\n");
    assert_eq!(session.calls(), ["intercept web 127.0.0.1:8080 http"]);

    let json = user.run("intercept web --port 8080 -o json").await;
    let result: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json.stderr, "");
    assert_eq!(result["podsCovered"], 3);
    assert_eq!(result["warnings"][0], "nothing listens on 127.0.0.1:8080");
}

#[tokio::test]
async fn refusal_of_the_session_is_the_commands_own() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let finished = user.run("intercept taken --port 8080").await;
    assert_eq!(finished.code, 35);
    assert_eq!(
        finished.stderr,
        "error: bob intercepts port 80 of Deployment/web\nhint: ask bob, or choose another port\n"
    );
}

#[tokio::test]
async fn intercept_that_breaks_off_is_a_failure() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let finished = user.run("intercept broken --port 8080").await;
    assert_eq!(finished.code, 1);
    assert_eq!(finished.stdout, "");
}

#[tokio::test]
async fn interrupted_intercept_is_cancelled() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let kvpn = user.command("intercept slow --port 8080").spawn().unwrap();
    wait_for(&user.path("waiting")).await;
    send(&kvpn, Signal::SIGINT);
    let finished = finish(kvpn).await;
    assert_eq!(finished.code, 130);
    assert_eq!(finished.stdout, "");
    wait_for(&user.path("cancelled")).await;
}

#[tokio::test]
async fn leave_finds_the_only_engagement() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let finished = user.run("leave").await;
    assert_eq!(finished.code, 0);
    assert_eq!(finished.stdout, "Stopped intercepting Deployment/web\n");
    user.run("leave web -n bank").await;
    user.run("leave --all").await;
    assert_eq!(user.run("leave -n bank").await.code, 36);
    assert_eq!(
        session.calls(),
        [
            "leave shop web-x false",
            "leave bank web false",
            "leave   true"
        ]
    );
}

#[tokio::test]
async fn version_tells_those_of_the_session() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let finished = user.run("version -o json").await;
    let result: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(result["client"], env!("CARGO_PKG_VERSION"));
    assert_eq!(result["session"], "0.1.8");
    assert_eq!(result["trafficManager"], "0.1.9");
    assert_eq!(result.get("chart"), None);
}

#[tokio::test]
async fn session_that_cannot_be_reached_may_be_the_one_that_is_meant() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let other = user.socket_of("other");
    std::os::unix::fs::symlink(&other, &other).unwrap();

    let unclear = user.run("leave --all").await;
    assert_eq!(unclear.code, 11, "{unclear:?}");
    assert!(unclear.stderr.contains("session-other.sock"), "{unclear:?}");
    assert!(unclear.stderr.contains("`--name default`"), "{unclear:?}");
    assert_eq!(session.calls(), [""; 0]);
    for arguments in ["leave --all --name default", "leave --all --context dev"] {
        assert_eq!(user.run(arguments).await.code, 0, "{arguments}");
    }

    // What can be told or done is, and the rest is a failure.
    let status = user.run("status").await;
    assert_eq!(status.code, 11, "{status:?}");
    assert!(status.stdout.contains("context dev"), "{status:?}");
    let quit = user.run("quit").await;
    assert_eq!(quit.code, 11, "{quit:?}");
    assert!(quit.stdout.contains("Disconnected"), "{quit:?}");
    assert_eq!(session.calls().last().unwrap(), "quit");
    assert_eq!(user.run("quit").await.code, 11);
}

#[tokio::test]
async fn context_chooses_among_several_sessions() {
    let user = User::new();
    let sessions = ["default", "other"].map(|connection| {
        let socket = user.socket_of(connection);
        FakeSession::start_at(&user, socket)
    });
    for command in ["quit", "status", "leave --all"] {
        let finished = user.run(&format!("{command} --context prod")).await;
        assert_eq!(finished.code, 12, "{command}: {finished:?}");
    }
    assert_eq!(user.run("leave --all --context dev").await.code, 2);
    assert_eq!(user.run("quit --context dev").await.code, 0);
    for session in sessions {
        assert_eq!(session.calls(), ["quit"]);
    }
}

#[tokio::test]
async fn quit_waits_until_the_session_is_gone() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let finished = user.run("quit").await;
    assert_eq!(finished.code, 0);
    assert_eq!(
        finished.stdout,
        "Stopped intercepting Deployment/web\nDisconnected\n"
    );
    assert_eq!(session.calls(), ["quit"]);
    assert_eq!(user.run("status").await.code, 13);
}

#[tokio::test]
async fn command_in_a_connection_of_others_leaves_it() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let mut command = user.command("connect -- sh -c");
    command.arg("echo result; exit 7");
    let finished = finish(command.spawn().unwrap()).await;
    assert_eq!(finished.code, 7);
    assert_eq!(finished.stdout, "result\n");
    assert_eq!(session.calls(), [""; 0]);
}

#[tokio::test]
async fn command_that_cannot_be_run_is_a_usage_error() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let finished = user.run("connect -- /no/such/program").await;
    assert_eq!(finished.code, 2);
    assert!(
        finished
            .stderr
            .contains("error: cannot run /no/such/program")
    );
}

#[tokio::test]
async fn interrupted_command_ends_its_own_connection() {
    let user = User::new();
    user.install_daemon(&format!(
        ": > started\nwhile [ ! -e go ]; do sleep 0.01; done\n{}",
        say(&ready())
    ));
    let mut command = user.command("connect -- sh -c");
    command.arg(format!(
        "trap 'exit 7' INT; : > '{}'; while :; do sleep 0.01; done",
        user.path("running").display()
    ));
    let kvpn = command.process_group(0).spawn().unwrap();
    wait_for(&user.path("started")).await;
    let session = FakeSession::start(&user);
    std::fs::write(user.path("go"), "").unwrap();
    wait_for(&user.path("running")).await;

    // As a terminal does on Ctrl-C.
    killpg(Pid::from_raw(kvpn.id().unwrap() as i32), Signal::SIGINT).unwrap();
    let finished = finish(kvpn).await;
    assert_eq!(finished.code, 7, "{finished:?}");
    assert_eq!(session.calls(), ["quit"]);
}

#[tokio::test]
async fn terminated_kvpn_terminates_its_command_and_quits() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let mut command = user.command("connect -- sh -c");
    command.arg(format!(
        ": > '{}'; while :; do sleep 0.01; done",
        user.path("running").display()
    ));
    let kvpn = command.spawn().unwrap();
    wait_for(&user.path("running")).await;
    send(&kvpn, Signal::SIGTERM);
    assert_eq!(finish(kvpn).await.code, 143);
    assert_eq!(session.calls(), [""; 0]);
}

#[tokio::test]
async fn flows_are_a_table_with_what_moves_now() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let finished = user.run("flows").await;
    assert_eq!(finished.code, 0, "{finished:?}");
    let lines: Vec<Vec<&str>> = finished
        .stdout
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .collect()
        })
        .collect();
    let header = [
        "NAME", "TARGET", "PROTOCOL", "SENT", "RECEIVED", "RATE", "RTT", "STATE",
    ];
    assert_eq!(lines[0], header);
    assert_eq!(
        (lines[1][0], lines[1][1], lines[1][3]),
        ("web.shop:8080", "shop/pod/web-1", "2.50 KiB")
    );
    assert_eq!((lines[1][6], lines[1][7]), ("1.2 ms", "open"));
    assert_eq!((lines[2][0], lines[2][7]), ("10.244.0.7:8080", "dialling"));

    let json = user.run("flows -o json").await;
    let result: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let flow = &result["flows"][0];
    assert_eq!(flow["target"]["name"], "web-1");
    let rate = flow["bytesSentPerSecond"].as_u64().unwrap();
    // 512 bytes in half a second or, on a busy machine, longer.
    assert!((1..=1_100).contains(&rate), "{rate}");
}

#[tokio::test]
async fn watched_flows_are_a_line_of_json_a_look_until_interrupted() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let mut kvpn = user.command("flows --watch -o json").spawn().unwrap();
    let stdout = kvpn.stdout.take().unwrap();
    let mut lines = BufReader::new(stdout).lines();
    for sent in [2048, 2560] {
        let line = timeout(DEADLINE, lines.next_line()).await.unwrap();
        let look: serde_json::Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
        assert_eq!(look["flows"][0]["bytesSent"], sent);
    }
    send(&kvpn, Signal::SIGINT);
    assert_eq!(finish(kvpn).await.code, 130);
}

#[tokio::test]
async fn watch_ends_when_nobody_reads_any_more() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    let mut kvpn = user.command("flows --watch").spawn().unwrap();
    drop(kvpn.stdout.take());
    assert_eq!(finish(kvpn).await.code, 0);
}

#[tokio::test]
async fn doctor_joins_what_kvpnd_and_the_session_find() {
    let user = User::new();
    let _session = FakeSession::start(&user);
    user.install_daemon(
        r#"echo "$@" > arguments
echo '{"name":"Root daemon","outcome":"ok","message":"version 0.1.0 runs"}'
echo '{"name":"Routes","outcome":"warning","message":"they overlap","nextStep":"leave"}'"#,
    );
    let finished = user.run("doctor --context dev -n shop").await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(
        finished.stdout,
        "ok       Root daemon: version 0.1.0 runs\n\
         warning  Routes: they overlap\n         hint: leave\n\
         ok       Connection: connected to context dev, namespace shop\n\
         ok       Tunnel: round trip 1.2 ms\n"
    );
    let arguments = std::fs::read_to_string(user.path("arguments")).unwrap();
    assert_eq!(
        arguments,
        "check --context dev --namespace shop --manager-namespace kvpn\n"
    );
}

#[tokio::test]
async fn log_tells_whom_requests_went_to() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let log = user.run("log web --watch").await;
    assert_eq!(log.code, 0, "{log:?}");
    insta::assert_snapshot!("log", log.stdout);
    insta::assert_snapshot!("log_notes", log.stderr);
    let log = user.run("log web -o json").await;
    insta::assert_snapshot!("log_json", log.stdout);
    assert_eq!(session.calls(), ["log web true", "log web false"]);
}

#[tokio::test]
async fn why_request_tells_rule_by_rule() {
    let user = User::new();
    let session = FakeSession::start(&user);
    let line = "why request web /cart --http-header x-user=alice --http-method put";
    let told = user.run(line).await;
    assert_eq!(told.code, 0, "{told:?}");
    insta::assert_snapshot!("why_request", told.stdout);
    let told = user.run("why request web -o yaml").await;
    insta::assert_snapshot!("why_request_yaml", told.stdout);
    assert_eq!(
        session.calls(),
        ["judge web put /cart x-user=alice", "judge web GET / "]
    );
}
