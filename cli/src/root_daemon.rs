//! Asks the root daemon for its version. Everything else that the root daemon
//! does is between it and the session.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use kvpn_proto::v1::{Describe, LeaseReply, LeaseRequest, lease_reply, lease_request};
use prost::Message;

/// How long each read or write may take.
const DEADLINE: Duration = Duration::from_secs(1);

/// No description comes near to it.
const MAX_REPLY: u32 = 1 << 20;

/// The version of the root daemon behind a socket; `None` when it does not run
/// or does not talk to this user.
pub(crate) fn version(socket: &Path) -> Option<String> {
    let reply = describe(socket).ok()?;
    match reply.reply? {
        lease_reply::Reply::Described(described) => Some(described.version),
        lease_reply::Reply::Granted(_)
        | lease_reply::Reply::NetworkSet(_)
        | lease_reply::Reply::MountOpened(_)
        | lease_reply::Reply::MountAttached(_)
        | lease_reply::Reply::MountClosed(_)
        | lease_reply::Reply::Refused(_) => None,
    }
}

fn describe(socket: &Path) -> io::Result<LeaseReply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;

    let request = LeaseRequest {
        request: Some(lease_request::Request::Describe(Describe {})),
    }
    .encode_to_vec();
    let length = u32::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&request)?;

    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_REPLY {
        return Err(io::Error::other("the reply is too long"));
    }
    let mut reply = vec![0; length as usize];
    stream.read_exact(&mut reply)?;
    LeaseReply::decode(&reply[..]).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use kvpn_proto::v1::Described;

    use super::*;

    /// Reads one request and answers it with these bytes.
    fn answer_with(listener: &UnixListener, reply: &[u8]) -> LeaseRequest {
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(reply).unwrap();
        LeaseRequest::decode(&request[..]).unwrap()
    }

    fn framed(reply: lease_reply::Reply) -> Vec<u8> {
        let message = LeaseReply { reply: Some(reply) }.encode_to_vec();
        [&(message.len() as u32).to_be_bytes()[..], &message].concat()
    }

    #[test]
    fn version_is_what_the_daemon_describes() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kvpnd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let reply = framed(lease_reply::Reply::Described(Described {
            version: "0.1.0".into(),
            holders: Vec::new(),
        }));
        std::thread::scope(|scope| {
            let request = scope.spawn(|| answer_with(&listener, &reply));
            assert_eq!(version(&socket).as_deref(), Some("0.1.0"));
            let request = request.join().unwrap().request;
            assert_eq!(request, Some(lease_request::Request::Describe(Describe {})));
        });
    }

    #[test]
    fn absent_or_unintelligible_daemon_has_no_version() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kvpnd.sock");
        assert_eq!(version(&socket), None);

        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| answer_with(&listener, &u32::MAX.to_be_bytes()));
            assert_eq!(version(&socket), None);
        });
    }
}
