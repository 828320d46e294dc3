//! What `kvpn` asks a session, and what it makes of the answers.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::fake_session::FakeSession;
use crate::kvpn::{User, finish, send, wait_for};
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
