//! How an agent comes where it may not come at once: by a roll-out, which somebody has to
//! want, or with a pod that is to have one always. And for how long who is gone has what
//! they engaged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Lab, wait_for};
use serde_json::{Value, json};

use crate::errors::assert_fails;
use crate::kills::kill_processes;
use crate::namespace::{Namespace, WEB};
use crate::support::{Developer, SHOP, agents, get_from_node, webhooks};

const SOON: Duration = Duration::from_secs(30);

/// Keeps ephemeral containers from a namespace, until dropped.
struct Ban<'a> {
    lab: &'a Lab,
    namespace: &'static str,
}

impl<'a> Ban<'a> {
    const WORDS: &'static str = "ephemeral containers are not for this namespace";

    fn put(namespace: &Namespace<'a>) -> Result<Self> {
        let (lab, name) = (namespace.lab, namespace.name);
        let ban = Self {
            lab,
            namespace: name,
        };
        let policies = "admissionregistration.k8s.io/v1";
        let label = json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
        let rule = json!({
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"],
            "resources": ["pods/ephemeralcontainers"],
        });
        let policy = json!({
            "apiVersion": policies, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [rule], "namespaceSelector": label},
                "validations": [{"expression": "false", "message": Self::WORDS}],
            },
        });
        let binding = json!({
            "apiVersion": policies, "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]});
        lab.kubectl(["apply", "-f", "-"])
            .stdin(list.to_string())
            .ok()?;
        Self::is_in_force(namespace)?;
        Ok(ban)
    }

    /// Waits until the API server uses it.
    fn is_in_force(namespace: &Namespace<'_>) -> Result<()> {
        wait_for("ephemeral containers are refused", SOON, || {
            let mut pod = namespace.pods()?.pop().context("a pod")?;
            let name = pod["metadata"]["name"].as_str().context("its name")?;
            let pods = format!("/api/v1/namespaces/{}/pods", namespace.name);
            let uri = format!("{pods}/{name}/ephemeralcontainers?dryRun=All");
            pod["spec"]["ephemeralContainers"] = json!([{"name": "never-made", "image": "none"}]);
            let put = namespace.kubectl(&["replace", "--raw", &uri, "-f", "-"]);
            let output = put.stdin(pod.to_string()).run()?;
            Ok(output.stderr.contains(Self::WORDS).then_some(()))
        })
    }
}

impl Drop for Ban<'_> {
    fn drop(&mut self) {
        let kinds = "validatingadmissionpolicy,validatingadmissionpolicybinding";
        let delete = ["delete", kinds, self.namespace, "--ignore-not-found"];
        // The test has its result.
        drop(self.lab.kubectl(delete).ok());
    }
}

/// Lets alice change the namespace's workloads.
fn may_roll_out(namespace: &Namespace<'_>) -> Result<()> {
    let bind = ["create", "rolebinding", "editors", "--clusterrole=edit"];
    namespace.kubectl(&bind).arg("--user=alice").ok().map(drop)
}

/// When kvpn had the workload rolled out.
fn rolled_out(namespace: &Namespace<'_>) -> Result<Option<String>> {
    let get = ["get", "deployment", WEB, "-o", "json"];
    let deployment: Value = namespace.kubectl(&get).run()?.success()?.json()?;
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    let at = annotations["kvpn.dev/restartedAt"].as_str();
    Ok(at.map(str::to_owned))
}

fn names(namespace: &Namespace<'_>) -> Result<Vec<String>> {
    let pods = namespace.pods()?;
    let names = pods.iter().map(|pod| pod["metadata"]["name"].to_string());
    Ok(names.collect())
}

