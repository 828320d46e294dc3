//! The result of `doctor`.

use std::fmt::Write;

use kvpn_proto::check::{Check, Finding};
use serde::Serialize;

use super::Output;

/// Outcome of `doctor`.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// Nothing has failed.
    ok: bool,
    checks: Vec<Check>,
}

impl Findings {
    pub(crate) fn new(checks: Vec<Check>) -> Self {
        let failed = |check: &Check| matches!(check.finding, Finding::Failure(_));
        Self {
            ok: !checks.iter().any(failed),
            checks,
        }
    }

    /// 0, or that of the first failure.
    pub(crate) fn exit_code(&self) -> u8 {
        self.checks
            .iter()
            .find_map(|check| match &check.finding {
                Finding::Failure(failure) => Some(failure.reason.exit_code()),
                Finding::Ok { .. } | Finding::Warning { .. } | Finding::Skipped { .. } => None,
            })
            .unwrap_or(0)
    }
}

impl Output for Findings {
    fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let (outcome, message, next_step) = match &check.finding {
                Finding::Ok { message } => ("ok", message, None),
                Finding::Warning { message, next_step } => ("warning", message, Some(next_step)),
                Finding::Failure(failure) => {
                    ("failure", &failure.message, Some(&failure.next_step))
                }
                Finding::Skipped { message } => ("skipped", message, None),
            };
            let _ = writeln!(text, "{outcome:<8} {}: {message}", check.name);
            if let Some(next_step) = next_step {
                let _ = writeln!(text, "{:<8} hint: {next_step}", "");
            }
        }
        text
    }
}
