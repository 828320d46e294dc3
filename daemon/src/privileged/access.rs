//! Who may use the daemon, by what the kernel says of the peer.

use std::fs;
use std::io;
use std::mem::size_of_val;
use std::os::fd::AsRawFd;

use kvpn_proto::{Failure, Reason};
use nix::libc;
use tokio::net::UnixStream;

use crate::config::ServeArgs;

/// The group that may use the daemon unless others are named.
const DEFAULT_GROUP: &str = "kvpn";

/// The most groups that a process may be in (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65536;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The process at the other end of a connection, as it was when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    groups: Vec<u32>,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let mut groups = supplementary_groups(stream)?;
        groups.push(credentials.gid());
        Ok(Self {
            uid: credentials.uid(),
            gid: primary_group(credentials.uid()).unwrap_or(credentials.gid()),
            pid: credentials
                .pid()
                .and_then(|pid| u32::try_from(pid).ok())
                .unwrap_or_default(),
            groups,
        })
    }

    /// The user's name and number, for a person.
    pub(super) fn user(&self) -> String {
        user(self.uid)
    }
}

/// Users and groups that may use the daemon. Root always may.
#[derive(Debug)]
pub(super) struct Access {
    users: Vec<u32>,
    groups: Vec<u32>,
    /// Looked up each time, so that the group may be made later.
    default_group: Option<&'static str>,
}

impl Access {
    /// Reads the names and numbers of the command line.
    pub(super) fn new(args: &ServeArgs) -> Result<Self, Failure> {
        let users = args.allow_user.iter();
        let groups = args.allow_group.iter();
        Ok(Self {
            users: users
                .map(|name| number(name, PASSWD, "user"))
                .collect::<Result<_, _>>()?,
            groups: groups
                .map(|name| number(name, GROUP, "group"))
                .collect::<Result<_, _>>()?,
            default_group: args.allow_group.is_empty().then_some(DEFAULT_GROUP),
        })
    }

    /// Refuses whoever may not use the daemon.
    pub(super) fn check(&self, peer: &Peer) -> Result<(), Failure> {
        let default_group = self.default_group.and_then(|name| look_up(GROUP, name));
        let allowed = peer.uid == 0
            || self.users.contains(&peer.uid)
            || peer
                .groups
                .iter()
                .any(|group| self.groups.contains(group) || Some(*group) == default_group);
        if allowed {
            return Ok(());
        }
        let next_step = match (default_group, self.default_group) {
            (Some(_), _) => format!(
                "add the user with `sudo usermod -aG {DEFAULT_GROUP} USER`, then log in again"
            ),
            (None, Some(_)) => format!(
                "make a group with `sudo groupadd {DEFAULT_GROUP}`, add the user with \
                 `sudo usermod -aG {DEFAULT_GROUP} USER`, then log in again"
            ),
            (None, None) => "start kvpnd with --allow-user or --allow-group for the user".into(),
        };
        Err(Failure::new(
            Reason::DaemonNotRunning,
            format!("user {} may not use kvpnd", peer.user()),
            next_step,
        ))
    }
}

/// A user's name and number, for a person.
pub(super) fn user(uid: u32) -> String {
    let file = fs::read_to_string(PASSWD).unwrap_or_default();
    match entries(&file).find(|(_, number)| *number == uid) {
        Some((name, _)) => format!("{name} (uid {uid})"),
        None => format!("with uid {uid}"),
    }
}

fn number(name: &str, file: &str, kind: &str) -> Result<u32, Failure> {
    let number = name.parse().ok().or_else(|| look_up(file, name));
    number.ok_or_else(|| {
        Failure::new(
            Reason::Usage,
            format!("there is no {kind} `{name}` in {file}"),
            format!("name one that exists, or give the {kind}'s number"),
        )
    })
}

// Read here, since the C library's functions would load shared libraries, which
// a static binary should not.
fn look_up(file: &str, name: &str) -> Option<u32> {
    let file = fs::read_to_string(file).ok()?;
    entries(&file)
        .find(|(entry, _)| *entry == name)
        .map(|(_, number)| number)
}

/// Names and numbers of passwd(5) or group(5), which both have them first and
/// third.
fn entries(file: &str) -> impl Iterator<Item = (&str, u32)> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?.parse().ok()?;
        Some((name, number))
    })
}

/// The group that a user's processes are of, whatever a shell of theirs has changed it to.
fn primary_group(uid: u32) -> Option<u32> {
    group_of(&fs::read_to_string(PASSWD).ok()?, uid)
}

/// By passwd(5), where it stands after the number of the user.
fn group_of(file: &str, uid: u32) -> Option<u32> {
    let uid = uid.to_string();
    let mut users = file.lines().map(|line| line.split(':').skip(2));
    let mut fields = users.find(|fields| fields.clone().next() == Some(&uid))?;
    fields.nth(1)?.parse().ok()
}

/// The peer's supplementary groups (`SO_PEERGROUPS`, socket(7)).
#[expect(unsafe_code, reason = "no crate at hand wraps SO_PEERGROUPS")]
fn supplementary_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; MAX_GROUPS];
    let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` octets into the buffer, which
    // is that long, and then tells in `length` how many it wrote.
    let outcome = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(length as usize / size_of::<u32>());
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, groups: &[u32]) -> Peer {
        Peer {
            uid,
            gid: 100,
            pid: 1,
            groups: groups.to_vec(),
        }
    }

    fn access(users: &[u32], groups: &[u32]) -> Access {
        Access {
            users: users.to_vec(),
            groups: groups.to_vec(),
            default_group: None,
        }
    }

    #[test]
    fn primary_group_is_that_of_the_users_line() {
        let file = "root:x:0:0::/root:/bin/sh\ndev:x:1000:100::/home/dev:/bin/sh\n";
        assert_eq!(group_of(file, 1000), Some(100));
        assert_eq!(group_of(file, 0), Some(0));
        assert_eq!(group_of(file, 100), None);
        assert_eq!(group_of("odd\n", 0), None);
    }

    #[test]
    fn root_named_users_and_members_of_named_groups_are_allowed() {
        let access = access(&[7], &[70]);
        assert!(access.check(&peer(0, &[])).is_ok());
        assert!(access.check(&peer(7, &[1])).is_ok());
        assert!(access.check(&peer(8, &[1, 70])).is_ok());
        assert!(access.check(&peer(8, &[1, 7])).is_err());
        assert!(access.check(&peer(70, &[1])).is_err());
    }

    #[test]
    fn refusal_names_the_user_and_the_way_out() {
        let access = Access {
            default_group: Some("no such group"),
            ..access(&[], &[])
        };
        let failure = access.check(&peer(4_000_000, &[])).unwrap_err();
        assert_eq!(failure.message, "user with uid 4000000 may not use kvpnd");
        assert!(failure.next_step.contains("groupadd kvpn"), "{failure:?}");
    }

    #[test]
    fn numbers_are_found_by_name() {
        let file = "root:x:0:0:root:/root:/bin/sh\nbroken\nalice:x:1000:1001::/:\n";
        let found: Vec<_> = entries(file).collect();
        assert_eq!(found, [("root", 0), ("alice", 1000)]);
    }

    #[tokio::test]
    async fn peer_is_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert_eq!(peer.pid, std::process::id());
        let mut groups: Vec<u32> = nix::unistd::getgroups()
            .unwrap()
            .into_iter()
            .map(nix::unistd::Gid::as_raw)
            .collect();
        groups.push(nix::unistd::getgid().as_raw());
        assert_eq!(peer.groups, groups);
    }
}
