//! Filters as gRPC messages have them.

use super::{Condition, HttpFilter, MatchType, Part};
use crate::v1::{self, HttpMatch, HttpPart};

/// A condition of a kind that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a condition of another version of kvpn")]
pub struct UnknownCondition;

impl From<HttpFilter> for v1::HttpFilter {
    fn from(filter: HttpFilter) -> Self {
        Self {
            any: filter.any,
            conditions: filter.conditions.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::HttpFilter> for HttpFilter {
    type Error = UnknownCondition;

    fn try_from(filter: v1::HttpFilter) -> Result<Self, UnknownCondition> {
        let conditions = filter.conditions.into_iter().map(Condition::try_from);
        Ok(Self {
            any: filter.any,
            conditions: conditions.collect::<Result<_, _>>()?,
        })
    }
}

impl From<Condition> for v1::HttpCondition {
    fn from(condition: Condition) -> Self {
        let part = match condition.part {
            Part::Method => HttpPart::Method,
            Part::Path => HttpPart::Path,
            Part::Header => HttpPart::Header,
            Part::QueryParam => HttpPart::QueryParam,
        };
        let r#match = match condition.match_type {
            MatchType::Exact => HttpMatch::Exact,
            MatchType::PathPrefix => HttpMatch::PathPrefix,
            MatchType::RegularExpression => HttpMatch::RegularExpression,
            MatchType::Present => HttpMatch::Present,
        };
        Self {
            part: part.into(),
            name: condition.name,
            r#match: r#match.into(),
            value: condition.value,
        }
    }
}

impl TryFrom<v1::HttpCondition> for Condition {
    type Error = UnknownCondition;

    fn try_from(condition: v1::HttpCondition) -> Result<Self, UnknownCondition> {
        let part = match condition.part() {
            HttpPart::Method => Part::Method,
            HttpPart::Path => Part::Path,
            HttpPart::Header => Part::Header,
            HttpPart::QueryParam => Part::QueryParam,
            HttpPart::Unspecified => return Err(UnknownCondition),
        };
        let match_type = match condition.r#match() {
            HttpMatch::Exact => MatchType::Exact,
            HttpMatch::PathPrefix => MatchType::PathPrefix,
            HttpMatch::RegularExpression => MatchType::RegularExpression,
            HttpMatch::Present => MatchType::Present,
            HttpMatch::Unspecified => return Err(UnknownCondition),
        };
        Ok(Self {
            part,
            name: condition.name,
            match_type,
            value: condition.value,
        })
    }
}
