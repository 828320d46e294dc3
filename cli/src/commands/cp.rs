//! `kvpn cp`: copies files from a workload's container, or to it.

use std::process::ExitCode;

use clap::Args;
use kvpn_proto::{Failure, Reason};

use super::files::with_files;
use super::ingest::ReaderArgs;
use crate::args::Flags;
use crate::ended::Ended;
use crate::files::{Container, Copier, Named, Place};
use crate::output;
use crate::report;

/// Copy files from a workload's container, or to it
///
/// One of the two is NAME:PATH, a file or directory as the container has it in one of the
/// workload's pods; write ./a:b for a file of this laptop with a colon. Directories are copied
/// with all that is in them, symbolic links as such, permissions and times kept where
/// possible. Each file is there as a whole or not at all. It is an ingest for as long as it
/// takes; you must be allowed to execute commands in the pods (`create` of `pods/exec`).
#[derive(Args, Debug)]
pub(crate) struct CpArgs {
    /// What to copy
    #[arg(value_name = "FROM")]
    from: Named,
    /// Where to: a directory to put it into, or its new name
    #[arg(value_name = "TO")]
    to: Named,
    #[command(flatten)]
    reader: ReaderArgs,
}

pub(crate) async fn run(flags: &Flags, args: &CpArgs) -> Result<ExitCode, Ended> {
    let (from, to) = (args.from.clone(), args.to.clone());
    let (target, writable) = match (&from, &to) {
        (Named::Pod(pod), Named::Laptop(_)) => (pod.target.clone(), false),
        (Named::Laptop(_), Named::Pod(pod)) => (pod.target.clone(), true),
        (Named::Pod(_), Named::Pod(_)) | (Named::Laptop(_), Named::Laptop(_)) => {
            return Err(sides().into());
        }
    };
    // Before anything is engaged.
    if let Named::Laptop(path) = &from {
        Place::laptop(path)?.look()?;
    }
    let request = args.reader.request(flags, &target);
    let copied = with_files(flags, request, writable, move |at, stop| {
        let container = Container::open(&at, &target)?;
        let (source, name) = container.source(&from)?;
        let destination = container.destination(&to, &name)?;
        Copier::new(stop, writable).copy(&source, &destination)
    });
    let copied = copied.await?;
    for left_out in &copied.left_out {
        report::warning(&format!(
            "{left_out} is left out: it is no file, directory or symbolic link"
        ));
    }
    output::print(&copied, flags.output)?;
    Ok(ExitCode::SUCCESS)
}

fn sides() -> Failure {
    Failure::new(
        Reason::Usage,
        "one of the two must be in a container, and the other on this laptop",
        "write NAME:PATH for what is in a container, such as web:/etc/hosts",
    )
}
