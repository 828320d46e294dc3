//! The result of `why`.

use kvpn_proto::story::Story;
use serde::Serialize;

use super::Output;

/// Outcome of `why`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Told(pub(crate) Story);

impl Output for Told {
    fn text(&self) -> String {
        let sentence = |step: &kvpn_proto::story::Step| format!("{}\n", step.text);
        self.0.steps.iter().map(sentence).collect()
    }
}
