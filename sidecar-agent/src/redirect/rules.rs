//! The table as nf_tables messages. As `nft` would show it:
//!
//! ```text
//! table inet kvpn { flags owner
//!     chain prerouting {
//!         type nat hook prerouting priority dstnat; policy accept;
//!         ct state established
//!         iiftype != loopback tcp flags & (fin|syn|rst|ack) == syn tcp dport 8080 redirect to :40000
//!     }
//!     chain datagrams {
//!         type filter hook prerouting priority raw; policy accept;
//!         iiftype != loopback udp dport 40001 drop
//!         iiftype != loopback udp dport 53 udp checksum 0 udp dport set 40001
//!         iiftype != loopback udp dport 53 udp dport set 40001
//!     }
//!     chain answers {
//!         type filter hook output priority mangle; policy accept;
//!         udp sport 40001 udp sport set 53
//!     }
//! }
//! ```
//!
//! Datagrams get another port, and their answers get it back, without connection tracking:
//! that would remember a client for as long as it goes on sending, so that a claim would
//! not reach it, nor its end, and an agent that was killed would leave it a port where
//! nobody is.
//!
//! A checksum of 0 says that there is none (RFC 768). The kernel does not know that when it
//! corrects a checksum for the other port, so there is a rule before that leaves it alone.

use kvpn_proto::names::AGENT_NFT_TABLE;
use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, ChecksumType, Cmp, DataAttribute, Expressions, Hook,
    Immediate, InetHookNumber, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage, Verdict,
    VerdictAttribute,
};

use super::{Redirects, batch::Request};

/// A chain of the table: its name, its type, and where it hooks in.
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: InetHookNumber,
    priority: i32,
}

const PREROUTING: Chain = Chain {
    name: "prerouting",
    kind: "nat",
    hook: InetHookNumber::PreRouting,
    priority: DSTNAT,
};

// Before connection tracking, which so knows the port that answers come from, and after
// its defragmentation: only the first fragment has the ports.
const DATAGRAMS: Chain = Chain {
    name: "datagrams",
    kind: "filter",
    hook: InetHookNumber::PreRouting,
    priority: RAW,
};

// After connection tracking.
const ANSWERS: Chain = Chain {
    name: "answers",
    kind: "filter",
    hook: InetHookNumber::LocalOut,
    priority: MANGLE,
};

const CHAINS: [Chain; 3] = [PREROUTING, DATAGRAMS, ANSWERS];

// NF_DROP and NF_ACCEPT of linux/netfilter.h.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
// NF_IP_PRI_RAW, NF_IP_PRI_MANGLE and NF_IP_PRI_NAT_DST of linux/netfilter_ipv4.h.
const RAW: i32 = -300;
const MANGLE: i32 = -150;
const DSTNAT: i32 = -100;
// ARPHRD_LOOPBACK of linux/if_arp.h.
const LOOPBACK: u16 = 772;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
// NFT_PAYLOAD_TRANSPORT_HEADER of linux/netfilter/nf_tables.h.
const TRANSPORT_HEADER: u32 = 2;
// RFC 9293 section 3.1 and RFC 768: offsets into the headers of TCP and UDP.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;
// RFC 768.
const UDP_CHECKSUM: u32 = 6;
// RFC 9293 section 3.1: the control bits.
const CONTROL_BITS: u32 = 13;
const SYN: u8 = 0x02;
const FIN_SYN_RST_ACK: u8 = 0x17;
// NFTA_CT_DREG, NFTA_CT_KEY and NFT_CT_STATE of linux/netfilter/nf_tables.h, and
// the bit of IP_CT_ESTABLISHED as nft_ct has it.
const CT_REGISTER: u16 = 1;
const CT_KEY: u16 = 2;
const CT_STATE: u32 = 0;
const ESTABLISHED: u32 = 1 << 1;
// NFTA_REDIR_REG_PROTO_MIN of linux/netfilter/nf_tables.h.
const REDIR_PORT_REGISTER: u16 = 1;

