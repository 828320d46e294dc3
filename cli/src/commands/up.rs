//! `kvpn up`: brings up what a file says.

mod there;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use kvpn_proto::crd::Verb;
use kvpn_proto::v1::{EngagementStatus, InterceptRequest, LeaveRequest, StatusResponse};
use kvpn_proto::{Failure, Reason};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::engage::{
    self, Engaged, EnvironmentArgs, Events, fetch, own_variables, root, with_files,
};
use super::{connect, intercept, replace};
use crate::args::{Command, Flags};
use crate::ended::Ended;
use crate::environment::{Variables, pairs};
use crate::file::{self, Plan, Source, Step};
use crate::handlers::{self, Handler};
use crate::interrupts::Interrupts;
use crate::output::{self, Engagement, Format, Intercepted, Output, Upped};
use crate::report;
use crate::session::{Session, not_connected};

/// Bring up the connections, engagements and commands of a file
///
/// What is there as the file says is left as it is. Where the file has commands to run, they
/// run until the first of them ends, and its exit code is returned; Ctrl-C is passed on to
/// them. Then what has been brought up is taken down again. Without commands, all stays until
/// `kvpn down`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Only print the commands that would do the same
    #[arg(long)]
    print: bool,
    /// Run no commands: bring up the rest, which stays until `kvpn down`
    #[arg(long)]
    no_run: bool,
    /// Only print the JSON Schema of such files
    #[arg(long, conflicts_with_all = ["file", "print", "no_run"])]
    schema: bool,
}

/// Which file is meant.
#[derive(Args, Debug)]
pub(crate) struct FileArgs {
    /// File to read [default: kvpn.yaml, here or in the nearest directory above that has it]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl FileArgs {
    pub(super) fn read(&self) -> Result<Source, Failure> {
        Source::read(self.file.as_deref())
    }
}

pub(crate) async fn run(flags: &Flags, args: &UpArgs) -> Result<ExitCode, Ended> {
    if args.schema {
        output::print_text(&file::schema()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut plan = Plan::of(args.file.read()?, flags, args.no_run)?;
    if args.print {
        output::print_text(&commands(&plan)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let stays = plan.engagements.iter().all(|it| it.directory.is_none());
    if stays {
        for step in plan.connections.iter_mut().chain(&mut plan.engagements) {
            step.cli.flags.output = flags.output;
        }
    }
    let wanted = wanted(&plan)?;
    // Before anything is brought up, so that nothing is left behind.
    let mut interrupts = Interrupts::listen()?;
    let mut up = Up::default();
    let outcome = bring_up(&plan, &wanted, stays, &mut up, &mut interrupts).await;
    let outcome = match outcome {
        Ok(()) if stays => {
            output::print(&up.told, flags.output)?;
            if flags.output == Format::Text {
                report::note("It stays until `kvpn down`");
            }
            return Ok(ExitCode::SUCCESS);
        }
        Ok(()) => {
            // Standard output is the commands' alone.
            if flags.output == Format::Text {
                report::note(up.told.text().trim_end());
            }
            let handlers = std::mem::take(&mut up.handlers);
            let ends = &mut up.ends;
            let over = async {
                if let Some(Some(failure)) = ends.failure_rx.recv().await {
                    report::warning(&failure.message);
                }
            };
            handlers::run(handlers, &mut interrupts, over).await
        }
        Err(ended) => Err(ended),
    };
    if let Err(failure) = up.take_down().await {
        match outcome {
            Ok(0) => return Err(failure.into()),
            // What went wrong before comes first.
            Ok(_) | Err(_) => report::failure(&failure, flags.output),
        }
    }
    Ok(ExitCode::from(outcome?))
}

/// The commands that do the same, one on each line.
fn commands(plan: &Plan) -> Result<String, Failure> {
    let here = file::working_directory()?;
    let steps = plan.connections.iter().chain(&plan.engagements);
    Ok(steps.map(|step| step.shell(&here) + "\n").collect())
}

/// An engagement of the file, as the session is asked for it.
struct Wanted<'a> {
    step: &'a Step,
    request: InterceptRequest,
    environment: &'a EnvironmentArgs,
}

/// All that is to be engaged; refuses what cannot be before anything is done.
fn wanted(plan: &Plan) -> Result<Vec<Wanted<'_>>, Failure> {
    let steps = plan.engagements.iter();
    let each = steps.map(|step| of(step).map_err(|it| plan.source.blame(&step.at, it)));
    each.collect()
}

fn of(step: &Step) -> Result<Wanted<'_>, Failure> {
    let flags = &step.cli.flags;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "these are the verbs that the file knows"
    )]
    let (request, environment) = match &step.cli.command {
        Command::Intercept(args) => {
            let request = intercept::request(flags, args, Verb::Intercept)?;
            (request, &args.engage.environment)
        }
        Command::Wiretap(args) => {
            let request = intercept::request(flags, args, Verb::Wiretap)?;
            (request, &args.engage.environment)
        }
        Command::Replace(args) => (replace::request(flags, args), &args.engage.environment),
        Command::Ingest(args) => (args.read.request(flags), &args.environment),
        other => return Err(Failure::internal(format!("{other:?} engages nothing"))),
    };
    environment.check()?;
    let request = with_files(environment, request)?;
    if let Some(directory) = &step.directory
        && !directory.is_dir()
    {
        return Err(Failure::new(
            Reason::Usage,
            format!("{} is no directory", directory.display()),
            "make it, or name another one",
        ));
    }
    Ok(Wanted {
        step,
        request,
        environment,
    })
}

