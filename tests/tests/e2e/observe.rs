//! What can be seen of a connection: its flows, the traffic manager's metrics,
//! and what `kvpn doctor` finds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::{Reason, names};
use kvpn_tests::{Background, Lab, wait_for};
use serde_json::Value;

use crate::support::{Developer, bracketed, pod};

const WAIT: Duration = Duration::from_secs(10);

/// Sends a request and keeps the connection.
fn hold(developer: &Developer, host: &str, port: u16) -> Result<Background> {
    let script = format!(
        "exec 3<>/dev/tcp/{host}/{port} && \
         printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3 && \
         read -r answer <&3 && echo \"$answer\" && sleep 60"
    );
    let mut held = developer.laptop.user().spawn(["bash", "-c", &script])?;
    held.wait_for_line("200", WAIT)?;
    Ok(held)
}

/// The open flows for which something holds.
fn flows(developer: &Developer, wanted: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
    let result = developer.kvpn_json(["flows"])?;
    let flows = result["flows"].as_array().context("no flows")?;
    Ok(flows.iter().filter(|flow| wanted(flow)).cloned().collect())
}

#[test]
fn open_flows_are_told_with_names_pods_and_bytes() -> Result<()> {
    let developer = Developer::connected(1)?;
    let web = pod(&developer.lab, "web")?;
    let _by_name = hold(&developer, "web", 80)?;
    for address in &web.addresses {
        let _by_address = hold(&developer, address, 8080)?;
        let cluster = format!("{}:8080", bracketed(address));
        let found = flows(&developer, |flow| flow["cluster"] == *cluster)?;
        let flow = found
            .first()
            .with_context(|| format!("no flow to {cluster}"))?;
        assert_eq!(flow["target"]["kind"], "pod", "{flow}");
        assert_eq!(flow["target"]["name"], *web.name, "{flow}");
        assert_eq!(flow["state"], "open", "{flow}");
        ensure!(flow["bytesSent"].as_u64() > Some(0), "{flow}");
        ensure!(flow["bytesReceived"].as_u64() > Some(0), "{flow}");
        ensure!(flow["rttMicroseconds"].as_u64() > Some(0), "{flow}");
    }
    let named = flows(&developer, |flow| flow["name"] == "web.shop")?;
    let flow = named.first().context("no flow with the name web.shop")?;
    assert_eq!(flow["target"]["kind"], "service", "{flow}");
    assert_eq!(flow["target"]["name"], "web", "{flow}");

    let text = developer.kvpn(["flows"])?.success()?.stdout;
    ensure!(text.contains("web.shop:80"), "{text}");
    let status = developer.kvpn_json(["status"])?;
    ensure!(status["flowsTotal"].as_u64() >= Some(3), "{status}");
    Ok(())
}

#[test]
fn flows_are_watched_on_a_screen_of_their_own() -> Result<()> {
    let developer = Developer::connected(1)?;
    let _held = hold(&developer, "web", 80)?;
    // A terminal, and Ctrl-C after some looks.
    let watch = "timeout --foreground --preserve-status --signal=INT 5 kvpn flows --watch";
    let terminal = ["script", "-qefc", watch, "/dev/null"];
    let output = developer.laptop.user().run(terminal)?;
    assert_eq!(output.code(), 130, "{}", output.stdout);
    let (_, screen) = output
        .stdout
        .split_once("\x1b[?1049h")
        .context("no screen of its own")?;
    let (shown, after) = screen
        .split_once("\x1b[?1049l")
        .context("the screen is not left")?;
    let looks = shown.matches("web.shop:80").count();
    ensure!(looks >= 2, "{looks} looks:\n{shown}");
    ensure!(!after.contains("web.shop"), "{after}");
    Ok(())
}

