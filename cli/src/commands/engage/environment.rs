//! `--env-file` and its like, and `-- COMMAND`: the environment of the engaged container.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use kvpn_proto::crd::WorkloadKind;
use kvpn_proto::environment::Environment;
use kvpn_proto::v1::{EngagementStatus, GetEnvironmentRequest};
use kvpn_proto::{Failure, Reason};

use super::mount::MountArgs;
use crate::environment::{self, Syntax, Variables};
use crate::session::Session;
use crate::watch::Watch;

/// Heading of these flags.
pub(crate) const ENVIRONMENT: &str = "Options for the container's environment";

/// Heading of those of the command.
const COMMAND: &str = "Options for the command";

/// What does not come over.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ExcludeArgs {
    /// Variable to leave out, by its name or a pattern with * and ?; may be given more than
    /// once. HOME, PATH, HOSTNAME, PWD, OLDPWD, SHLVL, TERM, TMPDIR, USER, LOGNAME, SHELL,
    /// LD_AUDIT, LD_LIBRARY_PATH, LD_PRELOAD and _ never come over
    #[arg(long, value_name = "PATTERN", help_heading = ENVIRONMENT)]
    env_exclude: Vec<String>,
}

/// What becomes of the environment of the container.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct EnvironmentArgs {
    /// Write the environment of the container, as its process got it, to this file, which
    /// only you may read; you must be allowed to execute commands in the pods
    #[arg(long, value_name = "FILE", help_heading = ENVIRONMENT)]
    env_file: Option<PathBuf>,
    /// The same as a JSON object
    #[arg(long, value_name = "FILE", help_heading = ENVIRONMENT)]
    env_json: Option<PathBuf>,
    /// Who reads the --env-file
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "SYNTAX",
        requires = "env_file",
        help_heading = ENVIRONMENT
    )]
    env_syntax: Syntax,
    #[command(flatten)]
    pub(crate) exclude: ExcludeArgs,
    #[command(flatten)]
    pub(super) mount: MountArgs,
    /// File or directory; whenever it or something in it changes, the command is ended and
    /// run again; may be given more than once. What is hidden does not count, nor what is
    /// called target, node_modules or __pycache__
    #[arg(long, value_name = "PATH", requires = "command", help_heading = COMMAND)]
    watch: Vec<PathBuf>,
    /// Command to run with your own environment and the container's over it; when it ends,
    /// so does the engagement, and its exit code is returned
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

impl EnvironmentArgs {
    /// For a command alone.
    pub(crate) fn of_command(
        exclude: ExcludeArgs,
        mount: MountArgs,
        command: Vec<OsString>,
    ) -> Self {
        Self {
            exclude,
            mount,
            command,
            ..Self::default()
        }
    }

    /// Watches what the command is to be run anew for, if there is anything.
    pub(super) fn watch(&self) -> Result<Option<Watch>, Failure> {
        let is_wanted = !self.watch.is_empty();
        is_wanted.then(|| Watch::new(&self.watch)).transpose()
    }

    /// Whether the environment is of any use.
    pub(crate) fn is_wanted(&self) -> bool {
        self.env_file.is_some() || self.env_json.is_some() || !self.command.is_empty()
    }

    /// Refuses what has nothing to be left out of, files that cannot be written, and what is
    /// not there to be watched.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        for file in self.env_file.iter().chain(&self.env_json) {
            environment::check(file)?;
        }
        Watch::check(&self.watch)?;
        if self.exclude.env_exclude.is_empty() || self.is_wanted() {
            return Ok(());
        }
        Err(Failure::new(
            Reason::Usage,
            "--env-exclude leaves variables out, and none are asked for",
            "give --env-file, --env-json or a command after `--`",
        ))
    }

    /// Writes the files that are wanted; returns what the user should know.
    pub(crate) fn write_files(&self, variables: &Variables) -> Result<Vec<String>, Failure> {
        let json = self.env_json.as_ref().map(|file| (file, Syntax::Json));
        let files = self.env_file.as_ref().map(|file| (file, self.env_syntax));
        let mut warnings = Vec::new();
        for (file, syntax) in files.into_iter().chain(json) {
            let rendered = syntax.render(variables);
            environment::write(file, &rendered.text)?;
            let told = rendered.warnings.into_iter();
            warnings.extend(told.map(|warning| format!("{}: {warning}", file.display())));
        }
        Ok(warnings)
    }
}

/// Variables by which a command knows what it runs for.
pub(crate) fn own_variables(
    engagement: &EngagementStatus,
) -> impl Iterator<Item = (OsString, OsString)> {
    let workload = match engagement.workload.split_once('/') {
        Some((kind, name)) => {
            let short = WorkloadKind::parse(kind).map(WorkloadKind::short);
            format!("{}/{name}", short.unwrap_or(kind))
        }
        None => engagement.workload.clone(),
    };
    [
        ("KVPN_NAMESPACE", engagement.namespace.clone()),
        ("KVPN_WORKLOAD", workload),
        ("KVPN_CONTAINER", engagement.container.clone()),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
}

/// The environment that an engagement may read, and what the user should know of it.
pub(crate) async fn fetch(
    session: &Session,
    engagement: &EngagementStatus,
    excluded: &ExcludeArgs,
) -> Result<(Variables, Vec<String>), Failure> {
    let request = GetEnvironmentRequest {
        namespace: engagement.namespace.clone(),
        name: engagement.name.clone(),
    };
    let answer = session.environment(request).await?;
    let environment = Environment::from(answer.environment.unwrap_or_default());
    let mut warnings = Vec::new();
    if environment.damaged > 0 {
        warnings.push(format!(
            "the first process of container {} in pod {} has written over its environment, \
             so that some of its variables may be missing or wrong",
            answer.container, answer.pod
        ));
    }
    Ok((
        environment::chosen(environment, &excluded.env_exclude),
        warnings,
    ))
}