/// What a run has brought up, and what else came of it.
#[derive(Default)]
struct Up {
    connections: Vec<Flags>,
    engagements: Vec<(Session, LeaveRequest)>,
    ends: Ends,
    handlers: Vec<Handler>,
    told: Upped,
}

/// Listens for the ends of engagements that end with this process.
struct Ends {
    calls: JoinSet<()>,
    failure_tx: mpsc::Sender<Option<Failure>>,
    failure_rx: mpsc::Receiver<Option<Failure>>,
}

impl Default for Ends {
    fn default() -> Self {
        let (failure_tx, failure_rx) = mpsc::channel(1);
        Self {
            calls: JoinSet::new(),
            failure_tx,
            failure_rx,
        }
    }
}

impl Ends {
    fn listen(&mut self, session: Session, mut events: Events) {
        let failure_tx = self.failure_tx.clone();
        self.calls.spawn(async move {
            let failure = loop {
                match events.message().await {
                    // Of a later version.
                    Ok(Some(_)) => {}
                    // By `kvpn leave` or `kvpn down`.
                    Ok(None) => break None,
                    Err(status) => break Some(session.failure(status)),
                }
            };
            // One is enough.
            let _ = failure_tx.try_send(failure);
        });
    }
}

impl Up {
    /// What the lines of a handler begin with: the workload's name, and a number where there
    /// are several of it.
    fn name_for(&self, target: &str) -> String {
        let name = target.rsplit('/').next().unwrap_or(target);
        let is_taken = |name: &str| self.handlers.iter().any(|it| it.name == name);
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let mut names = std::iter::once(name.to_owned()).chain(numbered);
        let free = names.find(|name| !is_taken(name));
        free.unwrap_or_default()
    }

    /// Ends what was brought up, the last first; all of it, whatever becomes of some.
    async fn take_down(mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        while let Some((session, request)) = self.engagements.pop() {
            outcome = outcome.and(engage::leave(&session, request).await);
        }
        while let Some(flags) = self.connections.pop() {
            outcome = outcome.and(connect::disconnect(&flags).await);
        }
        outcome
    }
}

