//! The environment of a pod's container on the laptop: the same as its process got it, in
//! files, for a command, and for nobody who may not execute commands in the pod.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Lab, wait_for};
use serde_json::{Value, json};

use crate::errors::assert_fails;
use crate::support::{Developer, are_ready, live_pods};

const NAMESPACE: &str = "environment";

/// What must come to light nowhere.
const SECRET: &str = "s3cr3t-of-the-pod";

/// What never comes over, as README has it.
const NEVER: [&str; 15] = [
    "HOME",
    "PATH",
    "HOSTNAME",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "TERM",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "SHELL",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "_",
];

/// How long RBAC, the API server or the kubelet may take for a change.
const SOON: Duration = Duration::from_secs(20);

/// The namespace with a Deployment whose pod has variables from everywhere; deleted when
/// dropped.
struct Shop<'a> {
    lab: &'a Lab,
}

impl<'a> Shop<'a> {
    fn open(lab: &'a Lab) -> Result<Self> {
        let shop = Self { lab };
        // What a test that failed has left may be on its way out.
        shop.delete("--wait=true")?;
        lab.kubectl(["create", "namespace", NAMESPACE]).ok()?;
        shop.create(&["rolebinding", "kvpn-users"], "--clusterrole=kvpn-user")?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects()});
        let create = lab.kubectl(["-n", NAMESPACE, "create", "-f", "-"]);
        create.stdin(list.to_string()).ok()?;
        are_ready(lab, NAMESPACE, "web", 1)?;
        Ok(shop)
    }

    /// Binds a role to alice.
    fn create(&self, what: &[&str], role: &str) -> Result<()> {
        let create = self.lab.kubectl(["-n", NAMESPACE, "create"]).args(what);
        create.args([role, "--user=alice"]).ok().map(drop)
    }

    /// Lets alice execute commands in the pods.
    fn let_execute(&self) -> Result<()> {
        let role = ["role", "execute", "--verb=create", "--resource=pods/exec"];
        self.lab
            .kubectl(["-n", NAMESPACE, "create"])
            .args(role)
            .ok()?;
        self.create(&["rolebinding", "execute"], "--role=execute")?;
        wait_for("alice may execute", SOON, || {
            let may = [
                "-n",
                NAMESPACE,
                "auth",
                "can-i",
                "create",
                "pods",
                "--subresource=exec",
            ];
            let may = self.lab.kubectl_as("alice", may).run()?;
            Ok(may.status.success().then_some(()))
        })
    }

    fn pod(&self) -> Result<Value> {
        let mut pods = live_pods(self.lab, NAMESPACE, "web")?;
        pods.pop().context("there is no pod")
    }

    /// The environment of the first container's first process, by way of `kubectl exec`, but
    /// for what never comes over.
    fn environment(&self) -> Result<BTreeMap<String, String>> {
        let pod = self.pod()?;
        let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
        let read = ["cat", "/proc/1/environ"];
        let read = self.lab.pod_exec(NAMESPACE, pod, read)?.success()?;
        let mut variables: BTreeMap<String, String> = read
            .stdout
            .split('\0')
            .filter_map(|variable| variable.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        variables.retain(|name, _| !NEVER.contains(&name.as_str()));
        Ok(variables)
    }

    /// The readers that were added, and whether each has ended.
    fn readers(&self) -> Result<BTreeMap<String, bool>> {
        let pod = self.pod()?;
        let names = pod["spec"]["ephemeralContainers"].as_array();
        let names = names.into_iter().flatten();
        let names = names.filter_map(|it| it["name"].as_str());
        let names = names.filter(|name| name.starts_with("kvpn-reader-"));
        let statuses = pod["status"]["ephemeralContainerStatuses"].as_array();
        let has_ended = |name: &str| {
            let mut statuses = statuses.into_iter().flatten();
            let status = statuses.find(|it| it["name"] == name);
            status.is_some_and(|it| it["state"]["terminated"]["exitCode"] == 0)
        };
        Ok(names.map(|it| (it.to_owned(), has_ended(it))).collect())
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

fn objects() -> Vec<Value> {
    let labels = json!({"app": "web"});
    let secret = |key: &str| json!({"secretKeyRef": {"name": "web", "key": key}});
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let app = json!({
        "name": "app",
        "image": "localhost/kvpn-toolbox:lab",
        "imagePullPolicy": "Never",
        "command": ["sleep", "infinity"],
        "envFrom": [{"configMapRef": {"name": "web"}},
                    {"prefix": "S_", "secretRef": {"name": "web"}}],
        "env": [
            {"name": "GREETING", "value": "it's \"me\" \\ $5 = ünïcode"},
            {"name": "LINES", "value": "one\ntwo\n"},
            {"name": "EMPTY", "value": ""},
            {"name": "PASSWORD", "valueFrom": secret("password")},
            {"name": "POD", "valueFrom": field("metadata.name")},
            {"name": "ADDRESS", "valueFrom": field("status.podIP")},
            {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
            {"name": "URL", "value": "http://$(POD):$(PORT)/$$(POD)"},
            {"name": "PORT", "value": "8080"},
            {"name": "LATER", "value": "$(GREETING)"},
        ],
        "ports": [{"containerPort": 8080}],
        "resources": {"limits": {"memory": "64Mi"}},
        // As PodSecurity `restricted` asks for; its group is that of its image.
        "securityContext": {
            "runAsUser": 1000, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    // Its image says whose its process is.
    let sample = json!({
        "name": "sample",
        "image": "localhost/kvpn-sample:lab",
        "imagePullPolicy": "Never",
        "env": [{"name": "SERVICE", "value": "beside"}, {"name": "PORT", "value": "9090"}],
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {"kubectl.kubernetes.io/default-container": "app"},
                },
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [app, sample]},
            },
        },
    });
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "queue"},
               "spec": {"selector": labels, "ports": [{"port": 5672, "targetPort": 8080}]}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"},
               "data": {"mode": "fast", "config.yaml": "a: 1\nb: 2\n"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "web"},
               "stringData": {"password": SECRET, "token": "a=b"}}),
        deployment,
    ]
}

