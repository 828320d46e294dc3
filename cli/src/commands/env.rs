//! `kvpn env`: prints the environment of a workload's container.

use std::process::ExitCode;

use clap::Args;
use kvpn_proto::Failure;
use kvpn_proto::v1::InterceptRequest;

use super::engage::{self, ENVIRONMENT, Engaged, ExcludeArgs};
use super::ingest::ReadArgs;
use crate::args::Flags;
use crate::ended::Ended;
use crate::environment::{Rendered, Syntax, Variables};
use crate::interrupts::Interrupts;
use crate::output::{self, Format};
use crate::report;

/// Print the environment of a workload's container
///
/// As the container's process got it, with what comes from ConfigMaps, Secrets, fields and
/// the image. It is an ingest for as long as it takes; `eval "$(kvpn env web)"` brings the
/// variables into a shell.
#[derive(Args, Debug)]
pub(crate) struct EnvArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// How to print it [default: sh, or as -o says]
    #[arg(long, value_enum, value_name = "SYNTAX", help_heading = ENVIRONMENT)]
    env_syntax: Option<Syntax>,
    #[command(flatten)]
    exclude: ExcludeArgs,
}

pub(crate) async fn run(flags: &Flags, args: &EnvArgs) -> Result<ExitCode, Ended> {
    let mut interrupts = Interrupts::listen()?;
    let request = InterceptRequest {
        ends_with_call: true,
        ..args.read.request(flags)
    };
    let Engaged {
        session,
        status,
        // Open until it is left.
        events: _events,
        ..
    } = tokio::select! {
        outcome = engage::start(flags, request) => outcome?,
        // Dropping the call cancels it.
        signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
    };
    let fetched = tokio::select! {
        fetched = engage::fetch(&session, &status, &args.exclude) => fetched.map_err(Ended::from),
        signal = interrupts.next() => Err(Ended::Interrupted(signal)),
    };
    let left = engage::leave(&session, engage::leave_request(&status)).await;
    let (variables, mut warnings) = fetched?;
    left?;
    let rendered = render(flags.output, args.env_syntax, &variables)?;
    warnings.extend(rendered.warnings);
    for warning in &warnings {
        report::warning(warning);
    }
    output::print_text(&rendered.text)?;
    Ok(ExitCode::SUCCESS)
}

fn render(
    format: Format,
    syntax: Option<Syntax>,
    variables: &Variables,
) -> Result<Rendered, Failure> {
    match (syntax, format) {
        (Some(syntax), _) => Ok(syntax.render(variables)),
        (None, Format::Text) => Ok(Syntax::Sh.render(variables)),
        (None, Format::Json) => Ok(Syntax::Json.render(variables)),
        (None, Format::Yaml) => {
            let Rendered { text, warnings } = Syntax::Json.render(variables);
            let object: serde_json::Value =
                serde_json::from_str(&text).map_err(Failure::internal)?;
            let text = serde_yaml::to_string(&object).map_err(Failure::internal)?;
            Ok(Rendered { text, warnings })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_decides_unless_a_syntax_is_named() {
        let variables = Variables::from_iter([(b"A".to_vec(), b"1".to_vec())]);
        let text = |format, syntax| render(format, syntax, &variables).unwrap().text;
        assert_eq!(text(Format::Text, None), "export A='1'\n");
        assert_eq!(text(Format::Json, None), "{\n  \"A\": \"1\"\n}\n");
        assert_eq!(text(Format::Yaml, None), "A: '1'\n");
        assert_eq!(text(Format::Json, Some(Syntax::Docker)), "A=1\n");
    }
}
