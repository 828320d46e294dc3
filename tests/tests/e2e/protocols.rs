//! Filters held against the protocols that requests come in, with servers and clients
//! that are not kvpn's: nginx, nghttpd, Python's, curl and gRPC's own library.

mod grpc;
mod messages;
mod upgrade;
mod websocket;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::services::{NAMESPACE, grpc_echo};
use kvpn_tests::{Background, Output, wait_for};

use crate::support::Developer;

/// Ports on the laptop of what answers there.
pub(crate) const HTTP1: u16 = 8080;
pub(crate) const HTTP2: u16 = 8081;
const GRPC: u16 = 8082;

/// Answers by HTTP/1.1 that it is the laptop, and what it was asked.
const WHO: &str = r#"
import http.server, sys
class Who(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        told = f"laptop {self.command} {self.path} {body}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)
    do_GET = do_POST = answer
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Who)
print("listens", flush=True)
server.serve_forever()
"#;

/// Flag of curl.
const HTTP_2: &str = "--http2-prior-knowledge";

/// Asks all at once on one connection of HTTP/2, whose library is Python's.
const ALL_AT_ONCE: &str = include_str!("protocols/h2-ask");

/// Arguments of curl for one request.
pub(crate) type Request = &'static [&'static str];

const ALICE: Request = &["-H", "X-User: alice", "/who/a"];
const BOB: Request = &["-H", "x-user: bob", "/who/b"];
const NOBODY: Request = &["/who/a"];
const QUERY: Request = &["/who/a?x=1&user=alice"];
const POST: Request = &["--data", "user=alice", "/who/a"];
const BELOW: Request = &["/who/c/below"];

const REQUESTS: [Request; 6] = [ALICE, BOB, NOBODY, QUERY, POST, BELOW];

/// Flags of an intercept, and which of the requests are the laptop's.
const FILTERS: &[(&[&str], [bool; 6])] = &[
    (
        &["--http-header", "x-user=alice"],
        [true, false, false, false, false, false],
    ),
    (
        &["--http-header", "X-User~=[ab].*"],
        [true, true, false, false, false, false],
    ),
    (
        &["--http-header", "x-user"],
        [true, true, false, false, false, false],
    ),
    (
        &["--http-path", "/who/a"],
        [true, false, true, true, true, false],
    ),
    (
        &["--http-path", "/who/c/*"],
        [false, false, false, false, false, true],
    ),
    (
        &["--http-path", "~=/who/[b-z]"],
        [false, true, false, false, false, false],
    ),
    (
        &["--http-method", "POST"],
        [false, false, false, false, true, false],
    ),
    (
        &["--http-query", "user=alice"],
        [false, false, false, true, false, false],
    ),
    (
        &["--http-header", "x-user", "--http-path", "/who/b"],
        [false, true, false, false, false, false],
    ),
    (
        &[
            "--any",
            "--http-header",
            "x-user=bob",
            "--http-method",
            "POST",
        ],
        [false, true, false, false, true, false],
    ),
];

/// A developer who is connected, what answers on the laptop, and the servers.
pub(crate) struct Shop {
    pub(crate) developer: Developer,
    _handlers: Vec<Background>,
}

impl Shop {
    pub(crate) fn open() -> Result<Self> {
        let mut developer = Developer::at(1)?;
        developer.lab.deploy_services()?;
        developer.connect()?;
        let spawn = |command: &[&str]| developer.laptop.user().spawn(command);
        let files = developer.laptop.path("/tmp/who-files");
        for path in ["who/a", "who/b", "who/c/below"] {
            let file = files.join(path);
            fs::create_dir_all(file.parent().context("a directory")?)?;
            fs::write(file, "laptop\n")?;
        }
        let program = grpc_echo(developer.lab.layout());
        let program = program.to_str().context("a path")?;
        let [http1, http2, grpc] = [HTTP1, HTTP2, GRPC].map(|port| port.to_string());
        let mut handlers = vec![
            spawn(&["/usr/bin/python3", "-c", WHO, &http1])?,
            spawn(&["/usr/bin/python3", program, "serve", "laptop", &grpc])?,
        ];
        for handler in &mut handlers {
            handler.wait_for_line("listens", Duration::from_secs(10))?;
        }
        handlers.push(spawn(&[
            "nghttpd",
            "--no-tls",
            "-d",
            "/tmp/who-files",
            &http2,
        ])?);
        wait_for("nghttpd listens", Duration::from_secs(5), || {
            let probe = developer
                .laptop
                .user()
                .run(["nc", "-z", "127.0.0.1", &http2])?;
            Ok(probe.status.success().then_some(()))
        })?;
        Ok(Self {
            developer,
            _handlers: handlers,
        })
    }

    fn scale(&self, deployment: &str, replicas: usize) -> Result<()> {
        let count = format!("--replicas={replicas}");
        let name = format!("deployment/{deployment}");
        let kubectl = |args: &[&str]| {
            self.developer
                .lab
                .kubectl(["-n", NAMESPACE])
                .args(args)
                .ok()
        };
        kubectl(&["scale", &name, &count])?;
        kubectl(&["rollout", "status", &name, "--timeout=60s"]).map(drop)
    }

    pub(crate) fn kvpn(&self, args: &[&str]) -> Result<Output> {
        let command = ["kvpn"].iter().chain(args);
        self.developer.laptop.user().run(command)?.success()
    }

