//! Replicas that Litestream 0.3 wrote. We read them, and never write or remove them.
//!
//! ```text
//! generations/ID/snapshots/LOG.snapshot.lz4   the database file while this WAL was the live one
//! generations/ID/wal/LOG_OFFSET.wal.lz4       this WAL from a byte on; its pieces are segments
//! ```
//!
//! ID is 16 hex digits, LOG 8, OFFSET 8 to 16; each object is one LZ4 frame. A *generation* is the
//! output of one unbroken run of Litestream 0.3: WALs with consecutive numbers, and at least one
//! snapshot that they apply to. A checkpoint ends a WAL. Times are those of the objects, as
//! reported by the store: no object contains the time of a commit.
//!
//! `plan` picks the objects that lead to a point, and `content` decodes them as they arrive. `log`
//! proves frames, and `rebuild` makes the database from them.

mod content;
mod error;
mod plan;
mod rebuild;
mod wal;

use std::collections::BTreeMap;
use std::fmt;

use store::{ObjectInfo, SharedStore, Store, StoreError};

pub use error::{Damage, GenerationError};
pub use plan::{GenerationPlan, plan};
pub(crate) use rebuild::rebuild;

/// Prefix of every key of Litestream 0.3.
const PREFIX: &str = "generations/";

/// Names a generation: 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GenerationId(u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The objects of one run of Litestream 0.3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its name.
    pub id: GenerationId,
    /// The snapshots, ascending by WAL.
    pub snapshots: Vec<Snapshot>,
    /// The segments, ascending by WAL and offset.
    pub segments: Vec<Segment>,
}

/// A snapshot: the whole database file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Number of the WAL that was live during the snapshot. The snapshot holds all WALs before it,
    /// and this one up to an unknown frame.
    pub log: u32,
    /// The stored object.
    pub object: ObjectInfo,
}

/// A piece of a WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Number of the WAL in its generation.
    pub log: u32,
    /// Offset in the WAL at which it begins, in bytes.
    pub offset: u64,
    /// The stored object.
    pub object: ObjectInfo,
}

impl Generation {
    /// Every object.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectInfo> {
        let snapshots = self.snapshots.iter().map(|snapshot| &snapshot.object);
        snapshots.chain(self.segments.iter().map(|segment| &segment.object))
    }

    /// Time of the newest object at or before a time, or of all, in Unix milliseconds.
    pub fn newest_ms(&self, at_ms: Option<i64>) -> Option<i64> {
        let times = self.objects().map(|object| object.modified_ms);
        times
            .filter(|time| at_ms.is_none_or(|at| *time <= at))
            .max()
    }

    /// Time of the oldest snapshot, in Unix milliseconds: no earlier state can be restored.
    pub fn oldest_ms(&self) -> Option<i64> {
        let snapshots = self.snapshots.iter();
        snapshots.map(|snapshot| snapshot.object.modified_ms).min()
    }
}

/// Every generation of a replica, in one listing.
///
/// # Errors
///
/// The error of the store.
pub async fn list(store: &SharedStore) -> Result<Vec<Generation>, StoreError> {
    Ok(sorted(store.list(PREFIX, None).await?))
}

fn sorted(objects: Vec<ObjectInfo>) -> Vec<Generation> {
    let mut generations: BTreeMap<GenerationId, Generation> = BTreeMap::new();
    for object in objects {
        let Some((id, part)) = parse_key(&object.key) else {
            continue;
        };
        let generation = generations.entry(id).or_insert_with(|| Generation {
            id,
            snapshots: Vec::new(),
            segments: Vec::new(),
        });
        match part {
            Part::Snapshot { log } => generation.snapshots.push(Snapshot { log, object }),
            Part::Segment { log, offset } => {
                let segment = Segment {
                    log,
                    offset,
                    object,
                };
                generation.segments.push(segment);
            }
        }
    }
    let mut generations: Vec<Generation> = generations.into_values().collect();
    for generation in &mut generations {
        generation.snapshots.sort_by_key(|snapshot| snapshot.log);
        let position = |segment: &Segment| (segment.log, segment.offset);
        generation.segments.sort_by_key(position);
    }
    generations
}

/// The kind of object that a key names.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Snapshot { log: u32 },
    Segment { log: u32, offset: u64 },
}

/// The object that a key names; none for foreign objects, which are left alone.
fn parse_key(key: &str) -> Option<(GenerationId, Part)> {
    let (id, rest) = key.strip_prefix(PREFIX)?.split_once('/')?;
    let id = GenerationId(hex(id, 16..=16)?);
    let part = match rest.split_once('/')? {
        ("snapshots", name) => Part::Snapshot {
            log: log_number(name.strip_suffix(".snapshot.lz4")?)?,
        },
        ("wal", name) => {
            let (log, offset) = name.strip_suffix(".wal.lz4")?.split_once('_')?;
            Part::Segment {
                log: log_number(log)?,
                offset: hex(offset, 8..=16)?,
            }
        }
        _ => return None,
    };
    Some((id, part))
}

fn log_number(digits: &str) -> Option<u32> {
    hex(digits, 8..=8).and_then(|number| u32::try_from(number).ok())
}

/// Parses a number in lowercase hex digits with one of these lengths.
fn hex(digits: &str, lengths: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let valid = lengths.contains(&digits.len()) && digits.bytes().all(is_digit);
    valid.then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_litestream_0_3_and_others_are_left_alone() {
        let id = GenerationId(0x0123_4567_89ab_cdef);
        let expected = [
            (
                "snapshots/0000001f.snapshot.lz4",
                Part::Snapshot { log: 31 },
            ),
            (
                "wal/00000002_00001038.wal.lz4",
                Part::Segment {
                    log: 2,
                    offset: 0x1038,
                },
            ),
            // Beyond 4 GiB an offset has more digits.
            (
                "wal/00000002_123456789.wal.lz4",
                Part::Segment {
                    log: 2,
                    offset: 0x1_2345_6789,
                },
            ),
        ];
        for (name, part) in expected {
            let key = format!("generations/{id}/{name}");
            assert_eq!(parse_key(&key), Some((id, part)), "{key}");
        }
        for key in [
            "generations/0123456789abcdef/snapshots/0000001F.snapshot.lz4",
            "generations/0123456789abcdef/snapshots/1f.snapshot.lz4",
            "generations/0123456789abcdef/snapshots/00000001.snapshot.lz4.tmp",
            "generations/0123456789abcdef/wal/00000002.wal.lz4",
            "generations/0123456789abcdef/wal/00000002_+0000000.wal.lz4",
            "generations/0123456789abcde/wal/00000002_00000000.wal.lz4",
            "generations/readme",
            "ltx/0/0000000000000001-0000000000000001.ltx",
        ] {
            assert_eq!(parse_key(key), None, "{key}");
        }
    }
}
