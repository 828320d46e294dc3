//! `kvpn why`: one short story of how something is reached, and where it stops.

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::wire::OFFICE_PRINTER;

use crate::support::{Developer, SHOP, cluster_ips};

#[test]
fn story_goes_from_the_name_to_the_far_side() -> Result<()> {
    let developer = Developer::connected(1)?;
    let service = cluster_ips(&developer.lab, "web")?.remove(0);
    let told = told(&developer, "web.shop:80")?;
    for part in [
        "web.shop is asked of the cluster of context ",
        " as web.shop.svc.cluster.local, because shop is one of its namespaces.",
        &format!("{service} goes by kvpn0 through the tunnel to context "),
        "In the cluster it is the service shop/web.",
        &format!("{service} accepts connections to port 80, after "),
    ] {
        ensure!(told.contains(part), "no {part:?} in:\n{told}");
    }
    let story = developer.kvpn_json(["why", "web:80"])?;
    assert_eq!(story["reached"], true, "{story}");
    let steps = story["steps"].as_array().context("steps")?;
    ensure!(
        steps[0]["text"]
            .to_string()
            .contains("shop.svc.cluster.local completes it"),
        "{story}"
    );
    Ok(())
}

#[test]
fn story_ends_where_it_stops() -> Result<()> {
    let developer = Developer::connected(1)?;
    let pod = crate::support::pod(&developer.lab, "web")?
        .addresses
        .remove(0);
    let closed = developer.kvpn_json(["why", &format!("{pod}:81")])?;
    assert_eq!(closed["reached"], false, "{closed}");
    for (target, end) in [
        (format!("{pod}:81"), "refuses connections to port 81"),
        (
            "no-such.shop".into(),
            "The cluster has no no-such.shop.svc.cluster.local (NXDOMAIN)",
        ),
        ("wpad.shop".into(), "Nobody is asked for wpad.shop"),
    ] {
        let told = told(&developer, &target)?;
        let last = told.lines().last().unwrap_or_default();
        ensure!(last.contains(end), "{target}:\n{told}");
    }
    // A route of the laptop's that closes the way.
    let root = developer.laptop.root();
    root.run(["ip", "route", "add", "blackhole", &pod])?
        .success()?;
    let told = told(&developer, &pod);
    root.run(["ip", "route", "del", "blackhole", &pod])?
        .success()?;
    let told = told?;
    for part in ["goes nowhere", "blackhole", "--never-proxy"] {
        ensure!(told.contains(part), "no {part:?} in:\n{told}");
    }
    Ok(())
}

#[test]
fn names_and_addresses_of_others_are_told_as_theirs() -> Result<()> {
    let developer = Developer::connected(1)?;
    let (printer, address) = OFFICE_PRINTER;
    for part in [
        "is asked of this laptop's own name servers, because nothing says that it is the cluster's",
        &format!("{address} goes by eth0"),
    ] {
        let told = told(&developer, printer)?;
        ensure!(told.contains(part), "no {part:?} in:\n{told}");
    }
    developer.kvpn(["quit"])?.success()?;
    let told = told(&developer, &format!("web.{SHOP}"))?;
    ensure!(told.contains("it is not connected"), "{told}");
    let refused = developer.kvpn(["why", "web:0"])?;
    assert_eq!(refused.code(), 2, "{}", refused.stderr);
    Ok(())
}

fn told(developer: &Developer, target: &str) -> Result<String> {
    Ok(developer.kvpn(["why", target])?.success()?.stdout)
}
