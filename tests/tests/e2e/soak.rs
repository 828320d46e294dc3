//! Much at once, and for a while: nothing is lost, left open, or kept in memory.

use std::time::Duration;

use anyhow::Result;
use kvpn_tests::soak;

use crate::support::Developer;

/// Runs `kvpn-load`, and tells what it counted.
fn load(developer: &Developer, args: &[&str]) -> Result<serde_json::Value> {
    let command = ["kvpn-load"].iter().chain(args);
    let load = developer.laptop.user().cmd(command);
    let counted: serde_json::Value = load
        .deadline(Duration::from_secs(120))
        .run()?
        .success()?
        .json()?;
    eprintln!("{}: {counted}", args.join(" "));
    Ok(counted)
}

#[test]
fn thirteen_bodies_of_20_mib_come_back_whole_at_once() -> Result<()> {
    let developer = Developer::connected(1)?;
    load(&developer, &["echo", "web.shop:80"])?;
    Ok(())
}

#[test]
fn mixture_of_flows_leaves_nothing_open_and_nothing_in_memory() -> Result<()> {
    let developer = Developer::connected(1)?;
    soak::run(&developer.lab, &developer.laptop, Duration::from_secs(10))?;
    Ok(())
}

#[test]
fn silent_connection_works_afterwards() -> Result<()> {
    let developer = Developer::connected(1)?;
    load(&developer, &["idle", "web.shop:80", "--seconds", "15"])?;
    Ok(())
}

#[test]
fn ports_that_are_used_again_at_once_lose_no_connection() -> Result<()> {
    let developer = Developer::connected(1)?;
    load(&developer, &["connects", "web.shop:80", "--count", "5000"])?;
    Ok(())
}

#[test]
fn servers_that_never_read_hold_up_only_their_own_flows() -> Result<()> {
    let developer = Developer::connected(1)?;
    let counted = load(&developer, &["stall", "web.shop:80", "--flows", "16"])?;
    let time = |when: &str, which: &str| counted[when][which].as_u64().unwrap_or(u64::MAX);
    let (before, beside) = (time("before", "p50_us"), time("beside", "p50_us"));
    // Half as much again, and what other work on the machine may cost.
    assert!(
        beside <= before + before / 2 + 500,
        "first byte after {before} µs before, {beside} µs beside"
    );
    Ok(())
}
