use super::*;
use crate::state::testing::pod;

fn read(yaml: &str) -> PodView {
    let pod: Pod = serde_yaml::from_str(yaml).unwrap();
    PodView::from(&pod)
}

#[test]
fn a_pod_of_unknown_age_is_taken_for_the_youngest() {
    let created = |metadata: &str| read(&format!("metadata: {{{metadata}}}")).created;
    let at = created("creationTimestamp: '2026-01-01T00:00:00Z'");
    assert_eq!(at, crate::state::testing::epoch());
    assert!(created("name: web") > at);
}

#[test]
fn http_probes_are_found_by_number_and_by_name() {
    let view = read(
        "
        metadata: {name: web, namespace: shop, uid: u}
        spec:
          initContainers:
          - name: proxy
            startupProbe: {httpGet: {port: 15021}}
          containers:
          - name: web
            ports: [{name: http, containerPort: 8080}]
            readinessProbe: {httpGet: {port: http}}
            livenessProbe: {tcpSocket: {port: 9000}}
        ",
    );
    assert_eq!(view.http_probed, BTreeSet::from([8080, 15021]));
}

#[test]
fn probes_of_each_container_are_told_from_those_that_only_the_app_can_answer() {
    let view = read(
        "
        metadata: {name: web, namespace: shop, uid: u}
        spec:
          shareProcessNamespace: true
          containers:
          - name: web
            ports:
            - {name: http, containerPort: 8080}
            - {name: more, containerPort: 7000, protocol: TCP}
            - {name: dns, containerPort: 7001, protocol: UDP}
            readinessProbe: {httpGet: {port: http}}
            livenessProbe: {tcpSocket: {port: 9000}}
          - name: worker
            livenessProbe: {exec: {command: [\"true\"]}}
        ",
    );
    let probes = |ports: &[u16], others, declared: &[u16]| Probes {
        ports: ports.iter().copied().collect(),
        others,
        declared: declared.iter().copied().collect(),
    };
    let web = &view.probes["web"];
    assert_eq!(*web, probes(&[8080, 9000], false, &[8080, 7000]));
    assert!(web.is_own(9000) && web.is_own(7000) && !web.is_own(7001));
    assert_eq!(view.probes["worker"], probes(&[], true, &[]));
    assert!(view.shares_processes);
    for probe in [
        "httpGet: {port: 8080, scheme: HTTPS}",
        "httpGet: {port: 8080, host: example.com}",
        "httpGet: {port: 8080, httpHeaders: [{name: user-agent, value: x}]}",
        "tcpSocket: {port: unknown}",
    ] {
        let view = read(&format!(
            "{{metadata: {{name: web, namespace: shop, uid: u}},
               spec: {{containers: [{{name: web, livenessProbe: {{{probe}}}}}]}}}}"
        ));
        assert!(view.probes["web"].others, "{probe}");
    }
}

#[test]
fn agent_containers_are_told_from_others_and_their_state_is_read() {
    let view = read(
        "
        metadata: {name: web, namespace: shop, uid: u}
        spec:
          containers: []
          ephemeralContainers:
          - {name: debugger, image: busybox}
          - {name: kvpn-agent-aaaaa, image: agent}
          - {name: kvpn-agent-bbbbb, image: agent}
          - {name: kvpn-agent-ccccc, image: agent}
        status:
          phase: Running
          podIP: 10.1.0.7
          podIPs: [{ip: 10.1.0.7}, {ip: 'fd00::7'}]
          ephemeralContainerStatuses:
          - name: kvpn-agent-aaaaa
            image: ''
            imageID: ''
            ready: false
            restartCount: 0
            state: {waiting: {reason: ErrImagePull, message: not found}}
          - name: kvpn-agent-bbbbb
            image: ''
            imageID: ''
            ready: false
            restartCount: 0
            state: {terminated: {exitCode: 1, reason: Error}}
        ",
    );
    let agents: Vec<_> = view.agents.iter().map(|a| (&*a.name, &a.state)).collect();
    assert_eq!(
        agents,
        [
            (
                "kvpn-agent-aaaaa",
                &AgentState::Stuck("ErrImagePull: not found".into())
            ),
            (
                "kvpn-agent-bbbbb",
                &AgentState::Terminated("Error, exit code 1".into())
            ),
            ("kvpn-agent-ccccc", &AgentState::Pending),
        ]
    );
    let ips: Vec<IpAddr> = vec!["10.1.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    assert_eq!(view.ips, ips);
    assert!(view.is_running());
}

#[test]
fn pod_that_was_born_with_an_agent_is_starting_before_it_runs() {
    let view = |restart_policy: &str, phase: &str| {
        read(&format!(
            "
            metadata: {{name: web, namespace: shop, uid: u}}
            spec:
              containers: []
              initContainers:
              - {{name: kvpn-agent-aaaaa, image: agent, restartPolicy: {restart_policy}}}
            status:
              phase: {phase}
              initContainerStatuses:
              - name: kvpn-agent-aaaaa
                image: ''
                imageID: ''
                ready: true
                restartCount: 0
                state: {{running: {{}}}}
            ",
        ))
    };
    let starting = view("Always", "Pending");
    assert!(starting.is_starting() && !starting.is_running());
    assert_eq!(starting.agents[0].state, AgentState::Running);
    assert!(!view("Always", "Running").is_starting());
    // Whatever it is, it does not stay.
    assert_eq!(view("Never", "Pending").agents, []);
}

#[test]
fn an_address_belongs_to_the_pod_that_has_it_now() {
    let mut pods = Pods::default();
    let ip: IpAddr = "10.1.0.7".parse().unwrap();
    let mut old = pod("shop", "job", "10.1.0.7");
    pods.apply(Change::Applied(old.clone()));
    old.phase = Phase::Ended;
    pods.apply(Change::Applied(old.clone()));
    assert_eq!(pods.by_ip(ip), None);

    let new = pod("shop", "web", "10.1.0.7");
    pods.apply(Change::Applied(new.clone()));
    pods.apply(Change::Deleted(old));
    assert_eq!(pods.by_ip(ip), Some(&new));
}

#[test]
fn a_pod_that_is_going_does_not_take_its_address_back() {
    let mut pods = Pods::default();
    let ip: IpAddr = "10.1.0.7".parse().unwrap();
    let mut old = pod("shop", "web-1", "10.1.0.7");
    pods.apply(Change::Applied(old.clone()));
    old.terminating = true;
    pods.apply(Change::Applied(old.clone()));
    assert_eq!(pods.by_ip(ip), Some(&old), "its connections go on");
    let new = pod("shop", "web-2", "10.1.0.7");
    pods.apply(Change::Applied(new.clone()));
    old.labels.clear();
    pods.apply(Change::Applied(old.clone()));
    assert_eq!(pods.by_ip(ip), Some(&new));
    pods.apply(Change::Deleted(old));
    assert_eq!(pods.by_ip(ip), Some(&new));
}

#[test]
fn pods_of_the_host_network_have_no_address_of_their_own() {
    let mut pods = Pods::default();
    let mut proxy = pod("kube-system", "kube-proxy", "192.0.2.1");
    proxy.host_network = true;
    pods.apply(Change::Applied(proxy));
    assert_eq!(pods.by_ip("192.0.2.1".parse().unwrap()), None);
}
