//! The lab's control group. Everything that the lab starts is in it, and so is
//! everything that those start, which is how `down` finds them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::wait_for;

/// Name of the group in every hierarchy; also the kubelet's cgroup root.
pub const NAME: &str = "kvpn-lab";

/// Where the lab's own daemons are; a group with children may have no members.
const SYSTEM: &str = "system";

/// Creates the group in every hierarchy.
pub(crate) fn create() -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(NAME);
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        // A new group of the cpuset controller is empty; nothing can run in it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if hierarchy.join(file).exists() && hierarchy.ends_with("cpuset") {
                fs::write(group.join(file), fs::read(hierarchy.join(file))?)
                    .with_context(|| format!("set {file} of {}", group.display()))?;
            }
        }
    }
    let system = membership()?;
    fs::create_dir_all(&system).with_context(|| format!("create {}", system.display()))
}

/// The directory whose `cgroup.procs` makes a process part of the lab.
pub fn membership() -> Result<PathBuf> {
    let hierarchies = hierarchies()?;
    let unified = hierarchies
        .iter()
        .find(|path| path.join("cgroup.controllers").exists());
    let hierarchy = unified
        .or(hierarchies.first())
        .context("no cgroup hierarchy is mounted")?;
    Ok(hierarchy.join(NAME).join(SYSTEM))
}

/// Every process in the group and in its descendants.
pub fn members() -> Result<BTreeSet<i32>> {
    let mut pids = BTreeSet::new();
    for group in groups()? {
        // A group that has just gone has no members.
        let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    pids.remove(&nix::unistd::Pid::this().as_raw());
    Ok(pids)
}

/// Removes the group from every hierarchy.
pub(crate) fn remove() -> Result<()> {
    wait_for(
        "the lab's control groups are gone",
        std::time::Duration::from_secs(10),
        || {
            let mut groups = groups()?;
            groups.sort_by_key(|group| std::cmp::Reverse(group.components().count()));
            for group in &groups {
                fs::remove_dir(group).with_context(|| format!("remove {}", group.display()))?;
            }
            Ok(groups.is_empty().then_some(()))
        },
    )
}

/// The lab's groups that exist, in all hierarchies, parents before children.
pub(crate) fn groups() -> Result<Vec<PathBuf>> {
    let mut groups = Vec::new();
    let mut rest: Vec<_> = hierarchies()?.iter().map(|path| path.join(NAME)).collect();
    while let Some(group) = rest.pop() {
        let Ok(entries) = fs::read_dir(&group) else {
            continue;
        };
        let children = entries.flatten().map(|entry| entry.path());
        rest.extend(children.filter(|path| path.is_dir()));
        groups.push(group);
    }
    Ok(groups)
}

/// Mount points of all cgroup hierarchies, version 1 and 2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    Ok(parse_hierarchies(&mounts))
}

fn parse_hierarchies(mounts: &str) -> Vec<PathBuf> {
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let cgroups = fields.filter(|fields| matches!(fields.get(2), Some(&("cgroup" | "cgroup2"))));
    cgroups
        .filter_map(|fields| fields.get(1).map(|path| Path::new(path).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(parse_hierarchies(mounts), expected);
    }
}
