//! The environment of the other container's first process, as that got it.

use std::fs::{self, File};
use std::io::{self, Read};

use kvpn_proto::v1::{Environment, ProcessOwner};
use nix::unistd::{getegid, geteuid};

use crate::holder::processes::FIRST;

/// The largest environment, in bytes: what the kernel gives a process with the usual limit of
/// its stack (`ARG_MAX`, execve(2)).
const LARGEST: u64 = 2 << 20;

/// Why it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// For people.
    pub(super) why: String,
    /// Whose the process is, where it is another user's.
    pub(super) owner: Option<ProcessOwner>,
}

/// Reads it.
pub(super) fn read() -> Result<Environment, Unreadable> {
    of(FIRST)
}

fn of(process: i32) -> Result<Environment, Unreadable> {
    let block = block(process).map_err(|error| unreadable(process, &error))?;
    if block.len() as u64 > LARGEST {
        let why = format!("it is larger than {} KiB", LARGEST >> 10);
        return Err(Unreadable { why, owner: None });
    }
    let block = block.into();
    Ok(Environment { block })
}

fn block(process: i32) -> io::Result<Vec<u8>> {
    let mut block = Vec::new();
    let file = File::open(format!("/proc/{process}/environ"))?;
    file.take(LARGEST + 1).read_to_end(&mut block)?;
    Ok(block)
}

fn unreadable(process: i32, error: &io::Error) -> Unreadable {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let own = ProcessOwner {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
    };
    match owner(&status).filter(|owner| *owner != own) {
        Some(owner) => Unreadable {
            why: format!(
                "its first process is of user {} and group {}, and the reader of {} and {}",
                owner.uid, owner.gid, own.uid, own.gid
            ),
            owner: Some(owner),
        },
        None => Unreadable {
            why: format!(
                "the kernel does not let its first process be read ({error}): that has more \
                 capabilities than it was started with, or is kept from being looked into"
            ),
            owner: None,
        },
    }
}

/// Whose a process is, by its status; none where it is several users' at once, as one that
/// has changed its effective user.
fn owner(status: &str) -> Option<ProcessOwner> {
    let only = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        // Real, effective, saved and of files.
        let numbers: Vec<u32> = line.split_whitespace().flat_map(str::parse).collect();
        let first = *numbers.first()?;
        numbers
            .iter()
            .all(|number| *number == first)
            .then_some(first)
    };
    Some(ProcessOwner {
        uid: only("Uid:")?,
        gid: only("Gid:")?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn environment_is_what_the_process_was_given() {
        let mut child = Command::new("cat")
            .env_clear()
            .env("EMPTY", "")
            .env("LINES", "a\nb=c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It runs the program once that has said something.
        let mut words = child.stdin.take().unwrap();
        io::Write::write_all(&mut words, b"x").unwrap();
        let mut answer = [0];
        let mut said = child.stdout.take().unwrap();
        said.read_exact(&mut answer).unwrap();
        let environment = of(i32::try_from(child.id()).unwrap()).unwrap();
        drop(words);
        child.wait().unwrap();
        assert_eq!(environment.block, &b"EMPTY=\0LINES=a\nb=c\0"[..]);
    }

    #[test]
    fn process_that_is_gone_cannot_be_read() {
        let unreadable = of(i32::MAX).unwrap_err();
        assert!(unreadable.why.contains("No such file"), "{unreadable:?}");
        assert_eq!(unreadable.owner, None);
    }

    #[test]
    fn owner_is_told_where_there_is_one() {
        let status = "Name:\tapp\nUid:\t999\t999\t999\t999\nGid:\t7\t7\t7\t7\n";
        assert_eq!(owner(status), Some(ProcessOwner { uid: 999, gid: 7 }));
        let changed = status.replace("999\t999\t999\t999", "0\t999\t0\t999");
        assert_eq!(owner(&changed), None);
        assert_eq!(owner(""), None);
    }
}
