//! `kvpn replace`: the app stands still while the laptop stands in for it, and goes on
//! whatever becomes of the laptop.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::cgroup;
use kvpn_tests::{Lab, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Developer, Pod, SHOP, get_from_pod, pod, wait_for_answer};

const SOON: Duration = Duration::from_secs(30);

/// How long after a kill the app may take to go on.
const LIMIT: Duration = Duration::from_secs(5);

const CLOCK: &str = "http://clock.shop/";

/// How often the app does something unasked.
const JOBS_MS: u64 = 5;

/// How many jobs show that it goes on: some of its threads wake up as they are let go.
const JOBS: u64 = 50;

/// An app that the kubelet restarts when it does not answer for two seconds; gone when
/// dropped.
struct Clock<'a>(&'a Lab);

impl<'a> Clock<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1,
                           "failureThreshold": 2});
        let container = json!({
            "name": "clock", "image": "localhost/kvpn-sample:lab", "imagePullPolicy": "Never",
            "env": [{"name": "SERVICE", "value": "clock"},
                    {"name": "JOBS_MS", "value": JOBS_MS.to_string()}],
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": probe, "readinessProbe": probe,
        });
        let probed = json!({"exec": {"command": ["true"]}});
        let beside = json!({
            "name": "beside", "image": "localhost/kvpn-sample:lab", "imagePullPolicy": "Never",
            "args": ["--port", "9090"], "livenessProbe": probed,
        });
        let labels = json!({"app": "clock"});
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Service",
             "metadata": {"name": "clock", "namespace": SHOP},
             "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": "http"}]}},
            {"apiVersion": "apps/v1", "kind": "Deployment",
             "metadata": {"name": "clock", "namespace": SHOP},
             "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1,
                         "containers": [container, beside]}}}},
        ]});
        let apply = lab.kubectl(["apply", "-f", "-"]);
        apply.stdin(objects.to_string()).ok()?;
        let clock = Self(lab);
        let rollout = ["rollout", "status", "deployment/clock", "--timeout=60s"];
        lab.kubectl(["-n", SHOP].into_iter().chain(rollout)).ok()?;
        Ok(clock)
    }

    fn pod(&self) -> Result<Pod> {
        pod(self.0, "clock")
    }

    /// Whether all threads of the app are stopped by who traces them.
    fn stands_still(&self) -> Result<bool> {
        let app = self.process()?;
        let threads = of_threads(app, "stat")?;
        let is_stopped = |stat: &String| {
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
            state.is_some_and(|state| state.starts_with('t'))
        };
        Ok(!threads.is_empty() && threads.iter().all(is_stopped))
    }

    fn goes_on(&self) -> Result<()> {
        wait_for("the app goes on", LIMIT, || {
            Ok((!self.stands_still()?).then_some(()))
        })?;
        let by_app = |answer: &crate::support::Answer| answer.service == "clock";
        wait_for_answer(self.0, CLOCK, "the app answers", LIMIT, by_app)
    }

    /// How often the app's threads have gone to sleep, which each job ends with.
    fn jobs(&self) -> Result<u64> {
        let app = self.process()?;
        let mut jobs = 0;
        for status in of_threads(app, "status")? {
            let mut lines = status.lines();
            let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            jobs += count.context("no count")?.trim().parse::<u64>()?;
        }
        Ok(jobs)
    }

    /// Waits until it has done more than its threads do as they are let go.
    fn works_on_from(&self, jobs: u64) -> Result<()> {
        wait_for("the app goes on", LIMIT, || {
            Ok((self.jobs()? > jobs + JOBS).then_some(()))
        })
    }

    /// The app's process on the node.
    fn process(&self) -> Result<i32> {
        let name = self.pod()?.name;
        let mut members = cgroup::members()?.into_iter();
        let own = members.find(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let variables = environ.split(|octet| *octet == 0);
            let has = |wanted: &str| variables.clone().any(|it| it == wanted.as_bytes());
            has(&format!("HOSTNAME={name}")) && has("SERVICE=clock")
        });
        own.context("the app has no process")
    }

    /// Kills the holder or the agent of the pod.
    fn kill(&self, arguments: &str) -> Result<()> {
        let members = cgroup::members()?.into_iter();
        let found: Vec<i32> = members
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains("sidecar-agent") && line.contains(arguments)
            })
            .collect();
        ensure!(!found.is_empty(), "nothing to kill");
        for pid in found {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// How many containers that can stop others its pod has.
    fn holders(&self) -> Result<usize> {
        let name = self.pod()?.name;
        let get = ["-n", SHOP, "get", "pod", &name, "-o", "json"];
        let pod: Value = self.0.kubectl(get).run()?.success()?.json()?;
        let containers = pod["spec"]["ephemeralContainers"].as_array();
        let names = containers
            .into_iter()
            .flatten()
            .filter_map(|it| it["name"].as_str());
        Ok(names.filter(|it| it.starts_with("kvpn-holder-")).count())
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        let delete = [
            "delete",
            "deployment/clock",
            "service/clock",
            "--wait=false",
        ];
        // The test has its result.
        drop(self.0.kubectl(["-n", SHOP].into_iter().chain(delete)).ok());
    }
}