    /// Intercepts requests, sees who answers, and leaves.
    pub(crate) fn with_filter(
        &self,
        workload: &str,
        port: &str,
        filter: &[&str],
        check: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let intercept = ["intercept", workload, "-n", NAMESPACE, "--port", port];
        self.kvpn(&[&intercept, filter].concat())?;
        check().with_context(|| format!("{filter:?}"))?;
        self.kvpn(&["leave", workload, "-n", NAMESPACE]).map(drop)
    }

    /// Who answers each request, the laptop or the app; those of HTTP/1 on one connection.
    pub(crate) fn answers(
        &self,
        version: &str,
        base: &str,
        requests: &[Request],
    ) -> Result<Vec<bool>> {
        let mut command = vec!["curl".to_owned()];
        for (index, request) in requests.iter().enumerate() {
            if index > 0 {
                command.push("--next".into());
            }
            let (path, options) = request.split_last().context("a request")?;
            command.extend([version, "-sSf", "--max-time", "10"].map(str::to_owned));
            command.extend(options.iter().map(|option| (*option).to_owned()));
            command.push(format!("{base}{path}"));
        }
        let output = self.developer.laptop.user().run(&command)?.success()?;
        are_laptops(&output.stdout, requests)
    }

    /// The same by HTTP/2, all sent on one connection before any is answered.
    fn answers_of_one_connection(&self, base: &str, requests: &[Request]) -> Result<Vec<bool>> {
        let address = base.trim_start_matches("http://");
        let python = ["/usr/bin/python3", "-c", ALL_AT_ONCE, address];
        let mut command = Vec::from(python.map(str::to_owned));
        for request in requests {
            command.push(serde_json::to_string(request)?);
        }
        let output = self.developer.laptop.user().run(&command)?.success()?;
        are_laptops(&output.stdout, requests)
    }

    /// How many requests without options the laptop answers, by nghttp, which asks on one
    /// connection too.
    fn count_by_nghttp(&self, base: &str, paths: &[&str]) -> Result<usize> {
        let urls = paths.iter().map(|path| format!("{base}{path}"));
        let command: Vec<String> = ["nghttp".to_owned()].into_iter().chain(urls).collect();
        let output = self.developer.laptop.user().run(&command)?.success()?;
        let count = |who: &str| output.stdout.matches(who).count();
        ensure!(
            count("laptop\n") + count("nginx ") == paths.len(),
            "{}",
            output.stdout
        );
        Ok(count("laptop\n"))
    }

    /// Holds every filter against every request: all on one connection, and all on one
    /// each, so that they come to all replicas.
    fn compare(&self, version: &str, port: u16, wanted: &str, base: &str) -> Result<()> {
        let port = format!("{port}:{wanted}");
        for replicas in [1, 3] {
            self.scale("nginx", replicas)?;
            for (filter, expected) in FILTERS {
                self.with_filter("nginx", &port, filter, || {
                    if version == HTTP_2 {
                        // curl 7.88 cannot use such a connection again.
                        assert_eq!(self.answers_of_one_connection(base, &REQUESTS)?, expected);
                        let bare = REQUESTS
                            .iter()
                            .zip(expected)
                            .filter(|(it, _)| it.len() == 1);
                        let (paths, laptops): (Vec<&str>, Vec<bool>) = bare
                            .map(|(request, is_laptop)| (request[0], *is_laptop))
                            .unzip();
                        let wanted = laptops.iter().filter(|it| **it).count();
                        assert_eq!(self.count_by_nghttp(base, &paths)?, wanted);
                    } else {
                        assert_eq!(self.answers(version, base, &REQUESTS)?, expected);
                    }
                    for _ in 0..replicas {
                        for (request, is_laptop) in REQUESTS.iter().zip(expected) {
                            let answers = self.answers(version, base, &[request])?;
                            assert_eq!(answers, [*is_laptop], "{request:?}");
                        }
                    }
                    Ok(())
                })?;
            }
        }
        self.scale("nginx", 1)
    }
}

/// Which requests the laptop has answered, and not nginx. Each says what it was asked, as
/// far as it can tell: nghttpd nothing, and nginx the body by HTTP/2 only.
fn are_laptops(printed: &str, requests: &[Request]) -> Result<Vec<bool>> {
    let lines: Vec<&str> = printed.lines().collect();
    ensure!(lines.len() == requests.len(), "{lines:?}");
    let is_laptop = |(line, request): (&&str, &Request)| {
        let mut words = line.split_whitespace();
        let who = words.next().unwrap_or_default();
        ensure!(["laptop", "nginx"].contains(&who), "{line}");
        let (path, options) = request.split_last().context("a request")?;
        let asked = match options {
            ["--data", body] => ["POST", *path, *body],
            _ => ["GET", *path, ""],
        };
        let is_told = words.zip(asked).all(|(told, asked)| told == asked);
        ensure!(is_told, "{line:?} after {request:?}");
        Ok(who == "laptop")
    };
    lines.iter().zip(requests).map(is_laptop).collect()
}

#[test]
fn filters_decide_requests_of_http_1() -> Result<()> {
    Shop::open()?.compare("--http1.1", HTTP1, "http", "http://nginx.services")
}

#[test]
fn filters_decide_requests_of_http_2() -> Result<()> {
    let base = "http://nginx.services:82";
    Shop::open()?.compare(HTTP_2, HTTP2, "h2c", base)
}
