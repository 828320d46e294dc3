//! Conditions as the command line has them.

use std::fmt;

use super::{Condition, MatchType, Part};

impl Condition {
    /// Reads `NAME=VALUE`, `NAME~=PATTERN`, or `NAME` for any value.
    pub fn header(text: &str) -> Self {
        Self::named(Part::Header, text)
    }

    /// The same of a parameter of the query.
    pub fn query_param(text: &str) -> Self {
        Self::named(Part::QueryParam, text)
    }

    /// Reads `/PATH`, `/PATH/*` for that and all below it, or `~=PATTERN`.
    pub fn path(text: &str) -> Self {
        let (match_type, value) = if let Some(pattern) = text.strip_prefix("~=") {
            (MatchType::RegularExpression, pattern)
        } else if let Some(prefix) = text.strip_suffix('*').filter(|it| it.ends_with('/')) {
            (MatchType::PathPrefix, prefix)
        } else {
            (MatchType::Exact, text)
        };
        Self::of(Part::Path, "", match_type, value)
    }

    /// Reads a method, whose letters count (RFC 9110 section 9.1); those of the
    /// common ones may be small.
    pub fn method(text: &str) -> Self {
        const COMMON: [&str; 9] = [
            "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
        ];
        let common = COMMON.iter().find(|it| it.eq_ignore_ascii_case(text));
        Self::of(Part::Method, "", MatchType::Exact, common.unwrap_or(&text))
    }

    fn named(part: Part, text: &str) -> Self {
        let Some((name, value)) = text.split_once('=') else {
            return Self::of(part, text, MatchType::Present, "");
        };
        match name.strip_suffix('~') {
            Some(name) => Self::of(part, name, MatchType::RegularExpression, value),
            None => Self::of(part, name, MatchType::Exact, value),
        }
    }

    fn of(part: Part, name: &str, match_type: MatchType, value: &str) -> Self {
        Self {
            part,
            name: name.trim().to_owned(),
            match_type,
            value: value.to_owned(),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            part,
            name,
            match_type,
            value,
        } = self;
        write!(f, "{} {name}", part.as_str())?;
        match match_type {
            MatchType::Exact if name.is_empty() => f.write_str(value),
            MatchType::Exact => write!(f, "={value}"),
            MatchType::RegularExpression => write!(f, "~={value}"),
            MatchType::PathPrefix => write!(f, "{}/*", value.trim_end_matches('/')),
            MatchType::Present => Ok(()),
        }
    }
}
