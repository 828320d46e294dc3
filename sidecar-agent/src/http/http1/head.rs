//! Heads of HTTP/1 messages: what is asked, and where the message ends (RFC 9112).

use std::borrow::Cow;
use std::ops::Range;

use kvpn_proto::filter;

use super::body::Framing;

/// The longest head that is looked at, in bytes.
pub(in crate::http) const LONGEST: usize = 64 << 10;

/// The most fields of a head.
const MAX_FIELDS: usize = 256;

/// It is not HTTP/1, or such that two readers could see two different ends of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of HTTP/1")]
pub(crate) struct NotHttp;

/// The head of a request.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) struct RequestHead {
    /// In bytes, with the empty line.
    pub(in crate::http) length: usize,
    pub(in crate::http) framing: Framing,
    /// What of it is not passed on: the wish to go on in HTTP/2, in which nobody could
    /// look at the requests that follow. It is between two ends of a connection (RFC 9110
    /// section 7.8), and who does not see it goes on as before.
    pub(in crate::http) left_out: Range<usize>,
    /// Whether the client wants the connection to end after the answer.
    pub(in crate::http) is_last: bool,
    method: String,
    path: String,
    query: String,
    fields: Vec<(String, Vec<u8>)>,
}

/// The head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct ResponseHead {
    pub(in crate::http) length: usize,
    pub(in crate::http) status: u16,
    pub(in crate::http) framing: Framing,
    /// Whether the connection ends with it.
    pub(in crate::http) is_last: bool,
}

impl RequestHead {
    /// Reads the head at the start of the bytes; `None` while it is not complete.
    pub(in crate::http) fn read(bytes: &[u8]) -> Result<Option<Self>, NotHttp> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(NotHttp),
        };
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Err(NotHttp);
        };
        let (path, query) = split(target);
        let framing = match framing(request.headers)? {
            Some(framing) => framing,
            None => Framing::Length(0),
        };
        let is_old = request.version == Some(0);
        if is_old && framing == Framing::Chunked {
            return Err(NotHttp);
        }
        Ok(Some(Self {
            length,
            framing,
            left_out: h2c(bytes, request.headers),
            is_last: is_last(is_old, request.headers),
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            fields: owned(request.headers),
        }))
    }

    /// Whether the response has a head alone.
    pub(in crate::http) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether it may be asked twice: it has no body, and changes nothing (RFC 9110
    /// section 9.2.1).
    pub(in crate::http) fn is_safe(&self) -> bool {
        self.framing == Framing::Length(0)
            && matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE")
    }

    pub(in crate::http) fn is_connect(&self) -> bool {
        self.method == "CONNECT"
    }
}

impl filter::Head for RequestHead {
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
        let mut named = self.fields.iter().filter(|(it, _)| it == name);
        let first = String::from_utf8_lossy(&named.next()?.1);
        Some(named.fold(first, |joined, (_, value)| {
            format!("{joined}, {}", String::from_utf8_lossy(value)).into()
        }))
    }
}

impl ResponseHead {
    /// Reads the head of the response to a request; `None` while it is not complete.
    pub(in crate::http) fn read(bytes: &[u8], to: &RequestHead) -> Result<Option<Self>, NotHttp> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(NotHttp),
        };
        let status = response.code.ok_or(NotHttp)?;
        let has_no_body = to.is_head() || matches!(status, 100..=199 | 204 | 304);
        let framing = if has_no_body {
            Framing::Length(0)
        } else {
            framing(response.headers)?.unwrap_or(Framing::UntilEnd)
        };
        let is_old = response.version == Some(0);
        Ok(Some(Self {
            length,
            status,
            framing,
            is_last: framing == Framing::UntilEnd || is_last(is_old, response.headers),
        }))
    }

    /// Whether another head follows (RFC 9110 section 15.2).
    pub(in crate::http) fn is_interim(&self) -> bool {
        matches!(self.status, 100..=199) && self.status != 101
    }

    /// Whether what follows is no HTTP any more.
    pub(in crate::http) fn is_switch(&self, to: &RequestHead) -> bool {
        self.status == 101 || (to.is_connect() && matches!(self.status, 200..=299))
    }
}

/// Whether a message is the last of its connection, by what it says itself (RFC 9112
/// section 9.3).
fn is_last(is_old: bool, fields: &[httparse::Header<'_>]) -> bool {
    let says = |token| has_token(fields, "connection", token);
    says("close") || (is_old && !says("keep-alive"))
}

/// Path and query of a target, which may be an absolute URI (RFC 9112 section 3.2).
fn split(target: &str) -> (&str, &str) {
    let origin = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            rest.find(['/', '?']).map_or("/", |at| &rest[at..])
        }
        Some(_) | None => target,
    };
    match origin.split_once('?') {
        Some(("", query)) => ("/", query),
        Some(both) => both,
        None => (origin, ""),
    }
}

