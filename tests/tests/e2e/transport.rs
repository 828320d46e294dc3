//! The ways to the traffic manager: the second one when the first is closed,
//! proxies in between, and several connections at a time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::{Background, Lab, wait_for};
use serde_json::Value;

use crate::errors::assert_fails;
use crate::support::{Developer, SHOP, get_from_pod};

/// Where the proxies listen: on the node, beside the API server.
const PROXY: &str = "10.77.0.1";

/// Many more than the few that requests to the API server itself keep open.
const CONNECTIONS: usize = 12;

const CONNECT: [&str; 3] = ["connect", "-n", SHOP];

#[test]
fn port_forward_carries_the_whole_journey() -> Result<()> {
    let developer = Developer::at(1)?;
    let before = developer.laptop.host_state()?;
    developer
        .kvpn(["connect", "-n", SHOP, "--transport", "port-forward"])?
        .success()?;
    assert_eq!(transport(&developer)?, "port-forward");
    let text = developer.kvpn(["status"])?.success()?.stdout;
    ensure!(text.contains("up by port-forward"), "{text}");

    assert_eq!(developer.get(["http://web/"])?.service, "web");
    let _handler = developer.handler(8080)?;
    developer.intercept("web", "8080")?;
    let answers = get_from_pod(&developer.lab, &["http://web/".to_owned()])?;
    ensure!(answers[0].is_from_laptop(), "{answers:?}");

    // The same again is no failure, another way is one.
    developer
        .kvpn(["connect", "--transport", "auto"])?
        .success()?;
    let other = developer.kvpn(["connect", "--transport", "proxy"])?;
    assert_fails(&other, Reason::AlreadyConnected, &["port-forward", "quit"])?;

    developer.kvpn(["quit"])?.success()?;
    assert_eq!(developer.laptop.host_state()?, before);
    Ok(())
}

#[test]
fn a_way_that_is_closed_leaves_the_other_and_two_are_told() -> Result<()> {
    let developer = Developer::at(1)?;
    developer.connect()?;
    assert_eq!(transport(&developer)?, "proxy");
    developer.kvpn(["quit"])?.success()?;

    let lab = &developer.lab;
    let proxy = Withdrawn::new(lab, "clusterrole", "kvpn-user", "services/proxy")?;
    // The API server's authorizer lags a little behind.
    wait_for("services/proxy is closed", Duration::from_secs(10), || {
        let only = developer.kvpn(["connect", "--transport", "proxy"])?;
        developer.kvpn(["quit"])?.success()?;
        let closed = only.code() == i32::from(Reason::Forbidden.exit_code());
        Ok(closed.then_some(()))
    })?;
    developer.connect()?;
    assert_eq!(transport(&developer)?, "port-forward");
    assert_eq!(developer.get(["http://web/"])?.service, "web");
    developer.kvpn(["quit"])?.success()?;
    // One way is enough, also for whoever looks for what is wrong.
    let findings = developer.kvpn_json(["doctor", "-n", SHOP])?;
    assert_eq!(findings["ok"], true, "{findings}");
    let checks = findings["checks"].as_array().context("no checks")?;
    let is_warned = |check: &Value| {
        check["name"] == "Traffic manager by proxy" && check["outcome"] == "warning"
    };
    ensure!(checks.iter().any(is_warned), "{findings}");

    let forward = Withdrawn::new(lab, "role", "kvpn-port-forward", "pods/portforward")?;
    let output = wait_for("both are closed", Duration::from_secs(10), || {
        let output = developer.kvpn(CONNECT)?;
        developer.kvpn(["quit"])?.success()?;
        Ok((!output.status.success()).then_some(output))
    })?;
    assert_fails(
        &output,
        Reason::Forbidden,
        &[
            "services/proxy",
            "pods/portforward",
            "kvpn-user",
            "kvpn-port-forward",
        ],
    )?;
    drop((proxy, forward));
    wait_for("services/proxy is open", Duration::from_secs(10), || {
        let output = developer.kvpn(["connect", "--transport", "proxy"])?;
        Ok(output.status.success().then_some(()))
    })
}

#[test]
fn http_proxy_leads_to_the_api_server_both_ways() -> Result<()> {
    let developer = Developer::at(1)?;
    let config = "/tmp/kvpn-tinyproxy.conf";
    let lines = format!(
        "Port 3128\nListen {PROXY}\nTimeout 600\nConnectPort 6443\nBasicAuth me s3cret\nLogLevel Info\n"
    );
    std::fs::write(config, lines).context("write tinyproxy's configuration")?;
    let _proxy = developer
        .lab
        .node("tinyproxy", ["-d", "-c", config])
        .spawn()?;
    wait_for_port(&developer.lab, "3128")?;
    let _blocked = Blocked::new(&developer.lab)?;
    let direct = developer.kvpn(CONNECT)?;
    assert_fails(&direct, Reason::ApiServerUnreachable, &[":6443"])?;

    for way in ["proxy", "port-forward"] {
        let url = format!("http://me:s3cret@{PROXY}:3128");
        connect_by_kubeconfig(&developer, &url, way)?.success()?;
        assert_works(&developer, way)?;
        let script = format!(
            "HTTPS_PROXY={url} NO_PROXY=10.9.0.0/16 kvpn connect -n {SHOP} --transport {way}"
        );
        developer
            .laptop
            .user()
            .run(["sh", "-c", &script])?
            .success()?;
        assert_works(&developer, way)?;
    }

    let refused = connect_by_kubeconfig(&developer, &format!("http://{PROXY}:3128"), "auto")?;
    assert_fails(&refused, Reason::ApiServerUnreachable, &["proxy", ":3128"])
}

