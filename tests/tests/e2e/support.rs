//! What the end-to-end tests share: a developer at a laptop, people's answers,
//! and the cluster beside it.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::laptop::Laptop;
use kvpn_tests::lab::{HostState, cgroup};
use kvpn_tests::{Background, Lab, Output, wait_for};
use serde_json::Value;

/// Namespace of the sample application.
pub(crate) const SHOP: &str = "shop";

/// How long Kubernetes may take for a few pods.
const SOON: Duration = Duration::from_secs(30);

/// What a handler on the laptop calls itself.
const HANDLER: &str = "laptop";

/// A developer at a laptop. Ends the connection when dropped, so that a test
/// that fails leaves the next one a clean laptop.
pub(crate) struct Developer {
    pub(crate) lab: Lab,
    pub(crate) laptop: Laptop,
}

impl Developer {
    /// Sits down at a laptop that is not connected.
    pub(crate) fn at(number: u8) -> Result<Self> {
        let lab = Lab::attach()?;
        let laptop = lab.laptop(number)?;
        let developer = Self { lab, laptop };
        developer.kvpn(["quit"])?.success()?;
        Ok(developer)
    }

    /// Sits down and connects, with the sample application's namespace.
    pub(crate) fn connected(number: u8) -> Result<Self> {
        let developer = Self::at(number)?;
        developer.connect()?;
        Ok(developer)
    }

    pub(crate) fn connect(&self) -> Result<Duration> {
        let start = Instant::now();
        self.kvpn(["connect", "-n", SHOP])?.success()?;
        Ok(start.elapsed())
    }

    /// The laptop is as it was, or soon will be.
    pub(crate) fn is_as_before(&self, before: &HostState) -> Result<()> {
        wait_for("the laptop is as before", Duration::from_secs(5), || {
            let differences = before.differences(&self.laptop.host_state()?);
            ensure!(differences.is_empty(), "{}", differences.join("\n"));
            Ok(Some(()))
        })
    }

    /// Runs `kvpn` as the laptop's user.
    pub(crate) fn kvpn<const N: usize>(&self, args: [&str; N]) -> Result<Output> {
        self.laptop.user().run(["kvpn"].iter().chain(args.iter()))
    }

    /// Runs `kvpn … -o json`, which must succeed.
    pub(crate) fn kvpn_json<const N: usize>(&self, args: [&str; N]) -> Result<Value> {
        let args = ["kvpn"]
            .iter()
            .chain(args.iter())
            .chain(["-o", "json"].iter());
        self.laptop.user().run(args)?.success()?.json()
    }

    /// Starts a handler on a port of the laptop.
    pub(crate) fn handler(&self, port: u16) -> Result<Background> {
        self.handler_named(HANDLER, port)
    }

    /// The same under another name.
    pub(crate) fn handler_named(&self, name: &str, port: u16) -> Result<Background> {
        let port = port.to_string();
        let command = ["kvpn-sample", "--service", name, "--port", &port];
        let mut handler = self.laptop.user().spawn(command)?;
        handler.wait_for_line("listens", Duration::from_secs(5))?;
        Ok(handler)
    }

    /// Intercepts until it is active; gives the time that took, and the result.
    pub(crate) fn intercept(&self, name: &str, port: &str) -> Result<(Duration, Value)> {
        let start = Instant::now();
        let result = self.kvpn_json(["intercept", name, "--port", port])?;
        let elapsed = start.elapsed();
        ensure!(result["active"] == true, "not active: {result}");
        Ok((elapsed, result))
    }

    /// Waits until its only engagement covers all pods of the workload, so many.
    pub(crate) fn covers(&self, number: usize) -> Result<()> {
        wait_for(&format!("{number} pods are covered"), SOON, || {
            let status = self.kvpn_json(["status"])?;
            let engagement = &status["engagements"][0];
            let counts = ["podsSelected", "podsCovered"].map(|it| engagement[it].as_u64());
            ensure!(counts == [Some(number as u64); 2], "{engagement}");
            Ok(Some(()))
        })
    }

    /// Runs curl as the laptop's user.
    pub(crate) fn curl<const N: usize>(&self, args: [&str; N]) -> Result<Output> {
        let curl = ["curl", "-sS", "--max-time", "10"];
        self.laptop.user().run(curl.iter().chain(args.iter()))
    }

    /// Gets a URL from the laptop, and says who answered.
    pub(crate) fn get<const N: usize>(&self, args: [&str; N]) -> Result<Answer> {
        Answer::read(self.curl(args)?)
    }

