//! One condition on the head of a request.

use std::borrow::Cow;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FilterError, Head};

/// The longest pattern's program, and the most that it may remember, in bytes.
const MAX_PROGRAM: usize = 1 << 20;
const MAX_MEMORY: usize = 256 << 10;

/// What a condition is about.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Part {
    Method,
    Path,
    Header,
    QueryParam,
}

impl Part {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Path => "path",
            Self::Header => "header",
            Self::QueryParam => "query parameter",
        }
    }
}

/// How a value is compared, in the words of the Gateway API
/// (<https://gateway-api.sigs.k8s.io/reference/spec/#httproutematch>).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum MatchType {
    Exact,
    /// A path, or one below it.
    PathPrefix,
    /// The whole value fits the pattern.
    RegularExpression,
    /// There is one, whatever its value.
    Present,
}

/// A condition as an Engagement has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub part: Part,
    /// Of a header or a query parameter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub name: String,
    #[serde(rename = "type")]
    pub match_type: MatchType,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// A condition that is ready to decide.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    part: Part,
    name: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exact(String),
    Prefix(String),
    Pattern(Regex),
    Present,
}

impl Test {
    fn accepts(&self, value: &str) -> bool {
        match self {
            Self::Exact(wanted) => value == wanted,
            Self::Prefix(prefix) => is_below(value, prefix),
            Self::Pattern(pattern) => pattern.is_match(value),
            Self::Present => true,
        }
    }
}

impl Compiled {
    pub(super) fn holds(&self, head: &impl Head) -> bool {
        let value: Option<Cow<'_, str>> = match self.part {
            Part::Method => Some(head.method().into()),
            Part::Path => Some(head.path().into()),
            Part::Header => head.field(&self.name),
            Part::QueryParam => query_param(head.query(), &self.name),
        };
        value.is_some_and(|value| self.test.accepts(&value))
    }

    /// Tells whether it is certain that not both hold of one request.
    pub(super) fn contradicts(&self, other: &Self) -> bool {
        if self.part != other.part || self.name != other.name {
            return false;
        }
        match (&self.test, &other.test) {
            (Test::Exact(value), test) | (test, Test::Exact(value)) => !test.accepts(value),
            (Test::Prefix(one), Test::Prefix(other)) => {
                !is_below(one, other) && !is_below(other, one)
            }
            // Whether two patterns have a value in common is not tried.
            (Test::Prefix(_) | Test::Pattern(_) | Test::Present, _) => false,
        }
    }
}

impl TryFrom<&Condition> for Compiled {
    type Error = FilterError;

    fn try_from(condition: &Condition) -> Result<Self, FilterError> {
        let Condition {
            part,
            name,
            match_type,
            value,
        } = condition;
        check(condition)?;
        let test = match match_type {
            MatchType::Exact => Test::Exact(value.clone()),
            MatchType::PathPrefix => Test::Prefix(value.trim_end_matches('/').to_owned()),
            MatchType::RegularExpression => Test::Pattern(pattern(value)?),
            MatchType::Present => Test::Present,
        };
        let name = match part {
            Part::Header => name.to_ascii_lowercase(),
            Part::Method | Part::Path | Part::QueryParam => name.clone(),
        };
        Ok(Self {
            part: *part,
            name,
            test,
        })
    }
}

fn check(condition: &Condition) -> Result<(), FilterError> {
    let Condition {
        part,
        name,
        match_type,
        value,
    } = condition;
    let is_token = |text: &str| !text.is_empty() && text.bytes().all(is_token_byte);
    let unfit = |by| {
        let part = part.as_str();
        Err(FilterError::Unfit { part, by })
    };
    let is_named = matches!(part, Part::Header | Part::QueryParam);
    match part {
        _ if *match_type == MatchType::Present && !is_named => unfit("its presence"),
        _ if *match_type == MatchType::PathPrefix && *part != Part::Path => {
            unfit("a path's prefix")
        }
        Part::Header if !is_token(name) => Err(FilterError::Name(name.clone())),
        Part::QueryParam if name.is_empty() => Err(FilterError::Name(name.clone())),
        Part::Method if *match_type == MatchType::Exact && !is_token(value) => {
            Err(FilterError::Method(value.clone()))
        }
        Part::Path if *match_type == MatchType::RegularExpression => Ok(()),
        Part::Path if !value.starts_with('/') || value.ends_with('*') => {
            Err(FilterError::Path(value.clone()))
        }
        Part::Method | Part::Path | Part::Header | Part::QueryParam => Ok(()),
    }
}

/// RFC 9110 section 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn pattern(text: &str) -> Result<Regex, FilterError> {
    let build = |text: &str| {
        regex::RegexBuilder::new(text)
            .size_limit(MAX_PROGRAM)
            .dfa_size_limit(MAX_MEMORY)
            .build()
    };
    // Alone first: what is none may be one with something around it.
    build(text)
        .and_then(|_| build(&format!("^(?:{text})$")))
        .map_err(|error| FilterError::Pattern {
            pattern: text.to_owned(),
            why: error.to_string(),
        })
}

/// Tells whether a path is that of the prefix, or one below it.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The first value of a query parameter.
fn query_param<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value)
}
