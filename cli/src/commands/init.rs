//! `kvpn init`: writes a file for `kvpn up`.

mod directory;
mod text;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use kvpn_proto::v1::{ListRequest, WorkloadStatus};
use kvpn_proto::{Failure, Reason};

use crate::args::Flags;
use crate::ended::Ended;
use crate::file::{FILE_NAME, working_directory};
use crate::output;
use crate::progress::Progress;
use crate::report;
use crate::session::Session;
use directory::Program;

/// Write a file for `kvpn up`
///
/// Looks at the workloads of the connection's namespace, so that there must be a connection,
/// and at the working directory and those in it. What is named alike belongs together; how it
/// is run is guessed by what is there, such as a package.json. A file that is there stays.
#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// Print it instead
    #[arg(long)]
    print: bool,
}

/// A program here, and the workload that it is.
#[derive(Debug, PartialEq, Eq)]
struct Match<'a> {
    workload: &'a WorkloadStatus,
    program: &'a Program,
}

pub(crate) async fn run(flags: &Flags, args: &InitArgs) -> Result<ExitCode, Ended> {
    let here = working_directory()?;
    let file = here.join(FILE_NAME);
    if !args.print && file.symlink_metadata().is_ok() {
        return Err(is_there().into());
    }
    let (status, workloads) = {
        let _progress = Progress::start("listing workloads");
        let session = Session::require(flags).await?;
        let status = session.status().await?;
        let namespace = flags.request_namespace();
        let list = session.list(ListRequest { namespace }).await?;
        (status, list.workloads)
    };
    let programs = directory::programs(&here);
    let matches = matches(&workloads, &programs);
    let namespace = flags.namespace.as_ref().unwrap_or(&status.namespace);
    let text = text::text(&status, namespace, &workloads, &matches);
    if args.print {
        output::print_text(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    write(&file, &text)?;
    report::note(&format!(
        "Wrote {FILE_NAME}; look at it, then run `kvpn up`"
    ));
    Ok(ExitCode::SUCCESS)
}

/// Which program is which workload: the same name, else the longest one that is part of the
/// other. No workload has two.
fn matches<'a>(workloads: &'a [WorkloadStatus], programs: &'a [Program]) -> Vec<Match<'a>> {
    let mut pairs = Vec::new();
    for workload in workloads {
        for program in programs {
            if let Some(likeness) = likeness(&workload.name, &program.name) {
                pairs.push((likeness, Match { workload, program }));
            }
        }
    }
    pairs.sort_by(|(one, _), (other, _)| other.cmp(one));
    let mut matches: Vec<Match<'_>> = Vec::new();
    for (_, pair) in pairs {
        let is_taken = |it: &Match<'_>| {
            std::ptr::eq(it.workload, pair.workload) || std::ptr::eq(it.program, pair.program)
        };
        if !matches.iter().any(is_taken) {
            matches.push(pair);
        }
    }
    matches.sort_by(|one, other| one.workload.name.cmp(&other.workload.name));
    matches
}

/// How much of the names is the same, if one is made of whole words of the other.
fn likeness(workload: &str, program: &str) -> Option<(bool, usize)> {
    let words = |name: &str| format!("-{}-", name.to_lowercase().replace(['_', '.'], "-"));
    let (workload, program) = (words(workload), words(program));
    let is_alike = workload.contains(&program) || program.contains(&workload);
    let length = workload.len().min(program.len());
    is_alike.then_some((workload == program, length))
}

fn is_there() -> Failure {
    Failure::new(
        Reason::Usage,
        format!("there is a {FILE_NAME} here already"),
        "remove it first, or see what would be written with --print",
    )
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let new = OpenOptions::new().write(true).create_new(true).open(file);
    let written = new.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists {
            return is_there();
        }
        Failure::new(
            Reason::Usage,
            format!("{FILE_NAME} cannot be written: {error}"),
            "change to a directory that you may write to, or give --print",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_alike_belong_together() {
        let workload = |name: &str| WorkloadStatus {
            name: name.into(),
            ..WorkloadStatus::default()
        };
        let program = |name: &str| Program {
            name: name.into(),
            ..Program::default()
        };
        let workloads = ["api", "shop-api", "shop-web", "db", "webhook"].map(workload);
        let programs = ["shop_api", "web", "docs"].map(program);
        let matches = matches(&workloads, &programs);
        let pairs = matches
            .iter()
            .map(|it| (&*it.workload.name, &*it.program.name));
        let pairs: Vec<_> = pairs.collect();
        assert_eq!(pairs, [("shop-api", "shop_api"), ("shop-web", "web")]);
    }

    #[test]
    fn file_that_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE_NAME);
        write(&file, "one").unwrap();
        assert_eq!(write(&file, "other").unwrap_err().reason, Reason::Usage);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    }
}
