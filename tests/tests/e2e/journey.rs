//! The whole way: connect, reach, intercept, leave, quit, and no trace left.

use anyhow::{Result, ensure};

use crate::support::{Developer, SHOP, bracketed, cluster_ips, get_from_pod, pod};

#[test]
fn journey_ends_with_the_laptop_and_the_pod_as_they_were() -> Result<()> {
    let developer = Developer::at(1)?;
    let lab = &developer.lab;
    let before = developer.laptop.host_state()?;
    let web = pod(lab, "web")?;
    let services = cluster_ips(lab, "web")?;
    ensure!(
        services.len() == 2 && web.addresses.len() == 2,
        "the lab is not dual-stack"
    );
    for address in services
        .iter()
        .map(|ip| bracketed(ip))
        .chain(web_ports(&web.addresses))
    {
        developer.cannot_reach(&address)?;
    }

    let took = developer.connect()?;
    eprintln!("connect: {} ms", took.as_millis());

    // By name, in every form, over both families; then by address.
    for host in [
        "web",
        "web.shop",
        "web.shop.svc",
        "web.shop.svc.cluster.local",
    ] {
        for family in ["-4", "-6"] {
            let answer = developer.get([family, &format!("http://{host}/{host}")])?;
            assert_eq!(
                (answer.service.as_str(), &answer.pod),
                ("web", &web.name),
                "{host}"
            );
        }
    }
    for url in web.urls(8080) {
        assert_eq!(developer.get([&url])?.pod, web.name, "{url}");
    }

    let mut handler = developer.handler(8080)?;
    let (took, result) = developer.intercept("web", "8080")?;
    eprintln!("intercept, no agent before: {} ms", took.as_millis());
    assert_eq!(result["podsCovered"], 1);
    let mut urls = vec!["http://web.shop/from-a-pod".to_owned()];
    urls.extend(
        services
            .iter()
            .map(|ip| format!("http://{}/", bracketed(ip))),
    );
    urls.extend(web.urls(8080));
    for (url, answer) in urls.iter().zip(get_from_pod(lab, &urls)?) {
        ensure!(answer.is_from_laptop(), "{url} answered by {answer:?}");
    }
    handler.wait_for_line("GET /from-a-pod", std::time::Duration::from_secs(5))?;
    let engaged = lab
        .kubectl(["-n", SHOP, "get", "engagements"])
        .run()?
        .success()?;
    ensure!(engaged.stdout.contains("alice"), "{}", engaged.stdout);

    developer.kvpn(["leave", "web"])?.success()?;
    for (url, answer) in urls.iter().zip(get_from_pod(lab, &urls)?) {
        assert_eq!(answer.pod, web.name, "{url}");
    }
    let after = pod(lab, "web")?;
    assert_eq!((&after.uid, after.restarts), (&web.uid, 0));

    developer.kvpn(["quit"])?.success()?;
    let differences = before.differences(&developer.laptop.host_state()?);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    for address in services
        .iter()
        .map(|ip| bracketed(ip))
        .chain(web_ports(&web.addresses))
    {
        developer.cannot_reach(&address)?;
    }
    Ok(())
}

#[test]
fn names_of_the_laptops_own_network_resolve_while_connected() -> Result<()> {
    let developer = Developer::at(1)?;
    let lookup = ["getent", "ahosts", "printer.office.example"];
    let before = developer.laptop.user().run(lookup)?.success()?;
    developer.connect()?;
    let during = developer.laptop.user().run(lookup)?.success()?;
    assert_eq!(before.stdout, during.stdout);
    // As a search domain completes it.
    developer
        .laptop
        .user()
        .run(["getent", "ahosts", "printer"])?
        .success()?;
    let absent = developer
        .laptop
        .user()
        .run(["getent", "ahosts", "no-such.shop.svc"])?;
    ensure!(!absent.status.success(), "{}", absent.stdout);
    Ok(())
}

#[test]
fn command_after_connect_runs_connected_and_ends_the_connection() -> Result<()> {
    let developer = Developer::at(1)?;
    let before = developer.laptop.host_state()?;
    let script = "curl -sS http://web/ && exit 7";
    let output = developer.kvpn(["connect", "-n", SHOP, "--", "sh", "-c", script])?;
    assert_eq!(output.code(), 7, "{}{}", output.stdout, output.stderr);
    ensure!(
        output.stdout.contains(r#""service":"web""#),
        "{}",
        output.stdout
    );
    let differences = before.differences(&developer.laptop.host_state()?);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[test]
fn two_laptops_connect_and_the_second_is_told_who_has_the_port() -> Result<()> {
    let alice = Developer::connected(1)?;
    let bob = Developer::connected(2)?;
    let _handler = alice.handler(8080)?;
    alice.intercept("web", "8080")?;

    let refused = bob.kvpn(["intercept", "web", "--port", "8080"])?;
    assert_eq!(refused.code(), 35, "{}", refused.stderr);
    ensure!(refused.stderr.contains("alice"), "{}", refused.stderr);

    // Neither may end what the other has.
    let delete = ["-n", SHOP, "delete", "engagements", "--all"];
    let deleted = alice.lab.kubectl_as("bob", delete).run()?;
    ensure!(
        !deleted.status.success(),
        "bob ended what alice has: {}",
        deleted.stdout
    );
    let status = alice.kvpn_json(["status"])?;
    assert_eq!(status["engagements"][0]["active"], true, "{status}");
    let listed = bob.kvpn(["list"])?.success()?;
    ensure!(listed.stdout.contains("alice"), "{}", listed.stdout);
    Ok(())
}

fn web_ports(addresses: &[String]) -> impl Iterator<Item = String> {
    addresses.iter().map(|ip| format!("{}:8080", bracketed(ip)))
}
