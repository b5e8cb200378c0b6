//! The point to restore, and the stored files that lead to it.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;
use ltx::Txid;
use store::SharedStore;

use super::RestoreError;
use super::search::TimeSearch;
use crate::replica::holes::{Hole, holes};
use crate::replica::manifest::{self, RemoteError, RemoteFile, read_header};
use crate::replica::restore_plan::{Plan, PlanError, plan_restore};
use crate::restore::litestream03::{self, Generation, GenerationError, GenerationPlan};

/// Damaged headers that a search for a time tolerates.
const MAX_DAMAGED: usize = 16;

/// The point to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The newest stored position.
    Latest,
    /// Exactly this position.
    Txid(Txid),
    /// The newest position at or before this time.
    Timestamp(Timestamp),
}

/// A point, resolved against the stored files.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Every file of the replica.
    pub files: BTreeSet<RemoteFile>,
    /// The files that lead to the point.
    pub plan: Plan,
}

/// The source that a restore reads.
#[derive(Debug, Clone)]
pub enum Way {
    /// Our files, which are those of Litestream 0.5.
    Files(Resolved),
    /// A generation of Litestream 0.3.
    Generation(GenerationPlan),
}

/// Lists our files and those of Litestream 0.3, and plans the restore of a point. If both lead to
/// it, the newer state is taken.
///
/// # Errors
///
/// See [`RestoreError`]; [`PlanError::Empty`] only when the store answers that it has no files.
pub async fn find(store: &SharedStore, point: Point) -> Result<Way, RestoreError> {
    let files = manifest::list(store).await?;
    // Generations have no TXIDs; beside our files, a TXID never means one.
    let by_txid = matches!(point, Point::Txid(_));
    let generations = if by_txid && !files.is_empty() {
        Vec::new()
    } else {
        litestream03::list(store).await?
    };
    if generations.is_empty() {
        let resolved = resolve(store, files, point).await;
        return resolved.map(Way::Files);
    }
    let at = match point {
        Point::Latest => None,
        Point::Timestamp(time) => Some(time),
        Point::Txid(_) => return Err(GenerationError::NoTxid.into()),
    };
    let Some(newest) = files.iter().map(|file| file.max).max() else {
        return litestream03::plan(&generations, at).map(Way::Generation);
    };
    let position = match at {
        None => newest,
        Some(time) => match position_at(store, &files, time).await {
            Err(RestoreError::TooEarly { oldest, .. }) => {
                return before_ours(&files, &generations, time, oldest).map(Way::Generation);
            }
            position => position?,
        },
    };
    let (ours_ms, theirs_ms) = (content_ms(&files, position), newest_ms(&generations, at));
    if theirs_ms > ours_ms {
        tracing::info!(
            ?ours_ms,
            ?theirs_ms,
            "what Litestream 0.3 stored is newer than our files"
        );
        return litestream03::plan(&generations, at).map(Way::Generation);
    }
    let plan = plan_restore(&files, Some(position))?;
    Ok(Way::Files(Resolved { files, plan }))
}

/// Plans the restore of a time from before our files.
fn before_ours(
    files: &BTreeSet<RemoteFile>,
    generations: &[Generation],
    wanted: Timestamp,
    oldest: Timestamp,
) -> Result<GenerationPlan, RestoreError> {
    // Without our first file, the files stored before the oldest remaining one are unknown.
    let is_whole = files.iter().any(|file| file.max.get() == 1);
    let end = newest_ms(generations, None).and_then(|ms| Timestamp::from_millisecond(ms).ok());
    if let Some(end) = end.filter(|end| !is_whole && *end < wanted) {
        return Err(GenerationError::Between {
            wanted,
            before: end,
            after: oldest,
        }
        .into());
    }
    litestream03::plan(generations, Some(wanted)).map_err(|error| match error {
        RestoreError::TooEarly { oldest: theirs, .. } => RestoreError::TooEarly {
            wanted,
            oldest: oldest.min(theirs),
        },
        error => error,
    })
}