/// What a file in `/proc` says of each thread of a process, but for those that end meanwhile.
fn of_threads(process: i32, file: &str) -> Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))?;
    let told = tasks.map(|task| Ok(fs::read_to_string(task?.path().join(file)).ok()));
    told.filter_map(Result::transpose).collect()
}

fn is_whole(developer: &Developer, clock: &Clock<'_>) -> Result<()> {
    wait_for("the replace is whole", SOON, || {
        let status = developer.kvpn_json(["status"])?;
        let is_active = status["engagements"][0]["active"] == true;
        Ok((is_active && clock.stands_still()?).then_some(()))
    })
}

#[test]
fn replaced_app_stands_still_and_goes_on_where_it_was() -> Result<()> {
    let developer = Developer::connected(1)?;
    let clock = Clock::new(&developer.lab)?;
    let before = clock.pod()?;
    let handler = developer.handler(8080)?;
    let told = developer
        .kvpn(["replace", "clock", "--port", "8080"])?
        .success()?;
    ensure!(
        told.stdout.starts_with("Replacing Deployment/clock"),
        "{}",
        told.stdout
    );
    ensure!(clock.stands_still()?, "the app still runs");
    ensure!(developer.get([CLOCK])?.is_from_laptop());
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(status["engagements"][0]["container"], "clock", "{status}");

    let jobs = clock.jobs()?;
    // Nobody stands in for the laptop.
    drop(handler);
    let code = ["-o", "/dev/null", "-w", "%{http_code}", CLOCK];
    assert_eq!(developer.curl(code)?.success()?.stdout, "503");
    let _handler = developer.handler(8080)?;

    // Twice as long as the kubelet would wait for its probes, and more.
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        ensure!(developer.get([CLOCK])?.is_from_laptop());
    }
    assert_eq!(clock.jobs()?, jobs, "the app has done something");
    let during = clock.pod()?;
    assert_eq!((&during.uid, during.restarts), (&before.uid, 0));
    developer.kvpn(["leave", "clock"])?.success()?;
    clock.goes_on()?;
    let after = clock.pod()?;
    assert_eq!((&after.uid, after.restarts), (&before.uid, 0));

    // Who can stop it is there already.
    developer
        .kvpn(["replace", "clock", "--port", "8080"])?
        .success()?;
    ensure!(clock.stands_still()?, "the app runs");
    assert_eq!(clock.holders()?, 1);
    developer.kvpn(["quit"])?.success()?;
    clock.goes_on()
}

#[test]
fn replaced_app_goes_on_whoever_is_killed() -> Result<()> {
    let developer = Developer::connected(1)?;
    let clock = Clock::new(&developer.lab)?;
    let before = clock.pod()?;
    let _handler = developer.handler(8080)?;
    developer
        .kvpn(["replace", "clock", "--port", "8080"])?
        .success()?;
    ensure!(clock.stands_still()?, "the app still runs");

    let jobs = clock.jobs()?;
    clock.kill("hold --container clock")?;
    clock.works_on_from(jobs)?;
    // Until there is another one.
    is_whole(&developer, &clock)?;
    let jobs = clock.jobs()?;
    clock.kill("--manager")?;
    clock.works_on_from(jobs)?;
    is_whole(&developer, &clock)?;
    developer
        .laptop
        .root()
        .run(["pkill", "-9", "-f", "kvpnd session"])?
        .success()?;
    clock.goes_on()?;
    let after = get_from_pod(&developer.lab, &[CLOCK.to_owned()])?;
    assert_eq!(after[0].service, "clock");
    assert_eq!((clock.pod()?.uid, clock.pod()?.restarts), (before.uid, 0));
    Ok(())
}

#[test]
fn container_that_the_kubelet_would_restart_is_not_stopped() -> Result<()> {
    let developer = Developer::connected(1)?;
    let clock = Clock::new(&developer.lab)?;
    let replace = [
        "replace",
        "clock",
        "--port",
        "8080",
        "--container",
        "beside",
    ];
    let told = developer.kvpn(replace)?;
    ensure!(!told.status.success(), "{}", told.stdout);
    ensure!(
        told.stderr.contains("by a command or gRPC"),
        "{}",
        told.stderr
    );
    let replace = ["replace", "clock", "--port", "8080", "--container", "none"];
    let told = developer.kvpn(replace)?;
    ensure!(
        told.stderr.contains("--container: clock, beside"),
        "{}",
        told.stderr
    );
    ensure!(!clock.stands_still()?, "the app is stopped");
    assert_eq!(clock.holders()?, 0);
    Ok(())
}
