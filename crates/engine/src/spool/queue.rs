//! A queue of bytes from the thread that produces them to the task that uploads them.
//!
//! The thread may run ahead by a few pieces in memory and, if allowed, by some bytes on disk. So
//! its duration does not depend on the speed of the store, and the queue is still bounded.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use store::{BoxError, ByteStream};
use tokio::sync::mpsc;

use crate::pages::page_set::unnamed_file;

/// Bytes of one piece.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces in memory between the thread and the upload.
const MEMORY_PIECES: usize = 8;

/// Creates a queue. Up to `disk_bytes` wait in an unnamed file in `directory`, besides 2 MiB in
/// memory.
///
/// # Errors
///
/// The file cannot be created.
pub(crate) fn queue(directory: &Path, disk_bytes: u64) -> io::Result<(Writer, ByteStream)> {
    let slots = u32::try_from(disk_bytes / PIECE_BYTES as u64).unwrap_or(u32::MAX);
    let file = match slots {
        0 => None,
        _ => Some(unnamed_file(directory)?),
    };
    let shared = Arc::new(Shared {
        places: Mutex::new(Places {
            memory: MEMORY_PIECES,
            free_slots: Vec::new(),
            unused_slots: 0..slots,
            is_closed: false,
        }),
        freed: Condvar::new(),
        file,
    });
    let (sender, receiver) = mpsc::unbounded_channel();
    let writer = Writer {
        shared: Arc::clone(&shared),
        sender,
        piece: Vec::new(),
    };
    let reader = Reader { shared, receiver };
    let stream = futures::stream::unfold(reader, |mut reader| async {
        let next = reader.next().await?;
        Some((next, reader))
    });
    Ok((writer, stream.boxed()))
}

/// The places for pieces.
struct Shared {
    places: Mutex<Places>,
    /// Signalled after a place became free, or the upload ended.
    freed: Condvar,
    file: Option<File>,
}

struct Places {
    memory: usize,
    free_slots: Vec<u32>,
    unused_slots: Range<u32>,
    is_closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> &File {
        let file = self.file.as_ref();
        file.expect("there are slots only where there is a file")
    }

    /// Waits for a place in memory (none) or for a slot of the file.
    fn take_place(&self) -> io::Result<Option<u32>> {
        let mut places = self.lock();
        loop {
            if places.is_closed {
                let reason = "the upload has ended";
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, reason));
            }
            if places.memory > 0 {
                places.memory -= 1;
                return Ok(None);
            }
            let slot = places.free_slots.pop();
            if let Some(slot) = slot.or_else(|| places.unused_slots.next()) {
                return Ok(Some(slot));
            }
            places = self
                .freed
                .wait(places)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn free(&self, slot: Option<u32>) {
        let mut places = self.lock();
        match slot {
            None => places.memory += 1,
            Some(slot) => places.free_slots.push(slot),
        }
        drop(places);
        self.freed.notify_one();
    }
}

/// One element of the queue.
enum Item {
    Memory(Bytes),
    Disk { slot: u32, len: usize },
    End,
}

/// The end for the thread. The bytes are complete only after [`Writer::finish`].
pub(crate) struct Writer {
    shared: Arc<Shared>,
    sender: mpsc::UnboundedSender<Item>,
    piece: Vec<u8>,
}

impl Writer {
    fn push(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        let item = match self.shared.take_place()? {
            None => Item::Memory(piece.into()),
            Some(slot) => {
                let offset = u64::from(slot) * PIECE_BYTES as u64;
                self.shared.file().write_all_at(&piece, offset)?;
                let len = piece.len();
                Item::Disk { slot, len }
            }
        };
        // Without a receiver, the request for the next place fails.
        let _gone = self.sender.send(item);
        Ok(())
    }

    /// Ends the stream, which is then complete.
    ///
    /// # Errors
    ///
    /// The upload has ended.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        if !self.piece.is_empty() {
            self.push()?;
        }
        let _gone = self.sender.send(Item::End);
        Ok(())
    }
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(PIECE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..len]);
        if self.piece.len() == PIECE_BYTES {
            self.push()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end for the task that uploads.
struct Reader {
    shared: Arc<Shared>,
    receiver: mpsc::UnboundedReceiver<Item>,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        match self.receiver.recv().await {
            Some(Item::Memory(bytes)) => {
                self.shared.free(None);
                Some(Ok(bytes))
            }
            Some(Item::Disk { slot, len }) => {
                let shared = Arc::clone(&self.shared);
                let read = move || -> io::Result<Bytes> {
                    let mut bytes = vec![0; len];
                    let offset = u64::from(slot) * PIECE_BYTES as u64;
                    shared.file().read_exact_at(&mut bytes, offset)?;
                    Ok(bytes.into())
                };
                let read = tokio::task::spawn_blocking(read).await;
                self.shared.free(Some(slot));
                let read = read.expect("reading does not panic");
                Some(read.map_err(BoxError::from))
            }
            Some(Item::End) => None,
            // An object that ended here would look complete.
            None => Some(Err("the bytes are not complete".into())),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 1000) as u8).collect()
    }

    async fn collect(mut stream: ByteStream) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        while let Some(piece) = stream.next().await {
            all.extend(piece.map_err(|error| error.to_string())?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_from_memory_and_disk() {
        let directory = tempfile::tempdir().unwrap();
        for disk_pieces in [0, 3, 100] {
            let len = 40 * PIECE_BYTES + 17;
            let (mut writer, stream) =
                queue(directory.path(), disk_pieces * PIECE_BYTES as u64).unwrap();
            let thread = tokio::task::spawn_blocking(move || {
                writer.write_all(&bytes(len)).unwrap();
                writer.finish().unwrap();
            });
            assert!(
                collect(stream).await.unwrap() == bytes(len),
                "{disk_pieces}"
            );
            thread.await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_reader_runs_ahead_as_far_as_there_is_room_and_no_further() {
        let directory = tempfile::tempdir().unwrap();
        let room = MEMORY_PIECES + 3;
        let (mut writer, stream) = queue(directory.path(), 3 * PIECE_BYTES as u64).unwrap();
        writer.write_all(&bytes(room * PIECE_BYTES)).unwrap();
        let rest = tokio::task::spawn_blocking(move || {
            writer.write_all(&bytes(PIECE_BYTES)).unwrap();
            writer.finish().unwrap();
        });
        let all = collect(stream).await.unwrap();
        assert_eq!(all.len(), (room + 1) * PIECE_BYTES);
        rest.await.unwrap();
    }

    #[tokio::test]
    async fn an_early_end_is_an_error_and_an_ended_upload_ends_the_reader() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, stream) = queue(directory.path(), 0).unwrap();
        writer.write_all(&bytes(PIECE_BYTES)).unwrap();
        drop(writer);
        let error = collect(stream).await.unwrap_err();
        assert_eq!(error, "the bytes are not complete");
        let (mut writer, stream) = queue(directory.path(), 0).unwrap();
        let thread = tokio::task::spawn_blocking(move || {
            let written = writer.write_all(&bytes(20 * PIECE_BYTES));
            written.map_err(|error| error.kind())
        });
        drop(stream);
        assert_eq!(thread.await.unwrap(), Err(io::ErrorKind::BrokenPipe));
    }
}
