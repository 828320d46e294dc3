//! Many subnets told as few.

use ipnet::IpNet;

/// Merges subnets, also over gaps that are smaller than they are: a subnet in which
/// an address is left out is many, but one to name.
pub(super) fn join(subnets: &[IpNet]) -> Vec<IpNet> {
    let mut joined: Vec<(IpNet, f64)> = Vec::new();
    for subnet in IpNet::aggregate(&subnets.to_vec()) {
        let mut next = (subnet, size(&subnet));
        while let Some(both) = joined.last().and_then(|last| join_two(*last, next)) {
            joined.pop();
            next = both;
        }
        joined.push(next);
    }
    joined.into_iter().map(|(subnet, _)| subnet).collect()
}

/// Each comes with how many of its addresses are meant.
fn join_two(left: (IpNet, f64), right: (IpNet, f64)) -> Option<(IpNet, f64)> {
    let mut both = left.0;
    while !both.contains(&right.0) {
        both = both.supernet()?;
    }
    let meant = left.1 + right.1;
    (meant > size(&both) / 2.0).then_some((both, meant))
}

fn size(subnet: &IpNet) -> f64 {
    2_f64.powi(i32::from(subnet.max_prefix_len() - subnet.prefix_len()))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn subnet_around_an_address_is_named_as_a_whole() {
        for hole in ["10.96.0.0", "10.96.0.1", "10.96.77.3", "10.96.255.255"] {
            let mut pieces = vec![net("10.96.0.0/16")];
            while let Some(at) = pieces
                .iter()
                .position(|piece| piece.contains(&hole.parse::<IpAddr>().unwrap()))
            {
                let piece = pieces.remove(at);
                pieces.extend(piece.subnets(piece.prefix_len() + 1).into_iter().flatten());
            }
            assert_eq!(pieces.len(), 16);
            assert_eq!(join(&pieces), [net("10.96.0.0/16")], "{hole}");
        }
    }

    #[test]
    fn subnets_far_from_each_other_stay_apart() {
        let apart = ["10.96.0.0/16", "10.244.0.0/16", "fd00:96::/108"].map(net);
        assert_eq!(join(&apart), apart);
    }
}