/// When the store received the newest pages up to a position. A fence has no pages: it is younger
/// than the history that it ends.
fn content_ms(files: &BTreeSet<RemoteFile>, position: Txid) -> Option<i64> {
    let content = files
        .iter()
        .filter(|file| file.max <= position && file.has_pages());
    // A compaction or a later snapshot stores the same pages again.
    let newest = content.max_by_key(|file| (file.max, Reverse(file.modified_ms)));
    newest.map(|file| file.modified_ms)
}

fn newest_ms(generations: &[Generation], at: Option<Timestamp>) -> Option<i64> {
    let at_ms = at.map(Timestamp::as_millisecond);
    let each = generations
        .iter()
        .filter_map(|generation| generation.newest_ms(at_ms));
    each.max()
}

/// Plans the restore of a point from our files.
async fn resolve(
    store: &SharedStore,
    files: BTreeSet<RemoteFile>,
    point: Point,
) -> Result<Resolved, RestoreError> {
    let wanted = match point {
        Point::Latest => None,
        Point::Txid(txid) => Some(txid),
        Point::Timestamp(time) => Some(position_at(store, &files, time).await?),
    };
    let plan = plan_restore(&files, wanted)?;
    Ok(Resolved { files, plan })
}

/// The newest position at or before a time.
///
/// # Errors
///
/// See [`RestoreError`]. [`RestoreError::HoleAtTime`] when the position is beside a hole: the lost
/// file may be from before the time or from after it.
async fn position_at(
    store: &SharedStore,
    files: &BTreeSet<RemoteFile>,
    time: Timestamp,
) -> Result<Txid, RestoreError> {
    let position = stored_position_at(store, files, time).await?;
    let beside = |hole: &&Hole| hole.after == position;
    match holes(files, None).iter().find(beside) {
        None => Ok(position),
        Some(hole) => Err(RestoreError::HoleAtTime {
            wanted: time,
            before: hole.after,
            first: hole.first(),
            last: hole.last(),
            next: hole.next,
        }),
    }
}

/// The newest stored position at or before a time. A file with a damaged header has no time. The
/// position is known all the same, unless it may be that file's own.
async fn stored_position_at(
    store: &SharedStore,
    files: &BTreeSet<RemoteFile>,
    time: Timestamp,
) -> Result<Txid, RestoreError> {
    let mut readable = Cow::Borrowed(files);
    let mut damaged: Vec<(Txid, RemoteError)> = Vec::new();
    loop {
        match position_among(store, &readable, time).await {
            Err(Unknown::Damaged(file, error)) if damaged.len() < MAX_DAMAGED => {
                tracing::warn!("{error}: the time is looked for without it");
                readable.to_mut().remove(&file);
                damaged.push((file.max, error));
            }
            Err(Unknown::Damaged(_, error)) => return Err(error.into()),
            found => {
                // A damaged file may be meant if it ends between the position found, or none, and
                // the next position that has a time.
                let position = found.as_ref().copied().unwrap_or(Txid::ZERO);
                let ends = readable.iter().map(|file| file.max);
                let next = ends.filter(|end| *end > position).min();
                let may_be_meant = |(end, _): &(Txid, RemoteError)| {
                    *end > position && next.is_none_or(|next| *end < next)
                };
                return match (found, damaged.into_iter().find(may_be_meant)) {
                    (
                        Ok(_) | Err(Unknown::Other(RestoreError::TooEarly { .. })),
                        Some((_, error)),
                    ) => Err(error.into()),
                    (Err(Unknown::Other(error)), _) => Err(error),
                    (found, _) => Ok(found.unwrap_or(position)),
                };
            }
        }
    }
}

/// Why the position of a time is unknown.
enum Unknown {
    /// The header of this file cannot be understood.
    Damaged(RemoteFile, RemoteError),
    Other(RestoreError),
}