/// How long the body is, as far as the fields say (RFC 9112 section 6.3).
fn framing(fields: &[httparse::Header<'_>]) -> Result<Option<Framing>, NotHttp> {
    let values = |name: &'static str| {
        let named = move |it: &&httparse::Header<'_>| it.name.eq_ignore_ascii_case(name);
        fields.iter().filter(named).map(|it| it.value)
    };
    let mut lengths = values("content-length").map(|value| {
        let text = std::str::from_utf8(value).map_err(|_| NotHttp)?.trim();
        let is_number = !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        text.parse::<u64>()
            .ok()
            .filter(|_| is_number)
            .ok_or(NotHttp)
    });
    let length = lengths.next().transpose()?;
    if lengths.any(|other| other.ok() != length) {
        return Err(NotHttp);
    }
    let codings: Vec<&[u8]> = values("transfer-encoding").collect();
    match (&codings[..], length) {
        ([], length) => Ok(length.map(Framing::Length)),
        ([coding], None) if coding.trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            Ok(Some(Framing::Chunked))
        }
        // Two readers may see two ends.
        _ => Err(NotHttp),
    }
}

/// The line that asks for HTTP/2 without TLS (RFC 7540 section 3.2); empty without one.
fn h2c(bytes: &[u8], fields: &[httparse::Header<'_>]) -> Range<usize> {
    let asks = |it: &&httparse::Header<'_>| has_token(std::slice::from_ref(it), "upgrade", "h2c");
    let Some(field) = fields.iter().find(asks) else {
        return 0..0;
    };
    let start = field.name.as_ptr().addr() - bytes.as_ptr().addr();
    let length = bytes[start..].iter().position(|byte| *byte == b'\n');
    length.map_or(0..0, |length| start..start + length + 1)
}

fn has_token(fields: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    let mut named = fields
        .iter()
        .filter(|it| it.name.eq_ignore_ascii_case(name));
    named.any(|it| {
        let mut tokens = it.value.split(|byte| *byte == b',');
        tokens.any(|it| it.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

fn owned(fields: &[httparse::Header<'_>]) -> Vec<(String, Vec<u8>)> {
    let fields = fields.iter();
    fields
        .map(|it| (it.name.to_ascii_lowercase(), it.value.to_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    use kvpn_proto::filter::Head;

    use super::*;

    fn request(text: &str) -> Result<Option<RequestHead>, NotHttp> {
        RequestHead::read(text.as_bytes())
    }

    fn response(text: &str, method: &str) -> ResponseHead {
        let to = request(&format!("{method} / HTTP/1.1\r\n\r\n"));
        let read = ResponseHead::read(text.as_bytes(), &to.unwrap().unwrap());
        read.unwrap().unwrap()
    }

    #[test]
    fn request_is_read_whole_or_not_at_all() {
        let text = "POST /cart?user=a HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\n\
                    Content-Length: 5\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(request(&text[..cut]), Ok(None), "{cut}");
        }
        let head = request(&format!("{text}hello")).unwrap().unwrap();
        assert_eq!(head.length, text.len());
        assert_eq!(head.framing, Framing::Length(5));
        assert_eq!(
            (head.method(), head.path(), head.query()),
            ("POST", "/cart", "user=a")
        );
        assert_eq!(head.field("x-a").as_deref(), Some("1, 2"));
        assert_eq!(head.field("x-b"), None);
    }

    #[test]
    fn targets_have_a_path_and_a_query() {
        for (target, path, query) in [
            ("/", "/", ""),
            ("http://x/a?b=c?d", "/a", "b=c?d"),
            ("http://x?b", "/", "b"),
            ("/login?next=http://x/cart", "/login", "next=http://x/cart"),
            ("/proxy/http://x/y", "/proxy/http://x/y", ""),
            ("http://x", "/", ""),
            ("*", "*", ""),
        ] {
            assert_eq!(split(target), (path, query), "{target}");
        }
    }

    #[test]
    fn ends_that_two_readers_see_differently_are_no_http() {
        for fields in [
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: \r\n",
            "Content-Length : 1\r\n",
        ] {
            let text = format!("POST / HTTP/1.1\r\n{fields}\r\n");
            assert_eq!(request(&text), Err(NotHttp), "{fields}");
        }
        let twice = "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n";
        assert_eq!(request(twice).unwrap().unwrap().framing, Framing::Length(1));
        let other = ["\x16\x03\x01", "PRI * HTTP/2.0\r\n\r\n", "SSH-2.0-x\r\n"];
        for text in other {
            assert_eq!(request(text), Err(NotHttp), "{text}");
        }
    }

    #[test]
    fn responses_tell_where_they_end() {
        let plain = response("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "GET");
        assert_eq!((plain.framing, plain.is_last), (Framing::Length(3), false));
        let head = response("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD");
        assert_eq!(head.framing, Framing::Length(0));
        let until = response("HTTP/1.1 200 OK\r\n\r\n", "GET");
        assert_eq!((until.framing, until.is_last), (Framing::UntilEnd, true));
        let old = response("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", "GET");
        assert!(old.is_last);
        let close = "HTTP/1.1 204 No Content\r\nConnection: x, Close\r\n\r\n";
        assert!(response(close, "GET").is_last);
        let interim = response("HTTP/1.1 100 Continue\r\n\r\n", "POST");
        assert!(interim.is_interim());
        let switch = response("HTTP/1.1 101 Switching Protocols\r\n\r\n", "GET");
        assert!(!switch.is_interim());
    }
}
