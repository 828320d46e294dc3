use super::*;

const EXAMPLE: &str = r#"
connections:
  - name: dev
    context: kind-dev
    kubeconfig: ./kubeconfig
    namespace: ${NAMESPACE:-shop}
    managerNamespace: infra
    transport: port-forward
    dnsInclude: [corp.example]
    dnsMapping: ["db.example.com=postgres.shop"]
    alsoProxy: ["192.0.2.0/24", "198.51.100.0/24"]
  - name: staging
    vnat: [all]
engagements:
  - intercept: deploy/web
    connection: dev
    ports: ["8080:http", 9090]
    address: ::1
    timeout: 2m
    toPod: [15000:9901]
    filter:
      headers: ["x-user=${USER}", "x-team~=^a|b$"]
      paths: [/api/*]
      any: true
    tls: {cert: ./tls/a.pem, key: /etc/b.pem}
    onFailure: 503
    env: {exclude: ["AWS_*"], file: .env, syntax: sh}
    run: ["./server", "--dev", "it's $HOME"]
    directory: ./api/
  - wiretap: api
    connection: staging
    namespace: bank
    ports: [7070]
  - replace: sts/worker
    connection: dev
    ports: [6060]
    container: app
    mount: ./files:ro
    run: |
      exec ./worker --pid $$$$
  - ingest: jobs
    connection: dev
    env: {json: /tmp/jobs.json}
    mount: true
    rootFs: true
"#;

fn plan(text: &str, flags: &Flags, no_run: bool) -> Result<Plan, Failure> {
    Plan::with(Source::of(text), flags, no_run, &|name| match name {
        "USER" => Some("alice".into()),
        _ => None,
    })
}

fn commands(text: &str, flags: &Flags, no_run: bool) -> String {
    let plan = plan(text, flags, no_run).unwrap();
    let steps = plan.connections.iter().chain(&plan.engagements);
    let lines = steps.map(|step| step.shell("/work/shop".as_ref()) + "\n");
    lines.collect()
}

/// What the user is told of a file that is wrong.
fn refusal(text: &str) -> String {
    let failure = plan(text, &Flags::default(), false).unwrap_err();
    assert_eq!(failure.reason, Reason::Usage);
    format!("{failure}\n  {}\n", failure.next_step)
}

#[test]
fn every_key_becomes_an_option() {
    insta::assert_snapshot!("commands", commands(EXAMPLE, &Flags::default(), false));
}

#[test]
fn without_running_there_is_no_command() {
    insta::assert_snapshot!("no_run", commands(EXAMPLE, &Flags::default(), true));
}

#[test]
fn what_is_typed_counts_more_than_what_is_written() {
    let flags = Flags {
        context: Some("other".into()),
        name: Some("mine".into()),
        ..Flags::default()
    };
    let text = "connections: [{context: dev, namespace: shop}]\nengagements: [{ingest: web}]";
    assert_eq!(
        commands(text, &flags, false),
        "kvpn connect --name mine --context other --namespace shop\n\
         kvpn ingest web --name mine\n"
    );
    assert_eq!(
        commands("engagements: [{ingest: web}]", &Flags::default(), false),
        "kvpn connect\nkvpn ingest web --name default\n"
    );
    let failure = plan(EXAMPLE, &flags, false).unwrap_err();
    assert!(failure.message.contains("several connections"), "{failure}");
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let engagement = |lines: &str| format!("engagements:\n  - intercept: web\n{lines}");
    let with_ports = |lines: &str| engagement(&format!("    ports: [8080]\n{lines}"));
    let wrong = [
        "engagements: [",
        "engagements: 7",
        "conections: []",
        "nonsense: []",
        &engagement("    prots: [8080]"),
        &with_ports("    filter:\n      header: [a]"),
        &engagement("    ports:\n      - 8080\n      - http\n"),
        &engagement("    ports: 8080"),
        &engagement(""),
        &with_ports("    wiretap: api"),
        "engagements:\n  - ports: [1]",
        "engagements:\n\n  - intercept: --help\n    ports: [1]",
        &with_ports("    onFailure: maybe"),
        &with_ports("    timeout: soon"),
        &with_ports("    filter:\n      headers:\n        - a\n        - ${NONE}\n"),
        &with_ports("    run: []"),
        &with_ports("    run: 7"),
        &with_ports("    directory: api"),
        &with_ports("    tls: {cert: a.pem}"),
        &with_ports("    env:\n      syntax: sh"),
        &with_ports("    connection: dev"),
        "engagements:\n  - ingest: web\n    ports: [8080]",
        "engagements:\n  - replace: web\n    ports: [8080]\n    filter: {paths: [/]}",
        "connections:\n  - {name: dev}\n  - {name: dev}",
        "connections:\n  - {name: dev}\n  - {name: staging}\nengagements:\n  - ingest: web",
        "connections:\n  - {name: dev}\n  - {name: staging}\n\
         engagements:\n  - ingest: web\n    connection: stagin",
        "connections:\n  - transport: pigeon",
    ];
    let told: String = wrong.into_iter().map(refusal).collect();
    insta::assert_snapshot!("wrong", told);
}
