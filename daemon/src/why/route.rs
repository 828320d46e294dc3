//! Which way packets take, and what is at its end in the cluster.

use std::net::IpAddr;

use kvpn_proto::story::{Place, Step};

use super::sessions::{Session, Sessions};
use crate::host_routes::way::{Way, way};
use crate::netlink::Netlink;

/// Tells the way to an address; tells whether it goes on from there.
pub(super) async fn follow(address: IpAddr, sessions: &Sessions, steps: &mut Vec<Step>) -> bool {
    let found = async { way(&Netlink::open()?, address).await };
    let way = match found.await {
        Ok(way) => way,
        Err(error) => {
            let text = format!("The way to {address} cannot be read from the kernel: {error}.");
            steps.push(Step::stop(Place::Route, text));
            return false;
        }
    };
    if let Way::Device { name, .. } = &way
        && let Some(session) = sessions.of_device(name)
    {
        return through(address, name, session, steps).await;
    }
    let step = outside(address, &way, sessions);
    let goes_on = step.ok;
    steps.push(step);
    goes_on
}

/// Through the tunnel.
async fn through(address: IpAddr, device: &str, session: &Session, steps: &mut Vec<Step>) -> bool {
    let context = session.context();
    steps.push(Step::on(
        Place::Route,
        format!("{address} goes by {device} through the tunnel to context {context}."),
    ));
    if !session.is_up() {
        steps.push(Step::stop(
            Place::Tunnel,
            "The tunnel is down; kvpn reconnects by itself. See `kvpn doctor`.",
        ));
        return false;
    }
    let explained = session.explain("", &[address]).await.unwrap_or_default();
    let Some(it) = explained.addresses.first() else {
        return true;
    };
    let real = if it.real == it.address {
        String::new()
    } else {
        format!("{address} stands for {}. ", it.real)
    };
    let object = match it.object.as_str() {
        "" => "No pod or Service in the cluster is known to have it.".to_owned(),
        object => format!(
            "In the cluster it is the {} {}/{object}.",
            it.kind, it.namespace
        ),
    };
    steps.push(Step::on(Place::Object, real + &object));
    true
}

/// Any other way.
fn outside(address: IpAddr, way: &Way, sessions: &Sessions) -> Step {
    let but = match sessions.of_address(address) {
        Some(session) => format!(
            ", though the cluster of context {} has that address too: see `kvpn status` for what \
             is routed, and --never-proxy and --vnat",
            session.context()
        ),
        None if sessions.is_empty() => "; this laptop is not connected to a cluster".into(),
        None => String::new(),
    };
    match way {
        Way::Local => Step::on(
            Place::Route,
            format!("{address} is this laptop itself{but}."),
        ),
        Way::Device {
            name,
            gateway,
            owner,
        } => {
            let owner = owner.map(|owner| format!(" ({owner})")).unwrap_or_default();
            let via = gateway.map(|it| format!(" via {it}")).unwrap_or_default();
            Step::on(
                Place::Route,
                format!("{address} goes by {name}{owner}{via}{but}."),
            )
        }
        Way::Nowhere(why) => {
            Step::stop(Place::Route, format!("{address} goes nowhere: {why}{but}."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn own_address_is_told() {
        let mut steps = Vec::new();
        let sessions = Sessions::find().await;
        assert!(follow("127.0.0.1".parse().unwrap(), &sessions, &mut steps).await);
        assert!(steps[0].text.contains("this laptop itself"), "{steps:?}");
    }

    #[tokio::test]
    async fn way_that_is_closed_ends_the_story() {
        let way = Way::Nowhere("a blackhole route of this laptop holds it");
        let step = outside("192.0.2.1".parse().unwrap(), &way, &Sessions::find().await);
        assert!(!step.ok && step.text.contains("blackhole"), "{step:?}");
    }
}
