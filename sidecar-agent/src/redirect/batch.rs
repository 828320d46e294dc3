//! Transactions with the kernel's nf_tables over netlink.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily, nftables::NfTablesMessage,
    none::ControlMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

// NFNL_SUBSYS_NFTABLES of linux/netfilter/nfnetlink.h.
const NFTABLES: u16 = 10;

// Acknowledgements are capped to the header of what they answer.
const REPLY_SIZE: usize = 4096;

/// A netlink socket that sends each list of messages as one transaction.
pub(super) struct Batch {
    socket: Socket,
}

/// A message and what its netlink header asks for beyond `REQUEST`.
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) message: NfTablesMessage,
}

impl Batch {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Has the kernel do everything, or nothing and the first error.
    pub(super) fn send(&mut self, requests: Vec<Request>) -> io::Result<()> {
        self.discard_answers();
        let acknowledged = requests.len();
        self.socket.send(&encode(requests), 0)?;
        // The kernel works on the batch within `send`, so that all answers are
        // there when it returns.
        let mut answers = 0;
        loop {
            let mut reply = [0; REPLY_SIZE];
            let length = match self.socket.recv(&mut &mut reply[..], 0) {
                Ok(length) => length.min(REPLY_SIZE),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let reply = NetlinkMessage::<NetfilterMessage>::deserialize(&reply[..length])
                .map_err(io::Error::other)?;
            if let NetlinkPayload::Error(answer) = reply.payload {
                if answer.code.is_some() {
                    return Err(answer.to_io());
                }
                answers += 1;
            }
        }
        if answers < acknowledged {
            return Err(io::Error::other(format!(
                "the kernel answered {answers} of {acknowledged} changes"
            )));
        }
        Ok(())
    }

    /// Throws away what an earlier batch that failed has left behind.
    fn discard_answers(&self) {
        let mut reply = [0; REPLY_SIZE];
        while self.socket.recv(&mut &mut reply[..], 0).is_ok() {}
    }
}

fn encode(requests: Vec<Request>) -> Vec<u8> {
    let control = |message: ControlMessage| {
        NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES),
            message,
        )
    };
    let changes = requests.into_iter().map(|request| {
        let message = NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0),
            request.message,
        );
        (message, NLM_F_ACK | request.flags)
    });
    let begin = (control(ControlMessage::BatchBegin), 0);
    let end = (control(ControlMessage::BatchEnd), 0);

    let mut bytes = Vec::new();
    let messages = [begin].into_iter().chain(changes).chain([end]);
    for (sequence, (message, flags)) in (0..).zip(messages) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut bytes[start..]);
    }
    bytes
}
