//! What keeps an agent out of a pod: the reason is told within five seconds, and nothing
//! is left behind. And what seems to, and does not: an engagement is active all the same.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Lab, wait_for};
use serde_json::{Value, json};

use crate::errors::assert_fails;
use crate::namespace::Namespace;
use crate::support::{Developer, agents, get_from_node, upgrade_chart, webhooks};

const LIMIT: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(30);

/// Engages in vain, for a reason that is told in time, and nothing is left behind.
fn assert_refused(
    developer: &Developer,
    namespace: &Namespace<'_>,
    reason: Reason,
    words: &[&str],
) -> Result<()> {
    let before = containers(namespace)?;
    let start = Instant::now();
    let output = namespace.intercept(developer, &[])?;
    let took = start.elapsed();
    assert_fails(&output, reason, words)?;
    eprintln!("refused after {} ms: {}", took.as_millis(), output.stderr);
    ensure!(took <= LIMIT, "took {} ms", took.as_millis());

    assert_eq!(namespace.engagements()?, 0);
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(status["engagements"], json!([]), "{status}");
    let answer = get_from_node(&developer.lab, &namespace.node_url()?)?;
    assert_eq!(answer.service, "web");
    assert_eq!(containers(namespace)?, before);
    Ok(())
}

/// The containers that run, with the names of their pods.
fn containers(namespace: &Namespace<'_>) -> Result<Vec<String>> {
    let kinds = [
        "initContainerStatuses",
        "containerStatuses",
        "ephemeralContainerStatuses",
    ];
    let mut running = Vec::new();
    for pod in namespace.pods()? {
        let statuses = kinds
            .iter()
            .filter_map(|kind| pod["status"][kind].as_array());
        for status in statuses
            .flatten()
            .filter(|it| it["state"]["running"].is_object())
        {
            running.push(format!("{} {}", pod["metadata"]["name"], status["name"]));
        }
    }
    running.sort();
    Ok(running)
}

#[test]
fn pod_security_that_forbids_the_agent_is_told() -> Result<()> {
    let developer = Developer::connected(1)?;
    let namespace = Namespace::create(&developer.lab, "strict", None, 1, |pod| {
        pod["containers"][0]["securityContext"] = json!({
            "runAsNonRoot": true,
            "runAsUser": 65534,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        });
    })?;
    let _handler = developer.handler(8080)?;
    for level in ["baseline", "restricted"] {
        let label = format!("pod-security.kubernetes.io/enforce={level}");
        let label = ["label", "--overwrite", "namespace", namespace.name, &label];
        developer.lab.kubectl(label).ok()?;
        let violates = format!("violates PodSecurity \"{level}");
        let words = ["Deployment/web", &violates, "kvpn-agent-", "hint: "];
        assert_refused(&developer, &namespace, Reason::AgentRefused, &words)?;
    }
    // The app itself is admitted, so it was the agent that was not.
    namespace.scale(2)?;
    for pod in namespace.pods()? {
        assert_eq!(agents(&pod), (0, 0), "{}", pod["metadata"]["name"]);
    }
    Ok(())
}

/// The chart's tag of the agent's image, put back when dropped.
struct AgentTag<'a> {
    lab: &'a Lab,
    before: String,
}

impl<'a> AgentTag<'a> {
    fn put(lab: &'a Lab, tag: &str) -> Result<Self> {
        let values = lab.helm(["get", "values", "kvpn", "-n", "kvpn", "-o", "json"]);
        let values: Value = values.run()?.success()?.json()?;
        let before = values["agent"]["image"]["tag"].as_str();
        let before = before.context("no tag of the agent's image")?.to_owned();
        let put = Self { lab, before };
        put.upgrade(tag)?;
        Ok(put)
    }

    fn upgrade(&self, tag: &str) -> Result<()> {
        let tag = format!("agent.image.tag={tag}");
        upgrade_chart(self.lab, ["--set-string", &tag])
    }
}

impl Drop for AgentTag<'_> {
    fn drop(&mut self) {
        // The next tests need it.
        self.upgrade(&self.before).expect("put the tag back");
    }
}

#[test]
fn image_that_cannot_be_pulled_is_told() -> Result<()> {
    let developer = Developer::at(1)?;
    let tag = AgentTag::put(&developer.lab, "no-such-tag")?;
    developer.connect()?;
    let namespace = Namespace::create(&developer.lab, "imageless", None, 1, |_| ())?;
    let _handler = developer.handler(8080)?;
    let words = ["Deployment/web", "ailed to pull", ":no-such-tag"];
    assert_refused(&developer, &namespace, Reason::AgentNotReady, &words)?;
    // Again while the kubelet tries on, for which there is a container in the pod's spec.
    let words = ["Deployment/web", "pull", ":no-such-tag"];
    assert_refused(&developer, &namespace, Reason::AgentNotReady, &words)?;
    for pod in namespace.pods()? {
        assert_eq!(agents(&pod), (0, 1), "{}", pod["metadata"]["name"]);
    }

    // Such a pod can be engaged once there is an image.
    drop(tag);
    wait_for("it is engaged", SOON, || {
        let engaged = namespace.intercept(&developer, &[])?.success();
        engaged.map(Some)
    })?;
    developer.covers(1)?;
    ensure!(get_from_node(&developer.lab, &namespace.node_url()?)?.is_from_laptop());
    Ok(())
}

