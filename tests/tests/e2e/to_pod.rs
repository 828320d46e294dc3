//! Ports of a pod's localhost, reached from a laptop for as long as it engages the pod;
//! containers by their names, and what is known of a port before a word is said there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Background, Lab, wait_for};
use serde_json::{Value, json};

use crate::errors::assert_fails;
use crate::support::{Answer, Developer, are_ready};

const NAMESPACE: &str = "to-pod";

/// Where the app listens, and at localhost its sidecar; another number on the laptop.
const APP: u16 = 8080;
const ADMIN: u16 = 9901;
const LOCAL: &str = "15000";

/// Until a permission that was granted is known to the API server, or a connection is cut off.
const SOON: Duration = Duration::from_secs(10);

/// The namespace with a Deployment, whose pod has a sidecar; deleted when dropped.
struct Shop<'a> {
    lab: &'a Lab,
}

impl<'a> Shop<'a> {
    fn open(lab: &'a Lab) -> Result<Self> {
        let shop = Self { lab };
        // What a test that failed has left may be on its way out.
        shop.delete("--wait=true")?;
        lab.kubectl(["create", "namespace", NAMESPACE]).ok()?;
        let bind = ["-n", NAMESPACE, "create", "rolebinding", "kvpn-users"];
        let bind = lab.kubectl(bind);
        bind.args(["--clusterrole=kvpn-user", "--user=alice"])
            .ok()?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects()});
        let create = lab.kubectl(["-n", NAMESPACE, "create", "-f", "-"]);
        create.stdin(list.to_string()).ok()?;
        are_ready(lab, NAMESPACE, "web", 1)?;
        Ok(shop)
    }

    /// Lets alice reach what listens at localhost in the namespace's pods.
    fn may_forward_ports(&self) -> Result<()> {
        let lab = |args: &[&str]| {
            let create = ["-n", NAMESPACE, "create"];
            self.lab.kubectl(create).args(args).ok().map(drop)
        };
        lab(&[
            "role",
            "forward",
            "--verb=create",
            "--resource=pods/portforward",
        ])?;
        lab(&["rolebinding", "forward", "--role=forward", "--user=alice"])
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

fn objects() -> [Value; 2] {
    let container = |name: &str, address: &str, port: u16| {
        json!({
            "name": name,
            "image": "localhost/kvpn-sample:lab",
            "imagePullPolicy": "Never",
            "env": [
                {"name": "SERVICE", "value": name},
                {"name": "ADDRESS", "value": address},
                {"name": "PORT", "value": port.to_string()},
            ],
            "ports": [{"containerPort": port}],
        })
    };
    let labels = json!({"app": "web"});
    let containers = [
        container("app", "::", APP),
        container("sidecar", "127.0.0.1", ADMIN),
    ];
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": containers},
            },
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "queue"},
        "spec": {
            "selector": labels,
            "ports": [{"port": 5672, "targetPort": APP, "appProtocol": "amqp"}],
        },
    });
    [deployment, service]
}

/// Who answers at a port of the laptop.
fn ask(developer: &Developer, port: &str) -> Result<Answer> {
    let url = format!("http://127.0.0.1:{port}/");
    developer.get([url.as_str()])
}

/// A connection to the sidecar that has been answered on once, and is kept.
fn hold(developer: &Developer) -> Result<Background> {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{LOCAL} && \
         printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3 && \
         read -r answer <&3 && echo \"$answer\" && exec cat <&3"
    );
    let mut held = developer.laptop.user().spawn(["bash", "-c", &script])?;
    held.wait_for_line("200", SOON)?;
    Ok(held)
}

/// It is reset, and nobody listens there any more.
fn is_shut(developer: &Developer, mut held: Background) -> Result<()> {
    // cat ends well when a connection ends in order.
    let code = held.wait(SOON)?.code();
    ensure!(code == Some(1), "{code:?}: {}", held.printed());
    wait_for("nobody listens", SOON, || {
        let output = developer.curl([&format!("http://127.0.0.1:{LOCAL}/") as &str])?;
        // curl's 7 is a refusal.
        Ok((output.code() == 7).then_some(()))
    })
}

