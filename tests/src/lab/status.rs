//! What runs and where, for people.

use std::fmt::Write;

use super::layout::Layout;
use super::state::State;
use super::{laptop, net, node, pki};

/// Describes a lab that is up.
pub(crate) fn describe(layout: &Layout, state: &State) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    for process in &state.processes {
        let word = if process.is_alive() {
            "runs"
        } else {
            "HAS ENDED"
        };
        line(format!(
            "{:<26} pid {:<8} {word}",
            process.name, process.pid
        ));
    }
    let pods = node::kubectl(layout, "admin").args(["get", "pods", "--all-namespaces", "-owide"]);
    line(pods.ok().unwrap_or_else(|error| format!("{error:#}")));
    let users = pki::USERS;
    for (number, user) in net::LAPTOPS.into_iter().zip(users) {
        let [v4, v6] = net::laptop_addresses(number);
        let name = laptop::user_name(number);
        let laptop = laptop::Laptop::find(layout, state, number);
        let resolved = match laptop {
            Ok(laptop) if laptop.has_resolved() => ", systemd-resolved",
            Ok(_) | Err(_) => "",
        };
        line(format!(
            "laptop {number}: {v4} {v6}, user {name} ({user} in the cluster){resolved}"
        ));
    }
    line(format!(
        "kubeconfig: {}",
        layout.kubeconfig("admin").display()
    ));
    line(format!("logs:       {}", layout.logs().display()));
    text
}
