//! `kill -9` of every process of kvpn: the laptop's network and the pod's app
//! are as before within five seconds.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::cgroup;
use kvpn_tests::wait_for;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Developer, Pod, SHOP, get_from_pod, pod, wait_for_answer};

const LIMIT: Duration = Duration::from_secs(5);
const WEB: &str = "http://web.shop/";

/// What was there before `connect`, and an intercept that is now active.
struct Intercepted {
    developer: Developer,
    before: kvpn_tests::lab::HostState,
    _handler: kvpn_tests::Background,
}

fn intercepted() -> Result<Intercepted> {
    let developer = Developer::at(1)?;
    let before = developer.laptop.host_state()?;
    developer.connect()?;
    let handler = developer.handler(8080)?;
    developer.intercept("web", "8080")?;
    let answers = get_from_pod(&developer.lab, &[WEB.to_owned()])?;
    ensure!(answers[0].is_from_laptop(), "{answers:?}");
    Ok(Intercepted {
        developer,
        before,
        _handler: handler,
    })
}

impl Intercepted {
    fn app_answers(&self) -> Result<()> {
        wait_for_answer(
            &self.developer.lab,
            WEB,
            "the app answers",
            LIMIT,
            |answer| answer.service == "web",
        )
    }

    fn laptop_answers(&self, deadline: Duration) -> Result<()> {
        wait_for_answer(
            &self.developer.lab,
            WEB,
            "the laptop answers",
            deadline,
            |answer| answer.is_from_laptop(),
        )
    }

    fn same_pod(&self, before: &Pod) -> Result<()> {
        let after = pod(&self.developer.lab, "web")?;
        assert_eq!((&after.uid, after.restarts), (&before.uid, 0));
        Ok(())
    }

    fn connects_again(&self) -> Result<()> {
        self.developer.connect()?;
        assert_eq!(self.developer.get([WEB])?.service, "web");
        Ok(())
    }
}

#[test]
fn killed_session_leaves_laptop_and_app_as_before() -> Result<()> {
    let world = intercepted()?;
    let web = pod(&world.developer.lab, "web")?;
    let killed = Instant::now();
    kill_processes(&world.developer, &["-u", "6001", "-f", "kvpnd session"])?;
    world.developer.is_as_before(&world.before)?;
    world.app_answers()?;
    in_time("the session", killed)?;
    world.same_pod(&web)?;
    let status = world.developer.kvpn(["status"])?;
    assert_eq!(status.code(), 13, "{}{}", status.stdout, status.stderr);
    world.connects_again()
}

#[test]
fn killed_root_daemon_leaves_laptop_and_app_as_before() -> Result<()> {
    let mut world = intercepted()?;
    let daemon = world.developer.lab.daemon(1).context("no root daemon")?;
    let web = pod(&world.developer.lab, "web")?;
    let killed = Instant::now();
    daemon.signal(Signal::SIGKILL);
    let result = world
        .developer
        .is_as_before(&world.before)
        .and_then(|()| world.app_answers())
        .and_then(|()| in_time("the root daemon", killed))
        .and_then(|()| world.same_pod(&web));
    world.developer.lab.start_daemon(1)?;
    result?;
    world.connects_again()
}

#[test]
fn killed_agent_leaves_the_app_answering() -> Result<()> {
    let world = intercepted()?;
    let web = pod(&world.developer.lab, "web")?;
    let killed = Instant::now();
    kill_processes(&world.developer, &["-x", "sidecar-agent"])?;
    world.app_answers()?;
    in_time("the agent", killed)?;
    world.same_pod(&web)?;
    // The engagement is still wanted, so a new agent comes.
    world.laptop_answers(Duration::from_secs(30))
}

#[test]
fn killed_manager_leaves_the_app_answering_and_comes_back() -> Result<()> {
    let world = intercepted()?;
    let own_name = ["getent", "ahosts", "printer.office.example"];
    let web = pod(&world.developer.lab, "web")?;
    let killed = Instant::now();
    kill_processes(&world.developer, &["-x", "traffic-manager"])?;
    wait_for("somebody answers", LIMIT, || {
        get_from_pod(&world.developer.lab, &[WEB.to_owned()]).map(Some)
    })?;
    world.developer.laptop.user().run(own_name)?.success()?;
    in_time("the manager", killed)?;
    world.same_pod(&web)?;
    // The kubelet starts it again; then the intercept is whole, without a word
    // from the user.
    world.laptop_answers(Duration::from_secs(45))?;
    wait_for(
        "the laptop reaches the cluster again",
        Duration::from_secs(30),
        || world.developer.get([WEB]).map(Some),
    )?;
    world.developer.kvpn(["quit"])?.success()?;
    world.developer.is_as_before(&world.before)?;
    world.app_answers()
}

#[test]
fn deleted_engagement_is_over_at_once() -> Result<()> {
    let world = intercepted()?;
    let lab = &world.developer.lab;
    lab.kubectl(["-n", SHOP, "delete", "engagements", "--all"])
        .run()?
        .success()?;
    world.app_answers()?;
    let status = world.developer.kvpn_json(["status"])?;
    assert_eq!(
        status["engagements"].as_array().map(Vec::len),
        Some(0),
        "{status}"
    );
    Ok(())
}

/// All that was waited for since the kill came within the limit.
fn in_time(what: &str, killed: Instant) -> Result<()> {
    let took = killed.elapsed();
    eprintln!("as before after {what} was killed: {} ms", took.as_millis());
    ensure!(took <= LIMIT, "took {} ms", took.as_millis());
    Ok(())
}

/// Kills what `pgrep` finds with these arguments among the lab's processes.
pub(crate) fn kill_processes(developer: &Developer, pgrep: &[&str]) -> Result<()> {
    let found = developer.lab.node("pgrep", pgrep).run()?.success()?;
    let found: Vec<i32> = found
        .stdout
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // `pgrep` sees the whole machine.
    let ours = cgroup::members()?;
    let pids: Vec<&i32> = found.iter().filter(|pid| ours.contains(pid)).collect();
    ensure!(!pids.is_empty(), "nothing to kill among {found:?}");
    for pid in pids {
        match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
            // It has ended meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
