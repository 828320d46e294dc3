//! What `kvpn why` finds out, as its parts tell each other.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// How a name or an address is reached, from the question to the far side. Its steps
/// end where it stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Story {
    /// As it was asked for.
    pub target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub addresses: Vec<IpAddr>,
    pub steps: Vec<Step>,
    /// Whether the far side accepts; absent where no port was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached: Option<bool>,
}

/// One thing on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub at: Place,
    /// Whether it goes on from here.
    pub ok: bool,
    /// A sentence.
    pub text: String,
}

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Who answers for the name, and why.
    Resolver,
    /// What came back.
    Records,
    /// Which way packets take.
    Route,
    /// The connection that carries them.
    Tunnel,
    /// What has the address in the cluster.
    Object,
    /// Whether it accepts.
    FarSide,
}

impl Step {
    /// It goes on from here.
    pub fn on(at: Place, text: impl Into<String>) -> Self {
        Self {
            at,
            ok: true,
            text: text.into(),
        }
    }

    /// Here it stops.
    pub fn stop(at: Place, text: impl Into<String>) -> Self {
        Self {
            ok: false,
            ..Self::on(at, text)
        }
    }
}
