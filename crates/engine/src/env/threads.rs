//! Threads for work that waits for the disk or takes long.

use std::fmt::Debug;
use std::panic::resume_unwind;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Threads that may block. A simulation does their work at once, because virtual time stands still
/// while a thread works.
pub trait Threads: Debug + Send + Sync {
    /// Starts work, and returns a future that ends with it. The work goes on if that is dropped.
    ///
    /// # Panics
    ///
    /// The future panics if the work did.
    fn start(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;

    /// Waits for a future, on one of the threads.
    fn wait(&self, future: BoxFuture<'_, ()>);
}

/// The blocking pool of the tokio runtime.
#[derive(Debug, Clone, Copy)]
pub struct RuntimeThreads;

impl Threads for RuntimeThreads {
    fn start(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let task = tokio::task::spawn_blocking(work);
        async move {
            if let Err(error) = task.await
                && let Ok(panic) = error.try_into_panic()
            {
                resume_unwind(panic);
            }
        }
        .boxed()
    }

    fn wait(&self, future: BoxFuture<'_, ()>) {
        Handle::current().block_on(future);
    }
}

impl dyn Threads + '_ {
    /// Starts work, and returns a future of its result. See [`Threads::start`].
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<'static, T> {
        let (sender, receiver) = oneshot::channel();
        let ended = self.start(Box::new(move || {
            // The receiver is gone when nobody waits any more.
            let _sent = sender.send(work());
        }));
        async move {
            ended.await;
            receiver.await.expect("work that ended has sent its result")
        }
        .boxed()
    }

    /// Waits for a future, on one of the threads, and returns its result.
    pub(crate) fn wait_for<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        let mut result = None;
        let waiting = async { result = Some(future.await) };
        self.wait(waiting.boxed());
        result.expect("the future has ended")
    }
}
