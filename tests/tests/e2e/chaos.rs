//! What may happen to pods, to the traffic manager, to an agent and to a laptop, each under
//! load: the app loses no request, and the engagement is whole again, or over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::{Background, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::kills::kill_processes;
use crate::namespace::{Namespace, WEB};
use crate::support::{Developer, Pod, agent_processes, agents, get_from_node, pods_in};

const SOON: Duration = Duration::from_secs(30);

/// How long after a kill the app may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// How many requests there are of each kind at least; else a test would show little.
const AT_LEAST: usize = 50;

/// How many in a row settle who answers.
const IN_A_ROW: usize = 20;

/// Asks for a URL as a user, again and again, over a connection each; prints a line for
/// each request. Between them the cluster gets its turn on a machine of two processors.
const ASK: &str = r#"
while :; do
  answer=$(curl -sf --max-time 5 -H "x-user: $1" "$0") || answer="failed: $?"
  echo "$answer"
  sleep 0.02
done"#;

/// Who answered a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Laptop,
    App,
    Nobody,
}

impl Who {
    fn read(line: &str) -> Self {
        let answer: Value = serde_json::from_str(line).unwrap_or_default();
        match answer["service"].as_str() {
            Some("laptop") => Self::Laptop,
            Some(WEB) => Self::App,
            Some(_) | None => Self::Nobody,
        }
    }
}

/// Requests that are for the laptop, and others, at the same time.
struct Load {
    alices: Background,
    bobs: Background,
}

impl Load {
    fn from_laptop(engaged: &Engaged<'_>) -> Result<Self> {
        let url = engaged.namespace.laptop_url();
        wait_for("the Service answers", SOON, || {
            engaged.developer.get([url.as_str()]).map(Some)
        })?;
        let user = engaged.developer.laptop.user();
        let ask = |name: &'static str| user.spawn(["bash", "-c", ASK, &url, name]);
        Self::begin(ask)
    }

    /// From where there is no need of kvpn.
    fn from_node(engaged: &Engaged<'_>) -> Result<Self> {
        let (lab, url) = (&engaged.developer.lab, engaged.namespace.node_url()?);
        wait_for("the Service answers", SOON, || {
            get_from_node(lab, &url).map(Some)
        })?;
        let ask = |name: &'static str| lab.node("bash", ["-c", ASK, &url, name]).spawn();
        Self::begin(ask)
    }

    fn begin(ask: impl Fn(&'static str) -> Result<Background>) -> Result<Self> {
        let load = Self {
            alices: ask("alice")?,
            bobs: ask("bob")?,
        };
        load.settles(Who::Laptop, Who::App, SOON)?;
        Ok(load)
    }

    /// Who has answered alice's requests so far, and who bob's.
    fn so_far(&self) -> (Vec<Who>, Vec<Who>) {
        let read = |asking: &Background| asking.printed().lines().map(Who::read).collect();
        (read(&self.alices), read(&self.bobs))
    }

    /// Waits until from now on several in a row were answered by these.
    fn settles(&self, alices: Who, bobs: Who, deadline: Duration) -> Result<()> {
        let before = self.so_far();
        let row = |all: &[Who], before: &[Who], who: Who| {
            let row = all[before.len()..].last_chunk::<IN_A_ROW>();
            row.is_some_and(|row| row.iter().all(|it| *it == who))
        };
        let what = format!("alice is answered by {alices:?} and bob by {bobs:?}");
        wait_for(&what, deadline, || {
            let now = self.so_far();
            let are_settled = row(&now.0, &before.0, alices) && row(&now.1, &before.1, bobs);
            Ok(are_settled.then_some(()))
        })
    }
}

fn count(all: &[Who], who: Who) -> usize {
    all.iter().filter(|it| **it == who).count()
}

/// All requests were answered by whom they were for.
fn assert_nothing_lost((alices, bobs): &(Vec<Who>, Vec<Who>)) {
    for (all, who) in [(alices, Who::Laptop), (bobs, Who::App)] {
        assert!(all.len() >= AT_LEAST, "{} requests", all.len());
        let others = [Who::Laptop, Who::App, Who::Nobody].map(|it| (it, count(all, it)));
        assert_eq!(count(all, who), all.len(), "all for {who:?}: {others:?}");
    }
}

/// The app answered whom the laptop did not, but for a request of each that may have been
/// under way through what was killed; there is never more than one.
fn assert_app_stood_in((alices, bobs): &(Vec<Who>, Vec<Who>)) {
    for all in [alices, bobs] {
        let lost = count(all, Who::Nobody);
        assert!(all.len() >= AT_LEAST, "{} requests", all.len());
        assert!(lost <= 1, "{lost} of {} requests are lost", all.len());
    }
    assert!(count(alices, Who::App) > 0, "the app was never needed");
    assert_eq!(count(bobs, Who::Laptop), 0, "the laptop answered for bob");
}

/// Three pods that are sent requests until they end, whose requests from alice a laptop
/// answers.
struct Engaged<'a> {
    developer: &'a Developer,
    namespace: Namespace<'a>,
    handler: Background,
}

