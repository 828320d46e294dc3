//! The result of `why request`.

use std::fmt::Write;

use jiff::Timestamp;
use kvpn_proto::v1::{self, JudgeResponse};
use serde::Serialize;

use super::{Output, printable};

/// Where a request would go.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Judged {
    workload: String,
    container_port: u32,
    rules: Vec<Rule>,
    /// The engagement whose laptop would get it; absent for the app.
    #[serde(skip_serializing_if = "Option::is_none")]
    engagement: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    engagement: String,
    user: String,
    verb: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    active: bool,
    /// Why it is not active.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    any: bool,
    conditions: Vec<Condition>,
    fits: bool,
}

#[derive(Debug, Serialize)]
struct Condition {
    condition: String,
    holds: bool,
}

impl From<JudgeResponse> for Judged {
    fn from(response: JudgeResponse) -> Self {
        let decides = response.rules.iter().find(|rule| rule.decides);
        Self {
            engagement: decides.map(|rule| rule.engagement.clone()),
            workload: response.workload,
            container_port: response.container_port,
            rules: response.rules.into_iter().map(Rule::from).collect(),
        }
    }
}

impl From<v1::Rule> for Rule {
    fn from(rule: v1::Rule) -> Self {
        let conditions = rule.conditions.into_iter();
        Self {
            engagement: rule.engagement,
            user: rule.user,
            verb: rule.verb,
            since: Timestamp::from_second(rule.since).ok(),
            active: rule.inactive.is_empty(),
            message: rule.inactive,
            any: rule.any,
            conditions: conditions
                .map(|it| Condition {
                    condition: it.condition,
                    holds: it.holds,
                })
                .collect(),
            fits: rule.fits,
        }
    }
}

impl Output for Judged {
    fn text(&self) -> String {
        let mut text = format!(
            "A request to container port {} of {}:\n",
            self.container_port, self.workload
        );
        for rule in &self.rules {
            let sentence = sentence(rule, self.engagement.as_deref());
            let _ = writeln!(text, "  {}", printable(&sentence));
            for Condition { condition, holds } in &rule.conditions {
                let holds = if *holds { "holds" } else { "does not hold" };
                let _ = writeln!(text, "    {}: {holds}", printable(condition));
            }
        }
        if self.engagement.is_none() {
            text += "  The app answers it: no intercept takes it.\n";
        }
        text
    }
}

fn sentence(rule: &Rule, decides: Option<&str>) -> String {
    let Rule {
        engagement,
        user,
        verb,
        ..
    } = rule;
    let wanted = match (rule.conditions.len(), rule.any) {
        (0, _) if verb == "wiretap" => "everything",
        (0, _) => "what no filter takes",
        (1, _) => "requests with this",
        (_, true) => "requests with one of these",
        (_, false) => "requests with all of these",
    };
    let what = format!("{user}'s {verb} {engagement} ({wanted})");
    let outcome = match (rule.fits, rule.active, verb.as_str()) {
        (_, false, _) => format!("is not active: {}", rule.message),
        (false, true, _) => "does not take it".to_owned(),
        (true, true, "wiretap") => "gets a copy".to_owned(),
        (true, true, _) if decides == Some(engagement) => "takes it".to_owned(),
        (true, true, _) => "would take it, but another comes before".to_owned(),
    };
    format!("{what} {outcome}")
}