#[test]
fn flow_that_is_refused_is_told_for_a_while() -> Result<()> {
    let developer = Developer::connected(1)?;
    let address = &pod(&developer.lab, "web")?.addresses[0];
    let output = developer.curl([&format!("http://{address}:81/")])?;
    assert_eq!(output.code(), 7, "{}", output.stderr);
    let cluster = format!("{address}:81");
    let is_it = |flow: &Value| flow["cluster"] == *cluster;
    ensure!(flows(&developer, is_it)?.is_empty(), "it is still open");
    let result = developer.kvpn_json(["flows", "--all"])?;
    let ended = result["flows"].as_array().context("no flows")?;
    let refused = ended.iter().find(|flow| is_it(flow)).context("forgotten")?;
    assert_eq!(refused["reason"], "refused", "{refused}");
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(status["dialsFailed"], 1, "{status}");
    Ok(())
}

#[test]
fn intercepted_connections_are_told_with_their_engagement() -> Result<()> {
    let developer = Developer::connected(1)?;
    let _handler = developer.handler(8080)?;
    let (_, engagement) = developer.intercept("web", "8080")?;
    let client = pod(&developer.lab, "client")?;
    let script = "exec 3<>/dev/tcp/web/80 && printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3 \
                  && read -r answer <&3 && sleep 20";
    let kubectl = developer.lab.kubectl([
        "-n",
        "shop",
        "exec",
        &client.name,
        "--",
        "bash",
        "-c",
        script,
    ]);
    let _held = kubectl.spawn()?;
    let flow = wait_for("the connection is told", WAIT, || {
        let found = flows(&developer, |flow| flow["direction"] == "toLaptop")?;
        Ok(found.into_iter().next())
    })?;
    assert_eq!(flow["engagement"], engagement["name"], "{flow}");
    let web = pod(&developer.lab, "web")?;
    assert_eq!(flow["target"]["name"], *web.name, "{flow}");
    assert_eq!(flow["host"], "127.0.0.1:8080", "{flow}");
    Ok(())
}

/// The status and body of the metrics, read on the node.
fn scrape(lab: &Lab, token: Option<&str>) -> Result<(u16, String)> {
    let pods = [
        "-n",
        "kvpn",
        "get",
        "pods",
        "-o",
        "jsonpath={.items[0].status.podIP}",
    ];
    let address = lab.kubectl(pods).ok()?;
    let url = format!("https://{address}:8443{}", names::METRICS_PATH);
    let bearer = token.map(|token| format!("Authorization: Bearer {token}"));
    let header = bearer.iter().flat_map(|bearer| ["-H", bearer]);
    let curl = ["-sSk", "--max-time", "10", "-w", "\n%{http_code}", &url];
    let output = lab.node("curl", curl.into_iter().chain(header)).ok()?;
    let (body, status) = output.trim_end().rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

#[test]
fn metrics_are_served_to_whoever_has_the_role() -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let _held = hold(&developer, "web", 80)?;
    assert_eq!(scrape(lab, None)?.0, 401);
    assert_eq!(scrape(lab, Some("made-up"))?.0, 401);
    // The API server takes the token off, so the way of the sessions is none.
    let proxied = format!(
        "/api/v1/namespaces/kvpn/services/{}/proxy{}",
        names::manager_proxy_name(),
        names::METRICS_PATH
    );
    let refused = lab.kubectl(["get", "--raw", &proxied]).run()?;
    ensure!(!refused.status.success(), "{}", refused.stdout);

    let account = ["-n", "kvpn", "create", "serviceaccount", "scraper"];
    lab.kubectl(account).ok()?;
    let outcome = (|| {
        let token = lab
            .kubectl(["-n", "kvpn", "create", "token", "scraper"])
            .ok()?;
        let token = token.trim().to_owned();
        // Not `assert`: what was made must be removed in any case.
        let (status, text) = scrape(lab, Some(&token))?;
        ensure!(status == 403, "{status}: {text}");
        let bind = [
            "create",
            "clusterrolebinding",
            "scraper",
            "--clusterrole=kvpn-metrics-reader",
            "--serviceaccount=kvpn:scraper",
        ];
        lab.kubectl(bind).ok()?;
        // A verdict holds for some seconds.
        wait_for("the scraper is let in", Duration::from_secs(30), || {
            let (status, text) = scrape(lab, Some(&token))?;
            Ok((status == 200).then_some(text))
        })
    })();
    lab.kubectl([
        "delete",
        "clusterrolebinding",
        "scraper",
        "--ignore-not-found",
    ])
    .ok()?;
    lab.kubectl(["-n", "kvpn", "delete", "serviceaccount", "scraper"])
        .ok()?;
    let text = outcome?;
    for line in [
        "kvpn_sessions{state=\"present\"} 1",
        "kvpn_flows_open{protocol=\"tcp\",from=\"laptop\"} ",
        "kvpn_transferred_bytes_total{protocol=\"tcp\",from=\"laptop\",to=\"cluster\"} ",
    ] {
        ensure!(text.contains(line), "{line} is not in:\n{text}");
    }
    ensure!(text.trim_end().ends_with("# EOF"), "{text}");
    Ok(())
}

