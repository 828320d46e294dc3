//! Sends new connections to claimed ports to the agent's listener, by an
//! nftables table in the pod's network namespace.
//!
//! The table belongs to a netlink socket of this process. When the process
//! ends, however it ends, the kernel closes the socket and removes the table.

mod batch;
mod rules;

use std::{collections::BTreeSet, io};

use nix::errno::Errno;

use self::{batch::Batch, rules::Change};

/// The table in the pod, and the socket that it lives by.
pub(crate) struct Redirect {
    batch: Batch,
    table: Table,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Absent,
    /// Redirects nothing new, and keeps translating the packets of connections
    /// that it once redirected.
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

    /// Redirects new TCP connections to these ports, and to no others, to the
    /// listener's port; all at once or not at all. Connections that are open
    /// already go on as they are, and those over loopback are left alone, the
    /// agent's own to the app among them.
    pub(crate) fn apply(
        &mut self,
        ports: &BTreeSet<u16>,
        listener: u16,
    ) -> Result<(), RedirectError> {
        let change = match self.table {
            Table::Absent | Table::Empty if ports.is_empty() => return Ok(()),
            Table::Absent => Change::Install { ports, listener },
            Table::Empty | Table::Active => Change::Replace { ports, listener },
        };
        let sent = self.batch.send(rules::messages(&change));
        if sent.is_err() && self.table == Table::Absent {
            // Should the kernel have installed it all the same, it goes with
            // its socket.
            self.batch = Batch::open()?;
        }
        sent?;
        self.table = if ports.is_empty() {
            Table::Empty
        } else {
            Table::Active
        };
        Ok(())
    }

    /// Redirects no new connection any more.
    pub(crate) fn withdraw(&mut self) -> Result<(), RedirectError> {
        if let Err(error) = self.apply(&BTreeSet::new(), 0) {
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
