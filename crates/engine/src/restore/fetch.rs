//! Fetches stored objects: ranges of them, several at once, handed on in order.
//!
//! Nothing goes to disk: a range stays in memory until the reader takes it. So memory is bounded by
//! the ranges in flight, whatever the size of objects.

use std::io::{self, Read};
use std::ops::Range;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use store::{SharedStore, Store, StoreError};
use tokio::sync::mpsc;

/// Bytes of one read. An object of at most this size is read whole.
pub const RANGE_BYTES: u64 = 2 << 20;

/// Reads objects one after the other; each read ends at the end of its object.
pub(crate) struct Objects {
    parts: mpsc::Receiver<Part>,
    rest: Bytes,
    is_last: bool,
}

/// A part of an object.
struct Part {
    bytes: Bytes,
    /// Whether the object ends with this part.
    is_last: bool,
}

/// The source of the parts of [`Objects`].
pub(crate) struct Fetch<'a> {
    store: &'a SharedStore,
    parts: mpsc::Sender<Part>,
}

/// Creates a fetch and the reader of its objects.
pub(crate) fn pipe(store: &SharedStore) -> (Fetch<'_>, Objects) {
    let (sender, parts) = mpsc::channel(1);
    let objects = Objects {
        parts,
        rest: Bytes::new(),
        is_last: false,
    };
    let parts = sender;
    (Fetch { store, parts }, objects)
}

impl Fetch<'_> {
    /// Fetches objects, given by key and size, in this order, with up to `parallelism` requests at
    /// once. Calls `arrived` with the bytes of each part. Ends early and without an error when the
    /// reader is dropped.
    pub(crate) async fn bring(
        self,
        objects: impl Iterator<Item = (String, u64)>,
        parallelism: usize,
        mut arrived: impl FnMut(u64),
    ) -> Result<(), StoreError> {
        let reads =
            objects.flat_map(|(key, size)| ranges(size).map(move |range| (key.clone(), range)));
        let reads = reads.map(|(key, range)| async move {
            let is_last = range.as_ref().is_none_or(|(_, is_last)| *is_last);
            let read = self.store.get(&key, range.map(|(range, _)| range));
            read.await.map(|bytes| Part { bytes, is_last })
        });
        let mut reads = futures::stream::iter(reads).buffered(parallelism.clamp(1, 64));
        while let Some(part) = reads.next().await {
            let part = part?;
            let bytes = part.bytes.len() as u64;
            if self.parts.send(part).await.is_err() {
                // The reader reports the error that it found in an object.
                return Ok(());
            }
            arrived(bytes);
        }
        Ok(())
    }
}

/// The reads that make up an object, and whether each is the last one; none means one read of all.
fn ranges(size: u64) -> impl Iterator<Item = Option<(Range<u64>, bool)>> {
    let whole = (size <= RANGE_BYTES).then_some(None);
    let starts = (0..size).step_by(RANGE_BYTES as usize);
    let parts = starts
        .filter(move |_| size > RANGE_BYTES)
        .map(move |start| {
            let end = size.min(start + RANGE_BYTES);
            Some((start..end, end == size))
        });
    whole.into_iter().chain(parts)
}

impl Objects {
    /// Continues with the next object, after this one was read to its end.
    pub(crate) fn next_object(&mut self) {
        debug_assert!(self.rest.is_empty() && self.is_last);
        self.is_last = false;
    }
}

impl Read for Objects {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            if self.is_last {
                return Ok(0);
            }
            let part = self.parts.blocking_recv();
            let part = part.ok_or_else(|| io::Error::other("the fetch has ended"))?;
            (self.rest, self.is_last) = (part.bytes, part.is_last);
        }
        let count = out.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
impl Objects {
    /// One object, in parts of this size that have already arrived.
    pub(crate) fn of(object: &[u8], part_bytes: usize) -> Objects {
        let (sender, parts) = mpsc::channel(object.len() + 1);
        let mut chunks = object.chunks(part_bytes).peekable();
        loop {
            let bytes = Bytes::copy_from_slice(chunks.next().unwrap_or_default());
            let is_last = chunks.peek().is_none();
            let part = Part { bytes, is_last };
            assert!(sender.try_send(part).is_ok(), "there is room for each byte");
            if is_last {
                break;
            }
        }
        Objects {
            parts,
            rest: Bytes::new(),
            is_last: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_an_object_and_the_last_one_says_so() {
        assert_eq!(ranges(0).collect::<Vec<_>>(), [None]);
        assert_eq!(ranges(RANGE_BYTES).collect::<Vec<_>>(), [None]);
        let size = 2 * RANGE_BYTES + 1;
        let expected = [
            Some((0..RANGE_BYTES, false)),
            Some((RANGE_BYTES..2 * RANGE_BYTES, false)),
            Some((2 * RANGE_BYTES..size, true)),
        ];
        assert_eq!(ranges(size).collect::<Vec<_>>(), expected);
        let size = 2 * RANGE_BYTES;
        assert_eq!(ranges(size).last(), Some(Some((RANGE_BYTES..size, true))));
    }
}
