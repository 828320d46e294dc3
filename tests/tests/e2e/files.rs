//! The files of a pod's container on the laptop: those that it has mounted and no others, as
//! they are at the moment, and for nobody else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::wait_for;

use self::shop::{NAMESPACE, Shop, directory, script};
use crate::errors::assert_fails;
use crate::kills::kill_processes;
use crate::support::Developer;

mod closed;
mod copies;
mod lost;
mod posix;
mod shop;

/// How long the cluster may take for a change.
const SOON: Duration = Duration::from_secs(30);

/// All names and what is to be seen of them, but for times and the numbers of inodes.
const TREE: &str = r#"find . -mindepth 1 \( -type d -name kubernetes.io -prune \) -o -mindepth 1 \
    -printf '%P %y %m %U %G %l ' \( -type f -exec md5sum {} \; -o -printf '\n' \) | sort"#;

#[test]
fn files_are_those_of_the_container_and_no_others() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    shop.in_pod("umask 027; mkdir /data/dir; echo 1 > /data/dir/file; ln -s dir/file /data/link")?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let at = directory(&developer)?;

    let full = developer.kvpn(["ingest", "web", "--mount", "/etc"])?;
    assert_fails(
        &full,
        Reason::Usage,
        &["cannot be mounted at /etc", "not empty"],
    )?;
    let ingested = developer
        .kvpn(["ingest", "web", "--mount", &at])?
        .success()?;
    let told = format!("  files at {at}, read-only\n");
    ensure!(ingested.stdout.contains(&told), "{}", ingested.stdout);
    let top = script(&developer, &format!("ls {at} {at}/etc"))?.success()?;
    let expected = format!("{at}:\ndata\netc\nhost\nvar\n\n{at}/etc:\none\nsecret\nweb\n");
    assert_eq!(top.stdout, expected);
    for volume in ["data", "etc/web", "etc/secret"] {
        let here = script(&developer, &format!("cd {at}/{volume} && {TREE}"))?.success()?;
        let there = shop.in_pod(&format!("cd /{volume} && {TREE}"))?;
        assert_eq!(here.stdout, there, "{volume}");
        ensure!(here.stdout.lines().count() > 2, "{}", here.stdout);
    }
    let token = "var/run/secrets/kubernetes.io/serviceaccount/token";
    let tokens = script(&developer, &format!("cat {at}/{token}"))?
        .success()?
        .stdout;
    assert_eq!(tokens, shop.in_pod(&format!("cat /{token}"))?);
    assert_eq!(
        script(&developer, &format!("cat {at}/etc/one"))?
            .success()?
            .stdout,
        "fast"
    );
    let refused = script(&developer, &format!("touch {at}/data/new"))?;
    ensure!(
        refused.stderr.contains("Read-only file system"),
        "{}",
        refused.stderr
    );
    // Root is another user.
    let root = developer.laptop.root().run(["ls", &at])?;
    ensure!(!root.status.success(), "another user sees {}", root.stdout);

    // It is followed, as the app would see it.
    let patch = r#"{"data": {"mode": "slow", "new": "1"}}"#;
    shop.kubectl(&["patch", "configmap", "web", "-p", patch])
        .ok()?;
    let patch = r#"{"stringData": {"password": "hunter3"}}"#;
    shop.kubectl(&["patch", "secret", "web", "-p", patch])
        .ok()?;
    wait_for(
        "the new ConfigMap and the new Secret are to be seen",
        Duration::from_secs(90),
        || {
            // The kubelet looks at a pod that has changed.
            let annotation = format!("looked-at={:?}", std::time::SystemTime::now());
            let annotation = annotation.replace([' ', '{', '}', ':', ','], "");
            let annotate = [
                "annotate",
                "--overwrite",
                "pod",
                "-l",
                "app=web",
                &annotation,
            ];
            shop.kubectl(&annotate).ok()?;
            let seen = script(
                &developer,
                &format!("cd {at}/etc && cat web/mode web/new secret/password"),
            )?;
            Ok((seen.stdout == "slow1hunter3").then_some(()))
        },
    )?;

    developer.kvpn(["leave", "web"])?.success()?;
    let left = script(&developer, &format!("ls -A {at} && rmdir {at}"))?.success()?;
    assert_eq!(left.stdout, "");
    Ok(())
}

