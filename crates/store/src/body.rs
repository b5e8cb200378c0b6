//! Reads a [`Body`], from the start for each attempt.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::Fuse;

use crate::StoreError;
use crate::object::{Body, ByteStream};

impl Body {
    /// Returns the whole body; the caller bounds its size.
    pub(crate) async fn read_all(&self) -> Result<Bytes, StoreError> {
        self.read(0, self.size()).await
    }

    /// Returns `len` bytes from `offset` on. The range must lie within the body.
    pub(crate) async fn read(&self, offset: u64, len: u64) -> Result<Bytes, StoreError> {
        match self {
            Self::Bytes(bytes) => {
                // The buffer is in memory, so both numbers fit.
                Ok(bytes.slice(offset as usize..(offset + len) as usize))
            }
            Self::File { path, .. } => {
                let path = path.clone();
                blocking(move || {
                    let read = || -> io::Result<Bytes> {
                        let mut buffer = vec![0; usize::try_from(len).map_err(io::Error::other)?];
                        File::open(&path)?.read_exact_at(&mut buffer, offset)?;
                        Ok(buffer.into())
                    };
                    read().map_err(|error| StoreError::from_io("read body", &path, error))
                })
                .await
            }
        }
    }
}

/// Cuts a stream into parts of one size; the last part may be smaller.
pub(crate) struct Parts {
    stream: Fuse<ByteStream>,
    part_bytes: usize,
    /// Bytes that have arrived and do not belong to a returned part yet.
    rest: BytesMut,
}

impl Parts {
    /// Creates parts of `part_bytes`, except the last one. Memory is at most that size plus one
    /// piece of the stream.
    pub(crate) fn new(stream: ByteStream, part_bytes: usize) -> Self {
        Self {
            stream: stream.fuse(),
            part_bytes,
            rest: BytesMut::new(),
        }
    }

    /// Returns the next part; `None` at the end. An empty stream has no parts.
    ///
    /// # Errors
    /// [`StoreError::Other`] when the stream fails.
    pub(crate) async fn next(&mut self, what: &str) -> Result<Option<Bytes>, StoreError> {
        while self.rest.len() < self.part_bytes {
            match self.stream.next().await {
                Some(Ok(piece)) => self.rest.extend_from_slice(&piece),
                Some(Err(source)) => {
                    return Err(StoreError::Other {
                        what: what.to_owned(),
                        code: "the bytes to store ended early".to_owned(),
                        source: Some(source),
                    });
                }
                None => break,
            }
        }
        let len = self.rest.len().min(self.part_bytes);
        Ok((len > 0).then(|| self.rest.split_to(len).freeze()))
    }
}

/// Runs file work on the blocking pool, so that a slow disk does not stop the only async thread.
/// The work continues when the future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => panic!("blocking work is only cancelled when the runtime goes"),
        },
    }
}
