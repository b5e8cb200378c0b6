//! Work that runs beside the uploads of captured files, and is abandoned when its target ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::{JoinError, JoinHandle};
use tracing::Instrument;

/// Work in progress. Dropping it abandons the work.
pub(super) struct Lane<T> {
    task: JoinHandle<T>,
    /// Its result, once it was awaited.
    end: Option<Result<T, JoinError>>,
    ending: Arc<AtomicBool>,
}

/// Tells a thread, which cannot be aborted, that its result is no longer wanted.
#[derive(Clone)]
pub(super) struct Ending(Arc<AtomicBool>);

impl Ending {
    /// True when the thread should end.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<T: Send + 'static> Lane<T> {
    /// Starts the work.
    pub(super) fn begin<F>(work: impl FnOnce(Ending) -> F) -> Lane<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let ending = Arc::new(AtomicBool::new(false));
        let work = work(Ending(Arc::clone(&ending)));
        Lane {
            task: tokio::spawn(work.in_current_span()),
            end: None,
            ending,
        }
    }

    /// True when [`Lane::done`] returns at once.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some() || self.task.is_finished()
    }

    /// Waits for the result.
    ///
    /// # Panics
    ///
    /// When the work has panicked.
    pub(super) async fn done(mut self) -> T {
        let end = match self.end.take() {
            Some(end) => end,
            None => (&mut self.task).await,
        };
        end.expect("it is not aborted before it is dropped, and does not panic")
    }
}

impl<T> Drop for Lane<T> {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

/// Waits until the work of a lane has ended. Without work, waits forever.
///
/// # Cancel safety
///
/// Dropping it changes nothing.
pub(super) async fn over<T>(lane: &mut Option<Lane<T>>) {
    match lane {
        Some(lane) if lane.end.is_none() => lane.end = Some((&mut lane.task).await),
        Some(_) => {}
        None => std::future::pending().await,
    }
}
