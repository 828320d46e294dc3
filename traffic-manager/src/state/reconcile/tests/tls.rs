//! Engagements that end TLS, for which agents need a key.

use super::*;

#[test]
fn engagement_that_ends_tls_is_active_only_with_a_certificate_until_it_is_another_one() {
    let mut case = Case::new(&["web-1"]);
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.terminates_tls = true;
    case.send(Event::Engagements(Change::Applied(view.clone())));
    let mut effects = case.send(Event::WorkloadResolved {
        engagement: view.key.clone(),
        uid: view.uid.clone(),
        resolution: selector("app", "web"),
    });
    effects.extend(case.link("web-1", 1));
    assert!(
        sent_ports(&effects)
            .iter()
            .all(|(_, ports)| ports.is_empty())
    );
    case.assert_active("web-a", "False", condition::NO_TLS_IDENTITY);

    let identity = TlsIdentity {
        certificates: "certificates".into(),
        key: "hushed".into(),
    };
    let given = |uid: &str| Event::TlsGiven {
        engagement: view.key.clone(),
        uid: uid.into(),
        identity: identity.clone(),
    };
    assert!(case.send(given("uid-of-another")).is_empty());
    case.send(given(&view.uid));
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);
    let claims = &case.world.slots["uid-web-1"].claims().claims;
    assert_eq!(claims[0].tls.as_ref(), Some(&identity));
    assert!(!format!("{:?}", case.world).contains("hushed"));

    // A namesake has none, nor one of who does not end TLS.
    case.send(Event::Engagements(Change::Deleted(view.clone())));
    let mut other = view.clone();
    other.uid = "uid-of-another".into();
    case.send(Event::Engagements(Change::Applied(other)));
    assert!(case.world.slots["uid-web-1"].claims().claims.is_empty());
}

/// An engagement of alice that ends TLS and fails closed, as a traffic manager finds it that
/// was started anew, after the one before wrote this status.
fn restarted(status: EngagementStatus) -> Case {
    let mut case = Case::new(&["web-1", "web-2"]);
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.terminates_tls = true;
    view.spec.on_failure = Some(OnFailure::Unavailable);
    view.status = Some(status);
    case.close("alice", 0);
    case.send(Event::Engagements(Change::Applied(view.clone())));
    case.send(Event::WorkloadResolved {
        engagement: view.key,
        uid: view.uid,
        resolution: selector("app", "web"),
    });
    case.link("web-1", 1);
    case.link("web-2", 2);
    case
}

#[test]
fn engagement_that_ends_tls_keeps_its_claims_over_a_restart_of_the_traffic_manager() {
    let held = EngagementStatus {
        held_since: Some(Time(epoch())),
        ..EngagementStatus::default()
    };
    let mut case = restarted(held);
    let claim = case.world.slots["uid-web-2"].claims().claims[0].clone();
    assert!(claim.keeps_tls && claim.fails_closed && claim.tls.is_none());
    // One agent has it from before, and another one was started meanwhile.
    case.apply("web-1");
    case.apply_without("web-2", &[], &[&claim.id]);
    case.assert_active("web-a", "False", condition::SESSION_ABSENT);
    let message = |case: &Case| case.status("web-a").conditions[1].message.clone();
    let waits = "1 pod has no certificate and key for TLS until alice's session gives them \
                 again: web-2";
    assert!(
        message(&case).ends_with(&format!(", and {waits}")),
        "{}",
        message(&case)
    );
    // Nobody takes the port meanwhile.
    case.engage("web-b", "bob", 8080);
    case.assert_active("web-b", "False", condition::CONFLICT);

    case.open("alice", 3);
    case.assert_active("web-a", "False", condition::NO_TLS_IDENTITY);
    assert_eq!(message(&case), waits);
    assert_eq!(case.status("web-a").pods_covered, 1);
    let given = case.send(Event::TlsGiven {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        identity: TlsIdentity {
            certificates: "certificates".into(),
            key: "key".into(),
        },
    });
    assert_eq!(sent_ports(&given).len(), 2);
    assert!(!case.world.slots["uid-web-2"].claims().claims[0].keeps_tls);
    case.apply("web-1");
    case.apply("web-2");
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn engagement_that_has_never_had_a_key_has_no_claims_after_a_restart() {
    let case = restarted(EngagementStatus::default());
    assert!(case.world.slots["uid-web-1"].claims().claims.is_empty());
    case.assert_active("web-a", "False", condition::NO_TLS_IDENTITY);
}

#[test]
fn engagement_whose_laptop_was_gone_for_long_keeps_its_claims_over_a_restart_as_well() {
    let absent = Condition {
        type_: condition::ACTIVE.into(),
        status: "False".into(),
        reason: condition::SESSION_ABSENT.into(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(epoch()),
    };
    let mut case = restarted(EngagementStatus {
        conditions: vec![absent],
        ..EngagementStatus::default()
    });
    assert!(case.world.slots["uid-web-1"].claims().claims[0].keeps_tls);
    // Until somebody else has the port.
    case.engage("web-b", "bob", 8080);
    let claims = &case.world.slots["uid-web-1"].claims().claims;
    assert!(claims.iter().all(|claim| claim.is_of("uid-web-b")));
}
