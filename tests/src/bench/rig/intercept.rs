//! Intercepts of what is measured, which end with a value.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{CONNECTED, Rig};
use crate::lab::services;
use crate::progress::step;
use crate::{Background, wait_for};

/// How many sessions many intercepts are of.
const SESSIONS: usize = 5;

/// How long pods may take to come and go.
const PODS_DEADLINE: Duration = Duration::from_secs(90);

/// How long nothing about pods has changed when they are at rest. The kubelet looks at the
/// containers of a pod that it has just worked on only once a second, and starts nothing
/// new in it before.
const REST: Duration = Duration::from_secs(3);

/// Ends all intercepts when dropped.
pub(in crate::bench) struct Intercept<'a> {
    rig: &'a Rig,
    /// The connections besides the usual one.
    connections: Vec<String>,
    _handler: Option<Background>,
}

impl Drop for Intercept<'_> {
    fn drop(&mut self) {
        let leave = || {
            for name in &self.connections {
                self.rig.kvpn(CONNECTED, &["quit", name])?;
            }
            self.rig.kvpn(CONNECTED, &["leave", "--all"])
        };
        if let Err(error) = leave() {
            step(format_args!("Cannot leave: {error:#}"));
        }
    }
}

impl Rig {
    /// Intercepts a port of a Deployment until the value is dropped. Nobody listens on the
    /// laptop, so its own server answers as before, only later.
    pub(in crate::bench) fn intercept(
        &self,
        namespace: &str,
        name: &str,
        port: &str,
    ) -> Result<Intercept<'_>> {
        let args = ["intercept", name, "-n", namespace, "--port", port];
        self.kvpn(CONNECTED, &args)?;
        Ok(Intercept {
            rig: self,
            connections: Vec::new(),
            _handler: None,
        })
    }

    /// Has a handler on the laptop answer requests to nginx, those with a header if one is
    /// given, until the value is dropped.
    pub(in crate::bench) fn intercept_nginx(&self, header: Option<&str>) -> Result<Intercept<'_>> {
        let handler = ["kvpn-sample", "--service", "laptop", "--port", "8080"];
        let mut handler = self.lab.laptop(CONNECTED)?.user().spawn(handler)?;
        handler.wait_for_line("listens", Duration::from_secs(5))?;
        let intercept = Intercept {
            rig: self,
            connections: Vec::new(),
            _handler: Some(handler),
        };
        self.intercept_with(header, None)?;
        Ok(intercept)
    }

    /// The same, with intercepts of more headers beside it, by several sessions.
    pub(in crate::bench) fn intercept_nginx_too(
        &self,
        header: &str,
        others: &[String],
    ) -> Result<Intercept<'_>> {
        let mut intercept = self.intercept_nginx(Some(header))?;
        let of_each = others.len().div_ceil(SESSIONS);
        for (number, headers) in others.chunks(of_each).enumerate() {
            let connection = (number > 0).then(|| format!("session-{number}"));
            if let Some(name) = &connection {
                intercept.connections.push(name.clone());
                // The cluster's own addresses are the first one's.
                self.kvpn(CONNECTED, &["connect", "--name", name, "--vnat", "all"])?;
            }
            let name = connection
                .as_deref()
                .unwrap_or(kvpn_proto::names::DEFAULT_CONNECTION);
            for header in headers {
                self.intercept_with(Some(header), Some(name))?;
            }
        }
        Ok(intercept)
    }

    fn intercept_with(&self, header: Option<&str>, connection: Option<&str>) -> Result<()> {
        let mut args = vec!["intercept", "nginx", "-n", services::NAMESPACE];
        args.extend(["--port", "8080:http"]);
        args.extend(header.into_iter().flat_map(|it| ["--http-header", it]));
        args.extend(connection.into_iter().flat_map(|it| ["--name", it]));
        self.kvpn(CONNECTED, &args)
    }

    /// Replaces nginx by so many pods that have no agent, and waits until they are at rest.
    pub(in crate::bench) fn renew_nginx(&self, number: usize) -> Result<()> {
        let kubectl = |args: &[&str]| {
            let namespace = ["-n", services::NAMESPACE];
            self.lab.kubectl(namespace).args(args).ok()
        };
        let pods = |field: &str| {
            let path = format!("jsonpath={{range .items[*]}}{{{field}}} {{end}}");
            kubectl(&["get", "pods", "-l", "app=nginx", "-o", &path])
        };
        let scale = |number: usize| {
            let replicas = format!("--replicas={number}");
            kubectl(&["scale", "deployment/nginx", &replicas])
        };
        scale(0)?;
        wait_for("nginx is gone", PODS_DEADLINE, || {
            Ok(pods(".metadata.name")?.trim().is_empty().then_some(()))
        })?;
        let births = ["get", "mutatingwebhookconfigurations", "kvpn-agents"];
        let births = [&births[..], &["--ignore-not-found", "-o", "yaml"]].concat();
        wait_for("pods are born without agents", PODS_DEADLINE, || {
            Ok((!kubectl(&births)?.contains(" workload-")).then_some(()))
        })?;
        scale(number)?;
        kubectl(&["rollout", "status", "deployment/nginx", "--timeout=50s"])?;
        let (mut last, mut since) = (String::new(), Instant::now());
        wait_for("nginx is at rest", PODS_DEADLINE, || {
            let now = pods(".metadata.resourceVersion")?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            Ok((since.elapsed() >= REST).then_some(()))
        })?;
        let born = pods(".spec.initContainers[*].name")?;
        ensure!(born.trim().is_empty(), "nginx was born with {born}");
        Ok(())
    }
}
