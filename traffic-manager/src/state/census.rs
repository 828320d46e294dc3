//! How much there is of everything, for metrics.

use std::collections::BTreeMap;

use kvpn_proto::crd::{EngagementStatus, condition};

use super::World;
use super::agents::AgentSlot;

/// How much there is of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) sessions_present: usize,
    /// Sessions whose laptop is not connected.
    pub(crate) sessions_absent: usize,
    /// Agents that are connected.
    pub(crate) agents: usize,
    /// By verb, and `Active` or the reason why not.
    pub(crate) engagements: BTreeMap<(&'static str, String), usize>,
}

impl World {
    pub(crate) fn census(&self) -> Census {
        let present = self.sessions.values();
        let present = present.filter(|session| session.is_present()).count();
        let linked = |slot: &&AgentSlot| slot.link().is_some();
        let mut engagements = BTreeMap::new();
        for engagement in self.engagements.values() {
            let verb = engagement.view.spec.verb.as_str();
            let state = state(&engagement.written);
            *engagements.entry((verb, state)).or_default() += 1;
        }
        Census {
            sessions_present: present,
            sessions_absent: self.sessions.len() - present,
            agents: self.slots.values().filter(linked).count(),
            engagements,
        }
    }
}

/// `Active`, or the reason of the condition that says why not.
fn state(status: &EngagementStatus) -> String {
    let active = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == condition::ACTIVE);
    match active {
        Some(active) if active.status == "True" => condition::ACTIVE.to_owned(),
        Some(active) => active.reason.clone(),
        None => condition::PROGRESSING.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{Clock, engagement, session};
    use super::super::{Change, Event, Key, Settings, StreamId};
    use super::*;

    #[test]
    fn everything_is_counted_by_its_state() {
        let clock = Clock::start();
        let mut world = World::new(Settings {
            grace: Duration::from_secs(30),
            idle: Duration::from_secs(10),
            linger: Duration::from_secs(5),
            has_births: true,
            agent_image: "agent:1".into(),
            manager: Key::new("kvpn", "traffic-manager-0"),
        });
        for name in ["alice-1", "bob-1"] {
            let change = Change::Applied(session(name, "someone"));
            world.handle(Event::Sessions(change), &clock.at(0));
        }
        let opened = Event::SessionOpened {
            uid: "uid-alice-1".into(),
            stream: StreamId(1),
        };
        world.handle(opened, &clock.at(0));
        let change = Change::Applied(engagement("web-a", "alice", 8080, 0));
        world.handle(Event::Engagements(change), &clock.at(0));
        let expected = Census {
            sessions_present: 1,
            sessions_absent: 1,
            agents: 0,
            engagements: [(("intercept", "Progressing".to_owned()), 1)].into(),
        };
        assert_eq!(world.census(), expected);
    }
}
