//! Datagrams to a port of a workload: to the laptop, and to the app while the laptop does
//! not take them.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_proto::Reason;
use kvpn_tests::dual_stack::any_of;
use kvpn_tests::lab::laptop::Laptop;
use kvpn_tests::{Lab, WHO, wait_for};

use crate::errors::assert_fails;
use crate::support::{Developer, SHOP, pod};
use crate::truth::in_network;

/// Which web's container takes over TCP and UDP.
const PORT: u16 = 8080;

const DEADLINE: Duration = Duration::from_secs(10);

/// Who sends all its datagrams from one port of the laptop.
struct Client(UdpSocket);

impl Client {
    fn new(laptop: &Laptop, server: SocketAddr) -> Result<Self> {
        in_network(laptop, || {
            let socket = UdpSocket::bind((any_of(server.ip()), 0))?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(DEADLINE))?;
            Ok(Self(socket))
        })
    }

    /// Who answers the one datagram that is sent.
    fn who(&self) -> Result<String> {
        self.0.send(WHO.as_bytes())?;
        let mut answer = [0; 100];
        let length = self.0.recv(&mut answer).context("no answer")?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }
}

/// Who answers datagrams of the sample's client pod, at each of the addresses.
fn who_from_pod(lab: &Lab, addresses: &[String]) -> Result<Vec<String>> {
    // Ends with the first answer.
    let script = r#"for address in "$@"; do
        printf '%s' "$QUESTION" | nc -u -W 1 -w 5 "$address" "$PORT" && echo || exit
    done"#;
    let script = format!("QUESTION={WHO:?} PORT={PORT}\n{script}");
    let command = ["bash", "-c", &script, "who"].into_iter();
    let command = command.chain(addresses.iter().map(String::as_str));
    let output = lab.pod_exec(SHOP, "deploy/client", command)?.success()?;
    Ok(output.stdout.lines().map(str::to_owned).collect())
}

/// Waits until it is the app that answers. Not one datagram may get no answer meanwhile.
fn wait_for_app(mut ask: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    let answers = wait_for("the app answers again", DEADLINE, || match ask() {
        Ok(answers) if answers.iter().any(|who| who != "web") => Ok(None),
        answers @ (Ok(_) | Err(_)) => Ok(Some(answers)),
    })?;
    answers.map(drop)
}

#[test]
fn datagrams_go_to_the_laptop_while_it_takes_them_and_connections_to_the_app() -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let web = pod(lab, "web")?;
    let handler = developer.handler(PORT)?;
    let address = web.addresses.first().context("no address")?;
    let client = Client::new(&developer.laptop, SocketAddr::new(address.parse()?, PORT))?;
    assert_eq!(client.who()?, "web");

    let (_, engaged) = developer.intercept("web", "8080:8080/udp")?;
    assert_eq!(engaged["ports"][0]["protocol"], "UDP", "{engaged}");
    // Also those of a client that was there before.
    assert_eq!(client.who()?, "laptop");
    assert_eq!(who_from_pod(lab, &web.addresses)?, ["laptop"; 2]);
    assert_eq!(developer.get(["http://web/"])?.pod, web.name);

    // Not one is lost without a handler, and a new one gets them.
    drop(handler);
    wait_for_app(|| Ok(vec![client.who()?]))?;
    wait_for_app(|| who_from_pod(lab, &web.addresses))?;
    let handler = developer.handler(PORT)?;
    wait_for("the laptop answers again", DEADLINE, || {
        Ok((client.who()? == "laptop").then_some(()))
    })?;
    let status = developer.kvpn(["status"])?.success()?.stdout;
    ensure!(status.contains("container port 8080/udp"), "{status}");

    developer.kvpn(["leave", "web"])?.success()?;
    wait_for_app(|| Ok(vec![client.who()?]))?;
    wait_for_app(|| who_from_pod(lab, &web.addresses))?;

    let wiretap = ["wiretap", "web", "--port", "8080:8080/udp"];
    developer.kvpn(wiretap)?.success()?;
    let before = handler.printed().matches("who is there").count();
    assert_eq!(client.who()?, "web");
    wait_for("the datagram is copied", DEADLINE, || {
        let asked = handler.printed().matches("who is there").count();
        Ok((asked > before).then_some(()))
    })?;
    Ok(())
}

#[test]
fn datagrams_and_requests_of_one_number_are_engaged_together_but_not_by_a_filter() -> Result<()> {
    let developer = Developer::connected(1)?;
    let _handler = developer.handler(PORT)?;
    let web = pod(&developer.lab, "web")?;
    let filter = ["--http-header", "x-user=alice"];
    let port = ["--port", "8080:8080/udp"];
    let refused = developer.kvpn(["intercept", "web", port[0], port[1], filter[0], filter[1]])?;
    assert_fails(&refused, Reason::NotSupported, &["8080", "UDP"])?;

    let both = ["intercept", "web", "--port", "8080:80", port[0], port[1]];
    developer.kvpn(both)?.success()?;
    assert_eq!(who_from_pod(&developer.lab, &web.addresses)?, ["laptop"; 2]);
    ensure!(developer.get(["http://web/"])?.is_from_laptop());
    developer.kvpn(["leave", "web"])?.success()?;
    wait_for_app(|| who_from_pod(&developer.lab, &web.addresses))?;
    wait_for("the app answers requests again", DEADLINE, || {
        Ok((developer.get(["http://web/"])?.pod == web.name).then_some(()))
    })
}
