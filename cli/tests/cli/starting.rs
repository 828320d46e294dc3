//! How `kvpn connect` takes what a starting session does.

use kvpn_proto::connect::ConnectEvent;
use kvpn_proto::{Failure, Reason};
use nix::sys::signal::Signal;

use crate::kvpn::{User, finish, send, wait_for};

/// A line of shell that says this on standard output.
pub(crate) fn say(event: &ConnectEvent) -> String {
    format!("echo '{}'", serde_json::to_string(event).unwrap())
}

pub(crate) fn ready() -> ConnectEvent {
    ConnectEvent::Ready {
        context: "dev".into(),
        namespace: "shop".into(),
        server: "https://10.1.0.1:6443".into(),
    }
}

fn progress() -> ConnectEvent {
    ConnectEvent::Progress {
        message: "opening the tunnel".into(),
    }
}

#[tokio::test]
async fn session_that_gets_ready_is_left_running() {
    let user = User::new();
    user.install_daemon(&format!(
        "{}\n{}\nexec >/dev/null\ntrap ': > ended' TERM\n\
         while [ ! -e stop ]; do sleep 0.01; done\n: > stopped",
        say(&progress()),
        say(&ready()),
    ));
    let finished = user.run("connect").await;
    assert_eq!(finished.code, 0);
    assert_eq!(
        finished.stdout,
        "Connected to context dev, namespace shop (https://10.1.0.1:6443)\n"
    );
    assert_eq!(finished.stderr, "");

    std::fs::write(user.path("stop"), "").unwrap();
    wait_for(&user.path("stopped")).await;
    assert!(!user.path("ended").exists());
}

#[tokio::test]
async fn session_gets_the_flags() {
    let user = User::new();
    user.install_daemon(&format!("echo \"$@\" > arguments\n{}", say(&ready())));
    let finished = user
        .run("connect --kubeconfig k --context dev -n shop --manager-namespace infra -o json")
        .await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(
        std::fs::read_to_string(user.path("arguments")).unwrap(),
        "session --kubeconfig k --context dev --namespace shop --manager-namespace infra\n"
    );
    let result: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(result["connected"], true);
    assert_eq!(result["alreadyConnected"], false);
}

#[tokio::test]
async fn session_gets_all_subnets_of_a_repeated_flag() {
    let user = User::new();
    user.install_daemon(&format!("echo \"$@\" > arguments\n{}", say(&ready())));
    let finished = user
        .run("connect --never-proxy 10.0.0.0/8,192.0.2.1 --also-proxy 10.1.0.0/16 --never-proxy fd00::/8")
        .await;
    assert_eq!(finished.code, 0, "{finished:?}");
    assert_eq!(
        std::fs::read_to_string(user.path("arguments")).unwrap(),
        "session --manager-namespace kvpn --also-proxy 10.1.0.0/16 \
         --never-proxy 10.0.0.0/8,192.0.2.1,fd00::/8\n"
    );
}

#[tokio::test]
async fn failure_of_the_session_is_the_commands_own() {
    let user = User::new();
    let failure = Failure::new(
        Reason::ChartNotInstalled,
        "kvpn is not installed in context dev",
        "install it with helm",
    );
    let script = format!(
        "{}\n{}",
        say(&progress()),
        say(&ConnectEvent::Failed(failure))
    );
    user.install_daemon(&script);
    let finished = user.run("connect").await;
    assert_eq!(finished.code, 25);
    assert_eq!(finished.stdout, "");
    assert_eq!(
        finished.stderr,
        "error: kvpn is not installed in context dev\nhint: install it with helm\n"
    );
}

#[tokio::test]
async fn session_that_dies_at_once_points_at_its_log() {
    let user = User::new();
    user.install_daemon("echo 'something broke' >&2; exit 3");
    let finished = user.run("connect").await;
    let log = user.session_socket().with_file_name("session.log");
    assert_eq!(finished.code, 1);
    assert_eq!(
        finished.stderr,
        format!(
            "error: the session ended before it was connected (exit status: 3)\nhint: see {}\n",
            log.display()
        )
    );
    assert_eq!(std::fs::read_to_string(log).unwrap(), "something broke\n");
}

#[tokio::test]
async fn unintelligible_session_is_told_and_ended() {
    let user = User::new();
    user.install_daemon("trap ': > ended; exit' TERM\necho hello\nwhile :; do sleep 0.01; done");
    let finished = user.run("connect").await;
    assert_eq!(finished.code, 1);
    assert!(
        finished.stderr.contains("does not understand: hello"),
        "{finished:?}"
    );
    assert!(user.path("ended").exists());
}

#[tokio::test]
async fn interrupt_is_heeded_while_a_session_does_not_answer() {
    let user = User::new();
    let socket = user.session_socket();
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let kvpn = user.command("connect").spawn().unwrap();
    let _silent = listener.accept().await.unwrap();
    send(&kvpn, Signal::SIGINT);
    assert_eq!(finish(kvpn).await.code, 130);
}

#[tokio::test]
async fn interrupt_ends_the_starting_session() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let user = User::new();
        user.install_daemon(&format!(
            "trap ': > ended; exit' TERM\n{}\n: > started\nwhile :; do sleep 0.01; done",
            say(&progress())
        ));
        let kvpn = user.command("connect").spawn().unwrap();
        wait_for(&user.path("started")).await;
        send(&kvpn, signal);
        let finished = finish(kvpn).await;
        assert_eq!(finished.code, code);
        assert_eq!(finished.stdout, "");
        assert!(user.path("ended").exists());
    }
}
