//! One query to one name server.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Length of a DNS header (RFC 1035 section 4.1.1).
const HEADER: usize = 12;

const MAX_MESSAGE: usize = 65_535;

/// Bits of the header's third octet; the opcode of a query is 0.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TRUNCATED: u8 = 0x02;

/// Why a server has not answered.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The answer over TCP is for another question.
    #[error("the answer does not fit the question")]
    Mismatch,
    /// Even over TCP.
    #[error("the answer is truncated")]
    Truncated,
}

/// A query that was looked at just enough to know its answer.
pub(super) struct Query<'a> {
    message: &'a [u8],
    /// The question section.
    question: &'a [u8],
}

impl<'a> Query<'a> {
    /// `None` when it is not a query with one well-formed question. Updates and
    /// notifications (RFC 2136, RFC 1996) are none.
    pub(super) fn parse(message: &'a [u8]) -> Option<Self> {
        if message.len() > MAX_MESSAGE || message.get(2)? & (RESPONSE | OPCODE) != 0 {
            return None;
        }
        let question = question(message)?;
        Some(Self { message, question })
    }
}

/// An answer to the question that was asked.
pub(super) struct Answer {
    pub(super) message: Vec<u8>,
}

impl Answer {
    /// `None` when it is no answer to `query`.
    pub(super) fn parse(message: &[u8], query: &Query<'_>) -> Option<Self> {
        let fits = message.len() >= HEADER
            && message[..2] == query.message[..2]
            && message[2] & RESPONSE != 0
            // Some servers leave the question out of an error.
            && (message[4..6] == [0, 0] && message[3] & 0x0f != 0
                || question(message)?.eq_ignore_ascii_case(query.question));
        fits.then(|| Self {
            message: message.to_vec(),
        })
    }

    fn is_truncated(&self) -> bool {
        self.message[2] & TRUNCATED != 0
    }

    /// Tells an answer from SERVFAIL, NOTIMP and REFUSED, after which another
    /// server is worth asking.
    pub(super) fn is_conclusive(&self) -> bool {
        !matches!(self.message[3] & 0x0f, 2 | 4 | 5)
    }
}

/// The one question of a message: its labels, type and class.
fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            // A question has nothing before it that a pointer could name.
            64.. => return None,
        }
    }
    message.get(HEADER..at + 5)
}

/// Asks over UDP and, when the answer is truncated, over TCP. The caller sets
/// the deadline.
pub(super) async fn exchange(
    server: SocketAddr,
    query: &Query<'_>,
) -> Result<Answer, ExchangeError> {
    let answer = over_udp(server, query).await?;
    if answer.is_truncated() {
        over_tcp(server, query).await
    } else {
        Ok(answer)
    }
}

async fn over_udp(server: SocketAddr, query: &Query<'_>) -> Result<Answer, ExchangeError> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query.message).await?;
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anyone can send datagrams; what does not fit is not for us.
        if let Some(answer) = Answer::parse(&buffer[..length], query) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &Query<'_>) -> Result<Answer, ExchangeError> {
    let mut socket = TcpStream::connect(server).await?;
    socket.set_nodelay(true)?;
    let length = u16::try_from(query.message.len()).unwrap_or(u16::MAX);
    let mut request = length.to_be_bytes().to_vec();
    request.extend_from_slice(query.message);
    socket.write_all(&request).await?;
    let length = socket.read_u16().await?;
    let mut message = vec![0; length.into()];
    socket.read_exact(&mut message).await?;
    let answer = Answer::parse(&message, query).ok_or(ExchangeError::Mismatch)?;
    if answer.is_truncated() {
        return Err(ExchangeError::Truncated);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message with one question of these labels.
    fn message(id: u16, labels: &[Vec<u8>], kind: [u8; 4]) -> Vec<u8> {
        let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        for label in labels {
            message.push(label.len() as u8);
            message.extend_from_slice(label);
        }
        message.push(0);
        message.extend_from_slice(&kind);
        message
    }

    fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..5)
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(
            query in prop::collection::vec(any::<u8>(), 0..80),
            answer in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            if let Some(query) = Query::parse(&query) {
                let _ = Answer::parse(&answer, &query).map(|answer| answer.is_conclusive());
            }
        }

        #[test]
        fn an_answer_fits_its_own_question_only(
            (id, other_id) in any::<(u16, u16)>(),
            (asked, other) in (labels(), labels()),
            kind: [u8; 4],
            rest in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let query = message(id, &asked, kind);
            let parsed = Query::parse(&query).unwrap();
            let answer = |id, labels: &[Vec<u8>]| {
                let mut answer = message(id, labels, kind);
                answer[2] |= RESPONSE;
                answer.extend_from_slice(&rest);
                Answer::parse(&answer, &parsed).is_some()
            };
            prop_assert!(answer(id, &asked));
            let upper: Vec<_> = asked.iter().map(|label| label.to_ascii_uppercase()).collect();
            prop_assert!(answer(id, &upper));
            prop_assert_eq!(answer(other_id, &asked), other_id == id);
            let lower = |labels: &[Vec<u8>]| {
                let labels = labels.iter().map(|label| label.to_ascii_lowercase());
                labels.collect::<Vec<_>>()
            };
            prop_assert_eq!(answer(id, &other), lower(&other) == lower(&asked));
        }
    }
}
