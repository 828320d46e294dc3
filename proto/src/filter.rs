//! Which HTTP requests an engagement takes.

mod condition;
mod text;
mod wire;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use condition::{Condition, MatchType, Part};
pub use wire::UnknownCondition;

use condition::Compiled;

/// Conditions on the head of a request, as an Engagement has them.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct HttpFilter {
    /// One of the conditions is enough; else all of them must hold.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any: bool,
    #[schemars(length(min = 1, max = 16))]
    pub conditions: Vec<Condition>,
}

/// The head of a request (RFC 9110).
pub trait Head {
    fn method(&self) -> &str;
    /// The path of the target, without its query.
    fn path(&self) -> &str;
    /// The query of the target; empty when it has none.
    fn query(&self) -> &str;
    /// The value of a field, of which several are joined by `, ` (RFC 9110 section
    /// 5.3).
    fn field(&self, name: &str) -> Option<std::borrow::Cow<'_, str>>;
}

/// A filter that is ready to decide.
#[derive(Clone, Debug)]
pub struct Filter {
    any: bool,
    conditions: Vec<Compiled>,
}

/// Why a filter cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error("a filter without conditions")]
    Empty,
    #[error("no request fits all of it; with --any, one condition is enough")]
    Void,
    #[error("`{0}` is not a name of a header or a query parameter")]
    Name(String),
    #[error("`{0}` is not a method of HTTP")]
    Method(String),
    #[error("the path `{0}` does not begin with `/`, or has a `*` that does not follow one")]
    Path(String),
    #[error("`{pattern}` is not a regular expression: {why}")]
    Pattern { pattern: String, why: String },
    #[error("a {part} cannot be matched by {by}")]
    Unfit {
        part: &'static str,
        by: &'static str,
    },
}

/// Tells whether engagements with these filters are in each other's way: a request
/// may fit both, or both want whatever no filter takes.
pub fn overlap(one: Option<&Filter>, other: Option<&Filter>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => !one.is_apart(other),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

impl Filter {
    /// Decides about a request by its head.
    pub fn matches(&self, head: &impl Head) -> bool {
        let mut conditions = self.conditions.iter();
        if self.any {
            conditions.any(|condition| condition.holds(head))
        } else {
            conditions.all(|condition| condition.holds(head))
        }
    }

    /// Which of its conditions hold of a request, in their order.
    pub fn judge(&self, head: &impl Head) -> Vec<bool> {
        let conditions = self.conditions.iter();
        conditions.map(|condition| condition.holds(head)).collect()
    }

    /// Tells whether it is certain that no request fits both.
    pub fn is_apart(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.alternatives(), other.alternatives());
        let contradict = |ours: &[Compiled], theirs: &[Compiled]| {
            ours.iter()
                .any(|one| theirs.iter().any(|other| one.contradicts(other)))
        };
        ours.iter()
            .all(|ours| theirs.iter().all(|theirs| contradict(ours, theirs)))
    }

    /// Lists of conditions, of which one must hold as a whole.
    fn alternatives(&self) -> Vec<&[Compiled]> {
        if self.any {
            self.conditions.iter().map(std::slice::from_ref).collect()
        } else {
            vec![&self.conditions]
        }
    }
}

impl TryFrom<&HttpFilter> for Filter {
    type Error = FilterError;

    fn try_from(filter: &HttpFilter) -> Result<Self, FilterError> {
        if filter.conditions.is_empty() {
            return Err(FilterError::Empty);
        }
        let conditions = filter.conditions.iter().map(Compiled::try_from);
        let compiled = Self {
            any: filter.any,
            conditions: conditions.collect::<Result<_, _>>()?,
        };
        if compiled.is_apart(&compiled) {
            return Err(FilterError::Void);
        }
        Ok(compiled)
    }
}

impl fmt::Display for HttpFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joint = if self.any { " or " } else { " and " };
        for (index, condition) in self.conditions.iter().enumerate() {
            if index > 0 {
                f.write_str(joint)?;
            }
            condition.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
