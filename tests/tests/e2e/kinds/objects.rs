//! The namespace of the kinds, and all that is in it.

use std::time::Duration;

use anyhow::Result;
use kvpn_tests::{Lab, wait_for};
use serde_json::{Value, json};

use super::{NAMESPACE, PORT};

/// The kind that Argo would bring.
const ROLLOUTS: &str = "rollouts.argoproj.io";

pub(super) fn kubectl(lab: &Lab, args: &[&str]) -> Result<String> {
    lab.kubectl(["-n", NAMESPACE]).args(args).ok()
}

fn create(lab: &Lab, objects: &Value) -> Result<()> {
    let create = lab.kubectl(["-n", NAMESPACE, "create", "-f", "-"]);
    create.stdin(objects.to_string()).ok().map(drop)
}

/// The namespace, and the kind that Argo would bring; deleted when dropped.
pub(super) struct Namespace<'a> {
    lab: &'a Lab,
}

impl<'a> Namespace<'a> {
    pub(super) fn create(lab: &'a Lab) -> Result<Self> {
        let namespace = Self { lab };
        // What a test that failed has left may be on its way out.
        namespace.delete("--wait=true")?;
        lab.kubectl(["create", "namespace", NAMESPACE]).ok()?;
        let bind = ["create", "rolebinding", "kvpn-users"];
        let bind = lab.kubectl(["-n", NAMESPACE]).args(bind);
        bind.args(["--clusterrole=kvpn-user", "--user=alice"])
            .ok()?;
        create(lab, &definition())?;
        create(
            lab,
            &json!({"apiVersion": "v1", "kind": "List", "items": objects()}),
        )?;
        let canary = pod("canary", &named(), "::");
        let selector = json!({"matchLabels": {"app": "canary"}});
        create_rollout(
            lab,
            "canary",
            &json!({"selector": selector, "template": canary}),
            canary.clone(),
        )?;
        let reference = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "stable"});
        let stable = pod("stable", &declared(), "::");
        create_rollout(lab, "stable", &json!({"workloadRef": reference}), stable)?;
        Ok(namespace)
    }

    fn delete(&self, wait: &str) -> Result<()> {
        for object in [["crd", ROLLOUTS], ["namespace", NAMESPACE]] {
            let delete = self.lab.kubectl(["delete", "--ignore-not-found", wait]);
            delete.args(object).ok()?;
        }
        Ok(())
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // The test has its result.
        drop(self.delete("--wait=false"));
    }
}

/// Of Argo's kind, as much as the API server needs.
fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": ROLLOUTS},
        "spec": {
            "group": "argoproj.io",
            "scope": "Namespaced",
            "names": {
                "kind": "Rollout",
                "plural": "rollouts",
                "singular": "rollout",
                "shortNames": ["ro"],
            },
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    })
}

/// Creates a Rollout, and what Argo would create for it.
fn create_rollout(lab: &Lab, name: &str, spec: &Value, mut pod: Value) -> Result<()> {
    let rollout = json!({
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": name},
        "spec": spec,
    });
    // The API server takes a moment to serve a kind that is new.
    let uid = wait_for("Rollouts can be created", Duration::from_secs(20), || {
        let create = ["create", "-f", "-", "-o=jsonpath={.metadata.uid}"];
        let create = lab.kubectl(["-n", NAMESPACE]).args(create);
        create.stdin(rollout.to_string()).ok().map(Some)
    })?;
    pod["metadata"]["labels"]["rollouts-pod-template-hash"] = "1".into();
    let mut replica_set = workload("ReplicaSet", name, pod);
    replica_set["metadata"] = json!({
        "name": format!("{name}-1"),
        "ownerReferences": [{
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Rollout",
            "name": name,
            "uid": uid,
            "controller": true,
        }],
    });
    create(lab, &replica_set)
}

/// All that needs no Argo.
fn objects() -> Vec<Value> {
    let deployment =
        |name: &str, address: &str| workload("Deployment", name, pod(name, &declared(), address));
    let mut ordered = workload("StatefulSet", "ordered", pod("ordered", &declared(), "::"));
    ordered["spec"]["serviceName"] = "ordered".into();
    let mut headless = service("ordered", json!([{"name": "http", "port": PORT}]));
    headless["spec"]["clusterIP"] = "None".into();

    let undeclared = json!([]);
    let mut lonely = pod("lonely", &undeclared, "::");
    lonely["apiVersion"] = "v1".into();
    lonely["kind"] = "Pod".into();
    lonely["metadata"]["name"] = "lonely".into();

    let mut batch = pod("batch", &declared(), "::");
    batch["spec"]["restartPolicy"] = "Never".into();
    let batch = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "batch"},
        "spec": {"template": batch},
    });

    let mut idle = deployment("stable", "::");
    idle["spec"]["replicas"] = 0.into();
    let mut version = service("stable", json!([{"port": 80, "targetPort": PORT}]));
    version["spec"]["selector"]["rollouts-pod-template-hash"] = "1".into();

    let both = json!([
        {"containerPort": PORT},
        {"containerPort": PORT, "protocol": "UDP"},
    ]);
    let mut host = deployment("host", "127.0.0.1");
    host["spec"]["template"]["spec"]["hostNetwork"] = true.into();

    vec![
        deployment("numeric", "::"),
        service("numeric", json!([{"port": 80, "targetPort": PORT}])),
        ordered,
        headless,
        workload("DaemonSet", "every", pod("every", &named(), "::")),
        workload("ReplicaSet", "set", pod("set", &undeclared, "::")),
        lonely,
        service("lonely", json!([{"port": 80, "targetPort": PORT}])),
        batch,
        service(
            "batch",
            json!([
                {"name": "http", "port": 80, "targetPort": PORT},
                {"name": "other", "port": 81, "targetPort": PORT},
            ]),
        ),
        service("canary", json!([{"port": 80, "targetPort": "web"}])),
        idle,
        version,
        workload("Deployment", "both", pod("both", &both, "::")),
        service(
            "both",
            json!([
                {"name": "tcp", "port": 53, "targetPort": PORT},
                {"name": "udp", "port": 53, "targetPort": PORT, "protocol": "UDP"},
            ]),
        ),
        deployment("pod-ip", "$(POD_IP)"),
        deployment("local", "127.0.0.1"),
        host,
    ]
}

fn declared() -> Value {
    json!([{"containerPort": PORT}])
}

fn named() -> Value {
    json!([{"name": "web", "containerPort": PORT}])
}

/// A pod of the sample application, which listens at an address.
fn pod(name: &str, ports: &Value, address: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "app",
                "image": "localhost/kvpn-sample:lab",
                "imagePullPolicy": "Never",
                "env": [
                    {"name": "SERVICE", "value": name},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "ADDRESS", "value": address},
                ],
                "ports": ports,
            }],
        },
    })
}

/// A workload of one such pod.
fn workload(kind: &str, name: &str, pod: Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": pod},
    })
}

fn service(name: &str, ports: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports},
    })
}
