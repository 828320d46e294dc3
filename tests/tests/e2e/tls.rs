//! Filters that look inside TLS: with the certificate of a Secret or of files, by HTTP/1.1 and
//! HTTP/2; and what is told without.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::services::NAMESPACE;
use kvpn_tests::{Lab, wait_for};
use serde_json::{Value, json};

use crate::protocols::{HTTP1, HTTP2, Request, Shop};

/// A Secret, and what lets alice read it.
const SECRET: &str = "nginx-tls";
const KINDS: [&str; 3] = ["rolebinding", "role", "secret"];

const BASE: &str = "https://nginx.services";

/// Files on the laptop.
const CERT: &str = "/tmp/nginx-tls.crt";
const KEY: &str = "/tmp/nginx-tls.key";

const ALICE: Request = &["--cacert", CERT, "-H", "x-user: alice", "/who/a"];
const NOBODY: Request = &["--cacert", CERT, "/who/a"];
const DISTRUSTING: Request = &["/who/a"];
/// Whoever the server says it is.
const ANY_SERVER: Request = &["-k", "-H", "x-user: alice", "/who/a"];

const FILTER: [&str; 2] = ["--http-header", "x-user=alice"];
const BY_SECRET: [&str; 2] = ["--tls-secret", SECRET];
const BY_FILES: [&str; 4] = ["--tls-cert", CERT, "--tls-key", KEY];

const SOON: Duration = Duration::from_secs(10);

/// A certificate for nginx that its clients trust, in a Secret and in files; the Secret is
/// deleted when dropped.
struct Certificate<'a>(&'a Lab, String);

impl<'a> Certificate<'a> {
    fn make(shop: &'a Shop) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["nginx.services".to_owned()])?;
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let path = |file: &str| shop.developer.laptop.path(file);
        fs::write(path(CERT), &cert)?;
        fs::write(path(KEY), &key)?;
        let certificate = Self(&shop.developer.lab, key.clone());
        certificate.delete();
        certificate.create(&json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": cert, "tls.key": key},
        }))?;
        Ok(certificate)
    }

    /// Lets alice read it.
    fn permit(&self) -> Result<()> {
        let group = "rbac.authorization.k8s.io";
        self.create(&json!({
            "apiVersion": format!("{group}/v1"),
            "kind": "Role",
            "metadata": {"name": SECRET},
            "rules": [{
                "apiGroups": [""],
                "resources": ["secrets"],
                "resourceNames": [SECRET],
                "verbs": ["get"],
            }],
        }))?;
        self.create(&json!({
            "apiVersion": format!("{group}/v1"),
            "kind": "RoleBinding",
            "metadata": {"name": SECRET},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": SECRET},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "alice"}],
        }))?;
        // The API server's authorizer hears of it a moment later.
        let get = ["-n", NAMESPACE, "get", "secret", SECRET, "-o", "name"];
        wait_for("alice reads the Secret", SOON, || {
            let read = self.0.kubectl_as("alice", get).run()?;
            Ok(read.status.success().then_some(()))
        })
    }

    fn create(&self, object: &Value) -> Result<()> {
        let create = self.0.kubectl(["-n", NAMESPACE, "create", "-f", "-"]);
        create.stdin(object.to_string()).ok().map(drop)
    }

    /// Nobody who reads this learns of the key.
    fn is_untold(&self, text: &str) -> Result<()> {
        let whole = self.1.lines().nth(1).context("a line of the key")?;
        ensure!(!text.contains("PRIVATE") && !text.contains(whole), "{text}");
        Ok(())
    }

    fn delete(&self) {
        for kind in KINDS {
            let delete = ["-n", NAMESPACE, "delete", "--ignore-not-found"];
            drop(self.0.kubectl(delete).args([kind, SECRET]).run());
        }
    }
}

impl Drop for Certificate<'_> {
    fn drop(&mut self) {
        // The test has its result.
        self.delete();
    }
}

/// The laptop answers alice's requests by a protocol, and nginx the others.
fn is_chosen(shop: &Shop, version: &str) -> Result<()> {
    for (request, wanted) in [(ALICE, true), (NOBODY, false), (ALICE, true)] {
        let answers = shop.answers(version, BASE, &[request])?;
        ensure!(answers == [wanted], "{version} {request:?}: {answers:?}");
    }
    Ok(())
}

/// The engagements as everyone may read them.
fn engagements(lab: &Lab) -> Result<String> {
    let get = ["-n", NAMESPACE, "get", "engagements", "-o", "yaml"];
    lab.kubectl(get).ok()
}