/// Runs a shell script as the laptop's user.
fn script(developer: &Developer, script: &str) -> Result<kvpn_tests::Output> {
    developer.laptop.user().run(["bash", "-c", script])
}

#[test]
fn environment_is_what_the_process_got_and_nothing_of_it_is_left() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;

    let words = [
        "cannot read the environment or files of containers in namespace environment",
        "administrator grant you the verb \"create\" on pods/exec",
    ];
    for refused in [
        developer.kvpn(["env", "web"])?,
        developer.kvpn(["intercept", "web", "--port", "8080", "--", "true"])?,
        developer.kvpn(["intercept", "web", "--port", "8080", "--mount=true"])?,
    ] {
        assert_fails(&refused, Reason::Forbidden, &words)?;
    }
    ensure!(shop.readers()?.is_empty(), "a reader was added");
    shop.let_execute()?;

    let expected = shop.environment()?;
    for name in [
        "GREETING",
        "S_password",
        "MEMORY",
        "KUBERNETES_SERVICE_HOST",
    ] {
        ensure!(expected.contains_key(name), "no {name}: {expected:?}");
    }
    let ingest = r#"
        file=$(mktemp) && kvpn ingest web --env-json "$file" --env-exclude 'KUBERNETES_*' &&
        stat -c 'mode %a' "$file" && cat "$file" && rm "$file""#;
    let told = script(&developer, ingest)?.success()?.stdout;
    let (told, file) = told.split_once("mode 600\n").context("the file's mode")?;
    ensure!(
        told.contains("Ingesting Deployment/web container app"),
        "{told}"
    );
    let variables: BTreeMap<String, String> = serde_json::from_str(file)?;
    let mut fewer = expected.clone();
    fewer.retain(|name, _| !name.starts_with("KUBERNETES_"));
    assert_eq!(variables, fewer);
    let get = ["-n", NAMESPACE, "get", "engagements", "-o", "yaml"];
    let engagements = developer.lab.kubectl(get).ok()?;
    ensure!(engagements.contains("type: Readable"), "{engagements}");
    ensure!(!engagements.contains(SECRET), "it is in the Engagement");

    // By who reads them, while the reader is there.
    let sh = r#"set -e; eval "$(kvpn env web)"; env -0"#;
    let sh = script(&developer, sh)?.success()?.stdout;
    let sh: Vec<&str> = sh.split('\0').collect();
    // The keys of a ConfigMap need not be names for a shell.
    let names = expected.iter().filter(|(name, _)| !name.contains('.'));
    for (name, value) in names {
        let variable = format!("{name}={value}");
        ensure!(sh.contains(&&*variable), "{variable:?} is not in {sh:?}");
    }
    let python = r#"kvpn env web -o json |
        python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)))'"#;
    let python = script(&developer, python)?.success()?;
    assert_eq!(python.json::<BTreeMap<String, String>>()?, expected);
    // Its group was found out, and one reader does for all.
    let before = shop.readers()?.len();
    ensure!((1..=2).contains(&before), "{:?}", shop.readers()?);

    // Whose it is, only its image says.
    let args = [
        "env",
        "web",
        "--container",
        "sample",
        "--env-syntax",
        "docker",
    ];
    let beside = developer.kvpn(args)?.success()?.stdout;
    ensure!(beside.lines().any(|it| it == "SERVICE=beside"), "{beside}");

    developer.kvpn(["leave", "web"])?.success()?;
    // They stay for who comes next.
    let before = shop.readers()?.len();
    developer.kvpn(["env", "web"])?.success()?;
    assert_eq!(shop.readers()?.len(), before);
    let manager = ["-n", "kvpn", "logs", "deployment/traffic-manager"];
    let mut logs = developer.lab.kubectl(manager).ok()?;
    let pod = shop.pod()?;
    let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
    for reader in shop.readers()?.keys() {
        // A reader has read before the kubelet tells that it runs.
        logs += &wait_for("the reader's log", SOON, || {
            let log = ["-n", NAMESPACE, "logs", pod, "-c", reader];
            let log = developer.lab.kubectl(log).run()?;
            Ok(log.status.success().then_some(log.stdout))
        })?;
    }
    ensure!(logs.contains("The environment is read"), "{logs}");
    ensure!(!logs.contains(SECRET), "it is in a log");
    Ok(())
}