#[test]
fn port_of_a_sidecar_at_localhost_is_reached_while_the_pod_is_engaged() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let _handler = developer.handler(APP)?;

    let to_pod = format!("{LOCAL}:{ADMIN}");
    let intercept = ["intercept", "web", "--container", "app", "--port", "8080"];
    let [verb, name, by, container, port, local] = intercept;
    // Another port of the pod, on which nobody listens.
    let args = [
        verb, name, by, container, port, local, "--to-pod", &to_pod, "--to-pod", "9902",
    ];
    // It takes what it takes to forward the pod's ports otherwise.
    let refused = developer.kvpn(args)?;
    let words = [
        "localhost of pods in namespace to-pod",
        "create",
        "pods/portforward",
    ];
    assert_fails(&refused, Reason::Forbidden, &words)?;
    shop.may_forward_ports()?;
    let output = wait_for("alice may reach the pod's ports", SOON, || {
        let output = developer.kvpn(args)?;
        let is_allowed = !output.stderr.contains("pods/portforward");
        Ok(is_allowed.then_some(output))
    })?;
    let printed = output.success()?.stdout;
    let reached = "127.0.0.1:15000 -> port 9901 at localhost in one of the pods";
    ensure!(printed.contains(reached), "{printed}");
    let engaged = &developer.kvpn_json(["status"])?["engagements"][0];
    let expected = json!([
        {"local": "127.0.0.1:15000", "port": ADMIN},
        {"local": "127.0.0.1:9902", "port": 9902},
    ]);
    assert_eq!(engaged["toPod"], expected);
    assert_eq!(engaged["ports"][0]["containerPort"], APP);
    assert_eq!(ask(&developer, LOCAL)?.service, "sidecar");
    let spec = ["-n", NAMESPACE, "get", "engagements"];
    let spec = developer.lab.kubectl(spec);
    let listed = spec.args(["-o=jsonpath={.items[*].spec.toPod}"]).ok()?;
    assert_eq!(listed, "[9901,9902]");

    let nobody = developer.curl(["http://127.0.0.1:9902/"])?;
    ensure!(nobody.stderr.contains("reset by peer"), "{}", nobody.stderr);
    let flows = developer.kvpn(["flows", "--all"])?.success()?.stdout;
    ensure!(flows.contains("port 9901 in a pod"), "{flows}");

    let again = [
        "wiretap",
        "web",
        "--container",
        "app",
        "--port",
        "8080",
        "--to-pod",
        LOCAL,
    ];
    let taken = developer.kvpn(again)?;
    assert_fails(&taken, Reason::Usage, &["127.0.0.1:15000", "in use"])?;

    let mut held = hold(&developer)?;
    ensure!(!held.has_ended()?, "{}", held.printed());
    developer.kvpn(["leave", "web"])?.success()?;
    is_shut(&developer, held)?;

    // The same when somebody else ends it.
    let engaged = developer.kvpn_json(args)?;
    let name = engaged["name"].as_str().context("a name")?;
    let held = hold(&developer)?;
    let delete = ["-n", NAMESPACE, "delete", "engagement", name];
    developer.lab.kubectl(delete).ok()?;
    is_shut(&developer, held)
}

#[test]
fn containers_and_protocols_that_do_not_fit_are_refused_with_what_to_do() -> Result<()> {
    let developer = Developer::at(1)?;
    let _shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let unknown = ["intercept", "web", "--port", "8080", "--container", "nginx"];
    let unknown = developer.kvpn(unknown)?;
    assert_fails(&unknown, Reason::Usage, &["--container: app, sidecar"])?;

    // By the container's number, and still what the Service says.
    let header = ["--http-header", "x-user=alice"];
    let filtered = [
        "intercept",
        "web",
        "--port",
        "8080:8080",
        header[0],
        header[1],
    ];
    let filtered = developer.kvpn(filtered)?;
    let words = ["appProtocol amqp of Service/queue", "appProtocol: http"];
    assert_fails(&filtered, Reason::NotSupported, &words)?;

    let _handler = developer.handler(APP)?;
    developer
        .kvpn(["intercept", "web", "--port", "8080:5672"])?
        .success()?;
    wait_for("the laptop answers", Duration::from_secs(5), || {
        let answer = developer.get(["http://queue.to-pod:5672/"])?;
        Ok(answer.is_from_laptop().then_some(()))
    })
}
