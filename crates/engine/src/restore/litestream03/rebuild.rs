//! Builds a database from a snapshot and the WALs after it.
//!
//! A snapshot goes straight into the file, and over it the whole transactions of each WAL.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sqlite_format::{DatabaseHeader, FrameHeader, PageSize};
use store::SharedStore;

use super::content::Content;
use super::plan::time_of;
use super::wal::{Images, Log};
use super::{Damage, GenerationError, GenerationPlan, Segment};
use crate::pages::page_bitmap::PageNumbers;
use crate::restore::{Assembly, Objects, RestoreError, Whole, failed, pipe};

/// Bytes decoded at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Fetches the objects of a plan and builds the database from them. Calls `progress` with the bytes
/// read and the bytes to read.
///
/// # Errors
///
/// See [`RestoreError`]; the assembly is useless then.
pub(crate) async fn rebuild(
    assembly: &mut Assembly,
    store: &SharedStore,
    plan: &GenerationPlan,
    parallelism: usize,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<(), RestoreError> {
    let (fetch, objects) = pipe(store);
    let (path, owned) = (assembly.path().to_owned(), plan.clone());
    let build = move |file: &File| Build::run(file, &path, &owned, objects);
    let keys = plan
        .objects()
        .map(|object| (object.key.clone(), object.size));
    let (mut bytes, total) = (0, plan.bytes());
    let fetching = fetch.bring(keys, parallelism, |arrived| {
        bytes += arrived;
        progress(bytes, total);
    });
    let (fetched, built) = futures::join!(fetching, assembly.write_whole(build));
    // When the fetch fails, the build only sees an early end.
    fetched?;
    built
}

/// A database that grows out of a snapshot.
struct Build<'a> {
    file: &'a File,
    path: &'a Path,
    plan: &'a GenerationPlan,
    page_size: PageSize,
    /// Size in pages.
    commit: u32,
    /// The pages that are in the snapshot or in a frame.
    held: PageNumbers,
}