#[test]
fn roll_out_brings_the_agent_that_running_pods_are_refused() -> Result<()> {
    let developer = Developer::connected(1)?;
    let namespace = Namespace::create(&developer.lab, "no-ephemeral", None, 1, |_| ())?;
    let _ban = Ban::put(&namespace)?;
    let _handler = developer.handler(8080)?;
    let before = names(&namespace)?;

    // Who has not asked for it is told that it would help, and nothing happens.
    let start = Instant::now();
    let refused = namespace.intercept(&developer, &[])?;
    let words = ["Deployment/web", Ban::WORDS, "hint: ", "--rollout"];
    assert_fails(&refused, Reason::AgentRefused, &words)?;
    ensure!(start.elapsed() < Duration::from_secs(5));
    // Nor for who may not.
    let refused = namespace.intercept(&developer, &["--rollout"])?;
    let words = ["deployments.apps", "hint: ", "patch"];
    assert_fails(&refused, Reason::Forbidden, &words)?;
    assert_eq!(rolled_out(&namespace)?, None);
    assert_eq!(names(&namespace)?, before);
    assert_eq!(namespace.engagements()?, 0);

    may_roll_out(&namespace)?;
    let output = wait_for("alice may roll it out", SOON, || {
        let output = namespace.intercept(&developer, &["--rollout"])?;
        let is_allowed = !output.stderr.contains("deployments.apps");
        Ok(is_allowed.then_some(output))
    })?;
    let output = output.success()?;
    let said = "rolling Deployment/web out once";
    ensure!(output.stderr.contains(said), "{}", output.stderr);
    ensure!(rolled_out(&namespace)?.is_some());
    developer.covers(1)?;
    let pods = namespace.pods()?;
    assert_eq!(pods.iter().map(agents).collect::<Vec<_>>(), [(1, 0)]);
    // The node may take a moment to forget the pod that is gone.
    let url = namespace.node_url()?;
    wait_for("the laptop answers", SOON, || {
        let answer = get_from_node(&developer.lab, &url);
        Ok(answer.is_ok_and(|it| it.is_from_laptop()).then_some(()))
    })?;

    // The agent stays in its pod, and the next time nothing is rolled out.
    let at = rolled_out(&namespace)?;
    developer
        .kvpn(["leave", WEB, "-n", namespace.name])?
        .success()?;
    let answer = get_from_node(&developer.lab, &namespace.node_url()?)?;
    assert_eq!(answer.service, WEB);
    namespace.intercept(&developer, &["--rollout"])?.success()?;
    assert_eq!(rolled_out(&namespace)?, at);
    Ok(())
}

/// Keeps pods with an agent from a namespace, as its other policies do not.
fn ban_agents(namespace: &Namespace<'_>, name: &str) -> Result<()> {
    let patch = json!([{
        "op": "replace", "path": "/spec/matchConstraints/resourceRules/0",
        "value": {
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
            "resources": ["pods", "pods/ephemeralcontainers"],
        },
    }, {
        "op": "replace", "path": "/spec/validations/0/expression",
        "value": "(!has(request.subResource) || request.subResource == '') && (!has(object.spec.initContainers) || \
                  object.spec.initContainers.all(it, !it.name.startsWith('kvpn-agent-')))",
    }]);
    let patch = patch.to_string();
    let patch = [
        "patch",
        "validatingadmissionpolicy",
        name,
        "--type=json",
        "-p",
        &patch,
    ];
    namespace.lab.kubectl(patch).ok().map(drop)
}

#[test]
fn nothing_is_rolled_out_for_an_agent_that_new_pods_are_refused_too() -> Result<()> {
    let developer = Developer::connected(1)?;
    let namespace = Namespace::create(&developer.lab, "no-agent", None, 1, |_| ())?;
    may_roll_out(&namespace)?;
    let ban = Ban::put(&namespace)?;
    ban_agents(&namespace, ban.namespace)?;
    let born = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "never-made"},
        "spec": {
            "initContainers": [{"name": "kvpn-agent-x", "image": "none"}],
            "containers": [{"name": "app", "image": "none"}],
        },
    });
    wait_for("agents are refused", SOON, || {
        let create = ["create", "--dry-run=server", "-f", "-"];
        let output = namespace.kubectl(&create).stdin(born.to_string()).run()?;
        Ok(output.stderr.contains(Ban::WORDS).then_some(()))
    })?;
    let _handler = developer.handler(8080)?;
    let before = names(&namespace)?;
    let refused = wait_for("alice may roll it out", SOON, || {
        let output = namespace.intercept(&developer, &["--rollout"])?;
        let is_allowed = !output.stderr.contains("deployments.apps");
        Ok(is_allowed.then_some(output))
    })?;
    let words = ["pods are refused with the agent", Ban::WORDS, "hint: "];
    assert_fails(&refused, Reason::AgentRefused, &words)?;
    assert_eq!(rolled_out(&namespace)?, None);
    assert_eq!(names(&namespace)?, before);
    assert_eq!(namespace.engagements()?, 0);
    Ok(())
}

