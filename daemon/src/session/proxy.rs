//! The proxy between the laptop and the API server, found as kubectl finds it:
//! the kubeconfig's `proxy-url`, else what the environment says.

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use kvpn_proto::{Failure, Reason};

/// Port of a SOCKS proxy whose URL has none (RFC 1928).
const SOCKS_PORT: u16 = 1080;

/// A proxy, and how to be let through.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    pub(crate) uri: Uri,
    pub(crate) protocol: Protocol,
    pub(crate) intercept: Intercept,
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `CONNECT` over plain HTTP.
    Http,
    /// `CONNECT` over TLS.
    Https,
    /// SOCKS 5, which resolves names itself.
    Socks5,
}

impl Proxy {
    /// Finds the proxy to a server. `own` is the kubeconfig's, which no variable
    /// outranks; `variable` reads the environment.
    pub(crate) fn find(
        own: Option<&str>,
        server: &Uri,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, Failure> {
        if let Some(url) = own.filter(|url| !url.is_empty()) {
            return Self::parse(url, server, "the kubeconfig's proxy-url").map(Some);
        }
        let either = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .iter()
                .find_map(|name| variable(name).filter(|value| !value.is_empty()))
        };
        let name = match server.scheme_str() {
            Some("http") => "HTTP_PROXY",
            _ => "HTTPS_PROXY",
        };
        let Some(url) = either(name) else {
            return Ok(None);
        };
        let exempt = either("NO_PROXY").unwrap_or_default();
        let rules = Matcher::builder().all("http://proxy").no(exempt).build();
        if is_local(server) || rules.intercept(server).is_none() {
            return Ok(None);
        }
        Self::parse(&url, server, name).map(Some)
    }

    fn parse(url: &str, server: &Uri, source: &str) -> Result<Self, Failure> {
        // The URL may hold a password, so the failure does not repeat it.
        let unusable = || {
            Failure::new(
                Reason::NoKubeconfig,
                format!("{source} is not the URL of a proxy that kvpn can use"),
                "give it as http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT",
            )
        };
        let rules = Matcher::builder().all(url.to_owned()).build();
        let intercept = rules.intercept(server).ok_or_else(unusable)?;
        let protocol = match intercept.uri().scheme_str() {
            Some("http") => Protocol::Http,
            Some("https") => Protocol::Https,
            Some("socks5" | "socks5h") => Protocol::Socks5,
            _ => return Err(unusable()),
        };
        let uri = match (protocol, intercept.uri().port(), intercept.uri().host()) {
            (Protocol::Socks5, None, Some(host)) => format!("socks5://{host}:{SOCKS_PORT}/")
                .parse()
                .map_err(|_| unusable())?,
            _ => intercept.uri().clone(),
        };
        Ok(Self {
            uri,
            protocol,
            intercept,
        })
    }
}

/// A server on this very host: a proxy would look for it on its own.
fn is_local(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(own: Option<&str>, server: &str, env: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| {
            let entry = env.iter().find(|(key, _)| *key == name);
            entry.map(|(_, value)| (*value).to_owned())
        };
        Proxy::find(own, &server.parse().unwrap(), variable)
            .unwrap()
            .map(|proxy| proxy.uri.to_string())
    }

    const SERVER: &str = "https://k8s.example.com:6443";

    #[test]
    fn kubeconfig_outranks_the_environment_and_its_exceptions() {
        let env = [("HTTPS_PROXY", "http://other:1"), ("NO_PROXY", "*")];
        assert_eq!(
            find(Some("socks5://p:9"), SERVER, &env).as_deref(),
            Some("socks5://p:9/")
        );
        assert_eq!(find(Some(""), SERVER, &[]), None);
    }

    #[test]
    fn variable_is_that_of_the_servers_scheme_in_either_case() {
        let env = [("https_proxy", "p:3128"), ("HTTP_PROXY", "http://q:1")];
        assert_eq!(find(None, SERVER, &env).as_deref(), Some("http://p:3128/"));
        assert_eq!(
            find(None, "http://k8s.example.com", &env).as_deref(),
            Some("http://q:1/")
        );
    }

    #[test]
    fn exceptions_are_about_the_server_and_not_the_proxy() {
        let env = |no: &'static str| [("HTTPS_PROXY", "http://proxy.corp:1"), ("NO_PROXY", no)];
        for no in ["k8s.example.com", ".example.com", "a, example.com,", "*"] {
            assert_eq!(find(None, SERVER, &env(no)), None, "{no}");
        }
        for no in ["corp", "other.example.com", "10.0.0.0/8", ""] {
            assert!(find(None, SERVER, &env(no)).is_some(), "{no}");
        }
        let by_address = "https://10.1.2.3:6443";
        assert_eq!(find(None, by_address, &env("10.0.0.0/8")), None);
    }

    #[test]
    fn a_server_on_this_host_has_no_proxy_from_the_environment() {
        let env = [("HTTPS_PROXY", "http://p:1")];
        for server in [
            "https://127.0.0.1:6443",
            "https://[::1]",
            "https://localhost",
        ] {
            assert_eq!(find(None, server, &env), None, "{server}");
        }
    }

    #[test]
    fn a_socks_proxy_without_a_port_has_the_usual_one() {
        let uri = find(Some("socks5h://p"), SERVER, &[]);
        assert_eq!(uri.as_deref(), Some("socks5://p:1080/"));
    }

    #[test]
    fn credentials_are_kept_out_of_the_uri_and_of_failures() {
        let server: Uri = SERVER.parse().unwrap();
        let find = |url| Proxy::find(Some(url), &server, |_| None);
        let proxy = find("http://me:s3%40cret@p:1").unwrap().unwrap();
        assert_eq!(proxy.uri.to_string(), "http://p:1/");
        assert!(proxy.intercept.basic_auth().is_some());
        let socks = find("socks5://me:s3%40cret@p:1").unwrap().unwrap();
        assert_eq!(socks.intercept.raw_auth(), Some(("me", "s3@cret")));
        let failure = find("ftp://me:s3cret@p:1").unwrap_err();
        assert!(!failure.message.contains("s3cret"), "{failure}");
    }
}
