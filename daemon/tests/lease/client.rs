//! A session's side of the lease protocol, independent of the daemon's code.

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use kvpn_proto::v1::lease_reply::Reply;
use kvpn_proto::v1::lease_request::Request;
use kvpn_proto::v1::{self, Descriptor, LeaseRefused};
use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use prost::Message;

/// A connection to the daemon.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// The connection's.
    pub(crate) name: String,
}

/// A granted lease, with the descriptors by what they are.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) message: v1::Granted,
    pub(crate) tun: OwnedFd,
    pub(crate) dns_udp: Vec<OwnedFd>,
    pub(crate) dns_tcp: Vec<OwnedFd>,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self {
            stream,
            name: "default".into(),
        }
    }

    /// Connects as another user in these groups.
    pub(crate) fn connect_as(socket: &Path, uid: u32, groups: &[u32]) -> Self {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_user(uid, groups);
                Self::connect(socket)
            });
            thread.join().unwrap()
        })
    }

    pub(crate) fn acquire(&mut self, subnets: &[&str]) -> Result<Granted, LeaseRefused> {
        self.acquire_with(subnets, &["shop.svc.x"], "a test")
    }

    pub(crate) fn acquire_with(
        &mut self,
        subnets: &[&str],
        search_domains: &[&str],
        description: &str,
    ) -> Result<Granted, LeaseRefused> {
        let network = v1::Network {
            subnets: owned(subnets),
            search_domains: owned(search_domains),
            ..v1::Network::default()
        };
        self.acquire_network(network, description)
    }

    /// Also where the host has routes of its own to what is allowed.
    pub(crate) fn acquire_allowed(
        &mut self,
        subnets: &[&str],
        allowed_conflicts: &[&str],
    ) -> Result<Granted, LeaseRefused> {
        let network = v1::Network {
            subnets: owned(subnets),
            allowed_conflicts: owned(allowed_conflicts),
            ..v1::Network::default()
        };
        self.acquire_network(network, "a test")
    }

    fn acquire_network(
        &mut self,
        network: v1::Network,
        description: &str,
    ) -> Result<Granted, LeaseRefused> {
        let request = Request::Acquire(v1::Acquire {
            network: Some(network),
            description: description.into(),
            name: self.name.clone(),
        });
        let (reply, descriptors) = self.call(request)?;
        let Reply::Granted(message) = reply else {
            panic!("{reply:?}");
        };
        let mut kinds: Vec<_> = message.descriptors().zip(descriptors).collect();
        let (_, tun) = kinds.remove(0);
        let (dns_udp, dns_tcp): (Vec<_>, Vec<_>) = kinds
            .into_iter()
            .partition(|(kind, _)| *kind == Descriptor::DnsUdp);
        let unzip = |kinds: Vec<(Descriptor, OwnedFd)>| kinds.into_iter().map(|(_, fd)| fd);
        Ok(Granted {
            tun,
            dns_udp: unzip(dns_udp).collect(),
            dns_tcp: unzip(dns_tcp).collect(),
            message,
        })
    }

    pub(crate) fn set_subnets(&mut self, subnets: &[&str]) -> Result<(), LeaseRefused> {
        self.set_allowed_subnets(subnets, &[])
    }

    pub(crate) fn set_allowed_subnets(
        &mut self,
        subnets: &[&str],
        allowed_conflicts: &[&str],
    ) -> Result<(), LeaseRefused> {
        let request = Request::SetNetwork(v1::SetNetwork {
            network: Some(v1::Network {
                subnets: owned(subnets),
                allowed_conflicts: owned(allowed_conflicts),
                ..v1::Network::default()
            }),
        });
        self.call(request).map(|_| ())
    }

    pub(crate) fn describe(&mut self) -> v1::Described {
        let (reply, _) = self.call(Request::Describe(v1::Describe {})).unwrap();
        let Reply::Described(described) = reply else {
            panic!("{reply:?}");
        };
        described
    }

    /// Makes a file system; its device is the second part.
    pub(crate) fn open_mount(&mut self) -> Result<(u64, OwnedFd), LeaseRefused> {
        let request = Request::OpenMount(v1::OpenMount { read_only: false });
        let (reply, mut descriptors) = self.call(request)?;
        let Reply::MountOpened(opened) = reply else {
            panic!("{reply:?}");
        };
        assert_eq!(descriptors.len(), 1);
        Ok((opened.id, descriptors.remove(0)))
    }

    pub(crate) fn attach_mount(&mut self, id: u64, path: &Path) -> Result<(), LeaseRefused> {
        let path = path.as_os_str().as_encoded_bytes().to_vec().into();
        let request = Request::AttachMount(v1::AttachMount { id, path });
        self.call(request).map(|_| ())
    }

    pub(crate) fn close_mount(&mut self, id: u64) -> Result<(), LeaseRefused> {
        let request = Request::CloseMount(v1::CloseMount { id });
        self.call(request).map(|_| ())
    }

    fn call(&mut self, request: Request) -> Result<(Reply, Vec<OwnedFd>), LeaseRefused> {
        let request = v1::LeaseRequest {
            request: Some(request),
        };
        let body = request.encode_to_vec();
        let length = u32::try_from(body.len()).unwrap();
        self.stream.write_all(&length.to_be_bytes()).unwrap();
        self.stream.write_all(&body).unwrap();

        let (length, descriptors) = self.receive_length();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        let reply = v1::LeaseReply::decode(body.as_slice()).unwrap();
        let reply = reply.reply.unwrap();
        if let Reply::Refused(refused) = reply {
            assert!(descriptors.is_empty());
            return Err(refused);
        }
        Ok((reply, descriptors))
    }

    /// Reads a message's length, with which its descriptors come.
    fn receive_length(&mut self) -> (usize, Vec<OwnedFd>) {
        let mut length = [0; 4];
        let mut control = cmsg_space!([RawFd; 16]);
        let mut data = [IoSliceMut::new(&mut length)];
        let message = recvmsg::<UnixAddr>(
            self.stream.as_raw_fd(),
            &mut data,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL,
        )
        .unwrap();
        assert_eq!(message.bytes, 4, "the daemon closed the connection");
        let mut descriptors = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = control {
                descriptors.extend(raw.into_iter().map(own));
            }
        }
        (u32::from_be_bytes(length) as usize, descriptors)
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[expect(unsafe_code, reason = "nix gives received descriptors as integers")]
fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

#[expect(unsafe_code, reason = "the C library changes all threads' credentials")]
fn become_user(uid: u32, groups: &[u32]) {
    // SAFETY: these system calls change the credentials of this thread alone,
    // and read no more than the slice.
    let outcomes = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
            libc::syscall(libc::SYS_setresgid, uid, uid, uid),
            libc::syscall(libc::SYS_setresuid, uid, uid, uid),
        ]
    };
    assert_eq!(outcomes, [0; 3]);
}
