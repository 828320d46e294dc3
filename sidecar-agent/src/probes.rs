//! Tells the kubelet's HTTP probes from other connections by their first bytes.

use Recognition::{NotProbe, Probe, Undecided};

/// The longest request head that is looked at. A probe's path and headers come
/// from the pod's spec and rarely need more than a few hundred bytes.
pub(crate) const LONGEST_HEAD: usize = 8 * 1024;

// The kubelet sends GET alone, in both of its HTTP probes (pkg/probe/http).
const REQUEST_START: &[u8] = b"GET ";
const USER_AGENT: &str = "user-agent:";
/// What the kubelet calls itself in its probes, by HTTP or gRPC.
pub(crate) const KUBELET: &str = "kube-probe/";

/// What the first bytes of a connection say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recognition {
    Probe,
    NotProbe,
    /// More bytes are needed.
    Undecided,
}

/// Looks at the first bytes that a client has sent.
pub(crate) fn recognise(bytes: &[u8]) -> Recognition {
    let compared = bytes.len().min(REQUEST_START.len());
    if bytes[..compared] != REQUEST_START[..compared] {
        return NotProbe;
    }
    let undecided = if bytes.len() < LONGEST_HEAD {
        Undecided
    } else {
        NotProbe
    };
    // The last line may be cut short, so only lines with their end count.
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    if !lines.next().is_some_and(ends) {
        return undecided;
    }
    for line in lines.take_while(|line| ends(line)) {
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let line = line.trim_end();
        if line.is_empty() {
            return NotProbe;
        }
        if let Some(agent) = header(line) {
            return if agent.starts_with(KUBELET) {
                Probe
            } else {
                NotProbe
            };
        }
    }
    undecided
}

fn ends(line: &[u8]) -> bool {
    line.ends_with(b"\n")
}

/// The value of a `User-Agent` line; names are case-insensitive (RFC 9110
/// section 5.1).
fn header(line: &str) -> Option<&str> {
    let name = line.get(..USER_AGENT.len())?;
    name.eq_ignore_ascii_case(USER_AGENT)
        .then(|| line[USER_AGENT.len()..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROBE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: 10.244.0.7:8080\r\n\
        User-Agent: kube-probe/1.34\r\nAccept: */*\r\nConnection: close\r\n\r\n";

    #[test]
    fn probe_of_the_kubelet_is_recognised() {
        assert_eq!(recognise(PROBE), Probe);
        let lower_case = String::from_utf8(PROBE.to_vec()).unwrap().to_lowercase();
        let lower_case = lower_case.replacen("get", "GET", 1);
        assert_eq!(recognise(lower_case.as_bytes()), Probe);
    }

    #[test]
    fn requests_of_others_are_not_probes() {
        for request in [
            "GET / HTTP/1.1\r\nUser-Agent: curl/8\r\n",
            "GET / HTTP/1.1\r\nHost: kube-probe/\r\n\r\n",
            "GET /kube-probe/ HTTP/1.1\r\n\r\nUser-Agent: kube-probe/1.34\r\n",
            "POST / HTTP/1.1\r\nUser-Agent: kube-probe/1.34\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\u{16}\u{3}\u{1}",
        ] {
            assert_eq!(recognise(request.as_bytes()), NotProbe, "{request:?}");
        }
    }

    #[test]
    fn endless_head_is_not_a_probe() {
        let head = format!("GET /{} HTTP/1.1\r\n", "a".repeat(LONGEST_HEAD));
        assert_eq!(recognise(head.as_bytes()), NotProbe);
    }

    #[test]
    fn decision_waits_for_the_end_of_the_line() {
        let agent = PROBE.windows(11).position(|w| w == b"User-Agent:").unwrap();
        let line_end = agent + "User-Agent: kube-probe/1.34\r\n".len();
        for length in 0..line_end {
            assert_eq!(recognise(&PROBE[..length]), Undecided, "{length}");
        }
        for length in line_end..PROBE.len() {
            assert_eq!(recognise(&PROBE[..length]), Probe, "{length}");
        }
    }

    proptest! {
        #[test]
        fn decision_is_never_taken_back(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..400) {
            let mut whole = b"GET / HTTP/1.1\r\n".to_vec();
            whole.extend(bytes);
            let early = recognise(&whole[..cut.min(whole.len())]);
            prop_assert!(early == Undecided || early == recognise(&whole));
        }
    }
}
