//! The text of the file that is written.

use std::fmt::Write;

use kvpn_proto::names;
use kvpn_proto::v1::{StatusResponse, WorkloadStatus};

use super::Match;

const SCHEMA: &str = "https://raw.githubusercontent.com/kvpn-dev/kvpn/main/docs/kvpn.schema.json";

/// How many workloads are named in a comment.
const NAMED: usize = 10;

/// A file that says what was found, and by comments what else it might say.
pub(super) fn text(
    status: &StatusResponse,
    namespace: &str,
    workloads: &[WorkloadStatus],
    matches: &[Match<'_>],
) -> String {
    let mut text = format!(
        "# yaml-language-server: $schema={SCHEMA}\n\
         # Bring it up with `kvpn up`; `kvpn up --print` tells what that does.\n\
         connections:\n"
    );
    // A text has no failures.
    let _ = write!(
        text,
        "  - context: {}\n    namespace: {}\n",
        yaml(&status.context),
        yaml(namespace)
    );
    if status.name != names::DEFAULT_CONNECTION && !status.name.is_empty() {
        let _ = writeln!(text, "    name: {}", yaml(&status.name));
    }
    text += "engagements:\n";
    if matches.is_empty() {
        text.truncate(text.len() - "engagements:\n".len());
        text += &example(workloads);
    }
    for it in matches {
        text += &entry(it);
    }
    text
}

fn entry(it: &Match<'_>) -> String {
    let target = target(it.workload);
    let program = it.program;
    let mut text = format!(
        "  - intercept: {}\n\
        \x20   # Where it listens here; then the Service's port, where there are several.\n\
        \x20   ports: [\"{}\"]\n\
        \x20   # Only some requests:\n\
        \x20   # filter: {{headers: [\"x-user=${{USER}}\"]}}\n\
        \x20   # With the environment of the container.\n\
        \x20   run: {}\n",
        yaml(&target),
        program.port,
        yaml(&program.run.replace('$', "$$")),
    );
    if let Some(directory) = &program.directory {
        let _ = writeln!(
            text,
            "    directory: {}",
            yaml(&directory.replace('$', "$$"))
        );
    }
    text
}

/// As in a file with an entry, but all of it a comment.
fn example(workloads: &[WorkloadStatus]) -> String {
    let first = workloads.first().map_or("deploy/web".to_owned(), target);
    let mut text = String::from("# Nothing here is named as a workload is.");
    if !workloads.is_empty() {
        let named: Vec<String> = workloads.iter().take(NAMED).map(target).collect();
        let more = if workloads.len() > NAMED { ", …" } else { "" };
        let _ = write!(text, " There are:\n# {}{more}", named.join(", "));
    }
    let _ = write!(
        text,
        "\n# engagements:\n\
         #   - intercept: {first}\n\
         #     ports: [\"8080\"]\n\
         #     run: ./server\n"
    );
    text
}

fn target(workload: &WorkloadStatus) -> String {
    format!("{}/{}", workload.kind.to_lowercase(), workload.name)
}

/// A string as YAML has it, on one line.
fn yaml(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || " _./@-".contains(letter);
    let begins =
        text.starts_with(|first: char| first.is_ascii_alphabetic() || "./".contains(first));
    let is_word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .contains(&text.to_lowercase().as_str());
    let is_number = text.parse::<f64>().is_ok();
    match begins && text.chars().all(is_plain) && !text.ends_with(' ') && !is_word && !is_number {
        true => text.to_owned(),
        // What JSON calls a string, YAML does, too.
        false => serde_json::Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::Program;
    use super::*;
    use crate::args::Flags;
    use crate::file::{Plan, Source};

    fn workload(name: &str) -> WorkloadStatus {
        WorkloadStatus {
            kind: "Deployment".into(),
            name: name.into(),
            ..WorkloadStatus::default()
        }
    }

    fn commands(text: &str) -> Vec<String> {
        let plan = Plan::of(Source::of(text), &Flags::default(), false).unwrap();
        let steps = plan.connections.iter().chain(&plan.engagements);
        steps
            .map(|step| step.shell("/work/shop".as_ref()))
            .collect()
    }

    #[test]
    fn file_says_what_was_found() {
        let status = StatusResponse {
            name: "staging".into(),
            context: "arn:aws:eks:eu-1:1:cluster/dev".into(),
            ..StatusResponse::default()
        };
        let workloads = [workload("api"), workload("web")];
        let programs = [
            ("api", "sh -c 'echo $$'", None),
            ("web", "npm run dev", Some("web")),
        ];
        let programs = programs.map(|(name, run, directory)| Program {
            name: name.into(),
            directory: directory.map(str::to_owned),
            run: run.into(),
            port: 3000,
        });
        let matches: Vec<_> = workloads
            .iter()
            .zip(&programs)
            .map(|(workload, program)| Match { workload, program })
            .collect();
        let text = text(&status, "shop", &workloads, &matches);
        insta::assert_snapshot!("matched", text);
        insta::assert_snapshot!("matched_commands", commands(&text).join("\n"));
    }

    #[test]
    fn file_without_a_match_says_what_there_is() {
        let status = StatusResponse {
            context: "dev".into(),
            ..StatusResponse::default()
        };
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
        let workloads = names.map(workload);
        let text = text(&status, "shop", &workloads, &[]);
        insta::assert_snapshot!("unmatched", text);
        assert_eq!(
            commands(&text),
            ["kvpn connect --context dev --namespace shop"]
        );
    }

    #[test]
    fn strings_are_what_yaml_reads() {
        for text in [
            "web",
            "./run --all",
            "a: b",
            "8080",
            "no",
            "x #y",
            "",
            "\u{e9}\n\"",
            "1e3",
            "~",
        ] {
            let read: String = serde_yaml::from_str(&yaml(text)).unwrap();
            assert_eq!(read, text);
        }
    }
}
