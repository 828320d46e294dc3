//! Messages of `lease.proto` on a unix socket: each after its length in four
//! octets, big-endian, with file descriptors beside them (unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use bytes::{Buf, BufMut, BytesMut};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use prost::Message;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Octets of the longest message that is taken.
const MAX_MESSAGE: usize = 256 << 10;

/// The most file descriptors that come with a message.
const MAX_DESCRIPTORS: usize = 16;

/// One end of a connection.
pub(crate) struct Connection {
    stream: UnixStream,
    incoming: BytesMut,
    takes_descriptors: bool,
    descriptors: Vec<OwnedFd>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: BytesMut::new(),
            takes_descriptors: true,
            descriptors: Vec::new(),
        }
    }

    /// Leaves file descriptors that the peer sends to the kernel, which closes
    /// them: a peer that is not trusted must not fill this process's table.
    pub(crate) fn without_descriptors(stream: UnixStream) -> Self {
        Self {
            takes_descriptors: false,
            ..Self::new(stream)
        }
    }

    /// Sends a message and copies of the file descriptors.
    pub(crate) async fn send(
        &self,
        message: &impl Message,
        descriptors: &[OwnedFd],
    ) -> io::Result<()> {
        let mut frame = BytesMut::with_capacity(4 + message.encoded_len());
        frame.put_u32(u32::try_from(message.encoded_len()).map_err(io::Error::other)?);
        message.encode(&mut frame).map_err(io::Error::other)?;
        let mut raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        while frame.has_remaining() {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || self.try_send(&frame, &raw))
                .await?;
            frame.advance(sent);
            raw.clear();
        }
        Ok(())
    }

    /// Receives a message and the file descriptors beside it; `None` when the
    /// peer is gone. May be cancelled without losing anything.
    pub(crate) async fn receive<M: Message + Default>(
        &mut self,
    ) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        loop {
            if let Some(body) = take_frame(&mut self.incoming)? {
                let message = M::decode(body).map_err(io::Error::other)?;
                return Ok(Some((message, std::mem::take(&mut self.descriptors))));
            }
            let mut part = vec![0; 16 << 10];
            let (received, descriptors) = self
                .stream
                .async_io(Interest::READABLE, || self.try_receive(&mut part))
                .await?;
            if received == 0 {
                return Ok(None);
            }
            self.incoming.extend_from_slice(&part[..received]);
            self.descriptors.extend(descriptors);
            if self.descriptors.len() > MAX_DESCRIPTORS {
                return Err(io::Error::other("too many file descriptors"));
            }
        }
    }

    /// Tells the peer that nothing more comes; it may still answer.
    pub(crate) fn finish(&self) -> io::Result<()> {
        socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write)
    }

    fn try_send(&self, data: &[u8], descriptors: &[RawFd]) -> io::Result<usize> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() {
            &rights[..0]
        } else {
            &rights[..]
        };
        Ok(sendmsg::<UnixAddr>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(data)],
            control,
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        )?)
    }

    fn try_receive(&self, part: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut control = self
            .takes_descriptors
            .then(|| cmsg_space!([RawFd; MAX_DESCRIPTORS]));
        let mut data = [IoSliceMut::new(part)];
        let message = recvmsg::<UnixAddr>(
            self.stream.as_raw_fd(),
            &mut data,
            control.as_deref_mut(),
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let mut descriptors = Vec::new();
        if !self.takes_descriptors {
            return Ok((message.bytes, descriptors));
        }
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                descriptors.extend(raw.into_iter().map(own));
            }
        }
        Ok((message.bytes, descriptors))
    }
}

/// Takes ownership of a file descriptor that the kernel just made.
#[expect(unsafe_code, reason = "nix gives received descriptors as integers")]
fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: recvmsg made this descriptor for us a moment ago, and nothing
    // else in this process knows of it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Takes the first whole message off the buffer.
fn take_frame(buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let Some(length) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::other(format!("message of {length} octets")));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use kvpn_proto::v1::{LeaseRequest, Network, SetNetwork, lease_request::Request};
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn request(subnets: usize) -> LeaseRequest {
        LeaseRequest {
            request: Some(Request::SetNetwork(SetNetwork {
                network: Some(Network {
                    subnets: vec!["10.96.0.0/16".into(); subnets],
                    ..Network::default()
                }),
            })),
        }
    }

    fn pair() -> (Connection, Connection) {
        let (a, b) = UnixStream::pair().unwrap();
        (Connection::new(a), Connection::new(b))
    }

    #[tokio::test]
    async fn message_arrives_with_its_descriptors() {
        let (ours, mut theirs) = pair();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, b"here").unwrap();
        let descriptor = File::open(file.path()).unwrap().into();

        ours.send(&request(1), &[descriptor]).await.unwrap();

        let (message, mut descriptors) = theirs.receive::<LeaseRequest>().await.unwrap().unwrap();
        assert_eq!(message, request(1));
        let mut text = String::new();
        File::from(descriptors.remove(0))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "here");
        assert!(descriptors.is_empty());
    }

    #[tokio::test]
    async fn messages_longer_than_the_socket_buffer_and_back_to_back_are_kept_apart() {
        let (ours, mut theirs) = pair();
        let sender = tokio::spawn(async move {
            for subnets in [15_000, 0, 3] {
                ours.send(&request(subnets), &[]).await.unwrap();
            }
        });
        for subnets in [15_000, 0, 3] {
            let (message, _) = theirs.receive::<LeaseRequest>().await.unwrap().unwrap();
            assert_eq!(message, request(subnets));
        }
        sender.await.unwrap();
        assert!(theirs.receive::<LeaseRequest>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn descriptors_that_are_not_taken_are_closed() {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let sender = Connection::new(sender);
        let mut receiver = Connection::without_descriptors(receiver);
        let (mut reader, writer) = std::io::pipe().unwrap();
        // More than fit into the buffer of one who takes them.
        let copies: Vec<OwnedFd> = (0..2 * MAX_DESCRIPTORS)
            .map(|_| writer.try_clone().unwrap().into())
            .collect();
        sender.send(&request(1), &copies).await.unwrap();
        drop((writer, copies));

        let (message, descriptors) = receiver.receive::<LeaseRequest>().await.unwrap().unwrap();

        assert_eq!(message, request(1));
        assert!(descriptors.is_empty());
        // A copy that is still open would keep this from ending.
        let end = tokio::task::spawn_blocking(move || reader.read(&mut [0]).unwrap());
        let end = tokio::time::timeout(std::time::Duration::from_secs(10), end).await;
        assert_eq!(end.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn too_long_a_message_is_refused_before_it_is_read() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut theirs = Connection::new(theirs);
        ours.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let error = theirs.receive::<LeaseRequest>().await.unwrap_err();
        assert_eq!(error.to_string(), "message of 4294967295 octets");
    }
}
