//! DNS messages of the host and of name servers.

use hickory_proto::op::Message;
use hickory_proto::rr::Name;
use kvpn_tunnel::dns::parse_resolv_conf;

use crate::input::Input;
use crate::session::cluster_info::ClusterInfo;
use exchange::{Answer, Query};
use names::Route;
use rules::NameRules;

#[expect(dead_code, unreachable_pub, reason = "asking needs a name server")]
#[path = "../../../tunnel/src/dns/exchange.rs"]
mod exchange;
#[path = "../../../daemon/src/dns/names.rs"]
mod names;
#[path = "../../../daemon/src/dns/rewrite.rs"]
mod rewrite;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "only what names are classified by is used")
)]
#[path = "../../../daemon/src/dns/rules.rs"]
mod rules;

/// A query and an answer, each in two pieces.
pub fn dns(bytes: &[u8]) {
    let mut input = Input(bytes);
    let message = [input.some(255), input.some(255)].concat();
    let answer = [input.some(255), input.0].concat();
    if let Some(query) = Query::parse(&message) {
        let _ = Answer::parse(&answer, &query).map(|answer| answer.is_conclusive());
        // An echo with the response bit is an answer.
        let mut echo = message.clone();
        echo[2] |= 0x80;
        assert!(Answer::parse(&echo, &query).is_some());
    }
    let _ = parse_resolv_conf(&String::from_utf8_lossy(&answer));
    if let Ok(asked) = Message::from_vec(&message) {
        for query in &asked.queries {
            complete(&message, query.name(), &answer);
        }
    }
}

/// Asks under the full name that the name has in the cluster, and gives the
/// answer its name back.
fn complete(message: &[u8], asked: &Name, answer: &[u8]) {
    let cluster = ClusterInfo {
        pod_subnets: vec!["10.244.0.0/16".parse().expect("a subnet")],
        domain: "cluster.local".into(),
        namespaces: ["shop".to_owned()].into(),
        headless: [("store".to_owned(), "shop".to_owned())].into(),
        ..ClusterInfo::default()
    };
    let rules = NameRules::new(&[], &["example.com".into()], &[], "shop").expect("rules");
    let names = match names::classify(asked, &cluster, &rules) {
        Route::Completed(names) => names,
        Route::Cluster | Route::Upstream | Route::Nowhere => vec![asked.clone()],
    };
    if let Some(address) = rewrite::reverse_address(asked) {
        let again = rewrite::reverse_address(&Name::from(address));
        assert_eq!(again, Some(address));
    }
    for full in names {
        if let Ok(question) = rewrite::question(message, &full) {
            let question = Message::from_vec(&question).expect("its own encoding");
            assert!(question.queries.iter().all(|query| *query.name() == full));
        }
        if let Ok(mut answer) = Message::from_vec(answer) {
            rewrite::answer(&mut answer, &full, asked);
            rewrite::addresses(&mut answer, |address| address);
            rewrite::age(&mut answer, std::time::Duration::from_secs(1));
            rewrite::forbid_caching(&mut answer);
            let _ = answer.to_vec();
        }
    }
}
