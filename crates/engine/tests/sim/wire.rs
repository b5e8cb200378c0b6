//! A store behind a network that delays, loses, repeats, and delivers late.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use store::{
    Body, ByteStream, Capabilities, Layout, Memory, ObjectInfo, PutMeta, PutMode, SharedStore,
    Store, StoreError,
};
use tokio::sync::oneshot;

use engine::replica::lease::LEASE_KEY;

use super::chance::{Chance, Log};
use super::machine::{Disk, in_a_thread};
use super::oracle::Oracle;

/// Time that a caller waits for an answer.
const TIMEOUT_MS: u64 = 10_000;
/// Longest time that a request may be in transit, even after its sender has ended.
pub(super) const LATEST_MS: u64 = 90_000;

/// A store, shared by its users.
pub(super) struct Server {
    pub(super) index: usize,
    pub(super) inner: Arc<Memory>,
    /// One request in this many fails; zero for none.
    pub(super) one_in: AtomicU64,
    /// Until this time no request reaches it.
    pub(super) down_until_ms: AtomicU64,
    /// Until this time snapshots arrive late.
    pub(super) late_until_ms: AtomicU64,
    /// The error of its clock.
    pub(super) off_ms: Arc<AtomicI64>,
    /// True: objects have the times that their writers state, as files in a directory do. False:
    /// they have the times of the store's clock.
    pub(super) dated_by_writers: bool,
    pub(super) log: Arc<Log>,
    pub(super) oracle: Arc<Oracle>,
}

impl Server {
    /// For reads that take no time and never fail.
    pub(super) fn direct(&self) -> SharedStore {
        self.inner.clone()
    }
}

/// The connection of one user to a store.
pub(super) struct Wire {
    pub(super) server: Arc<Server>,
    pub(super) actor: u64,
    /// The name of the user, as in the lease.
    pub(super) name: String,
    /// The number of its place.
    pub(super) place: usize,
    /// Its disk: a process that ended during a call sends nothing more.
    pub(super) disk: Arc<Disk>,
    pub(super) chance: Mutex<Chance>,
    /// For requests from threads.
    pub(super) threads: Mutex<Chance>,
    /// A restore writes on another thread while it fetches, and virtual time stands still
    /// meanwhile. So its fetches succeed at once, or fail.
    pub(super) restores: bool,
}

/// The fate of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    /// Not done, refused.
    Refused,
    /// Not done, no answer.
    Lost,
    /// Done, no answer.
    Unanswered,
    /// Done when the caller no longer waits.
    Late,
    /// Done, answered, and done again later.
    Twice,
}

/// A request that may be done more than once.
type Request<T> = Box<dyn Fn() -> BoxFuture<'static, Result<T, StoreError>> + Send + Sync>;

