//! What the TLS of claims is ended with, kept for a traffic manager that was started anew and
//! has not been given it again.

use std::collections::HashMap;
use std::time::Duration;

use kvpn_proto::v1::{TlsIdentity, WatchClaimsResponse};
use tokio::time::Instant;

/// How long it is kept for a claim that is not told any more. A traffic manager that has just
/// started may look a workload up before it knows of the claim.
const FORGET: Duration = Duration::from_secs(10);

/// How long it is kept while there is no traffic manager.
const AWAY: Duration = Duration::from_secs(600);

/// What TLS is ended with, by the ids of claims.
#[derive(Debug, Default)]
pub(crate) struct Keys(HashMap<String, Known>);

#[derive(Debug)]
struct Known {
    identity: TlsIdentity,
    /// `None` while the claim is told.
    forget_at: Option<Instant>,
}

impl Known {
    fn forget_in(&mut self, time: Duration, now: Instant) {
        let at = now + time;
        self.forget_at = Some(self.forget_at.map_or(at, |before| before.min(at)));
    }
}

impl Keys {
    /// Gives the claims that are told what they had, where the traffic manager does not know
    /// it, and keeps what it does.
    pub(crate) fn complete(&mut self, told: &mut WatchClaimsResponse, now: Instant) {
        for known in self.0.values_mut() {
            known.forget_in(FORGET, now);
        }
        for claim in told.claims.iter_mut().chain(&mut told.copies) {
            if claim.keeps_tls && claim.tls.is_none() {
                let known = self.0.get(&claim.id);
                claim.tls = known.map(|known| known.identity.clone());
            }
            if let Some(identity) = claim.tls.clone() {
                let forget_at = None;
                let known = Known {
                    identity,
                    forget_at,
                };
                self.0.insert(claim.id.clone(), known);
            }
        }
    }

    /// There is no traffic manager any more.
    pub(crate) fn rest(&mut self, now: Instant) {
        for known in self.0.values_mut() {
            known.forget_in(AWAY, now);
        }
    }

    /// Forgets what is not needed any more.
    pub(crate) fn forget(&mut self, now: Instant) {
        self.0
            .retain(|_, known| known.forget_at.is_none_or(|at| now < at));
    }

    /// When there is something to forget.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(|known| known.forget_at).min()
    }
}

#[cfg(test)]
mod tests {
    use kvpn_proto::v1::Claim;

    use super::*;

    const ID: &str = "alice/443/tcp";

    fn identity() -> TlsIdentity {
        TlsIdentity {
            certificates: "certificates".into(),
            key: "key".into(),
        }
    }

    /// What becomes of a claim, with that or with what it had.
    fn told(keys: &mut Keys, tls: Option<TlsIdentity>, now: Instant) -> Option<TlsIdentity> {
        let claim = Claim {
            id: ID.into(),
            keeps_tls: tls.is_none(),
            tls,
            ..Claim::default()
        };
        let mut told = WatchClaimsResponse {
            claims: vec![claim],
            ..WatchClaimsResponse::default()
        };
        keys.complete(&mut told, now);
        told.claims.remove(0).tls
    }

    fn told_nothing(keys: &mut Keys, now: Instant) {
        keys.complete(&mut WatchClaimsResponse::default(), now);
    }

    #[test]
    fn claim_keeps_what_it_had_for_a_traffic_manager_that_does_not_know_it() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        assert_eq!(told(&mut keys, None, now), None);
        assert_eq!(told(&mut keys, Some(identity()), now), Some(identity()));
        keys.rest(now);
        // It does not know the claim at first.
        told_nothing(&mut keys, now + FORGET);
        keys.forget(now + FORGET);
        assert_eq!(told(&mut keys, None, now + FORGET), Some(identity()));
        keys.forget(now + 2 * AWAY);
        assert_eq!(told(&mut keys, None, now + 2 * AWAY), Some(identity()));
    }

    #[test]
    fn what_a_claim_had_is_forgotten_once_that_is_not_told_any_more() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        told(&mut keys, Some(identity()), now);
        told_nothing(&mut keys, now);
        // Once more puts nothing off, nor does being alone.
        told_nothing(&mut keys, now + FORGET / 2);
        keys.rest(now + FORGET / 2);
        keys.forget(now + FORGET);
        assert!(keys.0.is_empty());
    }

    #[test]
    fn claim_that_does_not_end_tls_any_more_is_given_nothing() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        told(&mut keys, Some(identity()), now);
        let claim = Claim {
            id: ID.into(),
            ..Claim::default()
        };
        let mut without = WatchClaimsResponse {
            claims: vec![claim],
            ..WatchClaimsResponse::default()
        };
        keys.complete(&mut without, now);
        assert_eq!(without.claims[0].tls, None);
        keys.forget(now + FORGET);
        assert!(keys.0.is_empty());
    }

    #[test]
    fn what_is_kept_for_nobody_has_its_time() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        told(&mut keys, Some(identity()), now);
        assert_eq!(keys.deadline(), None);
        keys.rest(now);
        assert_eq!(keys.deadline(), Some(now + AWAY));
        told_nothing(&mut keys, now);
        assert_eq!(keys.deadline(), Some(now + FORGET));
    }
}
