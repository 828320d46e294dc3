//! How files say variables, for those who read them.

use std::borrow::Cow;
use std::fmt;

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::Variables;
use crate::output::printable;

/// The longest line that docker reads, in bytes (`bufio.MaxScanTokenSize` of Go).
const LONGEST_LINE: usize = 64 << 10;

/// Names that bash or zsh lets nobody set, and those by which a shell itself would behave otherwise.
#[rustfmt::skip]
const OF_THE_SHELL: [&str; 22] = [
    "BASHOPTS", "BASH_ENV", "BASH_VERSINFO", "EGID", "ENV", "EUID", "GID", "HISTFILE",
    "HISTFILESIZE", "HISTSIZE", "IFS", "PPID", "PROMPT_COMMAND", "PS0", "PS1", "PS2", "PS4",
    "SHELLOPTS", "TMOUT", "UID", "USERNAME", "status",
];

/// Who reads a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Syntax {
    /// `docker run --env-file`, which knows no quotes
    #[default]
    Docker,
    /// `env_file` of Docker Compose, version 2
    Compose,
    /// A POSIX shell, by `.`
    Sh,
    /// The fish shell, by `source`
    Fish,
    /// One JSON object
    Json,
    /// PowerShell, by `.`
    Powershell,
}

/// The text of a file, and what the user should know of it, without any value.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) warnings: Vec<String>,
}

/// Without the text, which has the values.
impl fmt::Debug for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rendered")
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

impl Syntax {
    /// Says the variables, but for those that this one cannot say.
    pub(crate) fn render(self, variables: &Variables) -> Rendered {
        let mut rendered = Rendered::default();
        let mut object = Map::new();
        for (name, value) in &variables.0 {
            let (name, value) = (
                String::from_utf8_lossy(name),
                String::from_utf8_lossy(value),
            );
            let shown = printable(&name);
            if [&name, &value].map(|it| matches!(it, Cow::Owned(_))) != [false; 2] {
                let warning = format!("{shown} is no UTF-8; what is none is replaced by \u{fffd}");
                rendered.warnings.push(warning);
            }
            if self == Self::Powershell && value.is_empty() {
                let warning = format!("{shown} is empty, and PowerShell before 7.5 removes it");
                rendered.warnings.push(warning);
            }
            let line = match self {
                Self::Docker => docker(&name, &value),
                Self::Compose => compose(&name, &value),
                Self::Sh => sh(&name, &value),
                Self::Fish => fish(&name, &value),
                Self::Powershell => powershell(&name, &value),
                Self::Json => {
                    object.insert(name.into_owned(), Value::String(value.into_owned()));
                    continue;
                }
            };
            match line {
                Ok(line) => rendered.text += &(line + "\n"),
                Err(why) => rendered
                    .warnings
                    .push(format!("{shown} is left out: {why}")),
            }
        }
        if self == Self::Json {
            rendered.text = format!("{:#}\n", Value::Object(object));
        }
        rendered
    }
}

/// What is between `=` and the end of the line, as it is
/// (<https://docs.docker.com/reference/cli/docker/container/run/#env>).
fn docker(name: &str, value: &str) -> Result<String, &'static str> {
    if name.contains(char::is_whitespace) || name.starts_with('#') {
        return Err("docker knows no such name");
    }
    if value.contains('\n') || value.ends_with('\r') {
        return Err("docker's files cannot say the end of a line; choose another --env-syntax");
    }
    let line = format!("{name}={value}");
    match line.len() < LONGEST_LINE {
        true => Ok(line),
        false => Err("docker reads no line of 64 KiB; choose another --env-syntax"),
    }
}

/// In double quotes, within which a backslash makes what follows itself
/// (<https://docs.docker.com/compose/how-tos/environment-variables/variable-interpolation/#env-file-syntax>).
fn compose(name: &str, value: &str) -> Result<String, &'static str> {
    if !is_made_of(name, "_.-") {
        return Err("Compose knows no such name");
    }
    let mut quoted = String::new();
    for letter in value.chars() {
        match letter {
            '\n' => quoted += "\\n",
            '\r' => quoted += "\\r",
            '\\' | '"' | '$' => quoted.extend(['\\', letter]),
            letter => quoted.push(letter),
        }
    }
    Ok(format!("{name}=\"{quoted}\""))
}

/// In single quotes, within which all is itself
/// (<https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html#tag_19_02_02>).
fn sh(name: &str, value: &str) -> Result<String, &'static str> {
    if !is_identifier(name) {
        return Err("a shell knows no such name");
    }
    if OF_THE_SHELL.contains(&name) {
        return Err("a shell has it for itself; choose another --env-syntax");
    }
    Ok(format!("export {name}='{}'", value.replace('\'', r"'\''")))
}

