//! What becomes of engagements when sessions come and go.

use super::*;

#[test]
fn claims_are_withdrawn_when_the_session_leaves_and_return_with_it() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    let effects = case.close("alice", 0);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![])]);
    case.assert_active("web-a", "False", condition::SESSION_ABSENT);
    assert_eq!(case.status("web-a").pods_covered, 0);

    let effects = case.open("alice", 7);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![8080])]);
    case.assert_active("web-a", "False", condition::PROGRESSING);
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn a_port_is_kept_for_a_laptop_that_is_gone_for_a_short_time_and_no_longer() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    case.second = 5;
    let gone = case.close("alice", 0);
    assert_eq!(sent_ports(&gone), [(LinkId(1), vec![])], "the app answers");
    case.second = 6;
    case.engage("web-b", "bob", 8080);
    case.assert_active("web-b", "False", condition::CONFLICT);
    case.second = 10;
    case.send(Event::Tick);
    assert_eq!(case.world.deadline(), Some(case.clock.at(15).instant));
    case.second = 15;
    let effects = case.send(Event::Tick);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![8080])]);
    case.apply("web-1");
    case.assert_active("web-b", "True", condition::READY);
    case.assert_active("web-a", "False", condition::SESSION_ABSENT);
    case.second = 20;
    let effects = case.open("alice", 7);
    assert!(sent_ports(&effects).is_empty(), "bob keeps it");
    case.assert_active("web-a", "False", condition::CONFLICT);
    case.assert_active("web-b", "True", condition::READY);
    let gone = engagement("web-b", "bob", 8080, 6);
    case.send(Event::Engagements(Change::Deleted(gone)));
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn a_session_that_stays_away_is_deleted_with_its_engagements() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.engage("web-b", "bob", 9090);
    case.close("alice", 0);
    case.second = 29;
    let early = case.send(Event::Tick);
    assert!(
        !early
            .iter()
            .any(|effect| matches!(effect, Effect::DeleteSession { .. }))
    );
    case.second = 30;
    let effects = case.send(Event::Tick);
    assert!(effects.contains(&Effect::DeleteEngagement {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
    }));
    assert!(effects.contains(&Effect::DeleteSession {
        session: Key::new("kvpn", "alice-1"),
        uid: "uid-alice-1".into(),
    }));
    let deletions = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::DeleteEngagement { .. }));
    assert_eq!(deletions.count(), 1, "bob's stays");
}

#[test]
fn an_engagement_without_a_session_is_deleted_after_the_grace() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "carol", 8080);
    case.assert_active("web-a", "False", condition::NO_SESSION);
    let deletes = |effects: &[Effect]| {
        let deletion = Effect::DeleteEngagement {
            engagement: Key::new("shop", "web-a"),
            uid: "uid-web-a".into(),
        };
        effects.contains(&deletion)
    };
    case.second = 29;
    assert!(!deletes(&case.send(Event::Tick)));
    assert_eq!(case.world.deadline(), Some(case.clock.at(30).instant));
    case.second = 30;
    assert!(deletes(&case.send(Event::Tick)));
    assert!(!deletes(&case.send(Event::Tick)), "it was asked for");
    case.second = 60;
    assert!(deletes(&case.send(Event::Tick)), "it did not come about");
}

#[test]
fn a_deleted_session_ends_its_connections_and_its_claims() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    let gone = session("alice-1", "alice");
    let effects = case.send(Event::Sessions(Change::Deleted(gone)));
    assert!(effects.contains(&Effect::RevokeSession {
        uid: "uid-alice-1".into(),
        deletion: None,
    }));
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![])]);
    case.assert_active("web-a", "False", condition::NO_SESSION);
}

#[test]
fn a_session_is_revoked_with_who_deleted_it() {
    let mut case = Case::new(&[]);
    let deletion = Deletion {
        uid: "uid-alice-1".into(),
        owner: "alice".into(),
        by: "bob".into(),
        is_trial: false,
    };
    let now = case.clock.at(case.second);
    case.world.note_deletion(deletion.clone(), &now);
    case.second += 1;
    let gone = session("alice-1", "alice");
    let effects = case.send(Event::Sessions(Change::Deleted(gone)));
    assert!(effects.contains(&Effect::RevokeSession {
        uid: "uid-alice-1".into(),
        deletion: Some(deletion),
    }));
}
