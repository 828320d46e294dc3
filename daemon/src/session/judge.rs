//! Where a request would go, rule by rule.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use kvpn_proto::crd::{Engagement, Verb, WorkloadRef, condition};
use kvpn_proto::filter::{Filter, Head};
use kvpn_proto::flow::Protocol;
use kvpn_proto::{Failure, Reason, v1};

use super::workloads::{Inventory, RequestedPort, find, resolve_ports};

/// A request as somebody would send it.
struct Asked {
    method: String,
    path: String,
    query: String,
    /// Names in small letters.
    fields: Vec<(String, String)>,
}

impl Head for Asked {
    fn method(&self) -> &str {
        &self.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> &str {
        &self.query
    }

    fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        let fields = self.fields.iter().filter(|(it, _)| it == name);
        let values: Vec<&str> = fields.map(|(_, value)| value.as_str()).collect();
        // RFC 9110 section 5.3.
        (!values.is_empty()).then(|| values.join(", ").into())
    }
}

impl TryFrom<&v1::JudgeRequest> for Asked {
    type Error = Failure;

    fn try_from(request: &v1::JudgeRequest) -> Result<Self, Failure> {
        if !request.path.starts_with('/') {
            return Err(Failure::new(
                Reason::Usage,
                format!("the path `{}` does not begin with `/`", request.path),
                "write it as a request has it, such as /cart?id=1",
            ));
        }
        let (path, query) = match request.path.split_once('?') {
            Some((path, query)) => (path, query),
            None => (request.path.as_str(), ""),
        };
        let field = |text: &String| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok((name.to_ascii_lowercase(), value.to_owned()))
            }
            Some(_) | None => Err(Failure::new(
                Reason::Usage,
                format!("`{text}` is not a header"),
                "write it as NAME=VALUE, such as x-user=alice",
            )),
        };
        Ok(Self {
            method: request.method.to_ascii_uppercase(),
            path: path.to_owned(),
            query: query.to_owned(),
            fields: request
                .headers
                .iter()
                .map(field)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Says where a request to a port of a workload would go.
pub(crate) fn judge(
    inventory: &Inventory,
    engagements: &[Engagement],
    request: &v1::JudgeRequest,
) -> Result<v1::JudgeResponse, Failure> {
    let asked = Asked::try_from(request)?;
    let found = find(inventory, &request.target)?;
    // Nothing is handled.
    let local = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let port = RequestedPort::new(local, &request.port)?;
    let port = resolve_ports(inventory, &found, &[port])?.ports;
    if port.iter().any(|port| port.protocol == Protocol::Udp) {
        return Err(Failure::new(
            Reason::Usage,
            "a request of HTTP comes to a TCP port, and this one is UDP",
            "name a TCP port with --port",
        ));
    }
    let container_port = port.first().map(|port| port.container_port);
    let workload = &found.workload.reference;
    let pods = names_of_pods(inventory, workload);
    let is_of_port = |engagement: &&Engagement| {
        let spec = &engagement.spec;
        let ports = spec.ports.iter();
        let ports = ports.filter(|port| port.protocol == Protocol::Tcp);
        let mut ports = ports.map(|port| port.container_port);
        let same_pods = || {
            let others = names_of_pods(inventory, &spec.workload);
            !others.is_disjoint(&pods)
        };
        ports.any(|port| Some(port) == container_port)
            && (spec.workload == *workload || same_pods())
    };
    let mut engagements: Vec<_> = engagements.iter().filter(is_of_port).collect();
    // As agents do: copies besides, then those with filters, then the rest.
    engagements.sort_by_key(|engagement| {
        let spec = &engagement.spec;
        (
            spec.verb != Verb::Wiretap,
            spec.http.is_none(),
            engagement.metadata.creation_timestamp.clone(),
        )
    });
    let mut rules: Vec<_> = engagements.iter().map(|it| rule(it, &asked)).collect();
    let mut taken = rules.iter_mut().filter(|rule| {
        rule.verb != Verb::Wiretap.as_str() && rule.fits && rule.inactive.is_empty()
    });
    if let Some(rule) = taken.next() {
        rule.decides = true;
    }
    Ok(v1::JudgeResponse {
        workload: workload.to_string(),
        container_port: container_port.unwrap_or_default().into(),
        rules,
    })
}

fn names_of_pods<'a>(inventory: &'a Inventory, workload: &WorkloadRef) -> BTreeSet<&'a str> {
    let pods = inventory.pods_of(workload);
    pods.filter_map(|pod| pod.metadata.name.as_deref())
        .collect()
}