impl<'a> Engaged<'a> {
    fn new(developer: &'a Developer, name: &'static str) -> Result<Self> {
        let namespace = Namespace::create(&developer.lab, name, None, 3, |pod| {
            pod["terminationGracePeriodSeconds"] = 10.into();
            let container = &mut pod["containers"][0];
            // Until everybody knows that the pod ends.
            container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 3}}});
            let health = json!({"path": "/healthz", "port": 8080});
            container["readinessProbe"] = json!({"httpGet": health, "periodSeconds": 1});
        })?;
        let handler = developer.handler(8080)?;
        let header = ["--http-header", "x-user=alice"];
        namespace.intercept(developer, &header)?.success()?;
        developer.covers(3)?;
        Ok(Self {
            developer,
            namespace,
            handler,
        })
    }

    /// Waits until so many pods are there and covered, those before them are gone, and
    /// everybody is answered by whom they are to be.
    fn is_whole(&self, load: &Load, pods: usize) -> Result<()> {
        self.namespace.are_ready(pods)?;
        // Those that end answer for some time.
        self.namespace.has_only(pods)?;
        self.developer.covers(pods)?;
        load.settles(Who::Laptop, Who::App, SOON)
    }
}

#[test]
fn deleted_pods_lose_no_request() -> Result<()> {
    let developer = Developer::connected(1)?;
    let engaged = Engaged::new(&developer, "chaos-deleted")?;
    let load = Load::from_laptop(&engaged)?;
    let pods = pods_in(&developer.lab, engaged.namespace.name, WEB)?;
    let delete = ["delete", "pod", &pods[0].name, &pods[1].name];
    // It waits until they are gone.
    engaged.namespace.kubectl(&delete).ok()?;
    engaged.is_whole(&load, 3)?;
    assert_nothing_lost(&load.so_far());
    Ok(())
}

#[test]
fn rollout_loses_no_request() -> Result<()> {
    let developer = Developer::connected(1)?;
    let engaged = Engaged::new(&developer, "chaos-rollout")?;
    let load = Load::from_laptop(&engaged)?;
    for verb in ["restart", "status"] {
        let rollout = ["rollout", verb, "deployment/web"];
        engaged.namespace.kubectl(&rollout).ok()?;
    }
    engaged.is_whole(&load, 3)?;
    assert_nothing_lost(&load.so_far());
    Ok(())
}

#[test]
fn scaled_workload_loses_no_request_while_it_has_pods() -> Result<()> {
    let developer = Developer::connected(1)?;
    let engaged = Engaged::new(&developer, "chaos-scaled")?;
    let load = Load::from_laptop(&engaged)?;
    for number in [4, 2] {
        engaged.namespace.scale(number)?;
        engaged.is_whole(&load, number)?;
    }
    assert_nothing_lost(&load.so_far());

    engaged.namespace.scale(0)?;
    // Each may take as long as a client waits.
    wait_for("nobody answers", SOON, || {
        let (alices, bobs) = load.so_far();
        let mut latest = [alices.last(), bobs.last()].into_iter();
        Ok(latest.all(|it| it == Some(&Who::Nobody)).then_some(()))
    })?;
    let (with_pods, _) = load.so_far();
    engaged.namespace.scale(3)?;
    engaged.is_whole(&load, 3)?;
    let (alices, bobs) = load.so_far();
    assert_eq!(count(&alices, Who::App), 0, "the app answered for alice");
    assert_eq!(count(&bobs, Who::Laptop), 0, "the laptop answered for bob");
    // Whoever is answered once is answered from then on.
    let without = &alices[with_pods.len()..];
    let answered = without.iter().skip_while(|it| **it == Who::Nobody);
    let answered: Vec<Who> = answered.copied().collect();
    ensure!(answered.len() >= IN_A_ROW, "{} answers", answered.len());
    assert_eq!(count(&answered, Who::Nobody), 0);
    Ok(())
}

