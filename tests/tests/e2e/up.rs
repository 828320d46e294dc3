//! A file's connection, engagements and commands come up together, and go down so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Background, Lab, Output};
use serde_json::{Value, json};

use crate::errors::assert_fails;
use crate::support::{Answer, Developer, are_ready, pods_in};

const NAMESPACE: &str = "up";

const CONNECTION: &str = "\
connections:
  - namespace: ${KVPN_TEST_NAMESPACE:-up}
";

const ENGAGEMENTS: &str = "\
engagements:
  - intercept: deploy/web
    ports: [18080:8080]
    run: |
      echo \"$GREETING\"
      exec kvpn-sample --service laptop --port 18080
  - wiretap: api
    ports: [18081:8080]
";

/// Until two pods, an agent in each and a reader have come up, or all of it is gone.
const SOON: Duration = Duration::from_secs(60);

/// The namespace with two Deployments, in whose pods alice may execute commands; deleted when
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
        let execute = ["role", "execute", "--verb=create", "--resource=pods/exec"];
        shop.create(&execute)?;
        for (name, role) in [
            ("execute", "--role=execute"),
            ("kvpn-users", "--clusterrole=kvpn-user"),
        ] {
            shop.create(&["rolebinding", name, role, "--user=alice"])?;
        }
        let items = ["web", "api"].map(deployment);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let create = lab.kubectl(["-n", NAMESPACE, "create", "-f", "-"]);
        create.stdin(list.to_string()).ok()?;
        for name in ["web", "api"] {
            are_ready(lab, NAMESPACE, name, 1)?;
        }
        Ok(shop)
    }

    fn create(&self, what: &[&str]) -> Result<()> {
        let create = self.lab.kubectl(["-n", NAMESPACE, "create"]).args(what);
        create.ok().map(drop)
    }

    /// A URL of the pod that is engaged.
    fn url(&self) -> Result<String> {
        let mut pods = pods_in(self.lab, NAMESPACE, "web")?;
        let urls = pods.pop().context("there is no pod")?.urls(8080);
        urls.into_iter().next().context("it has no address")
    }

    /// Nothing is engaged in it.
    fn is_left(&self) -> Result<()> {
        let get = ["-n", NAMESPACE, "get", "engagements", "-o", "name"];
        let engagements = self.lab.kubectl(get).ok()?;
        ensure!(engagements.is_empty(), "still there: {engagements}");
        Ok(())
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

fn deployment(name: &str) -> Value {
    let labels = json!({"app": name});
    let container = json!({
        "name": "app",
        "image": "localhost/kvpn-sample:lab",
        "imagePullPolicy": "Never",
        "env": [
            {"name": "SERVICE", "value": name},
            {"name": "PORT", "value": "8080"},
            {"name": "GREETING", "value": format!("greetings of {name}")},
        ],
        "ports": [{"containerPort": 8080}],
    });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            },
        },
    })
}

/// A shell script that tells its process, and becomes a `kvpn` in a directory with a file.
fn script(file: &str, command: &str) -> [String; 3] {
    let script = format!(
        "cd && mkdir -p up && cd up && cat > kvpn.yaml <<'END' && echo \"process $$\" && exec {command}\n\
         {file}END\n"
    );
    ["bash".into(), "-c".into(), script]
}

fn run(developer: &Developer, file: &str, command: &str) -> Result<Output> {
    developer.laptop.user().run(script(file, command))
}

/// Starts `kvpn up`, and waits until what it runs answers.
fn start(developer: &Developer, file: &str) -> Result<Background> {
    let mut up = developer.laptop.user().spawn(script(file, "kvpn up"))?;
    up.wait_for_line("web | greetings of web", SOON)?;
    up.wait_for_line("listens", SOON)?;
    Ok(up)
}

#[test]
fn file_comes_up_and_goes_down_as_one() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    let before = developer.laptop.host_state()?;
    let is_as_before = || {
        developer.is_as_before(&before)?;
        shop.is_left()
    };
    let file = format!("{CONNECTION}{ENGAGEMENTS}");

    // The last of three is wrong.
    let wrong = format!("{file}  - intercept: nonesuch\n    ports: [18082]\n");
    let failed = run(&developer, &wrong, "kvpn up")?;
    let line = format!("kvpn.yaml:{}: ", file.lines().count() + 1);
    assert_fails(&failed, Reason::NoSuchWorkload, &[&line, "nonesuch"])?;
    ensure!(!failed.stdout.contains("greetings"), "{}", failed.stdout);
    is_as_before()?;

    let mut up = start(&developer, &file)?;
    let url = shop.url()?;
    let answer = |who: &str| -> Result<()> {
        let Answer { service, .. } = developer.get([url.as_str()])?;
        ensure!(service == who, "{service} answers");
        Ok(())
    };
    answer("laptop")?;
    let status = developer.kvpn_json(["status"])?;
    let engagements = status["engagements"].as_array().map_or(0, Vec::len);
    ensure!(engagements == 2, "{status}");

    // What belongs to one that runs is not for another, whose failure harms nobody.
    let words = ["kvpn.yaml:4: ", "another command of kvpn runs"];
    let second = run(&developer, &file, "kvpn up")?;
    assert_fails(&second, Reason::AlreadyEngaged, &words)?;
    answer("laptop")?;

    let process = up.wait_for_line("process ", SOON)?;
    let process = process.trim_start_matches("process ");
    let interrupt = ["kill", "-INT", process];
    developer.laptop.user().run(interrupt)?.success()?;
    let code = up.wait(SOON)?.code();
    // The handler ends of its own accord when it is interrupted.
    ensure!(code == Some(0), "{code:?}: {}", up.printed());
    is_as_before()?;

    // Without its command it stays, and a second time changes nothing.
    run(&developer, &file, "kvpn up --no-run")?.success()?;
    let engaged = || -> Result<Vec<String>> {
        let status = developer.kvpn_json(["status"])?;
        let engagements = status["engagements"].as_array();
        let names = engagements.into_iter().flatten();
        Ok(names.map(|it| it["name"].to_string()).collect())
    };
    let names = engaged()?;
    ensure!(names.len() == 2, "{names:?}");
    run(&developer, &file, "kvpn up --no-run")?.success()?;
    assert_eq!(engaged()?, names);
    let other = file.replace("18080:8080", "18090:8080");
    let differing = run(&developer, &other, "kvpn up --no-run")?;
    let words = ["kvpn.yaml:4: ", "what differs is ports"];
    assert_fails(&differing, Reason::AlreadyEngaged, &words)?;
    assert_eq!(engaged()?, names);
    run(&developer, &file, "kvpn down")?.success()?;
    is_as_before()
}