#[test]
fn command_has_the_environment_and_its_end_is_the_engagements() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    shop.let_execute()?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let engaged = r#"kvpn intercept web --port 8080 -- \
        bash -c 'kvpn status -o json >&2; printf %s "$PASSWORD|$URL"; exit 7'"#;
    let ran = script(&developer, engaged)?;
    assert_eq!(ran.code(), 7, "{}", ran.stderr);
    let expected = shop.environment()?;
    let wanted = format!("{}|{}", expected["PASSWORD"], expected["URL"]);
    assert_eq!(ran.stdout, wanted);
    ensure!(ran.stderr.contains(r#""active": true"#), "{}", ran.stderr);
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(status["engagements"], json!([]), "it is still engaged");
    let get = ["-n", NAMESPACE, "get", "engagements", "-o", "name"];
    assert_eq!(developer.lab.kubectl(get).ok()?, "");

    // Also where nobody is left who would leave it.
    let killed = r#"kvpn intercept web --port 8080 -- \
        bash -c 'kvpn status -o json && kill -9 $PPID'; echo "ended by $?""#;
    let killed = script(&developer, killed)?.success()?.stdout;
    ensure!(killed.contains(r#""active": true"#), "{killed}");
    ensure!(killed.contains("ended by 137"), "{killed}");
    wait_for("the engagement ends", SOON, || {
        let engagements = developer.lab.kubectl(get).ok()?;
        Ok(engagements.is_empty().then_some(()))
    })
}