/// In single quotes, within which a backslash makes these and itself themselves
/// (<https://fishshell.com/docs/current/language.html#quotes>).
fn fish(name: &str, value: &str) -> Result<String, &'static str> {
    if !is_identifier(name) {
        return Err("fish knows no such name");
    }
    let quoted = value.replace('\\', r"\\").replace('\'', r"\'");
    Ok(format!("set -gx {name} '{quoted}'"))
}

/// In single quotes, of which those within are doubled, whichever of Unicode's they are
/// (<https://learn.microsoft.com/powershell/module/microsoft.powershell.core/about/about_quoting_rules>).
fn powershell(name: &str, value: &str) -> Result<String, &'static str> {
    if !is_made_of(name, "_.-") {
        return Err("PowerShell knows no such name");
    }
    let mut quoted = String::new();
    for letter in value.chars() {
        if ['\'', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}'].contains(&letter) {
            quoted.push(letter);
        }
        quoted.push(letter);
    }
    Ok(format!("${{env:{name}}} = '{quoted}'"))
}

fn is_identifier(name: &str) -> bool {
    is_made_of(name, "_") && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Whether a name has ASCII letters, digits and these in it, and nothing else.
fn is_made_of(name: &str, others: &str) -> bool {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || others.contains(letter);
    !name.is_empty() && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Values that have gone wrong somewhere before.
    const NASTY: [(&str, &str); 12] = [
        ("BACKSLASH", r"a\b\\c\"),
        ("BEFORE_QUOTE", r#"\" \' \\" \\'"#),
        ("DOLLAR", "$HOME ${HOME} $$ $(id) `id`"),
        ("EMPTY", ""),
        ("EQUALS", "a=b=c="),
        ("HASH", "a # b"),
        ("LINES", "one\ntwo\r\nthree\n"),
        ("QUOTES", r#"it's "quoted""#),
        ("SPACES", "  a  b  "),
        ("TAB", "\ta\t"),
        ("TURNED", "\u{2018}a\u{2019}"),
        ("UNICODE", "gr\u{fc}n"),
    ];

    fn nasty() -> Variables {
        let pair = |(name, value): &(&str, &str)| (name.as_bytes().into(), value.as_bytes().into());
        NASTY.iter().map(pair).collect()
    }

    fn one(name: &[u8], value: &[u8]) -> Variables {
        Variables::from_iter([(name.to_vec(), value.to_vec())])
    }

    fn lines(syntax: Syntax) -> Vec<(&'static str, String)> {
        NASTY
            .iter()
            .map(|(name, value)| {
                let rendered = syntax.render(&one(name.as_bytes(), value.as_bytes()));
                let removes_empty = syntax == Syntax::Powershell && value.is_empty();
                assert_eq!(rendered.warnings.is_empty(), !removes_empty, "{name}");
                (*name, rendered.text)
            })
            .collect()
    }

    #[test]
    fn shell_reads_what_was_written() {
        let Rendered { text, warnings } = Syntax::Sh.render(&nasty());
        assert_eq!(warnings, Vec::<String>::new());
        let script = format!("{text}\nenv -0");
        let sh = Command::new("sh").arg("-c").arg(script).output().unwrap();
        let read = String::from_utf8(sh.stdout).unwrap();
        let read: Vec<&str> = read.split('\0').collect();
        for (name, value) in NASTY {
            let variable = format!("{name}={value}");
            assert!(read.contains(&&*variable), "{variable:?}");
        }
    }

    #[test]
    fn json_reads_what_was_written() {
        let Rendered { text, .. } = Syntax::Json.render(&nasty());
        let read: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(read.len(), NASTY.len());
        for (name, value) in NASTY {
            assert_eq!(read[name], value);
        }
    }

    #[test]
    fn docker_gets_values_as_they_are_and_none_with_the_end_of_a_line() {
        let Rendered { text, warnings } = Syntax::Docker.render(&nasty());
        let expected = NASTY.iter().filter(|(name, _)| *name != "LINES");
        let expected = expected.map(|(name, value)| format!("{name}={value}\n"));
        assert_eq!(text, expected.collect::<String>());
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("LINES is left out: "),
            "{warnings:?}"
        );
        assert!(!warnings[0].contains("one"), "it shows the value");
        let long = one(b"LONG", &vec![b'x'; 70_000]);
        assert_eq!(Syntax::Docker.render(&long).text, "");
        assert_eq!(Syntax::Docker.render(&one(b"A", b"b\r")).text, "");
        assert_eq!(Syntax::Docker.render(&one(b"#A", b"b")).text, "");
    }

    #[test]
    fn compose_gets_what_its_parser_reads_back() {
        // As compose-go/dotenv has it: first the quotes are taken off, then a backslash
        // before these letters, and then `$` would be expanded.
        let read = |line: &str| -> Option<String> {
            let quoted = line.split_once("=\"")?.1.strip_suffix("\"\n")?;
            let mut letters = quoted.chars();
            let mut value = String::new();
            while let Some(letter) = letters.next() {
                match letter {
                    '\\' => value.push(match letters.next()? {
                        'n' => '\n',
                        'r' => '\r',
                        escaped @ ('\\' | '"' | '$') => escaped,
                        _ => return None,
                    }),
                    '"' | '$' | '\n' => return None,
                    letter => value.push(letter),
                }
            }
            Some(value)
        };
        for ((name, line), (_, value)) in lines(Syntax::Compose).iter().zip(NASTY) {
            assert_eq!(read(line).as_deref(), Some(value), "{name}: {line}");
        }
    }

    #[test]
    fn fish_and_powershell_get_their_own_quotes() {
        let of = |syntax, wanted: &str| {
            let mut lines = lines(syntax).into_iter();
            lines.find(|(name, _)| *name == wanted).unwrap().1
        };
        let fish = |name| of(Syntax::Fish, name);
        assert_eq!(
            fish("BACKSLASH"),
            "set -gx BACKSLASH 'a\\\\b\\\\\\\\c\\\\'\n"
        );
        assert_eq!(fish("QUOTES"), "set -gx QUOTES 'it\\'s \"quoted\"'\n");
        assert_eq!(fish("EMPTY"), "set -gx EMPTY ''\n");
        let powershell = |name| of(Syntax::Powershell, name);
        assert_eq!(powershell("QUOTES"), "${env:QUOTES} = 'it''s \"quoted\"'\n");
        let turned = "${env:TURNED} = '\u{2018}\u{2018}a\u{2019}\u{2019}'\n";
        assert_eq!(powershell("TURNED"), turned);
        assert_eq!(
            powershell("DOLLAR"),
            "${env:DOLLAR} = '$HOME ${HOME} $$ $(id) `id`'\n"
        );
    }

    #[test]
    fn names_that_cannot_be_said_are_left_out_with_a_warning() {
        let odd = one(b"my.key-1", b"secret");
        for (syntax, is_said) in [
            (Syntax::Docker, true),
            (Syntax::Compose, true),
            (Syntax::Sh, false),
            (Syntax::Fish, false),
            (Syntax::Json, true),
            (Syntax::Powershell, true),
        ] {
            let Rendered { text, warnings } = syntax.render(&odd);
            assert_eq!(text.contains("my.key-1"), is_said, "{syntax:?}");
            assert_eq!(warnings.is_empty(), is_said, "{syntax:?}");
            assert!(!format!("{warnings:?}").contains("secret"), "{syntax:?}");
        }
        // Nothing that a terminal would heed.
        let rendered = Syntax::Sh.render(&one(b"A\x1b[2J", b"x"));
        assert!(
            rendered.warnings[0].starts_with(r"A\u{1b}[2J is left out"),
            "{rendered:?}"
        );
        // Nothing that a shell would run.
        for name in [&b"A;id"[..], b"A$(id)", b"A b", b"1A", b"A\n", b""] {
            for syntax in [Syntax::Sh, Syntax::Fish] {
                assert_eq!(syntax.render(&one(name, b"x")).text, "");
            }
        }
    }

    #[test]
    fn what_shells_have_for_themselves_is_left_out_for_them_alone() {
        for name in OF_THE_SHELL {
            let variable = one(name.as_bytes(), b"x");
            let Rendered { text, warnings } = Syntax::Sh.render(&variable);
            assert_eq!(text, "");
            assert!(warnings[0].starts_with(name), "{warnings:?}");
            assert_eq!(Syntax::Docker.render(&variable).text, format!("{name}=x\n"));
        }
        let kept = one(b"ENVIRONMENT", b"x");
        assert_eq!(Syntax::Sh.render(&kept).text, "export ENVIRONMENT='x'\n");
    }

    #[test]
    fn empty_values_are_told_where_powershell_removes_them() {
        let empty = one(b"EMPTY", b"");
        let Rendered { text, warnings } = Syntax::Powershell.render(&empty);
        assert_eq!(text, "${env:EMPTY} = ''\n");
        assert!(warnings[0].starts_with("EMPTY is empty"), "{warnings:?}");
    }

    #[test]
    fn what_is_no_text_is_replaced_with_a_warning() {
        for syntax in Syntax::value_variants() {
            let Rendered { text, warnings } = syntax.render(&one(b"RAW", b"a\xffb"));
            assert!(text.contains("a\u{fffd}b"), "{syntax:?}: {text}");
            assert!(warnings[0].starts_with("RAW is no UTF-8"), "{warnings:?}");
        }
    }
}
