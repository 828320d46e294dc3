//! What goes wrong, on standard error.

use std::io::Write;

use clap::builder::styling::{AnsiColor, Style};
use kvpn_proto::Failure;
use serde::Serialize;

use crate::ended::Ended;
use crate::output::Format;

/// Tells the user why a command ended. An interrupted one says nothing: the
/// user knows.
pub(crate) fn ended(ended: &Ended, format: Format) {
    match ended {
        Ended::Failed(failure) => self::failure(failure, format),
        Ended::Interrupted(_) => {}
    }
}

pub(crate) fn failure(failure: &Failure, format: Format) {
    print(&render(failure, format));
}

pub(crate) fn warning(message: &str) {
    print(&labelled("warning", AnsiColor::Yellow, message));
}

/// Tells something that is neither result nor failure.
pub(crate) fn note(message: &str) {
    print(&format!("{message}\n"));
}

fn print(text: &str) {
    // There is nowhere left to say that standard error is closed.
    let _ = anstream::stderr().write_all(text.as_bytes());
}

fn render(failure: &Failure, format: Format) -> String {
    let document = FailureDocument {
        error: FailureOutput {
            reason: failure.reason.as_str(),
            message: &failure.message,
            next_step: &failure.next_step,
            exit_code: failure.reason.exit_code(),
        },
    };
    match format {
        Format::Text => text(failure),
        Format::Json => serde_json::to_string_pretty(&document)
            .map(|json| json + "\n")
            .unwrap_or_else(|_| text(failure)),
        Format::Yaml => serde_yaml::to_string(&document).unwrap_or_else(|_| text(failure)),
    }
}

fn text(failure: &Failure) -> String {
    labelled("error", AnsiColor::Red, &failure.message)
        + &labelled("hint", AnsiColor::Cyan, &failure.next_step)
}

fn labelled(label: &str, color: AnsiColor, message: &str) -> String {
    let style: Style = color.on_default().bold();
    format!("{style}{label}:{style:#} {message}\n")
}

#[derive(Serialize)]
struct FailureDocument<'a> {
    error: FailureOutput<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FailureOutput<'a> {
    reason: &'static str,
    message: &'a str,
    next_step: &'a str,
    exit_code: u8,
}

#[cfg(test)]
mod tests {
    use kvpn_proto::Reason;

    use super::*;

    fn example() -> Failure {
        Failure::new(
            Reason::NoSuchWorkload,
            "namespace shop has no workload wbe",
            "did you mean Deployment/web?",
        )
    }

    #[test]
    fn text_has_an_error_and_a_hint() {
        let plain = anstream::adapter::strip_str(&render(&example(), Format::Text)).to_string();
        assert_eq!(
            plain,
            "error: namespace shop has no workload wbe\nhint: did you mean Deployment/web?\n"
        );
    }

    #[test]
    fn documents_have_every_field() {
        insta::assert_snapshot!("failure_json", render(&example(), Format::Json));
        insta::assert_snapshot!("failure_yaml", render(&example(), Format::Yaml));
    }
}