/// What is to be done to the table.
pub(super) enum Change<'a> {
    Install(&'a Redirects),
    /// Other rules, or none, in the table that there is.
    Replace(&'a Redirects),
    Remove,
}

/// The messages of one transaction.
pub(super) fn messages(change: &Change<'_>) -> Vec<Request> {
    match change {
        Change::Install(redirects) => [new_table()]
            .into_iter()
            .chain(CHAINS.iter().map(new_chain))
            .chain(new_rules(redirects))
            .collect(),
        Change::Replace(redirects) => CHAINS
            .iter()
            .map(delete_rules)
            .chain(new_rules(redirects))
            .collect(),
        Change::Remove => vec![delete_table()],
    }
}

fn new_table() -> Request {
    Request {
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: NfTablesMessage::NewTable(TableMessage {
            attributes: vec![
                TableAttribute::Name(AGENT_NFT_TABLE.into()),
                TableAttribute::Flags(TableFlags::Owner),
            ],
        }),
    }
}

fn delete_table() -> Request {
    Request {
        flags: 0,
        message: NfTablesMessage::DeleteTable(TableMessage {
            attributes: vec![TableAttribute::Name(AGENT_NFT_TABLE.into())],
        }),
    }
}

fn new_chain(chain: &Chain) -> Request {
    Request {
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(AGENT_NFT_TABLE.into()),
                ChainAttribute::Name(chain.name.into()),
                ChainAttribute::Type(chain.kind.into()),
                ChainAttribute::Hook(vec![
                    Hook::Number(chain.hook.into()),
                    Hook::Priority(chain.priority.cast_unsigned()),
                ]),
                ChainAttribute::Policy(ACCEPT),
            ],
        }),
    }
}

/// Without a handle it means every rule of the chain.
fn delete_rules(chain: &Chain) -> Request {
    Request {
        flags: 0,
        message: NfTablesMessage::DeleteRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(AGENT_NFT_TABLE.into()),
                RuleAttribute::Chain(chain.name.into()),
            ],
        }),
    }
}

fn new_rules(redirects: &Redirects) -> impl Iterator<Item = Request> {
    let connections = redirects.connections.iter();
    let connections = connections.map(|port| redirect(*port, redirects.listener));
    let connections = [track_connections()].into_iter().chain(connections);
    // Nobody but who may reach the claimed port is to get to the agent, which keeps its
    // sockets when a port is claimed no more.
    let own = redirects.answers.values().map(|socket| refuse(*socket));
    let datagrams = redirects.datagrams.iter();
    let datagrams = datagrams.flat_map(|(port, socket)| {
        // What the first has turned has another port, and is not for the second.
        [turn_without_checksum(*port, *socket), turn(*port, *socket)]
    });
    let datagrams = own.chain(datagrams);
    let answers = redirects.answers.iter();
    let answers = answers.map(|(port, socket)| turn_back(*port, *socket));
    connections
        .map(|rule| new_rule(&PREROUTING, rule))
        .chain(datagrams.map(|rule| new_rule(&DATAGRAMS, rule)))
        .chain(answers.map(|rule| new_rule(&ANSWERS, rule)))
}

fn new_rule(chain: &Chain, expressions: Vec<Expressions>) -> Request {
    Request {
        flags: NLM_F_CREATE | NLM_F_APPEND,
        message: NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(AGENT_NFT_TABLE.into()),
                RuleAttribute::Chain(chain.name.into()),
                RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
            ],
        }),
    }
}

/// A rule that does nothing. The kernel translates addresses only while some
/// rule needs connection tracking, and connections that were redirected once
/// need the translation until they end.
fn track_connections() -> Vec<Expressions> {
    vec![
        Expressions::Other {
            expression_type: "ct".into(),
            attributes: vec![
                number(CT_REGISTER, Register::Reg1.into()),
                number(CT_KEY, CT_STATE),
            ],
        },
        mask(&ESTABLISHED.to_ne_bytes()),
        compare(Operator::NotEqual, vec![0; 4]),
    ]
}

