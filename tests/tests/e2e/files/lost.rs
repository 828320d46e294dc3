//! Files whose pod, reader or session is lost while a program has them open.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::wait_for;

use super::SOON;
use super::shop::{NAMESPACE, Shop, directory, script};
use crate::kills::kill_processes;
use crate::support::Developer;

/// How long a program waits for a file at most, and what a slow machine adds, in
/// milliseconds.
const LONGEST: u64 = 25_000;

/// Reads and writes by one descriptor, and tells how long each took and what came of it.
const KEEP: &str = r#"exec 3<>"$1"; echo "behind what others write" >&3
    took() { echo "$1 took $(( (${EPOCHREALTIME/./} - began) / 1000 )) gave $2"; }
    while :; do
        began=${EPOCHREALTIME/./}; dd bs=4k count=1 status=none <&3 >/dev/null; took read $?
        began=${EPOCHREALTIME/./}; echo x | dd status=none conv=fsync >&3; took write $?
        sleep 0.1
    done"#;

#[test]
fn open_file_of_a_replaced_pod_keeps_nobody_waiting() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let at = directory(&developer)?;
    let mount = ["intercept", "web", "--port", "8080", "--mount", &at];
    developer.kvpn(mount)?.success()?;
    let file = format!("{at}/data/open");
    let user = developer.laptop.user();
    let mut keeper = user.spawn(["bash", "-c", KEEP, "keep", &file])?;
    keeper.wait_for_line("write took", SOON)?;
    let gave = |printed: &str, what: &str, code: &str| {
        let ending = format!("gave {code}");
        let lines = printed.lines();
        lines
            .filter(|line| line.starts_with(what) && line.ends_with(&ending))
            .count()
    };
    ensure!(
        gave(&keeper.printed(), "write", "0") > 0,
        "{}",
        keeper.printed()
    );

    let old = shop.pod()?;
    shop.kubectl(&["delete", "pod", "--wait=false", &old])
        .ok()?;
    // The next pod has no file of that name.
    wait_for("a write that fails", SOON, || {
        let failed = gave(&keeper.printed(), "write", "1");
        Ok((failed > 0).then_some(()))
    })?;
    wait_for("another pod's files", SOON, || {
        let read = script(&developer, &format!("ls {at}/data; cat {at}/etc/web/mode"))?;
        Ok((read.stdout == "fast").then_some(()))
    })?;
    script(&developer, &format!("echo new > {file}"))?.success()?;
    ensure!(shop.in_pod("cat /data/open")?.starts_with("new\n"));
    let before = keeper.printed().lines().count();
    wait_for("whoever has it open goes on", SOON, || {
        Ok((keeper.printed().lines().count() > before + 4).then_some(()))
    })?;
    let printed = keeper.printed();
    for line in printed.lines().filter(|line| line.contains(" took ")) {
        let took = line.split(' ').nth(2).context(line.to_owned())?;
        ensure!(took.parse::<u64>()? <= LONGEST, "{printed}");
    }
    Ok(())
}

/// How many MiB are read.
const SIZE: usize = 128;

#[test]
fn long_read_goes_on_with_the_next_reader() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let at = directory(&developer)?;
    let make = format!("dd if=/dev/urandom of=/data/large bs=1M count={SIZE} status=none");
    let there = shop.in_pod(&format!("{make}; md5sum < /data/large"))?;
    developer
        .kvpn(["ingest", "web", "--mount", &at])?
        .success()?;
    // Slow enough to be killed within.
    let read = format!(
        "for ((n = 1; n <= {SIZE}; n++)); do
            dd bs=1M count=1 iflag=fullblock status=none || exit; echo read $n >&2; sleep 0.01
        done < {at}/data/large | md5sum"
    );
    let mut reading = developer.laptop.user().spawn(["bash", "-c", &read])?;
    reading.wait_for_line("read 8", SOON)?;
    kill_processes(&developer, &["-f", "^/sidecar-agent read"])?;
    let last = format!("read {SIZE}\n");
    let so_far = reading.printed();
    ensure!(!so_far.contains(&last), "read all before: {so_far}");
    reading.wait(SOON)?;
    reading.wait_for_line(last.trim(), Duration::from_secs(1))?;
    reading.wait_for_line(there.trim(), Duration::from_secs(1))?;
    Ok(())
}

/// Appends records, and tells of each that is on a disk.
const RECORD: &str = r#"exec 3>>"$1"
    for ((n = 1; ; n++)); do
        echo "record $n" | dd status=none conv=fsync >&3 || { echo failed; exit 1; }
        echo "synced $n"
    done"#;

#[test]
fn killed_session_loses_nothing_that_was_synced() -> Result<()> {
    let developer = Developer::at(1)?;
    let before = developer.laptop.host_state()?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let at = directory(&developer)?;
    let mount = ["intercept", "web", "--port", "8080", "--mount", &at];
    developer.kvpn(mount)?.success()?;
    let log = format!("{at}/data/log");
    let user = developer.laptop.user();
    let mut writer = user.spawn(["bash", "-c", RECORD, "record", &log])?;
    writer.wait_for_line("synced 20", SOON)?;

    kill_processes(&developer, &["-u", "6001", "-f", "kvpnd session"])?;

    writer.wait_for_line("failed", Duration::from_millis(LONGEST))?;
    let printed = writer.printed();
    let mut synced = printed
        .lines()
        .filter_map(|line| line.strip_prefix("synced "));
    let synced: usize = synced.next_back().context(printed.clone())?.parse()?;
    let expected: String = (1..=synced).map(|n| format!("record {n}\n")).collect();
    let there = shop.in_pod("cat /data/log")?;
    ensure!(there.starts_with(&expected), "{synced} synced: {there}");
    developer.is_as_before(&before)?;
    let left = script(&developer, &format!("ls -A {at} && rmdir {at}"))?.success()?;
    assert_eq!(left.stdout, "");
    Ok(())
}
