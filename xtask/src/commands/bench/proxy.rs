//! A proxy that forwards bytes unchanged to one server and counts the requests in them.
//!
//! Clients use its address as the server's, so the `Host` that they sign is the one that the server
//! receives.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::counts::{Counts, Kind};
use super::http::{Framing, Head, Sink, Stream};

/// Time for which a thread waits for bytes before it checks whether it must end.
const PATIENCE: Duration = Duration::from_millis(500);
/// Number of bytes that are forwarded at once.
const BUFFER_BYTES: usize = 128 << 10;

/// A delay in milliseconds that means that nothing is forwarded.
const DEAD: u64 = u64::MAX;

/// Simulated state of the server's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    /// Each request is forwarded after this time.
    Delayed(Duration),
    /// The server is unreachable.
    Dead,
}

/// The proxy, on a free port of 127.0.0.1, until it is dropped.
pub(super) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    delay_ms: AtomicU64,
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

struct Seen {
    counts: Counts,
    /// Number of requests that change the store and have no answer yet.
    writing: u64,
    last_write: Instant,
}

impl Proxy {
    /// Starts to forward to `server`.
    pub(super) fn start(server: SocketAddr, weather: Weather) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind the proxy")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server,
            delay_ms: AtomicU64::default(),
            stop: AtomicBool::new(false),
            seen: Mutex::new(Seen {
                counts: Counts::default(),
                writing: 0,
                last_write: Instant::now(),
            }),
        });
        let own = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &own));
        let proxy = Proxy { address, shared };
        proxy.set(weather);
        Ok(proxy)
    }

    /// Changes the simulated state, also for open connections.
    pub(super) fn set(&self, weather: Weather) {
        let delay_ms = match weather {
            Weather::Delayed(delay) => u64::try_from(delay.as_millis()).unwrap_or(DEAD - 1),
            Weather::Dead => DEAD,
        };
        self.shared.delay_ms.store(delay_ms, Ordering::Relaxed);
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the counts so far.
    pub(super) fn counts(&self) -> Counts {
        self.shared.seen().counts
    }

    /// Waits until more than `before` was written and no write has followed for `quiet`. Returns
    /// the time of the last write's answer.
    pub(super) fn wait_stored(
        &self,
        before: &Counts,
        quiet: Duration,
        limit: Duration,
    ) -> Result<Instant> {
        let start = Instant::now();
        while start.elapsed() < limit {
            {
                let seen = self.shared.seen();
                let stored = seen.counts.sent_bytes > before.sent_bytes && seen.writing == 0;
                if stored && seen.last_write.elapsed() >= quiet {
                    return Ok(seen.last_write);
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("the store was not quiet for {quiet:?} within {limit:?}")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Connect only to wake the accepting thread.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("counting does not panic")
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn is_dead(&self) -> bool {
        self.delay_ms.load(Ordering::Relaxed) == DEAD
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stopped() {
            return;
        }
        let Ok(client) = client else { continue };
        if shared.is_dead() {
            continue;
        }
        if let Err(error) = serve(client, shared) {
            eprintln!("proxy: {error}");
        }
    }
}

/// Forwards one connection with two threads, one for each direction.
fn serve(client: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    let server = TcpStream::connect(shared.server)?;
    for side in [&client, &server] {
        side.set_nodelay(true)?;
        side.set_read_timeout(Some(PATIENCE))?;
    }
    let connection = Arc::new(Connection {
        shared: Arc::clone(shared),
        pending: Mutex::default(),
    });
    let mut requests = Requests {
        connection: Arc::clone(&connection),
        delayed: false,
    };
    let mut answers = Answers { connection };
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let shared = Arc::clone(&requests.connection.shared);
        let mut stream = Stream::default();
        pump(&from, &to, &shared, |bytes| {
            stream.feed(bytes, &mut requests);
            let delay_ms = shared.delay_ms.load(Ordering::Relaxed);
            if std::mem::take(&mut requests.delayed) && !matches!(delay_ms, 0 | DEAD) {
                thread::sleep(Duration::from_millis(delay_ms));
            }
        });
        // The server may still send data.
        let _ = to.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let shared = Arc::clone(&answers.connection.shared);
        let mut stream = Stream::default();
        pump(&server, &client, &shared, |bytes| {
            stream.feed(bytes, &mut answers);
        });
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// Forwards bytes until one side closes; an error of a connection counts as its end.
fn pump(from: &TcpStream, to: &TcpStream, shared: &Shared, mut saw: impl FnMut(&[u8])) {
    let (mut from, mut to) = (from, to);
    let mut buffer = vec![0; BUFFER_BYTES];
    while !shared.stopped() && !shared.is_dead() {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                saw(&buffer[..count]);
                if to.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return,
            },
        }
    }
}

/// State that both directions of one connection share.
struct Connection {
    shared: Arc<Shared>,
    /// Requests without an answer yet.
    pending: Mutex<VecDeque<Kind>>,
}

impl Connection {
    fn asked(&self, kind: Kind) {
        self.pending().push_back(kind);
        let mut seen = self.shared.seen();
        seen.counts.add(kind);
        if kind.writes() {
            seen.writing += 1;
            seen.last_write = Instant::now();
        }
    }

    /// Records an answer and returns the kind of its request.
    fn answered(&self, status: u16) -> Option<Kind> {
        let kind = self.pending().pop_front()?;
        let mut seen = self.shared.seen();
        seen.counts.refused += u64::from(status >= 400);
        if kind.writes() {
            seen.writing -= 1;
            seen.last_write = Instant::now();
        }
        Some(kind)
    }

    fn pending(&self) -> MutexGuard<'_, VecDeque<Kind>> {
        self.pending.lock().expect("queueing does not panic")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Requests from before one side closed get no answer any more.
        while self.answered(0).is_some() {}
    }
}

struct Requests {
    connection: Arc<Connection>,
    /// Whether a request began in the last bytes.
    delayed: bool,
}

impl Sink for Requests {
    fn head(&mut self, head: &Head) -> Framing {
        self.connection.asked(Kind::of(&head.first));
        self.delayed = true;
        match head.length {
            _ if head.chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::Empty,
        }
    }

    fn body(&mut self, bytes: u64) {
        self.connection.shared.seen().counts.sent_bytes += bytes;
    }
}

struct Answers {
    connection: Arc<Connection>,
}

impl Sink for Answers {
    fn head(&mut self, head: &Head) -> Framing {
        let status = head.status();
        if (100..200).contains(&status) {
            return Framing::Empty;
        }
        let asked = self.connection.answered(status);
        match head.length {
            _ if asked == Some(Kind::Head) || [204, 304].contains(&status) => Framing::Empty,
            _ if head.chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        }
    }

    fn body(&mut self, bytes: u64) {
        self.connection.shared.seen().counts.received_bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a server that accepts one connection and answers each request with the next text.
    fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut buffer = [0; 1024];
            for answer in answers {
                assert!(connection.read(&mut buffer).unwrap() > 0);
                connection.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    fn ask(connection: &mut TcpStream, request: &str) -> String {
        let mut buffer = [0; 1024];
        connection.write_all(request.as_bytes()).unwrap();
        let count = connection.read(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn requests_and_bytes_of_both_directions_are_counted() {
        let stored = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n";
        let refused = "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone";
        let answers: &[&str] = Box::leak(Box::new([stored, head, refused]));
        let proxy = Proxy::start(server(answers), Weather::Delayed(Duration::ZERO)).unwrap();
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let put = "PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(ask(&mut client, put), stored);
        assert_eq!(ask(&mut client, "HEAD /b/k HTTP/1.1\r\n\r\n"), head);
        assert_eq!(ask(&mut client, "GET /b/k HTTP/1.1\r\n\r\n"), refused);
        let counts = proxy.counts();
        assert_eq!(
            counts.to_string(),
            "1 GET, 1 HEAD, 1 PUT (1 answered with 4xx or 5xx)"
        );
        assert_eq!((counts.sent_bytes, counts.received_bytes), (3, 4));
        let limit = Duration::from_secs(5);
        proxy
            .wait_stored(&Counts::default(), Duration::ZERO, limit)
            .unwrap();
    }

    #[test]
    fn a_dead_server_answers_nobody_and_lives_again() {
        let stored = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let answers: &[&str] = Box::leak(Box::new([stored]));
        let proxy = Proxy::start(server(answers), Weather::Dead).unwrap();
        let get = "GET /b/k HTTP/1.1\r\n\r\n";
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let _sent = client.write_all(get.as_bytes());
        assert!(matches!(client.read(&mut [0; 16]), Ok(0) | Err(_)));
        assert_eq!(proxy.counts(), Counts::default());
        proxy.set(Weather::Delayed(Duration::from_millis(20)));
        let (mut client, began) = (TcpStream::connect(proxy.address()).unwrap(), Instant::now());
        assert_eq!(ask(&mut client, get), stored);
        assert!(began.elapsed() >= Duration::from_millis(20));
    }
}