#[test]
fn restarted_manager_leaves_requests_to_the_app_and_comes_back() -> Result<()> {
    let developer = Developer::connected(1)?;
    let engaged = Engaged::new(&developer, "chaos-manager")?;
    let load = Load::from_node(&engaged)?;
    for verb in ["restart", "status"] {
        let rollout = ["-n", "kvpn", "rollout", verb, "deployment/traffic-manager"];
        developer.lab.kubectl(rollout).ok()?;
    }
    // Without a word from the user.
    load.settles(Who::Laptop, Who::App, SOON * 2)?;
    engaged.is_whole(&load, 3)?;
    let told = load.so_far();
    assert_app_stood_in(&told);
    assert_eq!(count(&told.1, Who::Nobody), 0, "bob's are the app's alone");
    Ok(())
}

#[test]
fn killed_agent_leaves_requests_to_the_app_until_there_is_another() -> Result<()> {
    agents_are_killed("chaos-agent", 1)
}

#[test]
fn agents_killed_at_once_leave_requests_to_the_app_until_there_are_others() -> Result<()> {
    agents_are_killed("chaos-agents", 3)
}

fn agents_are_killed(namespace: &'static str, number: usize) -> Result<()> {
    let developer = Developer::connected(1)?;
    let engaged = Engaged::new(&developer, namespace)?;
    let load = Load::from_node(&engaged)?;
    let pods = pods_in(&developer.lab, engaged.namespace.name, WEB)?;
    kill_agents(&pods[..number])?;
    wait_for("the app answers alice", LIMIT, || {
        let (alices, _) = load.so_far();
        Ok(alices.contains(&Who::App).then_some(()))
    })?;
    wait_for("the pods have other agents", SOON, || {
        let pods = engaged.namespace.pods()?;
        let renewed = pods.iter().filter(|pod| agents(pod).1 == 2).count();
        Ok((renewed == number).then_some(()))
    })?;
    engaged.is_whole(&load, 3)?;
    assert_app_stood_in(&load.so_far());
    let after = pods_in(&developer.lab, engaged.namespace.name, WEB)?;
    let identities = |pods: &[Pod]| -> Vec<(String, u64)> {
        let mut all: Vec<_> = pods
            .iter()
            .map(|it| (it.uid.clone(), it.restarts))
            .collect();
        all.sort();
        all
    };
    assert_eq!(identities(&after), identities(&pods));
    Ok(())
}

/// Kills the agents of pods, one right after the other.
fn kill_agents(pods: &[Pod]) -> Result<()> {
    for agent in agent_processes(pods)? {
        kill(Pid::from_raw(agent), Signal::SIGKILL).context("kill an agent")?;
    }
    Ok(())
}

#[test]
fn killed_laptop_leaves_requests_to_the_app() -> Result<()> {
    let developer = Developer::connected(1)?;
    let engaged = Engaged::new(&developer, "chaos-laptop")?;
    let load = Load::from_node(&engaged)?;
    kill_processes(&developer, &["-u", "6001", "-f", "kvpnd session"])?;
    drop(engaged.handler);
    load.settles(Who::App, Who::App, LIMIT)?;
    let (answered, _) = load.so_far();
    load.settles(Who::App, Who::App, SOON)?;
    let told = load.so_far();
    assert_app_stood_in(&told);
    let since = &told.0[answered.len()..];
    assert_eq!(count(since, Who::App), since.len(), "all are the app's");
    assert_eq!(count(&told.1, Who::Nobody), 0, "bob's are the app's alone");
    Ok(())
}
