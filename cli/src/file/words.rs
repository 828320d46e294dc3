//! Command lines of `kvpn`, each word with the place in the file that it comes from.

use std::borrow::Cow;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use kvpn_proto::Failure;

use super::Source;
use super::format::Text;
use super::variables::{Variables, expand};
use crate::args::Cli;

/// The options of the command line, and what they are called in a file.
#[rustfmt::skip]
pub(super) const KEYS: [(&str, &str); 35] = [
    ("--name", "name"),
    ("--kubeconfig", "kubeconfig"),
    ("--context", "context"),
    ("--namespace", "namespace"),
    ("--manager-namespace", "managerNamespace"),
    ("--transport", "transport"),
    ("--dns-include", "dnsInclude"),
    ("--dns-exclude", "dnsExclude"),
    ("--dns-mapping", "dnsMapping"),
    ("--also-proxy", "alsoProxy"),
    ("--never-proxy", "neverProxy"),
    ("--allow-conflicting-subnets", "allowConflictingSubnets"),
    ("--vnat", "vnat"),
    ("--port", "ports"),
    ("--address", "address"),
    ("--to-pod", "toPod"),
    ("--timeout", "timeout"),
    ("--http-header", "filter.headers"),
    ("--http-path", "filter.paths"),
    ("--http-method", "filter.methods"),
    ("--http-query", "filter.query"),
    ("--any", "filter.any"),
    ("--tls-cert", "tls.cert"),
    ("--tls-key", "tls.key"),
    ("--tls-secret", "tls.secret"),
    ("--on-failure", "onFailure"),
    ("--rollout", "rollout"),
    ("--container", "container"),
    ("--env-file", "env.file"),
    ("--env-syntax", "env.syntax"),
    ("--env-json", "env.json"),
    ("--env-exclude", "env.exclude"),
    ("--mount", "mount"),
    ("--root-fs", "rootFs"),
    ("--", "run"),
];

/// The key of an option.
fn key(flag: &str) -> Option<&'static str> {
    let mut keys = KEYS.into_iter();
    keys.find(|(known, _)| *known == flag).map(|(_, key)| key)
}

/// A command line that grows.
pub(super) struct Words<'a> {
    source: &'a Source,
    variables: &'a Variables<'a>,
    /// The path of the entry that it comes from, such as `engagements[1]`.
    pub(super) entry: String,
    words: Vec<Word>,
}

struct Word {
    text: OsString,
    /// The option of which it is the value.
    flag: &'static str,
    /// The path of where it comes from.
    at: String,
}

impl<'a> Words<'a> {
    pub(super) fn new(source: &'a Source, variables: &'a Variables<'a>, entry: String) -> Self {
        Self {
            source,
            variables,
            entry,
            words: Vec::new(),
        }
    }

    /// A text of the entry, with its variables replaced.
    pub(super) fn text(&self, key: &str, text: &Text) -> Result<String, Failure> {
        expand(&text.0, self.variables).map_err(|why| {
            let next_step = "set it, or write ${NAME:-default}; `$$` stands for `$`";
            self.refuse(key, &format!("{key}: {why}"), next_step)
        })
    }

    /// A path of the entry, from the directory of the file.
    pub(super) fn path(&self, key: &str, text: &Text) -> Result<PathBuf, Failure> {
        let text = self.text(key, text)?;
        // Without what says nothing, such as `./`.
        Ok(self.source.directory.join(text).components().collect())
    }

    pub(super) fn refuse(&self, key: &str, what: &str, next_step: &str) -> Failure {
        let at = format!("{}.{key}", self.entry);
        self.source.refuse(&at, what, next_step)
    }

    /// Adds a word that is no option.
    pub(super) fn word(&mut self, key: &str, text: impl Into<OsString>) {
        self.words.push(Word {
            text: text.into(),
            flag: "",
            at: format!("{}.{key}", self.entry),
        });
    }

    fn option(&mut self, flag: &'static str, at: String, value: OsString) {
        let word = |text| Word {
            text,
            flag,
            at: at.clone(),
        };
        // What would look like an option itself.
        if value.as_encoded_bytes().starts_with(b"-") {
            let mut text = OsString::from(flag);
            text.push("=");
            text.push(value);
            self.words.push(word(text));
        } else {
            let both = [flag.into(), value].map(word);
            self.words.extend(both);
        }
    }

    /// Adds an option, if there is one.
    pub(super) fn one(&mut self, flag: &'static str, text: Option<&Text>) -> Result<(), Failure> {
        if let Some(text) = text {
            let key = key(flag).unwrap_or(flag);
            let text = self.text(key, text)?;
            self.option(flag, format!("{}.{key}", self.entry), text.into());
        }
        Ok(())
    }

    /// Adds an option for each.
    pub(super) fn all(&mut self, flag: &'static str, texts: &[Text]) -> Result<(), Failure> {
        let key = key(flag).unwrap_or(flag);
        for (index, text) in texts.iter().enumerate() {
            let key = format!("{key}[{index}]");
            let text = self.text(&key, text)?;
            self.option(flag, format!("{}.{key}", self.entry), text.into());
        }
        Ok(())
    }

