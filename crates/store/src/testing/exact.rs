//! An S3 server in memory that treats keys as AWS does, byte for byte.
//!
//! SeaweedFS keeps directories, so it changes keys with double slashes, slashes at the ends and
//! dots. This server supports the requests of a backup: objects, conditions, ranges, lists,
//! deletes. It checks no signature.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use percent_encoding::percent_decode_str;

/// Limit on the keys of one list, as in S3.
const MAX_KEYS: usize = 1000;
/// Storage time of every object; no test reads it.
const TIME: &str = "2026-01-02T03:04:05.000Z";

/// The server, on a free port of 127.0.0.1. Its thread ends with the process.
pub struct ExactServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Objects by bucket and key, as `bucket/key`.
    objects: BTreeMap<String, Object>,
    refusals: Vec<Refusal>,
    requests: Vec<String>,
    versions: u64,
}

#[derive(Clone)]
struct Object {
    body: Vec<u8>,
    timestamp: Option<String>,
    version: String,
}

/// Requests that get an error answer.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The method of the requests.
    pub method: &'static str,
    /// Text in their path and query.
    pub part: &'static str,
    /// The status of the answer.
    pub status: u16,
    /// The code in its body; empty for an answer without a body.
    pub code: &'static str,
    /// Number of requests left.
    pub times: usize,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl ExactServer {
    /// Starts a server.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
        let address = listener.local_addr().expect("a bound socket has one");
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                // An error ends the connection. A server can do nothing else about it.
                std::thread::spawn(move || serve(client, &state));
            }
        });
        Self { address, state }
    }

    /// Returns the S3 endpoint: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns all keys of a bucket, in order.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let start = format!("{bucket}/");
        let state = lock(&self.state);
        let keys = state.objects.keys();
        let keys = keys.filter_map(|key| key.strip_prefix(&start));
        keys.map(str::to_owned).collect()
    }

    /// Returns method and target of each request so far, in order of arrival.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.state).requests.clone()
    }

    /// Sets the error answer for the next matching requests.
    pub fn refuse(&self, refusal: Refusal) {
        lock(&self.state).refusals.push(refusal);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(client: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut client = client;
    while let Some(request) = read(&mut reader, &mut client)? {
        let answer = lock(state).answer(&request);
        let mut head = format!("HTTP/1.1 {} -\r\n", answer.status);
        for (name, value) in &answer.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        // The answer to a HEAD gives the length of a body that it does not have.
        let is_head = request.method == "HEAD";
        let _ = write!(head, "Content-Length: {}\r\n\r\n", answer.body.len());
        client.write_all(head.as_bytes())?;
        if !is_head {
            client.write_all(&answer.body)?;
        }
    }
    Ok(())
}

fn read(
    reader: &mut BufReader<TcpStream>,
    client: &mut TcpStream,
) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    if headers.contains_key("expect") {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let length = headers.get("content-length");
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    Ok(Some(Request {
        method,
        path: percent_decode_str(path.strip_prefix('/').unwrap_or(path))
            .decode_utf8_lossy()
            .into_owned(),
        query: pairs.into_owned().collect(),
        headers,
        body,
    }))
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        self.requests
            .push(format!("{} {}", request.method, request.path));
        if let Some(refusal) = self.refusals.iter_mut().find(|refusal| {
            let query: String = request.query.values().cloned().collect();
            refusal.times > 0
                && refusal.method == request.method
                && (request.path.contains(refusal.part) || query.contains(refusal.part))
        }) {
            refusal.times -= 1;
            return error(refusal.status, refusal.code);
        }
        match (request.method.as_str(), request.path.contains('/')) {
            ("GET", false) => self.list(request),
            ("GET", true)
                if request.path.ends_with('/') && request.query.contains_key("prefix") =>
            {
                self.list(request)
            }
            ("PUT", true) => self.put(request),
            ("GET" | "HEAD", true) => self.get(request),
            ("DELETE", true) => {
                self.objects.remove(&request.path);
                status(204)
            }
            ("POST", _) if request.query.contains_key("delete") => self.delete_all(request),
            _ => error(400, "InvalidRequest"),
        }
    }

    fn put(&mut self, request: &Request) -> Answer {
        let there = self.objects.get(&request.path);
        let header = |name: &str| request.headers.get(name);
        if header("if-none-match").is_some() && there.is_some() {
            return error(412, "PreconditionFailed");
        }
        if let Some(wanted) = header("if-match")
            && there.is_none_or(|object| object.version != *wanted)
        {
            return error(412, "PreconditionFailed");
        }
        self.versions += 1;
        let version = format!("\"{:032x}\"", self.versions);
        let object = Object {
            body: request.body.clone(),
            timestamp: header("x-amz-meta-litestream-timestamp").cloned(),
            version: version.clone(),
        };
        self.objects.insert(request.path.clone(), object);
        Answer {
            headers: vec![("ETag", version)],
            ..status(200)
        }
    }

    fn get(&self, request: &Request) -> Answer {
        let Some(object) = self.objects.get(&request.path) else {
            return match request.method.as_str() {
                "HEAD" => status(404),
                _ => error(404, "NoSuchKey"),
            };
        };
        let mut headers = vec![
            ("ETag", object.version.clone()),
            ("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT".to_owned()),
        ];
        if let Some(timestamp) = &object.timestamp {
            headers.push(("x-amz-meta-litestream-timestamp", timestamp.clone()));
        }
        let size = object.body.len();
        let range = request.headers.get("range");
        let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((start, end)) = range else {
            return Answer {
                status: 200,
                headers,
                body: object.body.clone(),
            };
        };
        let start: usize = start.parse().unwrap_or_default();
        let end = end.parse().map_or(size, |end: usize| (end + 1).min(size));
        if start >= size {
            return error(416, "InvalidRange");
        }
        let range = format!("bytes {start}-{}/{size}", end - 1);
        headers.push(("Content-Range", range));
        Answer {
            status: 206,
            headers,
            body: object.body[start..end].to_owned(),
        }
    }

    fn delete_all(&mut self, request: &Request) -> Answer {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let bucket = request.path.trim_end_matches('/');
        for key in body.split("<Key>").skip(1) {
            let key = key.split("</Key>").next().unwrap_or_default();
            self.objects.remove(&format!("{bucket}/{}", plain(key)));
        }
        xml("<DeleteResult/>".to_owned())
    }

    fn list(&self, request: &Request) -> Answer {
        let asked = |name: &str| request.query.get(name).map_or("", String::as_str);
        let bucket = format!("{}/", request.path.trim_end_matches('/'));
        let (prefix, delimiter) = (asked("prefix"), asked("delimiter"));
        let after = match asked("continuation-token") {
            "" => asked("start-after"),
            token => token,
        };
        let most = asked("max-keys").parse().unwrap_or(MAX_KEYS);
        let from = (bucket.clone() + prefix).max(bucket.clone() + after);
        let mut contents = String::new();
        let (mut count, mut last, mut directories) = (0, String::new(), Vec::<String>::new());
        let mut more = false;
        for (path, object) in self
            .objects
            .range((Bound::Included(from), Bound::Unbounded))
        {
            let Some(key) = path.strip_prefix(&bucket) else {
                break;
            };
            let Some(below) = key.strip_prefix(prefix) else {
                break;
            };
            if !after.is_empty() && key <= after {
                continue;
            }
            let directory = match (delimiter, below.split_once(delimiter)) {
                ("", _) | (_, None) => None,
                (_, Some((name, _))) => Some(format!("{prefix}{name}{delimiter}")),
            };
            if directory
                .as_ref()
                .is_some_and(|it| directories.contains(it))
            {
                continue;
            }
            if count == most {
                more = true;
                break;
            }
            count += 1;
            key.clone_into(&mut last);
            match directory {
                Some(directory) => directories.push(directory),
                None => {
                    let _ = write!(
                        contents,
                        "<Contents><Key>{}</Key><LastModified>{TIME}</LastModified><ETag>{}</ETag>\
                         <Size>{}</Size></Contents>",
                        escaped(key),
                        escaped(&object.version),
                        object.body.len()
                    );
                }
            }
        }
        for directory in &directories {
            let _ = write!(
                contents,
                "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
                escaped(directory)
            );
        }
        if more {
            let token = escaped(&last);
            let _ = write!(
                contents,
                "<NextContinuationToken>{token}</NextContinuationToken>"
            );
        }
        xml(format!(
            "<ListBucketResult><KeyCount>{count}</KeyCount><IsTruncated>{more}</IsTruncated>\
             {contents}</ListBucketResult>"
        ))
    }
}

fn status(status: u16) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: Vec::new(),
    }
}

fn error(code: u16, word: &str) -> Answer {
    match word {
        "" => status(code),
        word => Answer {
            status: code,
            ..xml(format!(
                "<Error><Code>{word}</Code><Message>as the test wants it</Message></Error>"
            ))
        },
    }
}

fn xml(body: String) -> Answer {
    Answer {
        status: 200,
        headers: vec![("Content-Type", "application/xml".to_owned())],
        body: format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}").into_bytes(),
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('"', "&quot;").replace('>', "&gt;")
}

fn plain(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">");
    text.replace("&quot;", "\"").replace("&amp;", "&")
}