async fn position_among(
    store: &SharedStore,
    files: &BTreeSet<RemoteFile>,
    time: Timestamp,
) -> Result<Txid, Unknown> {
    let ends = ends(files);
    if ends.is_empty() {
        return Err(Unknown::Other(PlanError::Empty.into()));
    }
    let stored_ms = ends.iter().map(|(_, stored_ms)| *stored_ms);
    let mut search = TimeSearch::new(stored_ms.collect(), time.as_millisecond());
    let mut oldest_ms = i64::MAX;
    while let Some(index) = search.poll_probe() {
        let file = ends[index].0;
        let header = match read_header(store, &file).await {
            Err(error @ RemoteError::Store(_)) => return Err(Unknown::Other(error.into())),
            Err(error) => return Err(Unknown::Damaged(file, error)),
            Ok(header) => header,
        };
        oldest_ms = oldest_ms.min(header.timestamp_ms);
        search.handle_time(index, header.timestamp_ms);
    }
    match search.found().checked_sub(1) {
        Some(index) => Ok(ends[index].0.max),
        // The search finds no file only if it has read the header of the oldest one.
        None => Err(Unknown::Other(RestoreError::TooEarly {
            wanted: time,
            oldest: Timestamp::from_millisecond(oldest_ms).unwrap_or(Timestamp::MAX),
        })),
    }
}

