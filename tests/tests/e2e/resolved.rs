//! Laptops with systemd-resolved: the lab's own part of it, and what kvpn makes of one
//! that ends or hangs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kvpn_tests::lab::laptop::{Laptop, Resolved};
use kvpn_tests::lab::wire::{OFFICE_DOMAIN, OFFICE_PRINTER};
use kvpn_tests::{Lab, wait_for};

use crate::support::{Developer, pod};

/// How long a command may take while systemd-resolved hangs.
const HANGS: Duration = Duration::from_secs(20);

/// Lists what is in a laptop's own directories.
const LISTING: [&str; 3] = ["find", "/run", "-xdev"];

#[test]
fn resolved_answers_office_names_and_leaves_the_laptop_as_it_was() {
    let lab = Lab::attach().unwrap();
    let laptop = lab.laptop(1).unwrap();
    let before = laptop.host_state().unwrap();
    let listing = run(&laptop, &LISTING);

    let resolved = laptop.with_resolved().unwrap();
    let during = laptop.host_state().unwrap();
    assert_eq!(
        run(&laptop, &["resolvectl", "domain", "eth0"]),
        "Link 2 (eth0): office.example"
    );
    office_answers(&laptop);
    resolved.restart().unwrap();
    office_answers(&laptop);
    let differences = during.differences(&laptop.host_state().unwrap());
    assert!(differences.is_empty(), "{}", differences.join("\n"));

    resolved.stop().unwrap();
    assert_eq!(laptop.host_state().unwrap(), before);
    assert_eq!(run(&laptop, &LISTING), listing);
}

#[test]
fn root_configures_links_over_the_bus_and_users_do_not() {
    let lab = Lab::attach().unwrap();
    let laptop = lab.laptop(1).unwrap();
    let _resolved = laptop.with_resolved().unwrap();
    let before = laptop.host_state().unwrap();
    run(&laptop, &["ip", "link", "add", "other", "type", "bridge"]);

    let settings = [
        ["dns", "other", "192.0.2.1"],
        ["domain", "other", "~cluster.local"],
        ["default-route", "other", "no"],
        ["dnssec", "other", "no"],
    ];
    for setting in &settings {
        let command = ["resolvectl"].iter().chain(setting);
        let refused = laptop.user().run(command.clone()).unwrap();
        assert!(refused.stderr.contains("Access denied"), "{refused:?}");
        laptop.root().run(command).unwrap().success().unwrap();
    }
    let domain = run(&laptop, &["resolvectl", "domain", "other"]);
    assert!(domain.ends_with(": ~cluster.local"), "{domain}");
    run(&laptop, &["resolvectl", "flush-caches"]);
    run(&laptop, &["resolvectl", "revert", "other"]);
    let domain = run(&laptop, &["resolvectl", "domain", "other"]);
    assert!(domain.ends_with(':'), "{domain}");

    run(&laptop, &["ip", "link", "delete", "other"]);
    wait_for("the link is forgotten", Duration::from_secs(5), || {
        let differences = before.differences(&laptop.host_state()?);
        anyhow::ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn names_outlive_the_end_of_resolved() -> Result<()> {
    let developer = Developer::at(1)?;
    let resolved = developer.laptop.with_resolved()?;
    let before = developer.laptop.host_state()?;
    developer.connect()?;
    let web = pod(&developer.lab, "web")?.name;
    for end in [Resolved::restart, Resolved::crash] {
        end(&resolved)?;
        assert_eq!(developer.get(["http://web/"])?.pod, web);
        assert_eq!(developer.get(["http://web.shop/"])?.pod, web);
        office_answers(&developer.laptop);
    }
    developer.kvpn(["quit"])?.success()?;
    developer.is_as_before(&before)
}

#[test]
fn resolved_that_hangs_keeps_nobody() -> Result<()> {
    let developer = Developer::at(1)?;
    let resolved = developer.laptop.with_resolved()?;
    let before = developer.laptop.host_state()?;
    developer.connect()?;
    resolved.hang()?;
    let start = Instant::now();
    let quit = developer.kvpn(["quit"]);
    resolved.go_on()?;
    quit?.success()?;
    ensure!(start.elapsed() < HANGS, "it took {:?}", start.elapsed());
    developer.is_as_before(&before)?;

    // A connection cannot be had while nobody looks up names.
    resolved.hang()?;
    let start = Instant::now();
    let connected = developer.kvpn(["connect"]);
    resolved.go_on()?;
    let connected = connected?;
    assert_eq!(connected.code(), 11, "{}", connected.stderr);
    let told = "systemd-resolved does not answer; restart it";
    ensure!(connected.stderr.contains(told), "{}", connected.stderr);
    ensure!(start.elapsed() < HANGS, "it took {:?}", start.elapsed());
    developer.kvpn(["quit"])?.success()?;
    developer.is_as_before(&before)
}

/// The office's printer has its address, whoever asks 127.0.0.53 and how.
fn office_answers(laptop: &Laptop) {
    let (name, address) = OFFICE_PRINTER;
    let short = name.strip_suffix(&format!(".{OFFICE_DOMAIN}")).unwrap();
    for name in [name, short] {
        let found = run(laptop, &["getent", "ahostsv4", name]);
        assert!(found.starts_with(address), "{found}");
        for program in ["goresolve", "muslresolve"] {
            let found = run(laptop, &[program, name]);
            assert_eq!(found, format!("{name} {address}"), "{program}");
        }
    }
    let nothing = run(laptop, &["dig", &format!("nothing.{OFFICE_DOMAIN}")]);
    assert!(nothing.contains("status: NXDOMAIN"), "{nothing}");
    for transport in ["+notcp", "+tcp"] {
        let found = run(laptop, &["dig", transport, name]);
        assert!(found.contains(&format!("IN\tA\t{address}")), "{found}");
        assert!(found.contains("SERVER: 127.0.0.53#53"), "{found}");
    }
}

/// Runs a program as root, which must succeed; gives what it printed.
fn run(laptop: &Laptop, command: &[&str]) -> String {
    let output = laptop.root().run(command).unwrap().success().unwrap();
    output.stdout.trim().to_owned()
}