/// Engages a workload in a namespace with a limit that has room for the app's pods and for
/// no agent. A limit looks at pods that are created or resized, and not at ephemeral
/// containers, which have no resources of their own; so the pod that is there gets its
/// agent, and the one that is born while engaged is born without, once it was refused with.
fn assert_covered_within(name: &'static str, limit: Value, refusal: &str) -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let namespace = Namespace::create(lab, name, Some(limit), 1, |pod| {
        pod["containers"][0]["resources"] = json!({"requests": {"memory": "32Mi"}});
    })?;
    let _handler = developer.handler(8080)?;
    namespace.intercept(&developer, &[])?.success()?;
    births_are_expected(lab)?;
    namespace.scale(2)?;
    developer.covers(2)?;
    for pod in namespace.pods()? {
        assert_eq!(agents(&pod), (0, 1), "{}", pod["metadata"]["name"]);
    }
    let url = namespace.node_url()?;
    for _ in 0..10 {
        let answer = get_from_node(lab, &url)?;
        ensure!(answer.is_from_laptop(), "{answer:?}");
    }
    let refused = [
        "get",
        "events",
        "--field-selector=reason=FailedCreate",
        "-o=jsonpath={.items[*].message}",
    ];
    let refused = namespace.kubectl(&refused).ok()?;
    ensure!(refused.contains(refusal), "{refused:?}");
    Ok(())
}

/// Waits until the API server is to ask about the pods of the one workload.
fn births_are_expected(lab: &Lab) -> Result<()> {
    wait_for("births are expected", SOON, || {
        Ok((webhooks(lab)? == 1).then_some(()))
    })
}

#[test]
fn quota_without_room_for_an_agent_keeps_nobody_from_engaging() -> Result<()> {
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight"},
        "spec": {"hard": {"requests.memory": "64Mi"}},
    });
    assert_covered_within("quota", quota, "exceeded quota: tight")
}

#[test]
fn limit_range_that_an_agent_is_too_small_for_keeps_nobody_from_engaging() -> Result<()> {
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "large"},
        "spec": {"limits": [{"type": "Container", "min": {"memory": "32Mi"}}]},
    });
    let refusal = "minimum memory usage per Container is 32Mi";
    assert_covered_within("limit-range", range, refusal)
}

/// Has the API server ask where nobody listens. The traffic manager writes it all anew when
/// somebody engages another workload, or leaves.
fn mislead_webhook(lab: &Lab) -> Result<()> {
    let nowhere = json!({"url": "https://127.0.0.1:9/"});
    let path = "/webhooks/0/clientConfig";
    let patch = json!([{"op": "replace", "path": path, "value": nowhere}]).to_string();
    let webhook = ["mutatingwebhookconfiguration", "kvpn-agents"];
    let kubectl = lab.kubectl(["patch", "--type=json", "-p", &patch]);
    kubectl.args(webhook).ok().map(drop)
}

#[test]
fn pods_are_born_and_covered_while_the_webhook_leads_nowhere() -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let namespace = Namespace::create(lab, "deaf", None, 1, |_| ())?;
    let _handler = developer.handler(8080)?;
    namespace.intercept(&developer, &[])?.success()?;
    births_are_expected(lab)?;
    let agents_of_all = || -> Result<Vec<(usize, usize)>> {
        let mut all: Vec<_> = namespace.pods()?.iter().map(agents).collect();
        all.sort_unstable();
        Ok(all)
    };
    namespace.scale(2)?;
    assert_eq!(agents_of_all()?, [(0, 1), (1, 0)], "it leads somewhere");

    mislead_webhook(lab)?;
    namespace.scale(3)?;
    developer.covers(3)?;
    assert_eq!(agents_of_all()?, [(0, 1), (0, 1), (1, 0)]);
    let url = namespace.node_url()?;
    for _ in 0..20 {
        let answer = get_from_node(lab, &url)?;
        ensure!(answer.is_from_laptop(), "{answer:?}");
    }
    let leave = ["leave", "web", "-n", namespace.name];
    developer.kvpn(leave)?.success()?;
    wait_for("the webhook is gone", SOON, || {
        Ok((webhooks(lab)? == 0).then_some(()))
    })
}
