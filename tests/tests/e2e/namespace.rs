//! A namespace of a test's own, with a Deployment of the sample application in it.

use std::time::Duration;

use anyhow::Result;
use kvpn_tests::{Cmd, Lab, Output, wait_for};
use serde_json::{Value, json};

use crate::support::{Developer, are_ready, live_pods, scale};

/// How long pods may take to end.
const SOON: Duration = Duration::from_secs(30);

/// The Deployment and its Service.
pub(crate) const WEB: &str = "web";

/// A namespace whose Deployment `web` alice may engage; gone when dropped.
pub(crate) struct Namespace<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) name: &'static str,
}

impl<'a> Namespace<'a> {
    /// Makes it, with an object beside if there is one and so many pods, whose spec may be
    /// refined; waits until they are ready.
    pub(crate) fn create(
        lab: &'a Lab,
        name: &'static str,
        beside: Option<Value>,
        replicas: usize,
        refine: impl FnOnce(&mut Value),
    ) -> Result<Self> {
        let namespace = Self { lab, name };
        // What a test that failed has left may be on its way out.
        namespace.delete("--wait=true")?;
        lab.kubectl(["create", "namespace", name]).ok()?;
        let bind = ["create", "rolebinding", "kvpn-users"];
        let bind = namespace.kubectl(&bind).arg("--clusterrole=kvpn-user");
        bind.arg("--user=alice").ok()?;
        let mut spec = pod_spec();
        refine(&mut spec);
        let mut objects: Vec<Value> = beside.into_iter().collect();
        objects.extend([service(), deployment(replicas, &spec)]);
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let create = namespace.kubectl(&["create", "-f", "-"]);
        create.stdin(objects.to_string()).ok()?;
        namespace.are_ready(replicas)?;
        Ok(namespace)
    }

    /// kubectl as the cluster's administrator, in the namespace.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Cmd {
        self.lab.kubectl(["-n", self.name]).args(args)
    }

    pub(crate) fn scale(&self, number: usize) -> Result<()> {
        scale(self.lab, self.name, WEB, number)
    }

    pub(crate) fn are_ready(&self, number: usize) -> Result<()> {
        are_ready(self.lab, self.name, WEB, number)
    }

    /// Waits until there are only so many pods, with those that still end.
    pub(crate) fn has_only(&self, number: usize) -> Result<()> {
        let label = format!("app={WEB}");
        let get = ["get", "pods", "-l", &label, "-o", "name"];
        wait_for(&format!("there are only {number} pods"), SOON, || {
            let names = self.kubectl(&get).ok()?;
            Ok((names.lines().count() == number).then_some(()))
        })
    }

    /// The pods that nobody has deleted.
    pub(crate) fn pods(&self) -> Result<Vec<Value>> {
        live_pods(self.lab, self.name, WEB)
    }

    /// The Service's URL on the node.
    pub(crate) fn node_url(&self) -> Result<String> {
        let get = ["get", "service", WEB, "-o=jsonpath={.spec.clusterIP}"];
        Ok(format!("http://{}/", self.kubectl(&get).ok()?))
    }

    /// The Service's URL on a laptop that is connected.
    pub(crate) fn laptop_url(&self) -> String {
        format!("http://{WEB}.{}.svc.cluster.local/", self.name)
    }

    /// How many engagements there are.
    pub(crate) fn engagements(&self) -> Result<usize> {
        let names = self.kubectl(&["get", "engagements", "-o", "name"]).ok()?;
        Ok(names.lines().count())
    }

    /// Runs `kvpn intercept` with these flags, to port 8080 of the laptop.
    pub(crate) fn intercept(&self, developer: &Developer, flags: &[&str]) -> Result<Output> {
        let command = ["kvpn", "intercept", WEB, "-n", self.name, "--port", "8080"];
        let command = command.iter().chain(flags);
        developer.laptop.user().run(command)
    }

    fn delete(&self, wait: &str) -> Result<()> {
        let delete = ["delete", "namespace", self.name, "--ignore-not-found", wait];
        self.lab.kubectl(delete).ok().map(drop)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // The test has its result.
        drop(self.delete("--wait=false"));
    }
}

fn pod_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": WEB, "image": "localhost/kvpn-sample:lab", "imagePullPolicy": "Never",
            "env": [{"name": "SERVICE", "value": WEB}],
            "ports": [{"containerPort": 8080}],
        }],
    })
}

fn deployment(replicas: usize, pod_spec: &Value) -> Value {
    let labels = json!({"app": WEB});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": WEB},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec},
        },
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": WEB},
        "spec": {"selector": {"app": WEB}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}
