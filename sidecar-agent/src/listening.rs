//! Which ports the pod's processes listen on, by `/proc/net/tcp` and `/proc/net/tcp6`.

use std::collections::BTreeSet;
use std::{fs, io};

/// The state of a socket that listens, as the kernel writes it.
const LISTEN: &str = "0A";

/// The TCP ports that somebody listens on, at any address.
pub(crate) fn ports() -> io::Result<BTreeSet<u16>> {
    let mut ports = parse(&fs::read_to_string("/proc/self/net/tcp")?);
    match fs::read_to_string("/proc/self/net/tcp6") {
        Ok(table) => ports.append(&mut parse(&table)),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(ports)
}

fn parse(table: &str) -> BTreeSet<u16> {
    let listening = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _remote, state) = (words.next()?, words.next()?, words.next()?);
        let (_, port) = local.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (state == LISTEN).then_some(port)
    };
    table.lines().filter_map(listening).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_listened_on_are_told_from_those_of_connections() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0";
        assert_eq!(parse(table), BTreeSet::from([8080, 443]));
    }

    #[test]
    fn listener_is_seen_until_it_is_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(ports().unwrap().contains(&port));
        drop(listener);
        assert!(!ports().unwrap().contains(&port));
    }
}
