//! The claims on one TCP port: who gets which of its requests.

use std::collections::BTreeSet;

use kvpn_proto::{
    crd::AppProtocol,
    filter::{Filter, Head, HttpFilter},
    tls::TlsIdentity,
    v1,
};

use super::{ClaimError, twice};

/// The claims on one port, by their ids.
#[derive(Debug, Default)]
pub(crate) struct PortClaims {
    /// No request fits two of them.
    filtered: Vec<(Filter, String)>,
    /// Who gets what no filter takes.
    rest: Option<String>,
    /// Those of which nobody answers when the laptop does not.
    closed: BTreeSet<String>,
    /// Who gets copies, of the requests that fit or of everything.
    copies: Vec<(Option<Filter>, String)>,
    /// The kubelet's HTTP probes of the port go to the app, or are answered for it.
    pub(crate) http_probed: bool,
    /// The containers whose processes are stopped.
    pub(super) stopped: BTreeSet<String>,
    /// Those of them for which the probes are answered.
    answered: BTreeSet<String>,
    /// What clients' TLS is ended with.
    tls: Option<TlsIdentity>,
    /// Those that were to end it with what they had, and have nothing.
    without_tls: BTreeSet<String>,
    /// It is known that the client is the first to speak.
    pub(crate) is_clients_word: bool,
    /// By somebody's word, something is spoken of which nothing can be read.
    is_unreadable: bool,
}

impl PortClaims {
    /// Takes in a claim on who answers.
    pub(super) fn hold(&mut self, claim: v1::Claim) -> Result<(), ClaimError> {
        let (filter, claim) = self.read(claim)?;
        if claim.fails_closed {
            self.closed.insert(claim.id.clone());
        }
        if !claim.stopped_container.is_empty() {
            self.stopped.insert(claim.stopped_container.clone());
            if claim.answers_probes {
                self.answered.insert(claim.stopped_container.clone());
            }
        }
        match filter {
            Some(filter) => self.filtered.push((filter, claim.id)),
            None if self.rest.is_some() => return Err(twice(&claim)),
            None => self.rest = Some(claim.id),
        }
        Ok(())
    }

    /// Takes in a claim on copies.
    pub(super) fn copy(&mut self, claim: v1::Claim) -> Result<(), ClaimError> {
        let (filter, claim) = self.read(claim)?;
        self.copies.push((filter, claim.id));
        Ok(())
    }

    /// Learns what any claim says of the port, and reads its filter.
    fn read(&mut self, mut claim: v1::Claim) -> Result<(Option<Filter>, v1::Claim), ClaimError> {
        let filter = match claim.http.take() {
            Some(filter) => Some(Filter::try_from(&HttpFilter::try_from(filter)?)?),
            None => None,
        };
        self.http_probed |= claim.http_probed;
        let tls = claim.tls.take().map(TlsIdentity::from);
        if claim.keeps_tls && tls.is_none() {
            self.without_tls.insert(claim.id.clone());
        }
        self.tls = self.tls.take().or(tls);
        match AppProtocol::try_from(claim.app_protocol()) {
            Ok(AppProtocol::Http | AppProtocol::Tls) => self.is_clients_word = true,
            Ok(AppProtocol::Opaque) => self.is_unreadable = true,
            // Nobody knows.
            Err(_) => {}
        }
        Ok((filter, claim))
    }

    /// Whether requests have to be looked at: to choose among them, or to say of one that
    /// it is not answered.
    pub(crate) fn is_filtered(&self) -> bool {
        !self.closed.is_empty() || self.has_filter()
    }

    /// Whether somebody wants some requests only, be it copies of them.
    fn has_filter(&self) -> bool {
        !self.filtered.is_empty() || self.copies.iter().any(|(filter, _)| filter.is_some())
    }

    /// Whether no request is looked for. What one claim says takes nothing from the filter of
    /// another, whose Service may know better.
    pub(crate) fn is_opaque(&self) -> bool {
        self.is_unreadable && !self.is_clients_word && !self.has_filter()
    }

    /// Whether the kubelet's HTTP probes are answered for the app, as it is stopped.
    pub(crate) fn answers_probes(&self, is_stopped: impl Fn(&str) -> bool) -> bool {
        self.http_probed && self.answered.iter().any(|it| is_stopped(it))
    }

    /// What clients' TLS is ended with: where filters want to look inside, and somebody has
    /// given a certificate for it.
    pub(super) fn tls(&self) -> Option<&TlsIdentity> {
        self.tls.as_ref().filter(|_| self.has_filter())
    }

    /// The ids of claims that are to end TLS, where nobody has anything to do it with.
    pub(super) fn without_tls(&self) -> impl Iterator<Item = &str> {
        let lacks = self.has_filter() && self.tls.is_none();
        let ids = self.without_tls.iter().filter(move |_| lacks);
        ids.map(String::as_str)
    }

    /// Whether there are requests within TLS that nobody may answer but the holder of a claim,
    /// and that nobody can see, as what TLS is ended with has yet to come. Not where the
    /// kubelet's probes may be among them, which cannot be told from others within TLS.
    pub(crate) fn is_blind(&self) -> bool {
        let mut ids = self.filtered.iter().map(|(_, id)| id);
        self.tls.is_none()
            && !self.http_probed
            && ids.any(|id| self.without_tls.contains(id) && self.closed.contains(id))
    }

    /// Whether nobody answers when the holder of the claim does not.
    pub(crate) fn fails_closed(&self, claim_id: &str) -> bool {
        self.closed.contains(claim_id)
    }

    /// The ids of all claims.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        let filtered = self.filtered.iter().map(|(_, id)| id);
        let copies = self.copies.iter().map(|(_, id)| id);
        let all = filtered.chain(&self.rest).chain(copies);
        all.map(String::as_str)
    }

    /// Whether somebody gets copies.
    pub(crate) fn is_copied(&self) -> bool {
        !self.copies.is_empty()
    }

    /// The claims on copies of a request.
    pub(crate) fn copied(&self, head: &impl Head) -> Vec<String> {
        let copies = self.copies.iter();
        let fits = |filter: &Option<Filter>| filter.as_ref().is_none_or(|it| it.matches(head));
        copies
            .filter(|(filter, _)| fits(filter))
            .map(|(_, id)| id.clone())
            .collect()
    }

    /// All claims on copies.
    pub(crate) fn every_copy(&self) -> Vec<String> {
        self.copies.iter().map(|(_, id)| id.clone()).collect()
    }

    /// The claims on copies of everything.
    pub(crate) fn all_copied(&self) -> Vec<String> {
        let all = self.copies.iter().filter(|(filter, _)| filter.is_none());
        all.map(|(_, id)| id.clone()).collect()
    }

    /// The claim on what no filter takes.
    pub(crate) fn rest(&self) -> Option<&str> {
        self.rest.as_deref()
    }

    /// The claim on a request.
    pub(crate) fn of(&self, head: &impl Head) -> Option<&str> {
        let mut filtered = self.filtered.iter();
        let fitting = filtered.find(|(filter, _)| filter.matches(head));
        fitting.map(|(_, id)| id.as_str()).or(self.rest())
    }
}