/// One file for each position, in order: the one of the lowest level, with the time at which the
/// store received the first of its files.
fn ends(files: &BTreeSet<RemoteFile>) -> Vec<(RemoteFile, i64)> {
    let mut sorted: Vec<RemoteFile> = files.iter().copied().collect();
    sorted.sort_by_key(|file| (file.max, file.level));
    let same = sorted.chunk_by(|one, other| one.max == other.max);
    let first = |files: &[RemoteFile]| {
        let stored_ms = files.iter().map(|file| file.modified_ms).min()?;
        Some((files[0], stored_ms))
    };
    same.filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ltx::{Encoder, Header};
    use sqlite_format::{PageSize, Salts};
    use store::{Body, FaultPlan, Faulty, Memory, PutMeta, PutMode, Store};

    use super::*;

    /// The newest position.
    const NEWEST: u64 = 300;

    /// Capture time of a position; of three positions, two share a millisecond.
    fn captured_ms(txid: u64) -> i64 {
        1_000_000 + (txid as i64 - 1) / 3 * 1000 + (txid as i64 - 1) % 3 / 2
    }

    /// Three captures each second, the older ones only inside compacted files. The store reports
    /// `stored_ms` for the file that ends at a position.
    async fn replica(stored_ms: impl Fn(u64) -> i64 + Send + Sync) -> Arc<Faulty<Memory>> {
        let compacted = (2..=NEWEST).filter(|txid| txid % 30 == 0);
        let compacted = compacted.map(|txid| (1, if txid == 30 { 2 } else { txid - 29 }, txid));
        let captured = (NEWEST / 2..=NEWEST).map(|txid| (0, txid, txid));
        let files = [(9, 1, 1)].into_iter().chain(compacted).chain(captured);
        store_of(files, captured_ms, stored_ms).await
    }

    /// A store with these files, each a level, a first and a last TXID.
    async fn store_of(
        files: impl IntoIterator<Item = (u8, u64, u64)>,
        captured_ms: impl Fn(u64) -> i64,
        stored_ms: impl Fn(u64) -> i64,
    ) -> Arc<Faulty<Memory>> {
        let store = Arc::new(Faulty::new(Memory::new(), FaultPlan::none()));
        for (level, min, max) in files {
            let (min_txid, max_txid) = (Txid::new(min), Txid::new(max));
            let header = Header {
                flags: Header::NO_CHECKSUM,
                page_size: PageSize::MIN,
                commit: 1,
                min_txid,
                max_txid,
                timestamp_ms: captured_ms(max),
                pre_apply: 0,
                wal_offset: 32,
                wal_size: 0,
                wal_salts: Salts { salt1: 1, salt2: 1 },
                node_id: 1,
                reserved: [0; 20],
            };
            let mut encoder = Encoder::new(Vec::new(), header).unwrap();
            encoder.encode_page(1, &[0; 512]).unwrap();
            let (bytes, _) = encoder.finish().unwrap();
            let name = header.file_name();
            let key = manifest::key(store.layout(), level, name);
            let meta = PutMeta {
                timestamp_ms: Some(stored_ms(max)),
            };
            let put = store.put(&key, Body::from(bytes), PutMode::Create, &meta);
            put.await.unwrap();
        }
        store
    }

    /// The position that a time means, and the number of headers read for it.
    async fn found(store: &Arc<Faulty<Memory>>, ms: i64) -> (Result<Txid, RestoreError>, usize) {
        let shared = Arc::clone(store) as SharedStore;
        let point = Point::Timestamp(Timestamp::from_millisecond(ms).unwrap());
        let before = store.calls().len();
        let way = find(&shared, point).await;
        let calls = store.calls().split_off(before);
        let headers = calls.iter().filter(|call| call.operation == "get");
        let txid = way.map(|way| match way {
            Way::Files(resolved) => resolved.plan.txid,
            Way::Generation(_) => panic!("there is none"),
        });
        (txid, headers.count())
    }

    async fn every_time_is_found(stored_ms: fn(u64) -> i64, most: usize) {
        let store = replica(stored_ms).await;
        let ends: Vec<u64> = (1..=NEWEST)
            .filter(|txid| *txid == 1 || *txid >= NEWEST / 2 || txid % 30 == 0)
            .collect();
        for txid in &ends {
            for ms in [captured_ms(*txid), captured_ms(*txid) + 1] {
                let expected = ends.iter().rfind(|end| captured_ms(**end) <= ms).unwrap();
                let (found, headers) = found(&store, ms).await;
                assert_eq!(found.unwrap(), Txid::new(*expected), "{ms}");
                assert!(headers <= most, "{ms}: {headers} headers");
            }
        }
        let (none, _) = found(&store, captured_ms(1) - 1).await;
        let oldest = Timestamp::from_millisecond(captured_ms(1)).unwrap();
        match none {
            Err(RestoreError::TooEarly { oldest: said, .. }) => assert_eq!(said, oldest),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_time_means_the_newest_capture_at_or_before_it_whatever_the_store_says() {
        every_time_is_found(captured_ms, 2).await;
        every_time_is_found(|txid| captured_ms(txid) + 700, 5).await;
        every_time_is_found(|txid| captured_ms(txid) - 3_600_000, 4).await;
        every_time_is_found(|_| 5_000_000, 14).await;
        every_time_is_found(|txid| -(txid as i64), 14).await;
    }

    /// Resolves each time of a replica without one of its files. Returns the positions whose times
    /// are refused.
    async fn refused_without(
        files: &[(u8, u64, u64)],
        lost: Option<(u8, u64, u64)>,
    ) -> BTreeSet<u64> {
        let at = |txid: u64| txid as i64 * 1000;
        let left = files.iter().copied().filter(|file| Some(*file) != lost);
        let store = store_of(left, at, at).await;
        let newest = files.iter().map(|file| file.2).max().unwrap();
        let mut refused = BTreeSet::new();
        // The loss of the newest file cannot be noticed.
        for txid in 1..newest {
            let ends = files.iter().map(|file| file.2);
            let meant = ends.filter(|end| *end <= txid).max().unwrap();
            for ms in [at(txid), at(txid) + 999] {
                match found(&store, ms).await.0 {
                    Ok(found) => assert_eq!(found.get(), meant, "{lost:?} {ms}"),
                    Err(_) => drop(refused.insert(txid)),
                }
            }
        }
        refused
    }

    #[tokio::test]
    async fn without_any_one_of_its_files_a_time_is_that_of_the_right_state_or_refused() {
        let captured = (2..=40).map(|txid| (0, txid, txid));
        let mut files: Vec<(u8, u64, u64)> = captured.collect();
        files.extend([(9, 1, 1), (9, 1, 20), (1, 2, 15), (1, 16, 30), (2, 2, 30)]);
        assert!(refused_without(&files, None).await.is_empty());
        for lost in files.clone() {
            let refused = refused_without(&files, Some(lost)).await;
            let (level, _, txid) = lost;
            let expected: BTreeSet<u64> = match level {
                // Other files end at the same positions.
                0 if [15, 20, 30, 40].contains(&txid) => BTreeSet::new(),
                // Beside the hole the time is unknown. Later positions cannot be reached until a
                // file leads over the hole.
                0 => {
                    let over = [15, 20, 30, 40].into_iter().find(|end| *end > txid);
                    (txid - 1..over.unwrap()).collect()
                }
                // Without the first snapshot no file leads to the positions before the second.
                9 if txid == 1 => (1..20).collect(),
                _ => BTreeSet::new(),
            };
            assert_eq!(refused, expected, "{lost:?}");
        }
    }

    #[tokio::test]
    async fn a_time_between_two_steps_of_level_1_is_no_hole() {
        let captured = (16..=40).map(|txid| (0, txid, txid));
        let mut files: Vec<(u8, u64, u64)> = captured.collect();
        files.extend([(9, 1, 1), (1, 2, 8), (1, 9, 15), (1, 16, 30), (2, 2, 15)]);
        assert!(refused_without(&files, None).await.is_empty());
        let beside = refused_without(&files, Some((0, 25, 25))).await;
        assert_eq!(beside, (24..30).collect());
        // Retention has deleted some of the files that one of level 1 covers. The positions after
        // them cannot be reached any more. The times of the deleted files resolve to the position
        // before.
        for gone in 16..20 {
            files.retain(|file| *file != (0, gone, gone));
            let refused = refused_without(&files, None).await;
            assert_eq!(refused, (gone + 1..30).collect());
        }
        // All but the newest have expired.
        files.retain(|(level, _, txid)| *level > 0 || *txid == 40);
        files.push((1, 31, 40));
        assert!(refused_without(&files, None).await.is_empty());
    }

    #[tokio::test]
    async fn a_refused_time_names_the_hole() {
        let files = [(9, 1, 1), (0, 2, 2), (0, 13, 13), (1, 2, 13)];
        let store = store_of(files, |txid| txid as i64, |txid| txid as i64).await;
        let error = found(&store, 5).await.0.unwrap_err();
        let said = error.to_string();
        for word in ["0000000000000003", "000000000000000c", "cannot be known"] {
            assert!(said.contains(word), "{said}");
        }
        let judged = crate::verify::judge_restore(&error);
        assert_eq!(judged, protocol::verify::VerifyResult::Hole);
    }

    #[tokio::test]
    async fn a_damaged_header_ends_only_the_search_for_its_own_time() {
        let store = replica(captured_ms).await;
        let name = |txid| ltx::FileName {
            min: Txid::new(txid),
            max: Txid::new(txid),
        };
        let damage = async |txid| {
            let key = manifest::key(store.layout(), 0, name(txid));
            let put = store.put(
                &key,
                Body::from(vec![7; 200]),
                PutMode::Overwrite,
                &PutMeta::default(),
            );
            put.await.unwrap();
        };
        let at = |txid: u64| captured_ms(txid);
        // Compacted files end at 180 and 270, too: their times are those of the positions.
        for txid in [180, 200, 270, 271] {
            damage(txid).await;
        }
        let (before, _) = found(&store, at(197)).await;
        assert_eq!(before.unwrap(), Txid::new(197));
        let (compacted, _) = found(&store, at(270)).await;
        assert!(
            matches!(compacted, Err(RestoreError::Remote(_))),
            "271 may be of then"
        );
        let (its_own, _) = found(&store, at(180)).await;
        assert_eq!(its_own.unwrap(), Txid::new(180));
        let (doubtful, _) = found(&store, at(199)).await;
        assert!(
            matches!(doubtful, Err(RestoreError::Remote(_))),
            "200 is of then"
        );
        let (after, _) = found(&store, at(202)).await;
        assert_eq!(after.unwrap(), Txid::new(203), "of two in one millisecond");
        let key = manifest::key(store.layout(), 9, name(1));
        let bytes = Body::from(vec![7; 200]);
        let put = store.put(&key, bytes, PutMode::Overwrite, &PutMeta::default());
        put.await.unwrap();
        let (oldest, _) = found(&store, at(1)).await;
        assert!(
            matches!(oldest, Err(RestoreError::Remote(_))),
            "not too early"
        );
        for txid in 205..260 {
            damage(txid).await;
        }
        let (hopeless, _) = found(&store, at(230)).await;
        assert!(matches!(hopeless, Err(RestoreError::Remote(_))));
    }
}
