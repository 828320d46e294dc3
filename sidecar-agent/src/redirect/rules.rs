//! The table as nf_tables messages. As `nft` would show it:
//!
//! ```text
//! table inet kvpn { flags owner
//!     chain prerouting {
//!         type nat hook prerouting priority dstnat; policy accept;
//!         ct state established
//!         iiftype != loopback tcp flags & (fin|syn|rst|ack) == syn tcp dport 8080 redirect to :40000
//!     }
//! }
//! ```

use std::collections::BTreeSet;

use kvpn_proto::names::AGENT_NFT_TABLE;
use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate,
    InetHookNumber, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, TableAttribute, TableFlags, TableMessage,
};

use super::batch::Request;

const CHAIN: &str = "prerouting";

// NF_ACCEPT of linux/netfilter.h.
const ACCEPT: u32 = 1;
// NF_IP_PRI_NAT_DST of linux/netfilter_ipv4.h.
const DSTNAT: i32 = -100;
// ARPHRD_LOOPBACK of linux/if_arp.h.
const LOOPBACK: u16 = 772;
const IPPROTO_TCP: u8 = 6;
// NFT_PAYLOAD_TRANSPORT_HEADER of linux/netfilter/nf_tables.h.
const TRANSPORT_HEADER: u32 = 2;
// RFC 9293 section 3.1: offsets into the TCP header, and its control bits.
const DESTINATION_PORT: u32 = 2;
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
    Install {
        ports: &'a BTreeSet<u16>,
        listener: u16,
    },
    /// Other rules, or none, in the table that there is.
    Replace {
        ports: &'a BTreeSet<u16>,
        listener: u16,
    },
    Remove,
}

/// The messages of one transaction.
pub(super) fn messages(change: &Change<'_>) -> Vec<Request> {
    match change {
        Change::Install { ports, listener } => [new_table(), new_chain()]
            .into_iter()
            .chain(new_rules(ports, *listener))
            .collect(),
        Change::Replace { ports, listener } => [delete_rules()]
            .into_iter()
            .chain(new_rules(ports, *listener))
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

fn new_chain() -> Request {
    Request {
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(AGENT_NFT_TABLE.into()),
                ChainAttribute::Name(CHAIN.into()),
                ChainAttribute::Type("nat".into()),
                ChainAttribute::Hook(vec![
                    Hook::Number(InetHookNumber::PreRouting.into()),
                    Hook::Priority(DSTNAT.cast_unsigned()),
                ]),
                ChainAttribute::Policy(ACCEPT),
            ],
        }),
    }
}

/// Without a handle it means every rule of the chain.
fn delete_rules() -> Request {
    Request {
        flags: 0,
        message: NfTablesMessage::DeleteRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(AGENT_NFT_TABLE.into()),
                RuleAttribute::Chain(CHAIN.into()),
            ],
        }),
    }
}

fn new_rules(ports: &BTreeSet<u16>, listener: u16) -> impl Iterator<Item = Request> {
    let redirects = ports.iter().map(move |port| redirect(*port, listener));
    [track_connections()]
        .into_iter()
        .chain(redirects)
        .map(new_rule)
}

fn new_rule(expressions: Vec<Expressions>) -> Request {
    Request {
        flags: NLM_F_CREATE | NLM_F_APPEND,
        message: NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(AGENT_NFT_TABLE.into()),
                RuleAttribute::Chain(CHAIN.into()),
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

/// The rule for one port.
fn redirect(port: u16, listener: u16) -> Vec<Expressions> {
    vec![
        load(MetaKey::Iftype),
        compare(Operator::NotEqual, LOOPBACK.to_ne_bytes().to_vec()),
        load(MetaKey::L4Proto),
        compare(Operator::Equal, vec![IPPROTO_TCP]),
        // Connection tracking may begin with this very table. It then takes the
        // next packet of a connection that is open already for a first one,
        // and that must not be redirected.
        load_tcp(CONTROL_BITS, 1),
        mask(&[FIN_SYN_RST_ACK]),
        compare(Operator::Equal, vec![SYN]),
        load_tcp(DESTINATION_PORT, 2),
        compare(Operator::Equal, port.to_be_bytes().to_vec()),
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Reg1),
            Immediate::Data(DataAttribute::Value(listener.to_be_bytes().to_vec())),
        ]),
        Expressions::Other {
            expression_type: "redir".into(),
            attributes: vec![number(REDIR_PORT_REGISTER, Register::Reg1.into())],
        },
    ]
}

fn load(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![
        Meta::DestinationRegister(Register::Reg1),
        Meta::Key(key),
    ])
}

/// Loads bytes of the TCP header.
fn load_tcp(offset: u32, length: u32) -> Expressions {
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
