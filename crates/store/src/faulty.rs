//! A store with planned failures, for fault loops: fail the first call, then the second, until a
//! run meets no failure.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::object::{Body, ByteStream, Capabilities, Layout, ObjectInfo, PutMeta, PutMode, Store};
use crate::{CredentialsStatus, Requests, StoreError, StoreErrorKind};

/// The failure of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call has no effect and fails.
    Fail(StoreErrorKind),
    /// The call takes effect; its answer is lost and it fails.
    ApplyThenFail(StoreErrorKind),
    /// The call has no effect and never returns. The caller needs a time limit.
    Stall,
    /// The call takes effect and never returns.
    ApplyThenStall,
}

/// The calls that fail. Calls count from 0, in the order in which they are first polled.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    at: BTreeMap<u64, Fault>,
    from: Option<(u64, Fault)>,
    random: Option<Random>,
}

#[derive(Debug, Clone)]
struct Random {
    state: u64,
    one_in: u64,
    faults: Vec<Fault>,
}

impl FaultPlan {
    /// Creates a plan without failures.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a failure of the call with number `call`.
    #[must_use]
    pub fn at(mut self, call: u64, fault: Fault) -> Self {
        self.at.insert(call, fault);
        self
    }

    /// Adds a failure of every call from number `call` on. Calls named by [`at`](Self::at) keep
    /// their own fault.
    #[must_use]
    pub fn from(mut self, call: u64, fault: Fault) -> Self {
        self.from = Some((call, fault));
        self
    }

    /// Adds a random failure from `faults` for one in `one_in` of the other calls. The same seed
    /// and the same calls give the same faults.
    ///
    /// # Panics
    /// When `one_in` is 0 or `faults` is empty.
    #[must_use]
    pub fn random(mut self, seed: u64, one_in: u64, faults: &[Fault]) -> Self {
        assert!(
            one_in > 0 && !faults.is_empty(),
            "a random plan needs a rate and faults"
        );
        self.random = Some(Random {
            state: seed,
            one_in,
            faults: faults.to_vec(),
        });
        self
    }

    fn next(&mut self, call: u64) -> Option<Fault> {
        let random = self.random.as_mut().and_then(Random::next);
        let from = self
            .from
            .filter(|(first, _)| call >= *first)
            .map(|(_, fault)| fault);
        self.at.get(&call).copied().or(from).or(random)
    }
}

impl Random {
    fn next(&mut self) -> Option<Fault> {
        let hit = self.draw().is_multiple_of(self.one_in);
        let choice = self.draw() % self.faults.len() as u64;
        // The value is below the length of a vector, so it fits.
        hit.then(|| self.faults[choice as usize])
    }

    /// SplitMix64: small, and valid for every seed.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// One call to a [`Faulty`] store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `put`, `get`, `head`, `list` or `delete`.
    pub operation: &'static str,
    /// The key or prefix; for a delete, the first key.
    pub key: String,
    /// Its failure, if any.
    pub fault: Option<Fault>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation, self.key)?;
        self.fault.map_or(Ok(()), |fault| write!(f, " ({fault:?})"))
    }
}

/// A store whose calls fail as planned.
pub struct Faulty<S> {
    inner: S,
    state: Mutex<State>,
}

struct State {
    plan: FaultPlan,
    calls: Vec<Call>,
}

impl<S: Store> Faulty<S> {
    /// Wraps a store.
    pub fn new(inner: S, plan: FaultPlan) -> Self {
        Self {
            inner,
            state: Mutex::new(State {
                plan,
                calls: Vec::new(),
            }),
        }
    }

    /// Returns the inner store, for reads that must not fail.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Returns the number of calls.
    pub fn operations(&self) -> u64 {
        self.state().calls.len() as u64
    }

    /// Returns the calls so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Replaces the plan; the count of calls continues.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.state().plan = plan;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    fn next(&self, operation: &'static str, key: &str) -> Option<Fault> {
        let state = &mut *self.state();
        let fault = state.plan.next(state.calls.len() as u64);
        state.calls.push(Call {
            operation,
            key: key.to_owned(),
            fault,
        });
        fault
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        key: String,
        apply: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let failure = |kind| {
            Err(StoreError::of_kind(
                kind,
                &format!("{operation} {key}"),
                &key,
            ))
        };
        match self.next(operation, &key) {
            None => apply.await,
            Some(Fault::Fail(kind)) => failure(kind),
            Some(Fault::ApplyThenFail(kind)) => {
                apply.await?;
                failure(kind)
            }
            Some(Fault::Stall) => futures::future::pending().await,
            Some(Fault::ApplyThenStall) => {
                apply.await?;
                futures::future::pending().await
            }
        }
    }
}

impl<S: Store> Store for Faulty<S> {
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let apply = self.inner.put(key, body, mode, meta);
        self.call("put", key.to_owned(), apply).boxed()
    }

    fn put_stream(
        &self,
        key: &str,
        stream: ByteStream,
        expected_bytes: u64,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        let inner = &self.inner;
        let apply = inner.put_stream(key, stream, expected_bytes, mode, meta);
        self.call("put", key.to_owned(), apply).boxed()
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        self.call("get", key.to_owned(), self.inner.get(key, range))
            .boxed()
    }

    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>> {
        self.call("head", key.to_owned(), self.inner.head(key))
            .boxed()
    }

    fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>> {
        self.call(
            "list",
            prefix.to_owned(),
            self.inner.list(prefix, start_after),
        )
        .boxed()
    }

    fn directories(&self, directory: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let apply = self.inner.directories(directory);
        self.call("list", directory.to_owned(), apply).boxed()
    }

    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>> {
        let first = keys.first().cloned().unwrap_or_default();
        self.call("delete", first, self.inner.delete(keys)).boxed()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn layout(&self) -> Layout {
        self.inner.layout()
    }

    fn credentials_status(&self) -> Option<CredentialsStatus> {
        self.inner.credentials_status()
    }

    fn requests(&self) -> Option<Requests> {
        self.inner.requests()
    }
}
