//! The lab itself: what it isolates, and that what is inside works. Without
//! these, the other tests could pass for nothing.

use std::time::Duration;

use kvpn_tests::Lab;
use kvpn_tests::lab::net;
use serde_json::Value;

#[test]
fn sample_app_answers_inside_the_cluster() {
    let lab = Lab::attach().unwrap();
    let request = ["curl", "-sS", "-m", "5", "http://web/chain"];
    let output = lab
        .pod_exec("shop", "deploy/client", request)
        .unwrap()
        .success()
        .unwrap();
    let answer: Value = output.json().unwrap();
    assert_eq!(answer["service"], "web");
    assert_eq!(answer["upstream"]["service"], "api");
    assert_eq!(answer["upstream"]["upstream"]["service"], "store");
}

#[test]
fn nothing_reaches_the_cluster_without_kvpn() {
    let lab = Lab::attach().unwrap();
    let addresses = cluster_addresses(&lab);
    assert_eq!(
        addresses.len(),
        4,
        "one of each kind and family: {addresses:?}"
    );
    for (address, port) in &addresses {
        let url = match address.contains(':') {
            true => format!("http://[{address}]:{port}/"),
            false => format!("http://{address}:{port}/"),
        };
        let curl = ["-sS", "-m", "2", "-o", "/dev/null", url.as_str()];
        lab.node("curl", curl)
            .ok()
            .expect("the node reaches it, or this proves nothing");
        for laptop in [1, 2] {
            let login = lab.laptop(laptop).unwrap().root();
            let output = login.cmd(["curl"]).args(curl).run().unwrap();
            assert_eq!(
                output.code(),
                28,
                "{url} must be silent, but: {}",
                output.stderr
            );
        }
    }
}

#[test]
fn laptops_resolve_the_names_of_their_office() {
    let lab = Lab::attach().unwrap();
    for laptop in [1, 2] {
        let output = lab
            .laptop(laptop)
            .unwrap()
            .user()
            .run(["getent", "hosts", "printer"])
            .unwrap();
        assert!(output.stdout.starts_with("10.77.0.99 "), "{output:?}");
    }
}

#[test]
fn wire_delays_and_loses_packets() {
    struct Mend(Lab);
    impl Drop for Mend {
        fn drop(&mut self) {
            let delay = self.0.delay_packets(Duration::ZERO);
            self.0.lose_packets(0.0).and(delay).expect("mend the wire");
        }
    }
    let mut mend = Mend(Lab::attach().unwrap());
    let login = mend.0.laptop(1).unwrap().root();
    let ping = || login.run(["ping", "-c1", "-W2", net::NODE_V4]).unwrap();
    assert!(ping().status.success());

    mend.0.delay_packets(Duration::from_millis(30)).unwrap();
    let output = ping().success().unwrap();
    let time = output.stdout.split("time=").nth(1).unwrap();
    let time: f64 = time.split_whitespace().next().unwrap().parse().unwrap();
    assert!((60.0..120.0).contains(&time), "{}", output.stdout);

    mend.0.lose_packets(100.0).unwrap();
    assert!(!ping().status.success());
}

/// Addresses and ports of web: of its pod and of its service, both families.
fn cluster_addresses(lab: &Lab) -> Vec<(String, u16)> {
    let get = |args: &[&str]| -> Value {
        let json = ["-n", "shop", "-ojson"];
        lab.kubectl(args)
            .args(json)
            .run()
            .unwrap()
            .success()
            .unwrap()
            .json()
            .unwrap()
    };
    let pods = get(&["get", "pods", "-lapp=web"]);
    let pod = pods["items"][0]["status"]["podIPs"]
        .as_array()
        .unwrap()
        .clone();
    let service = get(&["get", "service", "web"])["spec"]["clusterIPs"]
        .as_array()
        .unwrap()
        .clone();
    let pod = pod
        .iter()
        .map(|ip| (ip["ip"].as_str().unwrap().to_owned(), 8080));
    let service = service
        .iter()
        .map(|ip| (ip.as_str().unwrap().to_owned(), 80));
    pod.chain(service).collect()
}