#[test]
fn socks_proxy_leads_to_the_api_server_both_ways() -> Result<()> {
    let developer = Developer::at(1)?;
    let args = ["-i", PROXY, "-p", "1080", "-u", "me", "-P", "s3cret"];
    let _proxy: Background = developer.lab.node("microsocks", args).spawn()?;
    wait_for_port(&developer.lab, "1080")?;
    let _blocked = Blocked::new(&developer.lab)?;
    for way in ["proxy", "port-forward"] {
        let url = format!("socks5://me:s3cret@{PROXY}:1080");
        connect_by_kubeconfig(&developer, &url, way)?.success()?;
        assert_works(&developer, way)?;
    }
    let url = format!("socks5://me:wrong@{PROXY}:1080");
    let refused = connect_by_kubeconfig(&developer, &url, "auto")?;
    assert_fails(&refused, Reason::ApiServerUnreachable, &["proxy", ":1080"])?;
    ensure!(!refused.stderr.contains("wrong"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn connections_that_break_are_opened_again_and_the_session_stays() -> Result<()> {
    let developer = Developer::at(1)?;
    let count = CONNECTIONS.to_string();
    developer
        .kvpn(["connect", "-n", SHOP, "--connections", &count])?
        .success()?;
    wait_for_connections(&developer)?;
    let kill = ["ss", "-K", "-tn", "dport", "=", ":6443"];
    developer.laptop.root().run(kill)?.success()?;
    wait_for("the link is up again", Duration::from_secs(10), || {
        let status = developer.kvpn_json(["status"])?;
        Ok((status["link"] == "up").then_some(()))
    })?;
    assert_eq!(developer.get(["http://web/"])?.service, "web");
    wait_for_connections(&developer)
}

/// Waits until all connections to the traffic manager are there.
fn wait_for_connections(developer: &Developer) -> Result<()> {
    let what = format!("{CONNECTIONS} connections are there");
    wait_for(&what, Duration::from_secs(15), || {
        let list = ["ss", "-Htn", "state", "established", "dport", "=", ":6443"];
        let sockets = developer.laptop.root().run(list)?.success()?.stdout;
        Ok((sockets.lines().count() >= CONNECTIONS).then_some(()))
    })
}

/// The way that status tells.
fn transport(developer: &Developer) -> Result<String> {
    let status = developer.kvpn_json(["status"])?;
    let transport = status["transport"].as_str().context("no transport")?;
    Ok(transport.to_owned())
}

/// Connects with a `proxy-url` in the kubeconfig.
fn connect_by_kubeconfig(
    developer: &Developer,
    url: &str,
    way: &str,
) -> Result<kvpn_tests::Output> {
    let script = format!(
        "sed 's|^\\( *\\)server: .*|&\\n\\1proxy-url: {url}|' ~/.kube/config >/tmp/proxied && \
         kvpn connect -n {SHOP} --kubeconfig /tmp/proxied --transport {way}"
    );
    developer.laptop.user().run(["sh", "-c", &script])
}

/// A connected laptop reaches the cluster; then it is not connected.
fn assert_works(developer: &Developer, way: &str) -> Result<()> {
    assert_eq!(transport(developer)?, way);
    assert_eq!(developer.get(["http://web/"])?.service, "web");
    developer.kvpn(["quit"])?.success().map(drop)
}

fn wait_for_port(lab: &Lab, port: &str) -> Result<()> {
    wait_for("the proxy listens", Duration::from_secs(5), || {
        let output = lab.node("nc.openbsd", ["-z", PROXY, port]).run()?;
        Ok(output.status.success().then_some(()))
    })
}

/// The API server cannot be reached from laptop 1 while this lives.
struct Blocked<'a>(&'a Lab);

impl<'a> Blocked<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        lab.block_api_server(1, true)?;
        Ok(Self(lab))
    }
}

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.block_api_server(1, false) {
            eprintln!("the API server stays blocked: {error:#}");
        }
    }
}

/// A role without the rules for a resource, while this lives.
struct Withdrawn<'a> {
    lab: &'a Lab,
    kind: &'static str,
    name: &'static str,
    rules: Value,
}

impl<'a> Withdrawn<'a> {
    fn new(lab: &'a Lab, kind: &'static str, name: &'static str, resource: &str) -> Result<Self> {
        let role: Value = lab
            .kubectl(["-n", "kvpn", "get", kind, name, "-o", "json"])
            .run()?
            .success()?
            .json()?;
        let rules = role["rules"].as_array().context("no rules")?;
        let names = |rule: &Value| rule["resources"].to_string().contains(resource);
        let others: Vec<Value> = rules.iter().filter(|rule| !names(rule)).cloned().collect();
        ensure!(others.len() < rules.len(), "{name} has no {resource}");
        let withdrawn = Self {
            lab,
            kind,
            name,
            rules: role["rules"].clone(),
        };
        withdrawn.set(&Value::Array(others))?;
        Ok(withdrawn)
    }

    fn set(&self, rules: &Value) -> Result<()> {
        let patch = serde_json::json!({ "rules": rules }).to_string();
        let command = [
            "-n",
            "kvpn",
            "patch",
            self.kind,
            self.name,
            "--type=merge",
            "-p",
        ];
        self.lab.kubectl(command).args([patch]).ok().map(drop)
    }
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set(&self.rules) {
            eprintln!("{} lacks rules: {error:#}", self.name);
        }
    }
}