#[test]
fn requests_within_tls_are_chosen_with_a_certificate_that_nobody_else_sees() -> Result<()> {
    let shop = Shop::open()?;
    let certificate = Certificate::make(&shop)?;
    let (http1, http2) = (format!("{HTTP1}:https"), format!("{HTTP2}:https"));

    // kvpn lends nobody a permission to read it.
    let intercept = ["intercept", "nginx", "-n", NAMESPACE, "--port", &http2];
    let intercept = [&intercept[..], &FILTER, &BY_SECRET].concat();
    let user = shop.developer.laptop.user();
    let refused = user.run(["kvpn"].iter().chain(&intercept))?;
    assert_eq!(refused.code(), 24, "{}", refused.stderr);
    ensure!(refused.stderr.contains("--tls-cert"), "{}", refused.stderr);
    ensure!(!engagements(&shop.developer.lab)?.contains("kind: Engagement\n"));

    certificate.permit()?;
    shop.with_filter("nginx", &http2, &[&FILTER[..], &BY_SECRET].concat(), || {
        is_chosen(&shop, "--http2")?;
        let engagements = engagements(&shop.developer.lab)?;
        ensure!(engagements.contains("terminatesTls: true"), "{engagements}");
        certificate.is_untold(&engagements)?;
        let status = shop.kvpn(&["status"])?.stdout;
        ensure!(status.contains("also within TLS"), "{status}");

        // Another traffic manager is given it again.
        let lab = &shop.developer.lab;
        let logs = ["-n", "kvpn", "logs", "deployment/traffic-manager"];
        certificate.is_untold(&lab.kubectl(logs).ok()?)?;
        let restart = [
            "-n",
            "kvpn",
            "rollout",
            "restart",
            "deployment/traffic-manager",
        ];
        lab.kubectl(restart).ok()?;
        let wait = [
            "-n",
            "kvpn",
            "rollout",
            "status",
            "deployment/traffic-manager",
        ];
        lab.kubectl(wait).args(["--timeout=60s"]).ok()?;
        wait_for("requests are chosen again", 3 * SOON, || {
            Ok(is_chosen(&shop, "--http2").is_ok().then_some(()))
        })?;
        certificate.is_untold(&lab.kubectl(logs).ok()?)
    })?;
    shop.with_filter("nginx", &http1, &[&FILTER[..], &BY_FILES].concat(), || {
        // All on one connection.
        let requests = [ALICE, NOBODY, ALICE, NOBODY];
        let answers = shop.answers("--http1.1", BASE, &requests)?;
        ensure!(answers == [true, false, true, false], "{answers:?}");
        // Who trusts others hangs up, and that is told.
        ensure!(shop.answers("--http1.1", BASE, &[DISTRUSTING]).is_err());
        wait_for("status tells of the handshake", SOON, || {
            let status = shop.kvpn(&["status"])?.stdout;
            let told = status.lines().any(|it| it == "  1 TLS handshake failed");
            Ok(told.then_some(()))
        })?;
        let log = shop.kvpn(&["log", "nginx", "-n", NAMESPACE])?.stdout;
        ensure!(log.contains("failed TLS handshake at port "), "{log}");
        Ok(())
    })
}

#[test]
fn without_a_certificate_tls_passes_and_status_says_so() -> Result<()> {
    let shop = Shop::open()?;
    let port = format!("{HTTP2}:https");
    shop.with_filter("nginx", &port, &FILTER, || {
        for version in ["--http1.1", "--http2"] {
            let answers = shop.answers(version, BASE, &[ANY_SERVER])?;
            ensure!(answers == [false], "{version}: {answers:?}");
        }
        wait_for("status tells of TLS", SOON, || {
            let status = shop.kvpn(&["status"])?.stdout;
            let line = status.lines().find(|line| line.contains("TLS"));
            Ok(line
                .filter(|line| line.contains(" 2 connections are TLS: without --tls-cert"))
                .map(drop))
        })
    })?;

    // Nothing is engaged by files that cannot be used.
    let wrong = ["--tls-cert", "/dev/null", "--tls-key", "/dev/null"];
    let intercept = [
        "kvpn",
        "intercept",
        "nginx",
        "-n",
        NAMESPACE,
        "--port",
        &port,
    ];
    let user = shop.developer.laptop.user();
    let refused = user.run(intercept.iter().chain(&wrong))?;
    assert_eq!(refused.code(), 2, "{}", refused.stderr);
    let told = refused.stderr.lines().next().context("an error")?;
    ensure!(told.contains("no certificate in PEM"), "{told}");
    Ok(())
}