    /// Nothing listens, or what does is not in the way: the laptop's network
    /// must not reach this address.
    pub(crate) fn cannot_reach(&self, address: &str) -> Result<()> {
        let output = self.curl([
            "-v",
            "--connect-timeout",
            "1",
            &format!("http://{address}/"),
        ])?;
        ensure!(
            !output.status.success(),
            "{address} answers: {}",
            output.stdout
        );
        ensure!(
            !output.stderr.contains("Connected to"),
            "{address}: {}",
            output.stderr
        );
        Ok(())
    }
}

impl Drop for Developer {
    fn drop(&mut self) {
        // The test has its result; the next one begins with a quit anyway.
        drop(self.kvpn(["quit"]));
    }
}

/// Who answered a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) service: String,
    pub(crate) pod: String,
    pub(crate) path: String,
}

impl Answer {
    pub(crate) fn read(output: Output) -> Result<Self> {
        Ok(Self::parse(&output.success()?.json()?))
    }

    pub(crate) fn parse(value: &Value) -> Self {
        let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Self {
            service: field("service"),
            pod: field("pod"),
            path: field("path"),
        }
    }

    pub(crate) fn is_from_laptop(&self) -> bool {
        self.service == HANDLER
    }
}

/// A pod of the sample application, as the API server has it.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) restarts: u64,
    /// IPv4, then IPv6.
    pub(crate) addresses: Vec<String>,
}

impl Pod {
    /// An address and port as a URL has them.
    pub(crate) fn urls(&self, port: u16) -> Vec<String> {
        let url = |address: &String| match address.contains(':') {
            true => format!("http://[{address}]:{port}/"),
            false => format!("http://{address}:{port}/"),
        };
        self.addresses.iter().map(url).collect()
    }
}

/// The running pods of an app of the sample application.
pub(crate) fn pods(lab: &Lab, app: &str) -> Result<Vec<Pod>> {
    pods_in(lab, SHOP, app)
}

/// The running pods of an app.
pub(crate) fn pods_in(lab: &Lab, namespace: &str, app: &str) -> Result<Vec<Pod>> {
    let pods = live_pods(lab, namespace, app)?;
    let running = pods
        .iter()
        .filter(|pod| pod["status"]["phase"] == "Running");
    Ok(running.map(read_pod).collect())
}

/// The pods of an app that nobody has deleted, whole.
pub(crate) fn live_pods(lab: &Lab, namespace: &str, app: &str) -> Result<Vec<Value>> {
    let label = format!("app={app}");
    let get = ["-n", namespace, "get", "pods", "-l", &label, "-o", "json"];
    let mut list: Value = lab.kubectl(get).run()?.success()?.json()?;
    let mut pods: Vec<Value> =
        serde_json::from_value(list["items"].take()).context("read the pods")?;
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(pods)
}

/// The agents that a pod was born with, and those that were added to it.
pub(crate) fn agents(pod: &Value) -> (usize, usize) {
    let count = |kind: &str| {
        let containers = pod["spec"][kind].as_array();
        let names = containers
            .into_iter()
            .flatten()
            .filter_map(|it| it["name"].as_str());
        names.filter(|name| name.starts_with("kvpn-agent-")).count()
    };
    (count("initContainers"), count("ephemeralContainers"))
}

/// The processes of the pods' agents; there must be one in each.
pub(crate) fn agent_processes(pods: &[Pod]) -> Result<BTreeSet<i32>> {
    let read = |pid: i32, file: &str| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    };
    let mut found = cgroup::members()?;
    found.retain(|pid| {
        let is_agent = read(*pid, "cmdline").starts_with("/sidecar-agent\0--manager\0");
        let environment = read(*pid, "environ");
        let is_in = |pod: &Pod| {
            let hostname = format!("HOSTNAME={}", pod.name);
            environment.split('\0').any(|it| it == hostname)
        };
        is_agent && pods.iter().any(is_in)
    });
    ensure!(found.len() == pods.len(), "an agent each: {found:?}");
    Ok(found)
}

/// Scales a Deployment, and waits until there are so many pods.
pub(crate) fn scale(lab: &Lab, namespace: &str, app: &str, number: usize) -> Result<()> {
    let (target, replicas) = (format!("deployment/{app}"), format!("--replicas={number}"));
    let scale = ["-n", namespace, "scale", &target, &replicas];
    lab.kubectl(scale).ok()?;
    are_ready(lab, namespace, app, number)
}