impl Build<'_> {
    fn run(
        file: &File,
        path: &Path,
        plan: &GenerationPlan,
        mut objects: Objects,
    ) -> Result<Whole, RestoreError> {
        let mut build = Build::from_snapshot(file, path, plan, &mut objects)?;
        let logs: Vec<&[Segment]> = plan
            .segments
            .chunk_by(|one, next| one.log == next.log)
            .collect();
        if let Some((last, complete)) = logs.split_last() {
            for segments in complete {
                build.apply_complete(segments, &mut objects)?;
            }
            build.apply_last(last, &mut objects)?;
        }
        let lock_pgno = build.page_size.lock_pgno();
        let missing = |pgno: &u32| !build.held.contains(*pgno) && *pgno != lock_pgno;
        if let Some(pgno) = (1..=build.commit).find(missing) {
            let commit = build.commit;
            return Err(RestoreError::MissingPage { pgno, commit });
        }
        Ok(Whole {
            page_size: build.page_size,
            commit: build.commit,
            generation: plan.id,
            timestamp_ms: plan.time_ms,
            bytes: plan.bytes(),
            files: plan.objects().count(),
        })
    }

    fn from_snapshot<'a>(
        file: &'a File,
        path: &'a Path,
        plan: &'a GenerationPlan,
        objects: &mut Objects,
    ) -> Result<Build<'a>, RestoreError> {
        let mut content = Content::open(objects, &plan.snapshot.object.key);
        let mut buffer = vec![0; CHUNK_BYTES];
        let (mut header, mut bytes) = (None, 0);
        loop {
            let filled = content.fill(&mut buffer)?;
            if header.is_none() {
                let parsed = DatabaseHeader::parse(&buffer[..filled]);
                header = Some(parsed.map_err(|source| content.damaged(Damage::Database(source)))?);
            }
            file.write_all_at(&buffer[..filled], bytes)
                .map_err(failed(path))?;
            bytes += filled as u64;
            if filled < buffer.len() {
                break;
            }
        }
        let page_size = header.expect("it was parsed first").page_size;
        let part_page = Damage::PartPage {
            bytes,
            page_size: page_size.get(),
        };
        let size = u64::from(page_size.get());
        let commit = u32::try_from(bytes / size)
            .ok()
            .filter(|_| bytes % size == 0)
            .ok_or_else(|| content.damaged(part_page))?;
        Ok(Build {
            file,
            path,
            plan,
            page_size,
            commit,
            held: PageNumbers::up_to(commit),
        })
    }

    /// Applies a WAL that others follow, so it must end with a transaction.
    fn apply_complete(
        &mut self,
        segments: &[Segment],
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        let log = self.log(segments, objects)?;
        if log.whole < log.frames {
            let (id, log) = (self.plan.id, segments[0].log);
            return Err(GenerationError::Unfinished { id, log }.into());
        }
        let whole = log.whole;
        self.apply(&mut log.images()?, whole)
    }

    /// Applies the whole transactions of the WAL in which the restore ends.
    fn apply_last(
        &mut self,
        segments: &[Segment],
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        let mut log = self.log(segments, objects)?;
        let whole = log.whole;
        for segment in &self.plan.ahead {
            match log.append(segment, objects) {
                // The damaged segment is after the requested time: the time may be just before the
                // damage.
                Err(RestoreError::Generation(error)) => {
                    tracing::warn!("after the time asked for: {error}");
                    break;
                }
                appended => appended?,
            }
        }
        let frames = log.frames;
        let mut images = log.images()?;
        if whole > 0 && !self.plan.ahead.is_empty() {
            self.check_snapshot(&mut images, frames, whole)?;
            images.rewind()?;
        }
        self.apply(&mut images, whole)
    }

    /// Checks that the snapshot has no transaction of its WAL later than the first `whole` frames.
    ///
    /// Litestream reads the snapshot while its WAL grows. A checkpoint may have copied transactions
    /// into it whose segments were stored only later. An earlier part of the WAL applied to it
    /// would give a mixture of two states, in which SQLite need not find any fault. The snapshot
    /// may reach as far as a transaction at which every page of the WAL is as in the snapshot. If
    /// that holds where the restore ends, the snapshot contains no later change.
    fn check_snapshot(
        &self,
        images: &mut Images,
        frames: u64,
        whole: u64,
    ) -> Result<(), RestoreError> {
        let mut own = vec![0; self.page_size.as_usize()];
        let mut different = BTreeSet::new();
        for number in 1..=frames {
            let (FrameHeader { pgno, commit, .. }, image) = images.next()?;
            if pgno <= self.commit {
                let read = self.file.read_exact_at(&mut own, self.offset_of(pgno));
                read.map_err(failed(self.path))?;
            }
            if pgno <= self.commit && own == image {
                different.remove(&pgno);
            } else {
                different.insert(pgno);
            }
            let is_same = commit != 0 && different.range(..=commit).next().is_none();
            match number.cmp(&whole) {
                Ordering::Equal if is_same && commit == self.commit => return Ok(()),
                Ordering::Greater if is_same => return Err(self.snapshot_ahead().into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn snapshot_ahead(&self) -> GenerationError {
        let times = self.plan.ahead.iter();
        let newest_ms = times.map(|segment| segment.object.modified_ms).max();
        GenerationError::SnapshotAhead {
            key: self.plan.snapshot.object.key.clone(),
            certain: time_of(newest_ms.unwrap_or(i64::MAX)),
        }
    }

    fn log(&self, segments: &[Segment], objects: &mut Objects) -> Result<Log, RestoreError> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let mut log = Log::new(directory, self.page_size)?;
        for segment in segments {
            log.append(segment, objects)?;
        }
        Ok(log)
    }

    /// Writes the page images of whole transactions.
    fn apply(&mut self, images: &mut Images, frames: u64) -> Result<(), RestoreError> {
        for _ in 0..frames {
            let (frame, image) = images.next()?;
            self.file
                .write_all_at(image, self.offset_of(frame.pgno))
                .map_err(failed(self.path))?;
            self.held.insert(frame.pgno);
            if frame.is_commit() {
                self.commit = frame.commit;
                // Pages beyond a shrunken end are missing if the database grows again.
                self.held.truncate(frame.commit);
            }
        }
        let bytes = u64::from(self.commit) * u64::from(self.page_size.get());
        self.file.set_len(bytes).map_err(failed(self.path))
    }

    fn offset_of(&self, pgno: u32) -> u64 {
        u64::from(pgno - 1) * u64::from(self.page_size.get())
    }
}
