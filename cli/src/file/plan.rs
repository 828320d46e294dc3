//! What a file asks for, as commands of `kvpn`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kvpn_proto::{Failure, Reason, names};

use super::Source;
use super::format::{Connection, Engagement, Run, Text, nearest};
use super::variables::Variables;
use super::words::{Words, command_line, quoted};
use crate::args::{Cli, Flags};

/// What is done, in this order.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) source: Source,
    pub(crate) connections: Vec<Step>,
    pub(crate) engagements: Vec<Step>,
}

/// A command of `kvpn`.
#[derive(Debug)]
pub(crate) struct Step {
    /// The path of the entry that it comes from, such as `engagements[1]`.
    pub(crate) at: String,
    words: Vec<OsString>,
    /// What the words mean.
    pub(crate) cli: Cli,
    /// Where the command that it runs is run.
    pub(crate) directory: Option<PathBuf>,
}

impl Step {
    /// The command as a shell in this directory takes it.
    pub(crate) fn shell(&self, working_directory: &Path) -> String {
        let line = command_line(&self.words);
        match &self.directory {
            None => line,
            Some(directory) if directory == working_directory => format!("{line} &"),
            Some(directory) => format!("(cd {} && {line}) &", quoted(directory.as_os_str())),
        }
    }
}

impl Plan {
    /// What the file asks for; the flags say more of its connection where it has one only.
    pub(crate) fn of(source: Source, flags: &Flags, no_run: bool) -> Result<Self, Failure> {
        Self::with(source, flags, no_run, &|name| std::env::var(name).ok())
    }

    /// The connections of a file alone.
    pub(crate) fn connections(source: &Source, flags: &Flags) -> Result<Vec<Step>, Failure> {
        let variables = |name: &str| std::env::var(name).ok();
        let entries = source.document()?.connections;
        connect_all(source, &entries, flags, &variables).map(|(steps, _)| steps)
    }

    fn with(
        source: Source,
        flags: &Flags,
        no_run: bool,
        variables: &Variables<'_>,
    ) -> Result<Self, Failure> {
        let document = source.document()?;
        let (connections, known) = connect_all(&source, &document.connections, flags, variables)?;
        let mut engagements = Vec::new();
        for (index, entry) in document.engagements.iter().enumerate() {
            let mut words = Words::new(&source, variables, format!("engagements[{index}]"));
            let connection = connection_of(&words, entry, &known)?;
            let directory = engage(&mut words, entry, connection, no_run)?;
            engagements.push(step(words, directory)?);
        }
        Ok(Self {
            source,
            connections,
            engagements,
        })
    }
}

/// A connection's name as the file has it, and what it is called.
struct Known {
    name: String,
    called: String,
}

/// What makes the connections, of which there is always one.
fn connect_all(
    source: &Source,
    entries: &[Connection],
    flags: &Flags,
    variables: &Variables<'_>,
) -> Result<(Vec<Step>, Vec<Known>), Failure> {
    if entries.len() > 1 && flags.say_which() {
        return Err(Failure::new(
            Reason::Usage,
            format!("{} has several connections", source.name),
            "write what the options say into the file, for the connection that it is for",
        ));
    }
    let usual = [Connection::default()];
    let entries = if entries.is_empty() { &usual } else { entries };
    let (mut steps, mut known) = (Vec::new(), Vec::<Known>::new());
    for (index, entry) in entries.iter().enumerate() {
        let mut words = Words::new(source, variables, format!("connections[{index}]"));
        let name = match &entry.name {
            Some(name) => words.text("name", name)?,
            None => names::DEFAULT_CONNECTION.to_owned(),
        };
        if known.iter().any(|known| known.name == name) {
            let what = format!("name: there is a connection {name} before");
            return Err(words.refuse("name", &what, "give each a name of its own"));
        }
        let called = flags.name.clone().unwrap_or_else(|| name.clone());
        known.push(Known { name, called });
        connect(&mut words, entry, flags)?;
        steps.push(step(words, None)?);
    }
    Ok((steps, known))
}

fn step(words: Words<'_>, directory: Option<PathBuf>) -> Result<Step, Failure> {
    let at = words.entry.clone();
    let (words, cli) = words.parse()?;
    Ok(Step {
        at,
        words,
        cli,
        directory,
    })
}

/// The words of `kvpn connect`; what is typed counts more than what is written.
fn connect(words: &mut Words<'_>, entry: &Connection, flags: &Flags) -> Result<(), Failure> {
    words.word("name", "connect");
    for (flag, given, text) in [
        ("--name", &flags.name, &entry.name),
        ("--context", &flags.context, &entry.context),
        ("--namespace", &flags.namespace, &entry.namespace),
        (
            "--manager-namespace",
            &flags.manager_namespace,
            &entry.manager_namespace,
        ),
    ] {
        match given {
            Some(value) => words.given(flag, value),
            None => words.one(flag, text.as_ref())?,
        }
    }
    match &flags.kubeconfig {
        Some(path) => words.given("--kubeconfig", path),
        None => words.file("--kubeconfig", entry.kubeconfig.as_ref())?,
    }
    words.one("--transport", entry.transport.as_ref())?;
    words.all("--dns-include", &entry.dns_include)?;
    words.all("--dns-exclude", &entry.dns_exclude)?;
    words.all("--dns-mapping", &entry.dns_mapping)?;
    words.all("--also-proxy", &entry.also_proxy)?;
    words.all("--never-proxy", &entry.never_proxy)?;
    words.all(
        "--allow-conflicting-subnets",
        &entry.allow_conflicting_subnets,
    )?;
    words.all("--vnat", &entry.vnat)
}