/// The checks by name.
fn check<'a>(findings: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = findings["checks"].as_array().context("no checks")?;
    let found = checks.iter().find(|check| check["name"] == name);
    found.with_context(|| format!("{name} is not among {findings}"))
}

#[test]
fn doctor_finds_the_lab_well() -> Result<()> {
    let developer = Developer::at(1)?;
    // One that was killed just now is kept for a while.
    let sessions = || {
        let get = ["-n", "kvpn", "get", "sessions.kvpn.dev", "-o", "name"];
        let names = developer.lab.kubectl(get).ok()?;
        let names = names.lines().map(str::to_owned);
        anyhow::Ok(names.collect::<Vec<_>>())
    };
    let known = sessions()?;
    let before = developer.kvpn(["doctor", "-n", "shop"])?;
    assert_eq!(before.code(), 0, "{}", before.stdout);
    ensure!(!before.stdout.contains("failure"), "{}", before.stdout);
    for name in sessions()? {
        ensure!(known.contains(&name), "{name} is left");
    }

    developer.connect()?;
    let findings = developer.kvpn_json(["doctor"])?;
    assert_eq!(findings["ok"], true, "{findings}");
    for name in [
        "Root daemon",
        "API server",
        "Chart",
        "Cluster names",
        "Tunnel",
        "Routes",
    ] {
        assert_eq!(check(&findings, name)?["outcome"], "ok", "{findings}");
    }
    Ok(())
}

#[test]
fn doctor_tells_a_root_daemon_that_does_not_run() -> Result<()> {
    let mut developer = Developer::at(2)?;
    developer.lab.stop_daemon(2)?;
    let output = developer.kvpn(["doctor", "-o", "json"]);
    developer.lab.start_daemon(2)?;
    let output = output?;
    let code = i32::from(Reason::DaemonNotRunning.exit_code());
    assert_eq!(output.code(), code, "{}", output.stdout);
    let findings: Value = output.json()?;
    let found = check(&findings, "Root daemon")?;
    ensure!(found["nextStep"].to_string().contains("kvpnd"), "{found}");
    assert_eq!(check(&findings, "API server")?["outcome"], "ok");
    Ok(())
}

#[test]
fn doctor_tells_a_traffic_manager_that_is_gone() -> Result<()> {
    let developer = Developer::at(2)?;
    let scale = |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        let deployment = "deployment/traffic-manager";
        let scale = ["-n", "kvpn", "scale", deployment, &replicas];
        developer.lab.kubectl(scale).ok()?;
        let status = ["-n", "kvpn", "rollout", "status", deployment];
        developer.lab.kubectl(status).ok()
    };
    scale("0")?;
    let gone = wait_for("the pod is gone", Duration::from_secs(30), || {
        let pods = ["-n", "kvpn", "get", "pods", "-o", "name"];
        Ok(developer.lab.kubectl(pods).ok()?.is_empty().then_some(()))
    });
    let output = gone.and_then(|()| developer.kvpn(["doctor"]));
    scale("1")?;
    let output = output?;
    let code = i32::from(Reason::ManagerUnreachable.exit_code());
    assert_eq!(output.code(), code, "{}", output.stdout);
    ensure!(output.stdout.contains("no ready pod"), "{}", output.stdout);
    ensure!(output.stdout.contains("hint: "), "{}", output.stdout);
    Ok(())
}