fn rule(engagement: &Engagement, asked: &Asked) -> v1::Rule {
    let spec = &engagement.spec;
    let mut inactive = inactive(engagement);
    let filter = spec
        .http
        .as_ref()
        .map(|http| (http, Filter::try_from(http)));
    let (conditions, fits) = match &filter {
        None => (Vec::new(), true),
        Some((http, Ok(filter))) => {
            let judged = http.conditions.iter().zip(filter.judge(asked));
            let judged = judged.map(|(condition, holds)| v1::JudgedCondition {
                condition: condition.to_string(),
                holds,
            });
            (judged.collect(), filter.matches(asked))
        }
        Some((_, Err(error))) => {
            inactive = format!("its filter cannot be used: {error}");
            (Vec::new(), false)
        }
    };
    let since = engagement.metadata.creation_timestamp.as_ref();
    v1::Rule {
        engagement: engagement.metadata.name.clone().unwrap_or_default(),
        user: spec.user.clone(),
        verb: spec.verb.as_str().to_owned(),
        since: since.map_or(0, |time| time.0.as_second()),
        inactive,
        any: spec.http.as_ref().is_some_and(|http| http.any),
        conditions,
        fits,
        decides: false,
    }
}

/// Why it is in force nowhere; empty when it is somewhere.
fn inactive(engagement: &Engagement) -> String {
    let status = engagement.status.as_ref();
    if status.is_some_and(|status| status.pods_covered > 0) {
        return String::new();
    }
    let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
    match conditions.find(|found| found.type_ == condition::ACTIVE) {
        Some(active) if active.status == "True" => String::new(),
        Some(active) if !active.message.is_empty() => active.message.clone(),
        Some(_) | None => "the traffic manager has not taken it up".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::workloads::fixture::shop;
    use super::*;

    fn engagement(name: &str, verb: &str, http: &str, active: &str) -> Engagement {
        serde_yaml::from_str(&format!(
            "
            apiVersion: kvpn.dev/v1alpha1
            kind: Engagement
            metadata: {{name: {name}, namespace: shop, creationTimestamp: '2026-11-01T10:00:00Z'}}
            spec:
              user: {name}
              session: {name}-1
              verb: {verb}
              workload: {{kind: Deployment, name: web}}
              ports: [{{containerPort: 8080, protocol: TCP, local: '127.0.0.1:1'}}]
              {http}
            status:
              conditions:
              - {{type: Active, status: '{active}', reason: R, message: why not,
                  lastTransitionTime: '2026-11-01T10:00:00Z'}}
            "
        ))
        .unwrap()
    }

    fn by(user: &str) -> String {
        format!(
            "http: {{conditions: [{{part: Header, name: x-user, type: Exact, value: {user}}}]}}"
        )
    }

    fn asked(header: &str) -> v1::JudgeRequest {
        v1::JudgeRequest {
            target: "web".into(),
            method: "GET".into(),
            path: "/cart?id=1".into(),
            headers: vec![header.into()],
            ..v1::JudgeRequest::default()
        }
    }

    /// Who decides, after the rules in their order.
    fn decides(engagements: &[Engagement], header: &str) -> (Vec<String>, Option<String>) {
        let judged = judge(&shop(), engagements, &asked(header)).unwrap();
        assert_eq!(
            (judged.workload.as_str(), judged.container_port),
            ("Deployment/web", 8080)
        );
        let decides = judged.rules.iter().find(|rule| rule.decides);
        let decides = decides.map(|rule| rule.engagement.clone());
        let order = judged.rules.into_iter().map(|rule| rule.engagement);
        (order.collect(), decides)
    }

    #[test]
    fn filters_come_before_the_rest_and_copies_decide_nothing() {
        let engagements = [
            engagement("rest", "Intercept", "", "True"),
            engagement("alice", "Intercept", &by("alice"), "True"),
            engagement("tap", "Wiretap", "", "True"),
        ];
        let order = ["tap", "alice", "rest"].map(str::to_owned).to_vec();
        let alice = decides(&engagements, "X-User=alice");
        assert_eq!(alice, (order.clone(), Some("alice".into())));
        assert_eq!(
            decides(&engagements, "x-user=bob"),
            (order, Some("rest".into()))
        );
        assert_eq!(decides(&engagements[1..], "x-user=bob").1, None);
    }

    #[test]
    fn what_is_not_in_force_decides_nothing_and_says_why() {
        let engagements = [engagement("alice", "Intercept", &by("alice"), "False")];
        let judged = judge(&shop(), &engagements, &asked("x-user=alice")).unwrap();
        let rule = &judged.rules[0];
        assert!(rule.fits && rule.conditions[0].holds && !rule.decides);
        assert_eq!(rule.inactive, "why not");
    }

    #[test]
    fn requests_that_nobody_could_send_are_usage_errors() {
        let mut relative = asked("x-user=alice");
        relative.path = "cart".into();
        for request in [relative, asked("x-user"), asked("=alice")] {
            let failure = judge(&shop(), &[], &request).unwrap_err();
            assert_eq!(failure.reason, Reason::Usage);
        }
    }
}
