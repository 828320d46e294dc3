//! The processes of the container whose process namespace this one has joined.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, ensure};

/// The first process of a container.
pub(crate) const FIRST: i32 = 1;

/// The link that tells the host's own process namespace (`PROC_PID_INIT_INO` of the kernel).
const HOSTS_NAMESPACE: &str = "pid:[4026531836]";

/// What `/proc` says of a process or thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: i32,
}

/// Fails unless this process shares the namespace of one other container.
pub(crate) fn check() -> anyhow::Result<()> {
    let namespace = fs::read_link("/proc/self/ns/pid").context("tell the process namespace")?;
    ensure!(
        namespace != Path::new(HOSTS_NAMESPACE),
        "the pod has the process namespace of its node"
    );
    ensure!(
        i32::try_from(std::process::id()) != Ok(FIRST),
        "the container runtime does not let one container see the processes of another"
    );
    Ok(())
}

/// All threads of a process and of those that descend from it, also those that end
/// meanwhile, which may have made others. What was executed in a container from outside does
/// not descend from its first.
pub(super) fn threads(first: i32) -> io::Result<Vec<i32>> {
    let mut processes = HashMap::new();
    let mut threads = Vec::new();
    for process in numbers(Path::new("/proc"))? {
        match stat(Path::new(&format!("/proc/{process}/stat"))) {
            Some(stat) => drop(processes.insert(process, stat)),
            // Nobody knows any more whether it descended.
            None => threads.push(process),
        }
    }
    for process in processes
        .keys()
        .filter(|it| descends(**it, first, &processes))
    {
        let directory = format!("/proc/{process}/task");
        // Who has ended meanwhile has no threads.
        threads.extend(numbers(Path::new(&directory)).unwrap_or_else(|_| vec![*process]));
    }
    Ok(threads)
}

/// Whether a thread is there, and has not ended.
pub(super) fn is_alive(thread: i32) -> bool {
    let stat = stat(Path::new(&format!("/proc/{thread}/stat")));
    stat.is_some_and(|stat| !['Z', 'X'].contains(&stat.state))
}

/// Who traces a thread, if anyone does whom this process can see.
pub(super) fn tracer(thread: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let mut lines = status.lines();
    let tracer = lines.find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|tracer| *tracer != 0)
}

fn descends(process: i32, first: i32, processes: &HashMap<i32, Stat>) -> bool {
    let parent = |process: &i32| processes.get(process).map(|stat| stat.parent);
    // Parents may have changed while they were read.
    std::iter::successors(Some(process), parent)
        .take(processes.len() + 1)
        .any(|process| process == first)
}

fn numbers(directory: &Path) -> io::Result<Vec<i32>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
    let names: Vec<_> = names.collect::<io::Result<_>>()?;
    let numbers = names.iter().filter_map(|name| name.to_str()?.parse().ok());
    Ok(numbers.collect())
}

fn stat(file: &Path) -> Option<Stat> {
    parse(&fs::read_to_string(file).ok()?)
}

/// The name, in parentheses, may have any characters in it (proc_pid_stat(5)).
fn parse(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_parent_are_read_whatever_the_name() {
        let stat = parse("7 (a) R 9 (b)) S 1 7 7 0 -1").unwrap();
        assert_eq!((stat.state, stat.parent), ('S', 1));
        assert_eq!(parse("7"), None);
    }

    #[test]
    fn what_was_executed_from_outside_does_not_descend_from_the_first() {
        let of = |parent| Stat { state: 'S', parent };
        let processes =
            HashMap::from([(1, of(0)), (7, of(1)), (8, of(7)), (9, of(0)), (10, of(9))]);
        let mut descending: Vec<i32> = processes.keys().copied().collect();
        descending.retain(|process| descends(*process, FIRST, &processes));
        descending.sort_unstable();
        assert_eq!(descending, [1, 7, 8]);
    }
}
