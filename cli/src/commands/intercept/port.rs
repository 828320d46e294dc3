//! What users write after `--port`.

use std::str::FromStr;

/// A port of the laptop, and the one of the workload that it stands in for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSpec {
    pub(super) local: u16,
    remote: Option<String>,
    /// `tcp` or `udp`.
    protocol: Option<String>,
}

impl PortSpec {
    /// Such as `53/udp`, or `/udp` for the only port.
    pub(super) fn remote_with_protocol(&self) -> String {
        let remote = self.remote.as_deref().unwrap_or_default();
        match &self.protocol {
            Some(protocol) => format!("{remote}/{protocol}"),
            None => remote.to_owned(),
        }
    }
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, protocol) = match text.split_once('/') {
            Some((text, protocol @ ("tcp" | "udp"))) => (text, Some(protocol.to_owned())),
            Some((_, protocol)) => {
                return Err(format!("the protocol `{protocol}` is neither tcp nor udp"));
            }
            None => (text, None),
        };
        let (local, remote) = match text.split_once(':') {
            Some((local, remote)) => (local, Some(remote)),
            None => (text, None),
        };
        let local = port_number(local).ok_or_else(|| {
            format!("the local port `{local}` is not a number between 1 and 65535")
        })?;
        if let Some(remote) = remote
            && port_number(remote).is_none()
            && !is_port_name(remote)
        {
            return Err(format!(
                "the remote port `{remote}` is neither a number between 1 and 65535 nor a port's name"
            ));
        }
        Ok(Self {
            local,
            remote: remote.map(str::to_owned),
            protocol,
        })
    }
}

pub(super) fn port_number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// Names of Service ports are DNS labels, of which container ports' are a part.
fn is_port_name(text: &str) -> bool {
    text.len() <= 63
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_number_and_perhaps_a_number_or_name() {
        let spec = |local, remote: Option<&str>| PortSpec {
            local,
            remote: remote.map(str::to_owned),
            protocol: None,
        };
        assert_eq!("8080".parse(), Ok(spec(8080, None)));
        assert_eq!("8080:80".parse(), Ok(spec(8080, Some("80"))));
        assert_eq!("8080:http".parse(), Ok(spec(8080, Some("http"))));
    }

    #[test]
    fn ports_may_have_a_protocol() {
        for (text, remote) in [
            ("5353:53/udp", "53/udp"),
            ("5353:dns/tcp", "dns/tcp"),
            ("5353/udp", "/udp"),
            ("5353:53", "53"),
        ] {
            let spec: PortSpec = text.parse().unwrap();
            assert_eq!((spec.local, &*spec.remote_with_protocol()), (5353, remote));
        }
        for text in ["53/sctp", "53:53/", "53/UDP", "53/udp/tcp"] {
            let error = text.parse::<PortSpec>().unwrap_err();
            assert!(error.starts_with("the protocol"), "{text}: {error}");
        }
    }

    #[test]
    fn malformed_ports_say_which_half_is_wrong() {
        for (text, half) in [
            ("", "local"),
            ("http", "local"),
            ("0", "local"),
            ("+80", "local"),
            ("65536", "local"),
            (":80", "local"),
            ("127.0.0.1:8080", "local"),
            ("8080:", "remote"),
            ("8080:0", "remote"),
            ("8080:65536", "remote"),
            ("8080:Http", "remote"),
            ("8080:80:90", "remote"),
            ("8080:-a", "remote"),
        ] {
            let error = text.parse::<PortSpec>().unwrap_err();
            assert!(
                error.starts_with(&format!("the {half} port")),
                "{text}: {error}"
            );
        }
    }
}