    /// Adds an option that is a path, if there is one.
    pub(super) fn file(&mut self, flag: &'static str, text: Option<&Text>) -> Result<(), Failure> {
        if let Some(text) = text {
            let key = key(flag).unwrap_or(flag);
            let path = self.path(key, text)?;
            self.option(flag, format!("{}.{key}", self.entry), path.into());
        }
        Ok(())
    }

    /// Adds an option that the file has not given.
    pub(super) fn given(&mut self, flag: &'static str, value: impl Into<OsString>) {
        self.option(flag, self.entry.clone(), value.into());
    }

    /// Adds an option without a value, if it is wanted.
    pub(super) fn switch(&mut self, flag: &'static str, is_wanted: bool) {
        if is_wanted {
            self.words.push(Word {
                text: flag.into(),
                flag,
                at: format!("{}.{}", self.entry, key(flag).unwrap_or(flag)),
            });
        }
    }

    /// Has the command line say what it means, as one that is typed does.
    pub(super) fn parse(self) -> Result<(Vec<OsString>, Cli), Failure> {
        let texts = self.words.iter().map(|word| word.text.clone());
        let texts: Vec<OsString> = texts.collect();
        let line = std::iter::once("kvpn".into()).chain(texts.iter().cloned());
        match Cli::try_parse_from(line) {
            Ok(cli) => Ok((texts, cli)),
            Err(error) => Err(self.refused(&error)),
        }
    }

    /// What the command line says, in the file's words.
    fn refused(&self, error: &clap::Error) -> Failure {
        let flags = strings(error, ContextKind::InvalidArg);
        let values = strings(error, ContextKind::InvalidValue);
        // Such as `--port <LOCAL[:REMOTE]>`.
        let flag = flags.first().and_then(|flag| flag.split(' ').next());
        let flag = flag.unwrap_or_default();
        let of_flag = |word: &&Word| word.flag == flag;
        let of_value = |word: &&Word| values.iter().any(|value| word.text == **value);
        let word = self.words.iter().find(|it| of_flag(it) && of_value(it));
        let word = word.or_else(|| self.words.iter().find(of_flag));
        let word = word.filter(|_| !flag.is_empty());
        let at = word.map_or(&*self.entry, |word| &*word.at);
        let key = key(flag).unwrap_or(flag);
        let value = values.first().map_or("", String::as_str);
        let first = self.words.first().map(|word| word.text.to_string_lossy());
        let command = first.unwrap_or_default();
        // Which kinds matter here, and clap may get more.
        #[expect(clippy::wildcard_enum_match_arm, reason = "the rest says it by itself")]
        let what = match error.kind() {
            ErrorKind::ValueValidation => {
                let why = error.source().map(ToString::to_string);
                format!("{key}: `{value}`: {}", why.unwrap_or_default())
            }
            ErrorKind::InvalidValue => {
                let known = strings(error, ContextKind::ValidValue).join(", ");
                format!("{key}: `{value}` is none of {known}")
            }
            ErrorKind::UnknownArgument => format!("{key}: `kvpn {command}` has no such option"),
            ErrorKind::MissingRequiredArgument => {
                format!("{key} is missing, without which `kvpn {command}` cannot do")
            }
            _ => rendered(error),
        };
        let next_step = format!("see `kvpn {command} --help`");
        self.source.refuse(at, &what, next_step)
    }
}

fn strings(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        Some(_) | None => Vec::new(),
    }
}

/// The first thing that clap says.
fn rendered(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    first.trim_start_matches("error: ").replace('\n', " ")
}

/// A command line of `kvpn` as a POSIX shell takes it.
pub(super) fn command_line(words: &[OsString]) -> String {
    let words = words.iter().map(|word| quoted(word));
    let words: Vec<_> = std::iter::once("kvpn".into()).chain(words).collect();
    words.join(" ")
}

/// A word as a POSIX shell takes it, and zsh.
pub(super) fn quoted(word: &OsStr) -> Cow<'_, str> {
    let word = word.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
    match !word.is_empty() && !word.starts_with('=') && word.bytes().all(is_plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_option_has_a_key() {
        let mut cli = Cli::command();
        cli.build();
        for command in ["connect", "intercept", "wiretap", "replace", "ingest"] {
            let command = cli.find_subcommand(command).unwrap();
            let seen = command.get_arguments().filter(|it| !it.is_hide_set());
            for flag in seen.filter_map(|it| it.get_long()) {
                let is_known = key(&format!("--{flag}")).is_some();
                // The commands of a file are not watched for.
                let is_none = ["help", "output", "watch"].contains(&flag);
                assert!(is_known || is_none, "{flag}");
            }
        }
    }

    #[test]
    fn shell_reads_every_word_as_it_is() {
        let words = [
            "", "a b", "it's", "$HOME", "`id`", "a\nb", "~=^/api", "=ls", "*", "\\", "é", "--a=b",
        ];
        for word in words {
            let script = format!("printf %s {}", quoted(word.as_ref()));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(output.stdout, word.as_bytes(), "{script}");
        }
        let words = ["intercept", "deploy/web", "--port", "8080:http"].map(OsString::from);
        assert_eq!(
            command_line(&words),
            "kvpn intercept deploy/web --port 8080:http"
        );
    }
}