impl Wire {
    fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        request: Request<T>,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        if self.disk.is_frozen() {
            return std::future::pending().boxed();
        }
        let server = Arc::clone(&self.server);
        let (log, actor) = (Arc::clone(&server.log), self.actor);
        let what = format!("{operation} {}:{key}", server.index);
        let (fate, there_ms, back_ms, again_ms) = self.draw(&self.chance, operation, key);
        let (answer, answered) = oneshot::channel();
        let failure = {
            let what = what.clone();
            move |code: &str| StoreError::Unreachable {
                what: what.clone(),
                code: code.to_owned(),
                source: None,
            }
        };
        let refused = failure("refused");
        // The request travels on even if its caller has died.
        let travel = async move {
            log.pause(actor, there_ms).await;
            if fate == Fate::Refused {
                log.note(actor, format!("{what}: refused"));
                let _gone = answer.send(Err(refused));
                return;
            }
            if fate == Fate::Lost {
                log.note(actor, format!("{what}: lost"));
                return;
            }
            let result = request().await;
            log.note(
                actor,
                format!("{what}: {}{}", outcome(&result), suffix(fate)),
            );
            if matches!(fate, Fate::Unanswered | Fate::Late) {
                return;
            }
            log.pause(actor, back_ms).await;
            let _gone = answer.send(result);
            if fate == Fate::Twice {
                log.pause(actor, again_ms).await;
                let again = request().await;
                log.note(actor, format!("{what}: {}, once more", outcome(&again)));
            }
        };
        let log = Arc::clone(&server.log);
        async move {
            tokio::spawn(travel);
            let time_over = log.moment(actor, TIMEOUT_MS);
            tokio::select! {
                biased;
                answer = answered => match answer {
                    Ok(answer) => answer,
                    Err(_) => {
                        tokio::time::sleep_until(time_over).await;
                        Err(failure("no answer"))
                    }
                },
                () = tokio::time::sleep_until(time_over) => Err(failure("no answer")),
            }
        }
        .boxed()
    }

    fn at_once(
        &self,
        key: &str,
        request: BoxFuture<'static, Result<Bytes, StoreError>>,
    ) -> BoxFuture<'static, Result<Bytes, StoreError>> {
        match self.draw(&self.threads, "get", key).0 {
            Fate::Fine => request,
            _ => {
                let error = StoreError::Unreachable {
                    what: format!("get {key}"),
                    code: "refused".to_owned(),
                    source: None,
                };
                std::future::ready(Err(error)).boxed()
            }
        }
    }

    /// Decides the fate of the next request, and the duration of its parts.
    fn draw(&self, chance: &Mutex<Chance>, operation: &str, key: &str) -> (Fate, u64, u64, u64) {
        let chance = &mut *chance.lock().unwrap();
        let one_in = self.server.one_in.load(Ordering::Relaxed);
        let writes = matches!(operation, "put" | "delete");
        let mut there_ms = chance.below(3) * 100;
        let back_ms = chance.below(2) * 100;
        let again_ms = chance.below(LATEST_MS);
        let (hit, choice) = (chance.below(one_in.max(1)) == 0, chance.below(5));
        let late_ms = TIMEOUT_MS + chance.below(LATEST_MS - TIMEOUT_MS);
        let now_ms = self.server.log.now_ms();
        if now_ms < self.server.down_until_ms.load(Ordering::Relaxed) {
            return (Fate::Refused, there_ms, back_ms, again_ms);
        }
        let late = now_ms < self.server.late_until_ms.load(Ordering::Relaxed);
        if late && operation == "put" && key.starts_with("ltx/9/") {
            return (Fate::Late, late_ms, back_ms, again_ms);
        }
        let fate = match choice {
            _ if one_in == 0 || !hit => Fate::Fine,
            0 => Fate::Refused,
            1 => Fate::Lost,
            2 => Fate::Unanswered,
            3 if writes => Fate::Late,
            4 if writes => Fate::Twice,
            _ => Fate::Lost,
        };
        if fate == Fate::Late {
            there_ms = late_ms;
        }
        (fate, there_ms, back_ms, again_ms)
    }
}

