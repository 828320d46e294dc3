//! `kvpn cp` and `kvpn ls`: files of a container without a mount that stays.

use anyhow::{Result, ensure};
use kvpn_proto::Reason;

use super::shop::{NAMESPACE, Shop, directory, script};
use crate::errors::assert_fails;
use crate::support::Developer;

/// Names, permissions, times and contents of a directory's files; links have no times.
const TREE: &str = r"find . -mindepth 1 \( -type l -printf '%P %l\n' -o -printf '%P %y %m %Ts ' \
    \( -type f -exec md5sum {} \; -o -printf '\n' \) \) | sort";

#[test]
fn files_are_listed_and_copied_both_ways() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let at = directory(&developer)?;
    let make = "mkdir -p tree/sub; echo 1 > tree/sub/file; chmod 750 tree/sub/file
        ln -s sub/file tree/link; touch -d @1600000000 tree/sub/file tree/sub tree";
    script(&developer, &format!("umask 022; cd {at}; {make}"))?.success()?;

    let tree = format!("{at}/tree");
    developer.kvpn(["cp", &tree, "web:/data"])?.success()?;
    let here = script(&developer, &format!("cd {tree} && {TREE}"))?.success()?;
    let there = shop.in_pod(&format!("cd /data/tree && {TREE}"))?;
    // The volume's own bit for groups is on directories.
    assert_eq!(there.replace(" d 2755 ", " d 755 "), here.stdout);
    let copied = developer.kvpn(["cp", "deploy/web:/data/tree", &format!("{at}/back")])?;
    let told = copied.success()?.stdout;
    let expected = "Copied 1 file, 2 directories, 1 symbolic link (2 B) from deploy/web:/data/tree";
    ensure!(told.starts_with(expected), "{told}");
    let back = script(&developer, &format!("cd {at}/back && {TREE}"))?.success()?;
    assert_eq!(back.stdout.replace(" d 2755 ", " d 755 "), here.stdout);

    // What is in no volume, and by links as the container has them.
    let hosts = format!("{at}/hosts");
    developer
        .kvpn(["cp", "web:/etc/hosts", &hosts])?
        .success()?;
    let copy = script(&developer, &format!("cat {hosts}"))?.success()?;
    assert_eq!(copy.stdout, shop.in_pod("cat /etc/hosts")?);
    let listed = developer.kvpn_json(["ls", "web:/data/tree"])?;
    let entries = &listed["entries"];
    assert_eq!(
        (&entries[0]["name"], &entries[0]["target"]),
        (&"link".into(), &"sub/file".into())
    );
    assert_eq!(
        (&entries[1]["name"], &entries[1]["kind"]),
        (&"sub".into(), &"directory".into())
    );

    let refused = developer.kvpn(["cp", &hosts, "web:/etc/secret/hosts"])?;
    assert_fails(
        &refused,
        Reason::Usage,
        &["web:/etc/secret/hosts: Read-only file system"],
    )?;
    let missing = developer.kvpn(["ls", "web:/data/missing"])?;
    assert_fails(
        &missing,
        Reason::Usage,
        &["web:/data/missing: No such file"],
    )?;
    let status = developer.kvpn_json(["status"])?;
    assert_eq!(
        status["engagements"].as_array().map(Vec::len),
        Some(0),
        "{status}"
    );
    let left = shop.in_pod("ls -A /data")?;
    assert_eq!(left, "tree\n");
    Ok(())
}
