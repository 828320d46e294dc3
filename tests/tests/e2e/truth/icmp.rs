//! Pings, and what routers say.

use anyhow::{Result, ensure};

use crate::support::{Developer, cluster_ips, pod};

/// Pings from the laptop; gives what ping says and whether it was answered.
fn ping<const N: usize>(developer: &Developer, args: [&str; N]) -> Result<(String, bool)> {
    let command = ["ping", "-n", "-W", "3"];
    let output = developer
        .laptop
        .root()
        .run(command.iter().chain(args.iter()))?;
    let text = output.stdout + &output.stderr;
    let answered = text.contains("bytes from");
    ensure!(answered == output.status.success(), "{text}");
    Ok((text, answered))
}

#[test]
fn pods_answer_pings_by_name_and_address() -> Result<()> {
    let developer = Developer::connected(1)?;
    for family in ["-4", "-6"] {
        let (text, answered) = ping(
            &developer,
            [family, "-c", "3", "-i", "0.2", "store-0.store"],
        )?;
        ensure!(answered && text.contains(" 0% packet loss"), "{text}");
    }
    for address in pod(&developer.lab, "web")?.addresses {
        // Of the largest size, and more than fits one packet of a wire.
        for size in ["0", "1472", "9000", "60000"] {
            let (text, answered) = ping(&developer, ["-c", "1", "-s", size, &address])?;
            ensure!(answered, "{text}");
        }
    }
    Ok(())
}

#[test]
fn nobody_answers_pings_of_an_address_that_is_nobodys() -> Result<()> {
    let developer = Developer::connected(1)?;
    for address in ["10.244.0.250", "fd00:244::fa"] {
        let (text, answered) = ping(&developer, ["-c", "1", address])?;
        ensure!(!answered, "{text}");
        // The node, which finds nobody, says so after three seconds.
        let (text, answered) = ping(&developer, ["-c", "5", "-W", "5", address])?;
        ensure!(!answered && text.contains("nreachable"), "{text}");
    }
    Ok(())
}

#[test]
fn service_answers_pings_as_it_does_in_the_cluster() -> Result<()> {
    let developer = Developer::connected(1)?;
    let service = &cluster_ips(&developer.lab, "web")?[0];
    let (text, answered) = ping(&developer, ["-c", "1", service])?;
    ensure!(!answered, "{text}");
    Ok(())
}

#[test]
fn tunnel_is_the_only_hop_before_a_pod() -> Result<()> {
    let developer = Developer::connected(1)?;
    let addresses = pod(&developer.lab, "web")?.addresses;
    for (address, hop) in addresses.iter().zip(["198.18.0.2", "fd6b:7670:6e::2"]) {
        let (text, answered) = ping(&developer, ["-c", "1", "-t", "1", address])?;
        ensure!(!answered, "{text}");
        ensure!(text.contains(&format!("From {hop} ")), "{text}");
        ensure!(text.contains("ime"), "{text}");
        let (text, answered) = ping(&developer, ["-c", "1", "-t", "2", address])?;
        ensure!(answered, "{text}");
    }
    Ok(())
}