fn outcome<T>(result: &Result<T, StoreError>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn suffix(fate: Fate) -> String {
    match fate {
        Fate::Fine | Fate::Twice => String::new(),
        fate => format!(" ({fate:?})"),
    }
}

impl Store for Wire {
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        if self.disk.is_frozen() {
            return std::future::pending().boxed();
        }
        let bytes = match read(&body) {
            Ok(bytes) => bytes,
            Err(error) => {
                let error = StoreError::Other {
                    what: format!("put {key}"),
                    code: error.to_string(),
                    source: None,
                };
                return std::future::ready(Err(error)).boxed();
            }
        };
        let (server, name, place) = (Arc::clone(&self.server), self.name.clone(), self.place);
        let meta = match server.dated_by_writers {
            true => *meta,
            false => PutMeta::default(),
        };
        server
            .oracle
            .sends(server.index, &name, "put", key, server.log.now_ms());
        let owned = key.to_owned();
        self.call(
            "put",
            key,
            Box::new(move || {
                let (server, name) = (Arc::clone(&server), name.clone());
                let (key, bytes, mode) = (owned.clone(), bytes.clone(), mode.clone());
                async move {
                    let body = Body::Bytes(bytes.clone());
                    let stored = server.inner.put(&key, body, mode, &meta).await;
                    if stored.is_ok() {
                        let now_ms = server.log.now_ms();
                        let by_store = server.log.unix_ms() + server.off_ms.load(Ordering::Relaxed);
                        let dated_ms = server.log.when(meta.timestamp_ms.unwrap_or(by_store));
                        let times = (now_ms, dated_ms);
                        server
                            .oracle
                            .landed(server.index, (&name, place), &key, &bytes, times);
                    }
                    stored
                }
                .boxed()
            }),
        )
    }

    fn put_stream(
        &self,
        key: &str,
        stream: ByteStream,
        _expected_bytes: u64,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        let (key, meta) = (key.to_owned(), *meta);
        async move {
            let pieces: Result<Vec<Bytes>, _> = stream.try_collect().await;
            let pieces = pieces.map_err(|source| StoreError::Other {
                what: format!("put {key}"),
                code: "the stream failed".to_owned(),
                source: Some(source),
            })?;
            let bytes = Bytes::from(pieces.concat());
            let size = bytes.len() as u64;
            self.put(&key, Body::Bytes(bytes), mode, &meta).await?;
            Ok(size)
        }
        .boxed()
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let (server, owned) = (Arc::clone(&self.server), key.to_owned());
        let name = self.name.clone();
        let whole = range.is_none();
        let request = move || {
            let (server, name) = (Arc::clone(&server), name.clone());
            let (key, range) = (owned.clone(), range.clone());
            async move {
                if key == LEASE_KEY {
                    let now_ms = server.log.now_ms();
                    server.oracle.looks(server.index, &name, now_ms);
                }
                server.inner.get(&key, range).await
            }
            .boxed()
        };
        if in_a_thread() || self.restores && whole && key.starts_with("ltx/") {
            return self.at_once(key, request());
        }
        self.call("get", key, Box::new(request))
    }

    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>> {
        let (inner, owned) = (Arc::clone(&self.server.inner), key.to_owned());
        let request = move || {
            let (inner, key) = (Arc::clone(&inner), owned.clone());
            async move { inner.head(&key).await }.boxed()
        };
        self.call("head", key, Box::new(request))
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>> {
        let (inner, owned) = (Arc::clone(&self.server.inner), prefix.to_owned());
        let after = after.map(str::to_owned);
        let request = move || {
            let (inner, prefix, after) = (Arc::clone(&inner), owned.clone(), after.clone());
            async move { inner.list(&prefix, after.as_deref()).await }.boxed()
        };
        self.call("list", prefix, Box::new(request))
    }

    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let (inner, owned) = (Arc::clone(&self.server.inner), directory.to_owned());
        let request = move || {
            let (inner, directory) = (Arc::clone(&inner), owned.clone());
            async move { inner.directories(&directory).await }.boxed()
        };
        self.call("list", directory, Box::new(request))
    }

    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>> {
        if self.disk.is_frozen() {
            return std::future::pending().boxed();
        }
        let now_ms = self.server.log.now_ms();
        for key in keys {
            let oracle = &self.server.oracle;
            oracle.sends(self.server.index, &self.name, "delete", key, now_ms);
        }
        let (inner, owned) = (Arc::clone(&self.server.inner), keys.to_vec());
        let request = move || {
            let (inner, keys) = (Arc::clone(&inner), owned.clone());
            async move { inner.delete(&keys).await }.boxed()
        };
        self.call("delete", &keys.join(" "), Box::new(request))
    }

    fn capabilities(&self) -> Capabilities {
        self.server.inner.capabilities()
    }

    fn describe(&self) -> String {
        format!("memory {}", self.server.index)
    }

    fn layout(&self) -> Layout {
        self.server.inner.layout()
    }
}

/// Reads the content of a file at the time of sending.
fn read(body: &Body) -> std::io::Result<Bytes> {
    match body {
        Body::Bytes(bytes) => Ok(bytes.clone()),
        Body::File { path, len } => {
            let mut bytes = std::fs::read(path)?;
            bytes.truncate(*len as usize);
            Ok(bytes.into())
        }
    }
}