#[test]
fn command_changes_files_where_the_app_would() -> Result<()> {
    let developer = Developer::at(1)?;
    let before = developer.laptop.host_state()?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let engaged = r#"kvpn intercept web --port 8080 -- bash -c '
        set -e; umask 027; test "$KVPN_ROOT" = "$TELEPRESENCE_ROOT"; cd "$KVPN_ROOT"
        cat etc/web/mode; echo mine > data/file; mkdir data/dir; mv data/file data/dir/moved
        (echo no > etc/secret/password) 2>&1 | grep -o "Read-only file system"; pwd; exit 3'"#;
    let ran = script(&developer, engaged)?;
    assert_eq!(ran.code(), 3, "{}{}", ran.stdout, ran.stderr);
    let root = ran.stdout.strip_prefix("fastRead-only file system\n");
    let root = root.context(ran.stdout.clone())?.trim_end();
    ensure!(
        ran.stderr.contains(&format!("files at {root}\n")),
        "{}",
        ran.stderr
    );
    let there = shop.in_pod("stat -c '%n %a %u %g' /data/dir /data/dir/*; cat /data/dir/moved")?;
    let expected = "/data/dir 2750 1000 2000\n/data/dir/moved 640 1000 2000\nmine\n";
    assert_eq!(there, expected);
    let gone = script(&developer, &format!("ls {root}"))?;
    ensure!(
        gone.stderr.contains("No such file"),
        "{}{}",
        gone.stdout,
        gone.stderr
    );

    // All of the file system, and none at all.
    let whole = r#"kvpn ingest web --root-fs -- bash -c 'ls "$KVPN_ROOT/usr/bin/bash" && cat "$KVPN_ROOT/data/dir/moved"'"#;
    let whole = script(&developer, whole)?.success()?;
    ensure!(
        whole.stdout.ends_with("/usr/bin/bash\nmine\n"),
        "{}",
        whole.stdout
    );
    let none = "kvpn ingest web --mount=false -- bash -c 'echo \"<$KVPN_ROOT>\"'";
    assert_eq!(script(&developer, none)?.success()?.stdout, "<>\n");

    // What is still mounted goes with the connection, which leaves nothing in the cluster.
    let ingested = developer.kvpn_json(["ingest", "web", "--mount=true"])?;
    let at = ingested["mountedAt"].as_str().context("nowhere mounted")?;
    script(&developer, &format!("ls {at}/data/dir"))?.success()?;
    developer.kvpn(["quit"])?.success()?;
    let gone = script(&developer, &format!("ls {at}"))?;
    ensure!(gone.stderr.contains("No such file"), "{}", gone.stderr);
    let get = ["get", "sessions,engagements", "-A", "-o", "name"];
    assert_eq!(developer.lab.kubectl(get).ok()?, "");
    developer.is_as_before(&before)
}

#[test]
fn files_come_back_with_the_next_pod_and_end_with_the_session() -> Result<()> {
    let developer = Developer::at(1)?;
    let before = developer.laptop.host_state()?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let at = directory(&developer)?;
    let mount = ["intercept", "web", "--port", "8080", "--mount", &at];
    developer.kvpn(mount)?.success()?;
    script(&developer, &format!("echo old > {at}/data/file"))?.success()?;
    let old = shop.pod()?;
    shop.kubectl(&["delete", "pod", "--wait=false", &old])
        .ok()?;
    wait_for("another pod's files", SOON, || {
        let read = script(&developer, &format!("ls {at}/data; cat {at}/etc/web/mode"))?;
        Ok((read.stdout == "fast").then_some(()))
    })?;
    script(&developer, &format!("echo new > {at}/data/file"))?.success()?;
    assert_eq!(shop.in_pod("cat /data/file")?, "new\n");

    kill_processes(&developer, &["-u", "6001", "-f", "kvpnd session"])?;
    developer.is_as_before(&before)?;
    let left = script(&developer, &format!("ls -A {at} && rmdir {at}"))?.success()?;
    assert_eq!(left.stdout, "");
    Ok(())
}
