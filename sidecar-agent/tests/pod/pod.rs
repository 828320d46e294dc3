//! The pod: an app that listens, and the agent beside it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    os::linux::net::SocketAddrExt,
    os::unix::net::{self as unix, UnixStream},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    sys::socket::{self, shutdown},
    unistd::Pid,
};

use crate::{
    manager::{Identity, Manager},
    network::{Network, Side},
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// The agent's process, killed when dropped.
pub(crate) struct Agent {
    child: Child,
}

impl Agent {
    pub(crate) fn start(network: &Network, identity: &Identity, linger: &str) -> Self {
        let child = Command::new("nsenter")
            .arg(format!("--net={}", network.path(Side::Pod).display()))
            .arg(env!("CARGO_BIN_EXE_sidecar-agent"))
            .args(["--manager", &Manager::address().to_string()])
            .args(["--ca", &identity.ca])
            .args(["--container", "kvpn-agent-test1"])
            .args(["--linger", linger])
            .env("RUST_LOG", "info")
            .spawn()
            .expect("this test needs nsenter");
        Self { child }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the agent does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An app that says `app`, then returns what the client sends.
pub(crate) struct App(TcpListener);

impl App {
    pub(crate) fn start(network: &Network, port: u16) -> Self {
        Self::start_at(network, (Ipv6Addr::UNSPECIFIED, port).into())
    }

    pub(crate) fn start_at(network: &Network, address: SocketAddr) -> Self {
        let listener = network.within(Side::Pod, move || TcpListener::bind(address).unwrap());
        let app = Self(listener.try_clone().unwrap());
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                thread::spawn(move || answer(&client));
            }
        });
        app
    }

    /// Takes no connections any more, and goes on with those that there are.
    pub(crate) fn stop_listening(&self) {
        shutdown(self.0.as_raw_fd(), socket::Shutdown::Both).unwrap();
    }
}

fn answer(mut client: &TcpStream) -> io::Result<()> {
    client.write_all(b"app\n")?;
    io::copy(&mut client.try_clone()?, &mut client)?;
    client.shutdown(Shutdown::Write)
}

/// A connection to the agent, as of what stops a container.
pub(crate) struct Holding(UnixStream);

impl Holding {
    pub(crate) fn address() -> unix::SocketAddr {
        unix::SocketAddr::from_abstract_name("kvpn-agent-holders").unwrap()
    }

    /// Calls for a container, once the agent takes calls.
    pub(crate) fn call(network: &Network, container: &str) -> Self {
        let stream = network.within(Side::Pod, || {
            let deadline = Instant::now() + DEADLINE;
            loop {
                match UnixStream::connect_addr(&Self::address()) {
                    Ok(stream) => return stream,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let holding = Self(stream);
        holding.answer(container);
        holding
    }

    /// The next word of the agent; `None` when it has hung up.
    pub(crate) fn told(&self) -> Option<String> {
        let mut word = String::new();
        BufReader::new(&self.0).read_line(&mut word).unwrap();
        word.strip_suffix('\n').map(str::to_owned)
    }

    pub(crate) fn answer(&self, line: &str) {
        writeln!(&self.0, "{line}").unwrap();
    }
}

pub(crate) fn connect(network: &Network, side: Side, address: SocketAddr) -> io::Result<TcpStream> {
    network.within(side, move || {
        let socket = TcpStream::connect_timeout(&address, DEADLINE)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        Ok(socket)
    })
}

/// Who answers a client on the peer's side that says nothing.
pub(crate) fn ask(network: &Network, address: SocketAddr) -> io::Result<String> {
    ask_from(network, Side::Peer, address)
}

pub(crate) fn ask_from(network: &Network, side: Side, address: SocketAddr) -> io::Result<String> {
    first_line(&connect(network, side, address)?)
}

pub(crate) fn first_line(socket: &TcpStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Sends all that, ends the direction, and reads until the other one ends.
pub(crate) fn exchange(mut socket: TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut writer = socket.try_clone()?;
    let mut received = Vec::new();
    thread::scope(|scope| {
        let written = scope.spawn(move || {
            writer.write_all(bytes)?;
            writer.shutdown(Shutdown::Write)
        });
        socket.read_to_end(&mut received)?;
        written.join().unwrap()
    })?;
    Ok(received)
}

/// Exchanges byte after byte: the kernel frees what it no longer needs some
/// milliseconds after a change of rules.
pub(crate) fn talk_for_a_while(mut socket: &TcpStream) {
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        socket.write_all(b"x").unwrap();
        socket.read_exact(&mut [0]).unwrap();
    }
}

/// Waits for a condition.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