/// Brings up what is not there. What has come up until it fails or is interrupted is in `up`.
async fn bring_up(
    plan: &Plan,
    wanted: &[Wanted<'_>],
    stays: bool,
    up: &mut Up,
    interrupts: &mut Interrupts,
) -> Result<(), Ended> {
    let blame = |step: &Step, ended| match ended {
        Ended::Failed(failure) => Ended::Failed(plan.source.blame(&step.at, failure)),
        Ended::Interrupted(signal) => Ended::Interrupted(signal),
    };
    for step in &plan.connections {
        let Command::Connect(args) = &step.cli.command else {
            continue;
        };
        let flags = &step.cli.flags;
        let connection = connect::connect(flags, &args.session, interrupts).await;
        let connection = connection.map_err(|ended| blame(step, ended))?;
        if !connection.already_connected {
            up.connections.push(flags.clone());
        }
        up.told.connections.push(connection);
    }
    // By others than this run.
    let mut before = Vec::new();
    for step in &plan.connections {
        let status = status_of(step.cli.flags.connection()).await;
        before.push(status.map_err(|failure| blame(step, failure.into()))?);
    }
    for wanted in wanted {
        let one = engage_one(wanted, &before, stays, up);
        let outcome = tokio::select! {
            outcome = one => outcome.map_err(Ended::from),
            // Dropping the call cancels it.
            signal = interrupts.next() => Err(Ended::Interrupted(signal)),
        };
        outcome.map_err(|ended| blame(wanted.step, ended))?;
    }
    Ok(())
}

async fn status_of(connection: &str) -> Result<StatusResponse, Failure> {
    let session = Session::of(connection).await?;
    session.ok_or_else(not_connected)?.status().await
}

/// Engages a workload, unless it is engaged just so, and prepares what is run meanwhile.
async fn engage_one(
    wanted: &Wanted<'_>,
    before: &[StatusResponse],
    stays: bool,
    up: &mut Up,
) -> Result<(), Failure> {
    let Wanted {
        step,
        request,
        environment,
    } = wanted;
    let flags = &step.cli.flags;
    let before = before.iter().find(|it| it.name == flags.connection());
    let (session, status, mut warnings) = match before.and_then(|it| there::find(request, it)) {
        Some(status) => {
            there::check_stays(status)?;
            (Session::require(flags).await?, status.clone(), Vec::new())
        }
        None => {
            let request = InterceptRequest {
                // Whatever becomes of this process.
                ends_with_call: !stays,
                ..request.clone()
            };
            let started = engage::start(flags, request.clone()).await;
            let Engaged {
                session,
                status,
                warnings,
                events,
            } = started.map_err(|it| there::explain(it, &request, before))?;
            let left = engage::leave_request(&status);
            up.engagements.push((session.clone(), left));
            if !stays {
                up.ends.listen(session.clone(), events);
            }
            (session, status, warnings)
        }
    };
    let (variables, told) = environment_of(&session, &status, environment).await?;
    for warning in told {
        // A document has them in it.
        if flags.output == Format::Text {
            report::warning(&warning);
        }
        warnings.push(warning);
    }
    let own = own_variables(&status);
    let variables = pairs(variables).chain(root(&status)).chain(own);
    let variables = variables.collect();
    up.told.engagements.push(Intercepted {
        engagement: Engagement::from(status),
        warnings,
    });
    if let Some((program, arguments)) = environment.command.split_first()
        && let Some(directory) = &step.directory
    {
        let handler = Handler {
            name: up.name_for(&request.target),
            program: program.clone(),
            arguments: arguments.to_vec(),
            directory: directory.clone(),
            variables,
        };
        up.handlers.push(handler);
    }
    Ok(())
}

/// The environment where it is wanted, written to the files that are, and what the user
/// should know of it.
async fn environment_of(
    session: &Session,
    status: &EngagementStatus,
    args: &EnvironmentArgs,
) -> Result<(Variables, Vec<String>), Failure> {
    if !args.is_wanted() {
        return Ok(Default::default());
    }
    let (variables, mut warnings) = fetch(session, status, &args.exclude).await?;
    warnings.extend(args.write_files(&variables)?);
    Ok((variables, warnings))
}
