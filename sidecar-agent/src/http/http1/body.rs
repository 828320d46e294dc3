//! Where the body of an HTTP/1 message ends; its bytes are nobody's business.

use super::head::NotHttp;

/// The longest line between chunks, in bytes.
const LONGEST_LINE: usize = 8 << 10;

/// How a body ends (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Framing {
    /// After so many bytes.
    Length(u64),
    Chunked,
    /// With the connection.
    UntilEnd,
}

/// A body that passes by.
#[derive(Debug)]
pub(in crate::http) struct Body(State);

#[derive(Debug)]
enum State {
    Bytes(u64),
    UntilEnd,
    /// In a line between chunks, of which so many bytes have passed.
    Line {
        length: usize,
        line: Line,
        size: Option<u64>,
        after_return: bool,
    },
    /// In a chunk, of which so much is left.
    Chunk(u64),
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Size,
    /// After the size, which extensions may follow.
    Extension,
    /// Of a line end, nothing but that; a field otherwise.
    Trailer,
    /// The line end behind a chunk.
    ChunkEnd,
}

impl Body {
    pub(in crate::http) fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::Ended,
            Framing::Length(length) => State::Bytes(length),
            Framing::Chunked => start_of(Line::Size),
            Framing::UntilEnd => State::UntilEnd,
        })
    }

    pub(in crate::http) fn has_ended(&self) -> bool {
        matches!(self.0, State::Ended)
    }

    /// Whether the end of the connection is the end of the body.
    pub(in crate::http) fn ends_with_connection(&self) -> bool {
        matches!(self.0, State::UntilEnd)
    }

    /// How many of these bytes, which come next, belong to it.
    pub(in crate::http) fn pass(&mut self, bytes: &[u8]) -> Result<usize, NotHttp> {
        let mut passed = 0;
        while passed < bytes.len() && !self.has_ended() {
            passed += self.step(&bytes[passed..])?;
        }
        Ok(passed)
    }

    fn step(&mut self, bytes: &[u8]) -> Result<usize, NotHttp> {
        match &mut self.0 {
            State::Ended => Ok(0),
            State::UntilEnd => Ok(bytes.len()),
            State::Bytes(left) => {
                let passed = take(left, bytes);
                if *left == 0 {
                    self.0 = State::Ended;
                }
                Ok(passed)
            }
            State::Chunk(left) => {
                let passed = take(left, bytes);
                if *left == 0 {
                    self.0 = start_of(Line::ChunkEnd);
                }
                Ok(passed)
            }
            State::Line {
                length,
                line,
                size,
                after_return,
            } => {
                let byte = bytes[0];
                *length += 1;
                let is_end = b"\r\n".get(*length - 1) == Some(&byte);
                // A line that ends otherwise ends elsewhere for others.
                let is_bare = byte == b'\n' && !*after_return;
                if *length > LONGEST_LINE || is_bare || (*line == Line::ChunkEnd && !is_end) {
                    return Err(NotHttp);
                }
                *after_return = byte == b'\r';
                if byte == b'\n' {
                    self.0 = line_ended(*length, *line, *size)?;
                } else if *line == Line::Size {
                    match (byte, char::from(byte).to_digit(16)) {
                        (_, Some(digit)) => {
                            let more = size.unwrap_or(0).checked_mul(16);
                            let more = more.and_then(|it| it.checked_add(digit.into()));
                            *size = Some(more.ok_or(NotHttp)?);
                        }
                        (b'\r' | b';' | b' ' | b'\t', None) if size.is_some() => {
                            *line = Line::Extension;
                        }
                        (_, None) => return Err(NotHttp),
                    }
                }
                Ok(1)
            }
        }
    }
}

fn start_of(line: Line) -> State {
    State::Line {
        length: 0,
        line,
        size: None,
        after_return: false,
    }
}

/// What follows a line of so many bytes.
fn line_ended(length: usize, line: Line, size: Option<u64>) -> Result<State, NotHttp> {
    let trailer = start_of(Line::Trailer);
    match (line, size) {
        (Line::Trailer, _) if length <= "\r\n".len() => Ok(State::Ended),
        (Line::Trailer, _) | (Line::Size | Line::Extension, Some(0)) => Ok(trailer),
        (Line::Size | Line::Extension, Some(size)) => Ok(State::Chunk(size)),
        (Line::ChunkEnd, _) => Ok(start_of(Line::Size)),
        (Line::Size | Line::Extension, None) => Err(NotHttp),
    }
}

fn take(left: &mut u64, bytes: &[u8]) -> usize {
    let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *left -= taken as u64;
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How much of the bytes belongs to the body, fed in pieces of a length.
    fn length(framing: Framing, bytes: &[u8], piece: usize) -> Result<Option<usize>, NotHttp> {
        let mut body = Body::new(framing);
        let mut total = 0;
        for piece in bytes.chunks(piece) {
            total += body.pass(piece)?;
        }
        Ok(body.has_ended().then_some(total))
    }

    #[test]
    fn chunks_end_after_their_trailers() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "5;a=b\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX-T: 1\r\nY: 2\r\n\r\n",
            "1 \r\n\n\r\n0\r\n\r\n",
        ] {
            let bytes = format!("{body}GET / HTTP/1.1\r\n");
            for piece in [1, 2, 7, 1_000] {
                let found = length(Framing::Chunked, bytes.as_bytes(), piece);
                assert_eq!(found, Ok(Some(body.len())), "{body:?} {piece}");
            }
        }
    }

    #[test]
    fn malformed_chunks_are_no_http() {
        for body in [
            "\r\n",
            "x\r\n",
            "fffffffffffffffff\r\n",
            "1\r\nab\n",
            "1\nab\r\n",
            "0\r\nx\n",
            ";a\r\n",
        ] {
            let found = length(Framing::Chunked, body.as_bytes(), 1);
            assert_eq!(found, Err(NotHttp), "{body:?}");
        }
        let line = format!("1;{}", "a".repeat(LONGEST_LINE));
        assert_eq!(
            length(Framing::Chunked, line.as_bytes(), 1_000),
            Err(NotHttp)
        );
    }

    proptest! {
        #[test]
        fn bodies_end_where_they_say(
            chunks in proptest::collection::vec(1_usize..200, 0..6),
            rest in 0_usize..50,
            piece in 1_usize..300,
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend(format!("{chunk:x}\r\n").bytes());
                bytes.extend(std::iter::repeat_n(b'\n', *chunk));
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            let wanted = bytes.len();
            bytes.extend(std::iter::repeat_n(b'5', rest));
            prop_assert_eq!(length(Framing::Chunked, &bytes, piece), Ok(Some(wanted)));
            let all = Framing::Length(wanted as u64);
            prop_assert_eq!(length(all, &bytes, piece), Ok(Some(wanted)));
            prop_assert_eq!(length(Framing::UntilEnd, &bytes, piece), Ok(None));
        }
    }
}
