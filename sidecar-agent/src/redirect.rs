//! Sends new connections to claimed ports to the agent's listener, and datagrams to its
//! sockets, by an nftables table in the pod's network namespace.
//!
//! The table belongs to a netlink socket of this process. When the process
//! ends, however it ends, the kernel closes the socket and removes the table.

mod batch;
mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use nix::errno::Errno;

use self::{batch::Batch, rules::Change};

/// What comes to the agent instead of the app.
#[derive(Debug, Default)]
pub(crate) struct Redirects {
    /// The TCP ports whose new connections come to the listener.
    pub(crate) connections: BTreeSet<u16>,
    pub(crate) listener: u16,
    /// The UDP ports, each with that of the socket to which its datagrams come.
    pub(crate) datagrams: BTreeMap<u16, u16>,
    /// The UDP ports that answers of sockets leave from: also those whose datagrams come to
    /// the agent no more, and to some of which answers are on their way. What else is sent
    /// to those sockets is refused.
    pub(crate) answers: BTreeMap<u16, u16>,
}

impl Redirects {
    /// Whether nothing comes to the agent any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.datagrams.is_empty()
    }
}

/// The table in the pod, and the socket that it lives by.
pub(crate) struct Redirect {
    batch: Batch,
    table: Table,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Absent,
    /// Redirects nothing new, and keeps translating the packets of connections
    /// that it once redirected, and answers to datagrams. Nothing else reaches the sockets
    /// of these.
    Empty,
    Active,
}

/// Why the kernel did not take a change. Nothing of the change is in force.
#[derive(Debug, thiserror::Error)]
#[error("cannot change the pod's nftables redirect{}", hint(source))]
pub(crate) struct RedirectError {
    #[from]
    source: io::Error,
}

impl Redirect {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            batch: Batch::open()?,
            table: Table::Absent,
        })
    }

    /// Has this, and nothing else, come to the agent; all at once or not at all.
    /// Connections that are open already go on as they are, while each datagram goes as
    /// the rules of the moment say. What is over loopback is left alone, the agent's own
    /// to the app among it.
    pub(crate) fn apply(&mut self, redirects: &Redirects) -> Result<(), RedirectError> {
        let change = match self.table {
            Table::Absent | Table::Empty if redirects.is_empty() => return Ok(()),
            Table::Absent => Change::Install(redirects),
            Table::Empty | Table::Active => Change::Replace(redirects),
        };
        let sent = self.batch.send(rules::messages(&change));
        if sent.is_err() && self.table == Table::Absent {
            // Should the kernel have installed it all the same, it goes with
            // its socket.
            self.batch = Batch::open()?;
        }
        sent?;
        self.table = if redirects.is_empty() {
            Table::Empty
        } else {
            Table::Active
        };
        Ok(())
    }

    /// Redirects nothing new any more. Answers leave from those ports as before.
    pub(crate) fn withdraw(&mut self, answers: BTreeMap<u16, u16>) -> Result<(), RedirectError> {
        let redirects = Redirects {
            answers,
            ..Redirects::default()
        };
        if let Err(error) = self.apply(&redirects) {
            tracing::warn!(error = %error.source, "Removing the redirect with its socket");
            self.batch = Batch::open()?;
            self.table = Table::Absent;
        }
        Ok(())
    }

    /// Whether there is a table only for the sake of connections that it once
    /// redirected.
    pub(crate) fn is_empty_table(&self) -> bool {
        self.table == Table::Empty
    }

    /// Removes the table. Cuts off connections that it has redirected.
    pub(crate) fn remove_table(&mut self) -> Result<(), RedirectError> {
        if self.table != Table::Absent {
            self.batch.send(rules::messages(&Change::Remove))?;
            self.table = Table::Absent;
        }
        Ok(())
    }
}

fn hint(error: &io::Error) -> &'static str {
    let number = error.raw_os_error().map(Errno::from_raw);
    if number == Some(Errno::EPERM) {
        " (the container lacks NET_ADMIN, or another agent in the pod has the table)"
    } else if [Errno::EOPNOTSUPP, Errno::EINVAL, Errno::ENOENT]
        .map(Some)
        .contains(&number)
    {
        " (the node's kernel needs nftables with NAT, Linux 5.12 or later)"
    } else {
        ""
    }
}