#[test]
fn annotated_pods_keep_an_agent_and_no_others_are_asked_about() -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let namespace = Namespace::create(lab, "annotated", None, 1, |_| ())?;
    wait_for("nobody engages anything", SOON, || {
        Ok((webhooks(lab)? == 0).then_some(()))
    })?;
    let pods = namespace.pods()?;
    assert_eq!(pods.iter().map(agents).collect::<Vec<_>>(), [(0, 0)]);
    let metadata = json!({"annotations": {"kvpn.dev/agent": "enabled"}});
    let patch = json!({"spec": {"template": {"metadata": metadata}}}).to_string();
    namespace
        .kubectl(&["patch", "deployment", WEB, "-p", &patch])
        .ok()?;
    let target = format!("deployment/{WEB}");
    let status = ["rollout", "status", &target, "--timeout=30s"];
    namespace.kubectl(&status).ok()?;
    namespace.has_only(1)?;
    let pods = namespace.pods()?;
    assert_eq!(pods.iter().map(agents).collect::<Vec<_>>(), [(1, 0)]);
    let url = namespace.node_url()?;
    wait_for("the app answers", SOON, || {
        let answer = get_from_node(lab, &url);
        Ok(answer.is_ok_and(|it| it.service == WEB).then_some(()))
    })?;

    let _handler = developer.handler(8080)?;
    for _ in 0..2 {
        namespace.intercept(&developer, &[])?.success()?;
        ensure!(get_from_node(lab, &namespace.node_url()?)?.is_from_laptop());
        let pods = namespace.pods()?;
        assert_eq!(pods.iter().map(agents).collect::<Vec<_>>(), [(1, 0)]);
        developer
            .kvpn(["leave", WEB, "-n", namespace.name])?
            .success()?;
    }
    Ok(())
}

#[test]
fn port_of_a_laptop_that_is_gone_is_kept_for_a_while_and_then_the_next_ones() -> Result<()> {
    let alice = Developer::connected(1)?;
    let bob = Developer::connected(2)?;
    let _handlers = [
        alice.handler_named("alices", 8080)?,
        bob.handler_named("bobs", 8080)?,
    ];
    alice.intercept("web", "8080")?;
    kill_processes(&alice, &["-u", "6001", "-f", "kvpnd session"])?;
    let gone = Instant::now();
    let refused = wait_for("alice is seen to be gone", SOON, || {
        let output = bob.kvpn(["intercept", "web", "--port", "8080"])?;
        Ok(output
            .stderr
            .contains("not been connected")
            .then_some(output))
    })?;
    ensure!(
        gone.elapsed() < Duration::from_secs(8),
        "too late to see it"
    );
    let words = ["alice", "8080", "since", "has not been connected since"];
    assert_fails(&refused, Reason::AlreadyEngaged, &words)?;
    assert_eq!(bob.get(["http://web.shop/"])?.service, "web");

    // Who comes back is not in their own way.
    alice.connect()?;
    alice.intercept("web", "8080")?;
    ensure!(
        gone.elapsed() < Duration::from_secs(10),
        "too late to show it"
    );
    assert_eq!(bob.get(["http://web.shop/"])?.service, "alices");

    kill_processes(&alice, &["-u", "6001", "-f", "kvpnd session"])?;
    wait_for("bob may have it", SOON, || {
        let output = bob.kvpn(["intercept", "web", "--port", "8080"])?;
        Ok(output.status.success().then_some(()))
    })?;
    assert_eq!(bob.get(["http://web.shop/"])?.service, "bobs");
    let left = ["-n", SHOP, "get", "engagements", "-o", "json"];
    let left: Value = alice.lab.kubectl(left).run()?.success()?.json()?;
    let left = left["items"].as_array().context("engagements")?;
    let mut users = left.iter().map(|it| &it["spec"]["user"]);
    ensure!(users.any(|it| it == "alice"), "it was the grace, not that");
    // Nobody ends it but the grace, and other tests want nothing engaged.
    let session = ["-n", "kvpn", "delete", "sessions.kvpn.dev", "--all"];
    alice.lab.kubectl(session).ok()?;
    Ok(())
}