/// Waits until a Deployment has so many pods, all ready.
pub(crate) fn are_ready(lab: &Lab, namespace: &str, app: &str, number: usize) -> Result<()> {
    let target = format!("deployment/{app}");
    let ready = "jsonpath={.status.readyReplicas}";
    let get = ["-n", namespace, "get", &target, "-o", ready];
    wait_for(&format!("{number} pods are ready"), SOON, || {
        // There is nothing where none is.
        let ready: usize = lab.kubectl(get).ok()?.parse().unwrap_or(0);
        let pods = pods_in(lab, namespace, app)?.len();
        Ok((ready == number && pods == number).then_some(()))
    })
}

/// How many workloads' pods the API server asks about before they are born.
pub(crate) fn webhooks(lab: &Lab) -> Result<usize> {
    let names = "jsonpath={.webhooks[*].name}";
    let kind = "mutatingwebhookconfiguration";
    let get = ["get", kind, "kvpn-agents", "-o", names];
    Ok(lab.kubectl(get).ok()?.matches("workload-").count())
}

/// Changes a value of the chart as the lab has it installed, and waits until it is so.
pub(crate) fn upgrade_chart(lab: &Lab, set: [&str; 2]) -> Result<()> {
    lab.helm(["upgrade", "kvpn", "-n", "kvpn", "--reset-then-reuse-values"])
        .args(["--wait", "--timeout=60s"])
        .args(set)
        .arg(lab.layout().chart())
        .deadline(Duration::from_secs(90))
        .ok()
        .map(drop)
}

fn read_pod(pod: &Value) -> Pod {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
    let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
    Pod {
        name: text(&pod["metadata"]["name"]),
        uid: text(&pod["metadata"]["uid"]),
        restarts: restarts.unwrap_or(u64::MAX),
        addresses: addresses.map(|entry| text(&entry["ip"])).collect(),
    }
}

/// The one running pod of an app.
pub(crate) fn pod(lab: &Lab, app: &str) -> Result<Pod> {
    let pods = pods(lab, app)?;
    ensure!(pods.len() == 1, "{app} has {} pods", pods.len());
    pods.into_iter().next().context("no pod")
}

/// A Service's cluster addresses: IPv4, then IPv6.
pub(crate) fn cluster_ips(lab: &Lab, service: &str) -> Result<Vec<String>> {
    let service: Value = lab
        .kubectl(["-n", SHOP, "get", "service", service, "-o", "json"])
        .run()?
        .success()?
        .json()?;
    let addresses = service["spec"]["clusterIPs"]
        .as_array()
        .context("no addresses")?;
    Ok(addresses
        .iter()
        .filter_map(|ip| ip.as_str())
        .map(str::to_owned)
        .collect())
}

/// An address as a URL has it.
pub(crate) fn bracketed(address: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    }
}

/// Gets URLs from the sample's client pod, each over a connection of its own,
/// and says who answered.
pub(crate) fn get_from_pod(lab: &Lab, urls: &[String]) -> Result<Vec<Answer>> {
    let client = pod(lab, "client")?;
    // Separate processes would each cost an exec; `--next` would keep one
    // connection, and an intercept is about new ones.
    let script = r#"for url in "$@"; do curl -sS --max-time 10 "$url" || exit; done"#;
    let command = ["bash", "-c", script, "get"];
    let output = lab
        .pod_exec(
            SHOP,
            &client.name,
            command.into_iter().chain(urls.iter().map(String::as_str)),
        )?
        .success()?;
    let answers: Vec<Answer> = output
        .stdout
        .lines()
        .map(|line| {
            let value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            Ok(Answer::parse(&value))
        })
        .collect::<Result<_>>()?;
    ensure!(answers.len() == urls.len(), "{}", output.stdout);
    Ok(answers)
}

/// Gets a URL from the node, and says who answered.
pub(crate) fn get_from_node(lab: &Lab, url: &str) -> Result<Answer> {
    Answer::read(lab.node("curl", ["-sS", "--max-time", "5", url]).run()?)
}

/// Waits until a request from inside the cluster is answered as wanted.
pub(crate) fn wait_for_answer(
    lab: &Lab,
    url: &str,
    what: &str,
    deadline: Duration,
    wanted: impl Fn(&Answer) -> bool,
) -> Result<()> {
    wait_for(what, deadline, || {
        let answers = get_from_pod(lab, &[url.to_owned()])?;
        Ok(answers.iter().all(&wanted).then_some(()))
    })
}