/// What the connection of an engagement is called.
fn connection_of<'a>(
    words: &Words<'_>,
    entry: &Engagement,
    known: &'a [Known],
) -> Result<&'a str, Failure> {
    let names = || known.iter().map(|known| known.name.as_str());
    let there_are = || format!("there are {}", names().collect::<Vec<_>>().join(", "));
    match (&entry.connection, known) {
        (None, [only]) => Ok(&only.called),
        (None, _) => {
            let what = "connection is missing, as the file has several";
            Err(words.refuse("connection", what, &there_are()))
        }
        (Some(text), _) => {
            let wanted = words.text("connection", text)?;
            let found = known.iter().find(|known| known.name == wanted);
            found.map(|known| &*known.called).ok_or_else(|| {
                let next_step = match nearest(&wanted, names()) {
                    Some(nearest) => format!("did you mean {nearest}?"),
                    None => there_are(),
                };
                let what = format!("connection: the file has no connection {wanted}");
                words.refuse("connection", &what, &next_step)
            })
        }
    }
}

/// The words of one of the verbs; gives the directory of what it runs.
fn engage(
    words: &mut Words<'_>,
    entry: &Engagement,
    connection: &str,
    no_run: bool,
) -> Result<Option<PathBuf>, Failure> {
    let (verb, target) = verb(words, entry)?;
    let target = words.text(verb, target)?;
    if target.is_empty() || target.starts_with('-') {
        let what = format!("{verb}: `{target}` is no workload");
        return Err(words.refuse(verb, &what, "give a NAME or KIND/NAME, such as deploy/web"));
    }
    words.word(verb, verb);
    words.word(verb, target);
    words.given("--name", connection);
    words.one("--namespace", entry.namespace.as_ref())?;
    words.all("--port", &entry.ports)?;
    words.one("--address", entry.address.as_ref())?;
    words.all("--to-pod", &entry.to_pod)?;
    words.one("--timeout", entry.timeout.as_ref())?;
    words.all("--http-header", &entry.filter.headers)?;
    words.all("--http-path", &entry.filter.paths)?;
    words.all("--http-method", &entry.filter.methods)?;
    words.all("--http-query", &entry.filter.query)?;
    words.switch("--any", entry.filter.any);
    words.file("--tls-cert", entry.tls.cert.as_ref())?;
    words.file("--tls-key", entry.tls.key.as_ref())?;
    words.one("--tls-secret", entry.tls.secret.as_ref())?;
    words.one("--on-failure", entry.on_failure.as_ref())?;
    words.switch("--rollout", entry.rollout);
    words.one("--container", entry.container.as_ref())?;
    words.file("--env-file", entry.env.file.as_ref())?;
    words.one("--env-syntax", entry.env.syntax.as_ref())?;
    words.file("--env-json", entry.env.json.as_ref())?;
    match &entry.mount {
        Some(Text(text)) if ["true", "true:ro", "false"].contains(&text.as_str()) => {
            words.one("--mount", entry.mount.as_ref())?;
        }
        mount => words.file("--mount", mount.as_ref())?,
    }
    words.switch("--root-fs", entry.root_fs);
    let is_run = entry.run.is_some() && !no_run;
    // Of no use without what it is for.
    let is_written = entry.env.file.is_some() || entry.env.json.is_some();
    if is_run || is_written || entry.run.is_none() {
        words.all("--env-exclude", &entry.env.exclude)?;
    }
    let directory = match &entry.directory {
        Some(directory) if entry.run.is_some() => words.path("directory", directory)?,
        Some(_) => {
            let what = "directory is for `run`, which is not there";
            return Err(words.refuse("directory", what, "add a command, or leave it out"));
        }
        None => words.path("run", &Text(String::new()))?,
    };
    match &entry.run {
        Some(run) if !no_run => command(words, run)?,
        Some(_) | None => return Ok(None),
    }
    Ok(Some(directory))
}

/// The one verb of an entry, and its workload.
fn verb<'a>(words: &Words<'_>, entry: &'a Engagement) -> Result<(&'static str, &'a Text), Failure> {
    let verbs = [
        ("intercept", &entry.intercept),
        ("wiretap", &entry.wiretap),
        ("replace", &entry.replace),
        ("ingest", &entry.ingest),
    ];
    let given = verbs.into_iter();
    let mut given = given.filter_map(|(verb, target)| Some((verb, target.as_ref()?)));
    let next_step = "say what to do with which workload, such as `intercept: deploy/web`";
    match (given.next(), given.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => {
            let what = "neither intercept, wiretap, replace nor ingest is there";
            Err(words.refuse("intercept", what, next_step))
        }
        (Some((one, _)), Some((other, _))) => {
            let what = format!("{one} and {other} are both there");
            let next_step = "write an entry for each";
            Err(words.refuse(other, &what, next_step))
        }
    }
}

fn command(words: &mut Words<'_>, run: &Run) -> Result<(), Failure> {
    let texts = match run {
        Run::Words(texts) => texts.as_slice(),
        Run::Line(text) => std::slice::from_ref(text),
    };
    let is_empty = |text: &Text| text.0.trim().is_empty();
    if texts.first().is_none_or(is_empty) {
        let what = "run: there is no command in it";
        return Err(words.refuse("run", what, "give one, such as [\"./server\"]"));
    }
    words.word("run", "--");
    match run {
        Run::Words(texts) => {
            for (index, text) in texts.iter().enumerate() {
                let key = format!("run[{index}]");
                let text = words.text(&key, text)?;
                words.word(&key, text);
            }
        }
        Run::Line(text) => {
            let line = words.text("run", text)?;
            for word in ["sh", "-c", line.trim_end()] {
                words.word("run", word);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
