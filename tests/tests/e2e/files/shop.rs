//! The app whose files are looked at, and the laptop that they are looked at from.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvpn_tests::{Lab, Output};
use serde_json::{Value, json};

use crate::support::{Developer, are_ready, live_pods};

pub(super) const NAMESPACE: &str = "files";

/// The user of the app.
const APP: u32 = 1000;

/// The namespace with a Deployment whose pod has volumes of several kinds; deleted when
/// dropped.
pub(super) struct Shop<'a> {
    lab: &'a Lab,
}

impl<'a> Shop<'a> {
    pub(super) fn open(lab: &'a Lab) -> Result<Self> {
        let shop = Self { lab };
        // What a test that failed has left may be on its way out.
        shop.delete("--wait=true")?;
        let host = make_host_directory(lab)?;
        lab.kubectl(["create", "namespace", NAMESPACE]).ok()?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects(&host)});
        let create = lab.kubectl(["-n", NAMESPACE, "create", "-f", "-"]);
        create.stdin(list.to_string()).ok()?;
        shop.create(&["rolebinding", "kvpn-users"], "--clusterrole=kvpn-user")?;
        let role = ["role", "execute", "--verb=create", "--resource=pods/exec"];
        shop.kubectl(&["create"]).args(role).ok()?;
        shop.create(&["rolebinding", "execute"], "--role=execute")?;
        are_ready(lab, NAMESPACE, "web", 1)?;
        Ok(shop)
    }

    pub(super) fn kubectl(&self, args: &[&str]) -> kvpn_tests::Cmd {
        self.lab.kubectl(["-n", NAMESPACE]).args(args)
    }

    /// Binds a role to alice.
    fn create(&self, what: &[&str], role: &str) -> Result<()> {
        let create = self.kubectl(&["create"]).args(what);
        create.args([role, "--user=alice"]).ok().map(drop)
    }

    pub(super) fn pod(&self) -> Result<String> {
        let mut pods = live_pods(self.lab, NAMESPACE, "web")?;
        let pod = pods.pop().context("there is no pod")?;
        let name = pod["metadata"]["name"].as_str();
        Ok(name.context("a pod without a name")?.to_owned())
    }

    /// What a shell script says in the app's container.
    pub(super) fn in_pod(&self, script: &str) -> Result<String> {
        let exec = self
            .lab
            .pod_exec(NAMESPACE, &self.pod()?, ["bash", "-c", script])?;
        Ok(exec.success()?.stdout)
    }

    fn delete(&self, wait: &str) -> Result<()> {
        let delete = ["delete", "--ignore-not-found", wait, "namespace", NAMESPACE];
        self.lab.kubectl(delete).ok().map(drop)
    }
}

impl Drop for Shop<'_> {
    fn drop(&mut self) {
        // The test has its result.
        drop(self.delete("--wait=false"));
    }
}

/// A directory of the node, for the app alone; what an earlier test had there is gone.
fn make_host_directory(lab: &Lab) -> Result<PathBuf> {
    let path = lab.layout().run().join("files-host");
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    fs::create_dir_all(&path)?;
    chown(&path, Some(APP), None)?;
    Ok(path)
}

fn objects(host: &Path) -> Vec<Value> {
    let labels = json!({"app": "web"});
    let app = json!({
        "name": "app",
        "image": "localhost/kvpn-toolbox:lab",
        "imagePullPolicy": "Never",
        "command": ["sleep", "infinity"],
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/web"},
            {"name": "secret", "mountPath": "/etc/secret", "readOnly": true},
            {"name": "data", "mountPath": "/data"},
            {"name": "host", "mountPath": "/host"},
            {"name": "config", "mountPath": "/etc/one", "subPath": "mode"},
        ],
        "ports": [{"containerPort": 8080}],
        // As PodSecurity `restricted` asks for; only the volume of the node is more.
        "securityContext": {
            "runAsUser": APP, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    let volumes = json!([
        {"name": "config", "configMap": {"name": "web"}},
        {"name": "secret", "secret": {"secretName": "web", "defaultMode": 0o440}},
        {"name": "data", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": host, "type": "Directory"}},
    ]);
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "securityContext": {"fsGroup": 2000},
                    "containers": [app],
                    "volumes": volumes,
                },
            },
        },
    });
    vec![
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"},
               "data": {"mode": "fast"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "web"},
               "stringData": {"password": "hunter2"}}),
        deployment,
    ]
}

/// Runs a shell script as the laptop's user.
pub(super) fn script(developer: &Developer, script: &str) -> Result<Output> {
    developer.laptop.user().run(["bash", "-c", script])
}

/// An empty directory of the laptop's user.
pub(super) fn directory(developer: &Developer) -> Result<String> {
    let made = script(developer, "mktemp -d")?.success()?;
    Ok(made.stdout.trim().to_owned())
}
