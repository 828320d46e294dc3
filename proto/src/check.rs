//! What `kvpn doctor` finds out, as its parts tell each other.

use serde::{Deserialize, Serialize};

use crate::Failure;

/// The outcome of one check. One line of `kvpnd check` each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was checked, such as `API server`.
    pub name: String,
    #[serde(flatten)]
    pub finding: Finding,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "outcome",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Finding {
    Ok {
        message: String,
    },
    /// Something that does not work as well as it could.
    Warning {
        message: String,
        next_step: String,
    },
    Failure(Failure),
    /// It could not be checked, because of an earlier failure.
    Skipped {
        message: String,
    },
}

impl Check {
    pub fn ok(name: &str, message: impl Into<String>) -> Self {
        Self::new(
            name,
            Finding::Ok {
                message: message.into(),
            },
        )
    }

    pub fn warning(name: &str, message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(
            name,
            Finding::Warning {
                message: message.into(),
                next_step: next_step.into(),
            },
        )
    }

    pub fn failure(name: &str, failure: Failure) -> Self {
        Self::new(name, Finding::Failure(failure))
    }

    pub fn skipped(name: &str, message: impl Into<String>) -> Self {
        Self::new(
            name,
            Finding::Skipped {
                message: message.into(),
            },
        )
    }

    fn new(name: &str, finding: Finding) -> Self {
        Self {
            name: name.to_owned(),
            finding,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;

    #[test]
    fn check_is_one_flat_object() {
        let failure = Failure::new(Reason::Forbidden, "you may not", "ask");
        let check = Check::failure("Permissions", failure);
        let json = serde_json::to_string(&check).unwrap();
        assert_eq!(
            json,
            r#"{"name":"Permissions","outcome":"failure","reason":"Forbidden","message":"you may not","nextStep":"ask"}"#
        );
        assert_eq!(serde_json::from_str::<Check>(&json).unwrap(), check);
        for check in [
            Check::ok("a", "b"),
            Check::warning("a", "b", "c"),
            Check::skipped("a", "b"),
        ] {
            let json = serde_json::to_string(&check).unwrap();
            assert_eq!(serde_json::from_str::<Check>(&json).unwrap(), check);
        }
    }
}
