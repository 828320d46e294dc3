//! Commands that run with a container's environment: a handler that is run anew whenever its
//! files change, and a shell.

use std::time::Duration;

use anyhow::{Result, ensure};
use kvpn_tests::{Lab, wait_for};
use nix::sys::signal::Signal;

use crate::support::{Answer, Developer, SHOP, get_from_pod, wait_for_answer};

const URL: &str = "http://web.shop/";

/// How long RBAC, a restart or the end of an engagement may take.
const SOON: Duration = Duration::from_secs(20);

/// The agent and the reader have to start, too.
const ENGAGED: Duration = Duration::from_secs(60);

/// Alice may execute commands in the shop's pods until this is dropped.
struct MayExecute<'a> {
    lab: &'a Lab,
}

impl<'a> MayExecute<'a> {
    fn grant(lab: &'a Lab) -> Result<Self> {
        let granted = Self { lab };
        // What a test that was killed has left.
        granted.withdraw()?;
        let create = ["-n", SHOP, "create"];
        let role = ["role", "execute", "--verb=create", "--resource=pods/exec"];
        lab.kubectl(create).args(role).ok()?;
        let binding = ["rolebinding", "execute", "--role=execute", "--user=alice"];
        lab.kubectl(create).args(binding).ok()?;
        wait_for("alice may execute", SOON, || {
            let may = ["-n", SHOP, "auth", "can-i", "create", "pods"];
            let may = lab.kubectl_as("alice", may).arg("--subresource=exec");
            Ok(may.run()?.status.success().then_some(()))
        })?;
        Ok(granted)
    }

    fn withdraw(&self) -> Result<()> {
        let delete = ["-n", SHOP, "delete", "--ignore-not-found"];
        let what = ["role/execute", "rolebinding/execute"];
        self.lab.kubectl(delete).args(what).ok().map(drop)
    }
}

impl Drop for MayExecute<'_> {
    fn drop(&mut self) {
        // The test has its result.
        drop(self.withdraw());
    }
}

/// Runs a shell script as the laptop's user.
fn script(developer: &Developer, script: &str) -> Result<kvpn_tests::Output> {
    developer.laptop.user().run(["bash", "-c", script])
}

/// Writes the file that the handler has its name from, as editors do.
fn name_handler(developer: &Developer, name: &str) -> Result<()> {
    let write =
        format!("mkdir -p ~/handler/src && cd ~/handler && echo {name} > new && mv new src/name");
    script(developer, &write)?.success().map(drop)
}

#[test]
fn handler_is_run_anew_after_a_change_and_the_app_answers_without_one() -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let _granted = MayExecute::grant(lab)?;
    name_handler(&developer, "first")?;
    // One that has no name ends.
    let intercept = r#"cd ~/handler && exec kvpn intercept web --port 18090 --watch src \
        --env-exclude MANNERS_PORT -- \
        bash -c 'read name < src/name; [ "$name" != none ] || exit 3
                 exec kvpn-sample --service "$name-$KVPN_WORKLOAD" --port 18090'"#;
    let user = developer.laptop.user();
    let mut kvpn = user.spawn(["bash", "-c", intercept])?;
    kvpn.wait_for_line("listens", ENGAGED)?;
    let answers = |name: &str| {
        let name = format!("{name}-deploy/web");
        let is_its = move |answer: &Answer| answer.service == name;
        wait_for_answer(lab, URL, "the handler answers", SOON, is_its)
    };
    answers("first")?;

    name_handler(&developer, "none")?;
    kvpn.wait_for_line("ended with exit code 3; waiting for a change", SOON)?;
    for answer in get_from_pod(lab, &[URL; 5].map(str::to_owned))? {
        assert_eq!(answer.service, "web", "the app does not answer");
    }

    name_handler(&developer, "second")?;
    answers("second")?;
    ensure!(
        kvpn.printed().contains("src/name changed: restarted"),
        "{}",
        kvpn.printed()
    );

    kvpn.signal(Signal::SIGTERM);
    kvpn.wait(SOON)?;
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(status["engagements"], serde_json::json!([]));
    wait_for_answer(lab, URL, "the app answers", SOON, |answer| {
        answer.service == "web"
    })
}

#[test]
fn shell_at_a_terminal_has_the_environment_and_its_exit_code_is_returned() -> Result<()> {
    let developer = Developer::connected(1)?;
    let _granted = MayExecute::grant(&developer.lab)?;
    let shell = r#"
        printf 'echo "<$SERVICE $KVPN_WORKLOAD $KVPN_NAMESPACE $KVPN_CONTAINER>"\nexit 7\n' |
        script -qec 'kvpn shell web -- --norc --noprofile --noediting' /dev/null"#;
    let ran = script(&developer, shell)?;
    assert_eq!(ran.code(), 7, "{}{}", ran.stdout, ran.stderr);
    let told = "<web deploy/web shop web>";
    ensure!(ran.stdout.contains(told), "{}", ran.stdout);
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(status["engagements"], serde_json::json!([]));
    Ok(())
}
