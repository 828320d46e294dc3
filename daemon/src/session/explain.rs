//! What the session makes of a name or of addresses, for `kvpn why`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kvpn_proto::v1;

use super::directory::Object;
use super::flows::Flows;
use super::vnat::Vnat;

/// Tells what addresses are in the cluster.
pub(super) async fn addresses(
    flows: &Flows,
    vnat: &Vnat,
    texts: &[String],
) -> Vec<v1::ExplainedAddress> {
    let parsed = texts.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let addresses: Vec<IpAddr> = parsed.collect();
    let real: BTreeSet<IpAddr> = addresses.iter().map(|it| vnat.real(*it)).collect();
    let objects = flows.describe(real).await;
    let explain = |address: &IpAddr| {
        let real = vnat.real(*address);
        let mut explained = v1::ExplainedAddress {
            address: address.to_string(),
            real: real.to_string(),
            ..v1::ExplainedAddress::default()
        };
        if let Some(Object {
            kind,
            namespace,
            name,
        }) = objects.get(&real)
        {
            (*kind).clone_into(&mut explained.kind);
            explained.namespace.clone_from(namespace);
            explained.object.clone_from(name);
        }
        explained
    };
    addresses.iter().map(explain).collect()
}
