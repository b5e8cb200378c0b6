//! Finds requests and answers in the bytes of an HTTP/1.1 connection, while they pass.

/// Longest head in bytes; beyond it the connection counts as not HTTP.
const LONGEST_HEAD: usize = 64 << 10;

/// The head of a request or an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The first line: `PUT /bucket/key HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub first: String,
    /// `Content-Length`.
    pub length: Option<u64>,
    /// Whether the body comes in chunks.
    pub chunked: bool,
}

impl Head {
    fn parse(text: &str) -> Head {
        let mut lines = text.lines();
        let mut head = Head {
            first: lines.next().unwrap_or_default().to_owned(),
            ..Head::default()
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.length = value.parse().ok();
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = value.to_ascii_lowercase().ends_with("chunked");
            }
        }
        head
    }

    /// The status of an answer; 0 for anything else.
    pub(super) fn status(&self) -> u16 {
        let word = self.first.split(' ').nth(1).unwrap_or_default();
        word.parse().unwrap_or_default()
    }
}

/// The end of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// After its last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// Receiver of the parsed parts.
pub(super) trait Sink {
    /// A head has passed. Returns how its body ends.
    fn head(&mut self, head: &Head) -> Framing;
    /// This many bytes of a body have passed, without the framing of chunks.
    fn body(&mut self, bytes: u64);
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Stream {
    state: State,
    line: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// In a head; `line` holds the part that has arrived.
    #[default]
    Head,
    Body(u64),
    /// In the line with the size of a chunk; `line` holds the part that has arrived.
    ChunkSize,
    /// In a chunk and the line end after it; the second number includes the line end.
    Chunk(u64, u64),
    /// After the last chunk; `line` holds the part of the line that has arrived.
    Trailer,
    UntilClose,
    /// Not HTTP: bytes pass uncounted.
    Lost,
}

impl Stream {
    /// Parses the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Head | State::ChunkSize | State::Trailer => self.line(bytes, sink),
                State::Body(rest) => {
                    let taken = upto(rest, bytes);
                    sink.body(taken);
                    self.state = match rest - taken {
                        0 => State::Head,
                        rest => State::Body(rest),
                    };
                    taken
                }
                State::Chunk(data, rest) => {
                    let taken = upto(rest, bytes);
                    sink.body(taken.min(data));
                    self.state = match rest - taken {
                        0 => State::ChunkSize,
                        rest => State::Chunk(data.saturating_sub(taken), rest),
                    };
                    taken
                }
                State::UntilClose => {
                    sink.body(bytes.len() as u64);
                    return;
                }
                State::Lost => return,
            };
            bytes = &bytes[usize::try_from(taken).expect("no more than there is")..];
        }
    }

    /// Consumes bytes up to the end of a line, and returns their number.
    fn line(&mut self, bytes: &[u8], sink: &mut impl Sink) -> u64 {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        self.line.extend_from_slice(&bytes[..taken]);
        if end.is_some() {
            self.line_ended(sink);
        } else if self.line.len() > LONGEST_HEAD {
            self.state = State::Lost;
        }
        taken as u64
    }

    fn line_ended(&mut self, sink: &mut impl Sink) {
        let text = String::from_utf8_lossy(&self.line).into_owned();
        self.state = match self.state {
            State::Head if !text.ends_with("\r\n\r\n") => return,
            State::Head => match sink.head(&Head::parse(&text)) {
                Framing::Empty | Framing::Length(0) => State::Head,
                Framing::Length(length) => State::Body(length),
                Framing::Chunked => State::ChunkSize,
                Framing::UntilClose => State::UntilClose,
            },
            State::ChunkSize => {
                let size = text.split(';').next().unwrap_or_default().trim();
                match u64::from_str_radix(size, 16) {
                    Ok(0) => State::Trailer,
                    Ok(size) => State::Chunk(size, size + 2),
                    Err(_) => State::Lost,
                }
            }
            State::Trailer if text != "\r\n" => State::Trailer,
            _ => State::Head,
        };
        self.line.clear();
    }
}

fn upto(rest: u64, bytes: &[u8]) -> u64 {
    rest.min(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Seen {
        heads: Vec<String>,
        bytes: u64,
    }

    impl Sink for Seen {
        fn head(&mut self, head: &Head) -> Framing {
            self.heads.push(head.first.clone());
            match head.length {
                _ if head.chunked => Framing::Chunked,
                Some(length) => Framing::Length(length),
                None => Framing::Empty,
            }
        }

        fn body(&mut self, bytes: u64) {
            self.bytes += bytes;
        }
    }

    const TEXT: &str = "PUT /b/k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
                        GET /b?list-type=2 HTTP/1.1\r\nHost: a\r\n\r\n\
                        POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                        3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n\
                        HEAD /b HTTP/1.1\r\n\r\n";

    #[test]
    fn bytes_are_understood_however_they_are_cut() {
        for size in 1..TEXT.len() {
            let (mut stream, mut seen) = (Stream::default(), Seen::default());
            for part in TEXT.as_bytes().chunks(size) {
                stream.feed(part, &mut seen);
            }
            let first = |n: usize| seen.heads[n].as_str();
            assert_eq!(seen.heads.len(), 4, "cut after {size}: {seen:?}");
            assert_eq!(first(0), "PUT /b/k HTTP/1.1");
            assert_eq!(first(3), "HEAD /b HTTP/1.1");
            assert_eq!(seen.bytes, 5 + 13, "cut after {size}");
        }
    }

    #[test]
    fn what_is_not_http_is_passed_over() {
        let (mut stream, mut seen) = (Stream::default(), Seen::default());
        stream.feed(&vec![b'x'; LONGEST_HEAD + 1], &mut seen);
        stream.feed(TEXT.as_bytes(), &mut seen);
        assert_eq!(seen, Seen::default());
    }

    #[test]
    fn the_status_is_the_second_word_of_an_answer() {
        let head = Head::parse("HTTP/1.1 412 Precondition Failed\r\n\r\n");
        assert_eq!(head.status(), 412);
    }
}
