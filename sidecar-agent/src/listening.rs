//! Which ports the pod's processes listen on, by `/proc/net/tcp` and its like.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use kvpn_proto::flow::Protocol;

/// The states of a socket that listens, and of a connection that is about to be accepted,
/// as the kernel writes them.
const LISTEN: &str = "0A";
const SYN_RECV: &str = "03";

/// The state of a UDP socket that takes datagrams from everybody.
const UNCONNECTED: &str = "07";

/// The ports that somebody listens on, at any address.
pub(crate) fn ports(protocol: Protocol) -> io::Result<BTreeSet<u16>> {
    let [v4, v6] = match protocol {
        Protocol::Tcp => ["/proc/self/net/tcp", "/proc/self/net/tcp6"],
        Protocol::Udp => ["/proc/self/net/udp", "/proc/self/net/udp6"],
    };
    let parse = |table: File| match protocol {
        Protocol::Tcp => parse(BufReader::new(table)),
        Protocol::Udp => parse_udp(BufReader::new(table)),
    };
    let mut ports = parse(File::open(v4)?)?;
    match File::open(v6) {
        Ok(table) => ports.append(&mut parse(table)?),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(ports)
}

/// Reads no further than to the first connection: the kernel tells those who listen first
/// (`tcp_get_idx`), and a pod may have very many connections.
fn parse(table: impl BufRead) -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for line in table.lines().skip(1) {
        match socket(&line?) {
            Some((port, LISTEN)) => drop(ports.insert(port)),
            Some((_, SYN_RECV)) | None => {}
            Some(_) => break,
        }
    }
    Ok(ports)
}

fn parse_udp(table: impl BufRead) -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for line in table.lines().skip(1) {
        if let Some((port, UNCONNECTED)) = socket(&line?) {
            ports.insert(port);
        }
    }
    Ok(ports)
}

/// The local port of a socket, and its state.
fn socket(line: &str) -> Option<(u16, &str)> {
    let mut words = line.split_whitespace().skip(1);
    let (local, _remote, state) = (words.next()?, words.next()?, words.next()?);
    let (_, port) = local.rsplit_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_listened_on_are_told_from_those_of_connections() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0
   2: 0100007F:1F90 0100007F:C350 03 00000000:00000000 00:00000000 00000000     0        0 2 1
   3: 00000000:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   4: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   and no further";
        let ports = parse(table.as_bytes()).unwrap();
        assert_eq!(ports, BTreeSet::from([8080, 443, 81]));
    }

    #[test]
    fn listeners_come_before_connections() {
        let listeners = [(); 20].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let connections = listeners.each_ref().map(|listener| {
            let address = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(address).unwrap();
            (client, listener.accept().unwrap())
        });
        let ports = ports(Protocol::Tcp).unwrap();
        for listener in &listeners {
            assert!(ports.contains(&listener.local_addr().unwrap().port()));
        }
        drop(connections);
    }

    #[test]
    fn listener_is_seen_until_it_is_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(ports(Protocol::Tcp).unwrap().contains(&port));
        drop(listener);
        assert!(!ports(Protocol::Tcp).unwrap().contains(&port));
    }

    #[test]
    fn socket_is_seen_while_it_takes_datagrams_from_everybody() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(ports(Protocol::Udp).unwrap().contains(&port));
        socket.connect("127.0.0.1:9").unwrap();
        assert!(!ports(Protocol::Udp).unwrap().contains(&port));
    }
}
