//! Reading a [`Body`], again for each attempt.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use crate::StoreError;
use crate::object::Body;

impl Body {
    /// Returns the whole body; the caller bounds its size.
    pub(crate) async fn read_all(&self) -> Result<Bytes, StoreError> {
        self.read(0, self.size()).await
    }

    /// Returns `len` bytes from `offset` on, which must lie within the body.
    pub(crate) async fn read(&self, offset: u64, len: u64) -> Result<Bytes, StoreError> {
        match self {
            Self::Bytes(bytes) => {
                // Within a buffer in memory, so both fit.
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

/// Runs file work on the blocking pool, so that a slow disk does not stop the one thread that
/// everything else runs on. The work goes on when the future is dropped.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => panic!("blocking work is only cancelled when the runtime goes"),
        },
    }
}
