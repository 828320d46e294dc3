//! kvpn at work on a throwaway cluster, each step said and shown.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::laptop::{Laptop, Login};
use kvpn_tests::lab::{Options, sample};
use kvpn_tests::{Lab, wait_for};

use crate::lab::say;

const PORT: &str = "8080";

/// Runs the demonstration, and takes its lab down in any case.
pub(crate) fn run() -> Result<()> {
    Lab::reserve()?;
    let result = show();
    let down = Lab::end();
    result?;
    down?;
    say(CLOSING)
}

const CLOSING: &str = "
That was all. On a cluster of your own (README.md has each step in full):

  1. Build the two images, push them to a registry that your cluster can pull
     from, and install the traffic manager, once:
       helm install kvpn charts/kvpn --namespace kvpn --create-namespace \\
         --set image.registry=REGISTRY,image.repository=traffic-manager \\
         --set agent.image.registry=REGISTRY,agent.image.repository=sidecar-agent
  2. Let a developer use it, in the namespaces that matter:
       kubectl create rolebinding kvpn-USER --clusterrole=kvpn-user --user=USER -n kvpn
       kubectl create rolebinding kvpn-USER --clusterrole=kvpn-user --user=USER -n NAMESPACE
  3. On the laptop, start the root daemon, and work as yourself:
       sudo kvpnd --allow-user $USER
       kvpn connect
       kvpn intercept WORKLOAD --port 8080 -n NAMESPACE
       kvpn quit
";

fn show() -> Result<()> {
    step(
        "A real Kubernetes and a laptop, each in network namespaces of this machine. The first \
         time, this builds Kubernetes from source and takes some minutes.",
    )?;
    let mut lab = Lab::up(Options {
        sample: true,
        images: true,
        kvpn: false,
        services: false,
    })?;
    let laptop = lab.laptop(1)?;
    let before = laptop.host_state()?;

    step("The cluster runs a small shop; here are its services:")?;
    let services = ["-n", sample::NAMESPACE, "get", "services,pods"];
    say(&format!(
        "$ kubectl {}\n{}",
        services.join(" "),
        lab.kubectl(services).ok()?
    ))?;

    step("The laptop cannot reach them; it has no route into the cluster:")?;
    let refused = laptop
        .user()
        .run(["curl", "-sS", "--max-time", "2", "http://web.shop"])?;
    say(&format!("$ curl http://web.shop\n{}", refused.stderr))?;
    ensure!(
        !refused.status.success(),
        "the laptop reached the cluster before it connected"
    );

    step("An administrator installs kvpn's chart, and starts the root daemon on the laptop:")?;
    say("$ helm install kvpn charts/kvpn --namespace kvpn --create-namespace\n$ sudo kvpnd")?;
    lab.install_kvpn()?;

    step("The developer connects, with an ordinary kubeconfig and no privilege:")?;
    let user = laptop.user();
    shown(&user, &["kvpn", "connect"])?;
    shown(&user, &["kvpn", "status"])?;

    step("Now the services are there by name:")?;
    let answer = shown(
        &user,
        &["curl", "-sS", "--max-time", "5", "http://web.shop"],
    )?;
    answered_by("web", &answer)?;

    step("The developer works on web, and has a version of it running on port 8080:")?;
    let serve = ["kvpn-sample", "--port", PORT, "--service", "laptop"];
    say(&format!("$ {} &", serve.join(" ")))?;
    let mut handler = user.spawn(serve)?;
    handler.wait_for_line("listens", Duration::from_secs(5))?;

    step("It takes over web's connections, without a restart of any pod:")?;
    shown(
        &user,
        &[
            "kvpn",
            "intercept",
            "web",
            "--port",
            PORT,
            "-n",
            sample::NAMESPACE,
        ],
    )?;

    step("A request from another pod, through the service, arrives at the laptop:")?;
    let answer = from_client(&lab)?;
    answered_by("laptop", &answer)?;
    let line = handler.wait_for_line("GET /from-a-pod", Duration::from_secs(5))?;
    say(&format!("The laptop's handler printed: {line}"))?;

    step("Done; the pod answers again, the same one as before:")?;
    shown(&user, &["kvpn", "leave", "web", "-n", sample::NAMESPACE])?;
    let answer = from_client(&lab)?;
    answered_by("web", &answer)?;
    drop(handler);

    step("The developer disconnects, and the laptop's network is as it was:")?;
    shown(&user, &["kvpn", "quit"])?;
    unchanged(&laptop, &before)?;
    say("Addresses, routes, rules and resolver settings: the same as before.")?;

    step("Taking the lab down:")
}

fn step(text: &str) -> Result<()> {
    say(&format!("\n── {text}\n"))
}

/// Shows a command of the laptop's user and what it prints.
fn shown(user: &Login, command: &[&str]) -> Result<String> {
    say(&format!("$ {}", command.join(" ")))?;
    let output = user.run(command)?.success()?;
    say(&format!("{}{}", output.stderr, output.stdout))?;
    Ok(output.stdout)
}

fn from_client(lab: &Lab) -> Result<String> {
    let request = ["curl", "-sS", "--max-time", "5", "http://web/from-a-pod"];
    say(&format!(
        "$ kubectl -n shop exec deploy/client -- {}",
        request.join(" ")
    ))?;
    let answer = lab
        .pod_exec(sample::NAMESPACE, "deploy/client", request)?
        .success()?
        .stdout;
    say(&answer)?;
    Ok(answer)
}

fn answered_by(service: &str, answer: &str) -> Result<()> {
    let answer: serde_json::Value = serde_json::from_str(answer).context("read the answer")?;
    let who = &answer["service"];
    ensure!(who == service, "{who} answered instead of {service}");
    Ok(())
}

fn unchanged(laptop: &Laptop, before: &kvpn_tests::lab::HostState) -> Result<()> {
    wait_for(
        "the laptop's network is as before",
        Duration::from_secs(5),
        || {
            let differences = before.differences(&laptop.host_state()?);
            ensure!(differences.is_empty(), "{}", differences.join("\n"));
            Ok(Some(()))
        },
    )
    .context("kvpn left something on the laptop")
}