/// The rule for the connections to one port.
fn redirect(port: u16, listener: u16) -> Vec<Expressions> {
    let mut rule = from_outside(IPPROTO_TCP);
    rule.extend([
        // Connection tracking may begin with this very table. It then takes the
        // next packet of a connection that is open already for a first one,
        // and that must not be redirected.
        load_header(CONTROL_BITS, 1),
        mask(&[FIN_SYN_RST_ACK]),
        compare(Operator::Equal, vec![SYN]),
        load_header(DESTINATION_PORT, 2),
        compare(Operator::Equal, port.to_be_bytes().to_vec()),
        port_number(listener),
        Expressions::Other {
            expression_type: "redir".into(),
            attributes: vec![number(REDIR_PORT_REGISTER, Register::Reg1.into())],
        },
    ]);
    rule
}

/// The rule for the datagrams that come to one port, and have a checksum.
fn turn(port: u16, socket: u16) -> Vec<Expressions> {
    let mut rule = datagrams_to(port);
    rule.extend(write_port(DESTINATION_PORT, socket, with_checksum()));
    rule
}

/// The rule for those that have none, and are to have none.
fn turn_without_checksum(port: u16, socket: u16) -> Vec<Expressions> {
    let mut rule = datagrams_to(port);
    rule.extend([
        load_header(UDP_CHECKSUM, 2),
        compare(Operator::Equal, vec![0; 2]),
    ]);
    rule.extend(write_port(DESTINATION_PORT, socket, Vec::new()));
    rule
}

/// The rule for the answers to them.
fn turn_back(port: u16, socket: u16) -> Vec<Expressions> {
    let mut rule = vec![
        load(MetaKey::L4Proto),
        compare(Operator::Equal, vec![IPPROTO_UDP]),
        load_header(SOURCE_PORT, 2),
        compare(Operator::Equal, socket.to_be_bytes().to_vec()),
    ];
    // The agent's answers have a checksum.
    rule.extend(write_port(SOURCE_PORT, port, with_checksum()));
    rule
}

/// The rule for datagrams that nothing has turned to the agent's socket.
fn refuse(socket: u16) -> Vec<Expressions> {
    let mut rule = datagrams_to(socket);
    rule.push(Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
            Verdict::Other(DROP),
        )])),
    ]));
    rule
}

/// What comes from outside to one UDP port.
fn datagrams_to(port: u16) -> Vec<Expressions> {
    let mut rule = from_outside(IPPROTO_UDP);
    rule.extend([
        load_header(DESTINATION_PORT, 2),
        compare(Operator::Equal, port.to_be_bytes().to_vec()),
    ]);
    rule
}

/// What is of that protocol, and not from within the pod.
fn from_outside(protocol: u8) -> Vec<Expressions> {
    vec![
        load(MetaKey::Iftype),
        compare(Operator::NotEqual, LOOPBACK.to_ne_bytes().to_vec()),
        load(MetaKey::L4Proto),
        compare(Operator::Equal, vec![protocol]),
    ]
}

/// Puts another port into a UDP header, and does that to the checksum.
fn write_port(offset: u32, port: u16, checksum: Vec<Payload>) -> [Expressions; 2] {
    let mut write = vec![
        Payload::SourceRegister(Register::Reg1),
        Payload::Base(TRANSPORT_HEADER),
        Payload::Offset(offset),
        Payload::Len(2),
    ];
    write.extend(checksum);
    [port_number(port), Expressions::Payload(write)]
}

/// Has the kernel correct the checksum.
fn with_checksum() -> Vec<Payload> {
    vec![
        Payload::CsumType(ChecksumType::Inet),
        Payload::CsumOffset(UDP_CHECKSUM),
    ]
}

fn port_number(port: u16) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Reg1),
        Immediate::Data(DataAttribute::Value(port.to_be_bytes().to_vec())),
    ])
}

fn load(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![
        Meta::DestinationRegister(Register::Reg1),
        Meta::Key(key),
    ])
}

/// Loads bytes of the transport protocol's header.
fn load_header(offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(TRANSPORT_HEADER),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn mask<const LENGTH: usize>(bits: &[u8; LENGTH]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(LENGTH as u32),
        Bitwise::Mask(DataAttribute::Value(bits.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; LENGTH])),
    ])
}

fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// Attributes hold numbers in network order.
fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}
