//! The files of one replica in a store: names, listing, levels.

use std::collections::BTreeSet;
use std::sync::Arc;

use ltx::{FileName, Level, Txid};
use store::{Layout, ObjectInfo, SharedStore, Store, StoreError};

/// Size of an LTX file without pages: header, end of the pages, empty index, trailer.
const EMPTY_FILE_BYTES: u64 = (ltx::HEADER_BYTES + 6 + 9 + ltx::TRAILER_BYTES) as u64;

/// TXIDs end here, and no file fits after this one. A file each millisecond leads there in 292
/// million years.
pub const LAST_TXID: Txid = Txid::new(u64::MAX / 2);

/// One LTX file in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteFile {
    /// Its level, 0 to 9.
    pub level: u8,
    /// First TXID.
    pub min: Txid,
    /// Last TXID.
    pub max: Txid,
    /// Size in bytes.
    pub size: u64,
    /// When the store received the file, in Unix milliseconds by the store's clock.
    pub modified_ms: i64,
}

impl RemoteFile {
    /// A file with the time at which its store received it, by that store's clock.
    pub fn new(level: u8, name: FileName, size: u64, modified_ms: i64) -> RemoteFile {
        RemoteFile {
            level,
            min: name.min,
            max: name.max,
            size,
            modified_ms,
        }
    }

    /// Its name without a directory.
    pub fn name(&self) -> FileName {
        FileName {
            min: self.min,
            max: self.max,
        }
    }

    /// Whether a restore can begin with this file: it holds every page.
    pub fn is_snapshot(&self) -> bool {
        self.min.get() == 1
    }

    /// False for a file that changes no page, such as a fence.
    pub fn has_pages(&self) -> bool {
        self.size > EMPTY_FILE_BYTES
    }
}

/// The key of a file under the replica's prefix, exactly as Litestream 0.5 names it.
pub fn key(layout: Layout, level: u8, name: FileName) -> String {
    match layout {
        Layout::S3 => format!("{level:04x}/{name}"),
        Layout::Tree => format!("ltx/{level}/{name}"),
    }
}

/// The file that a key names; none for foreign objects, which are left alone.
pub fn parse_key(layout: Layout, object: &ObjectInfo) -> Option<RemoteFile> {
    let (directory, name) = object.key.rsplit_once('/')?;
    let level = match layout {
        Layout::S3 if directory.len() == 4 => u8::from_str_radix(directory, 16).ok()?,
        Layout::S3 => return None,
        Layout::Tree => directory.strip_prefix("ltx/")?.parse().ok()?,
    };
    let name = FileName::parse(name)?;
    let file = RemoteFile::new(level, name, object.size, object.modified_ms);
    (level <= Level::SNAPSHOT.get()).then_some(file)
}

/// Lists every LTX file of a replica. One listing: used at start, for restores and for audits only.
///
/// # Errors
///
/// The error of the store: only a store that was asked with valid credentials gives an empty
/// answer.
pub async fn list(store: &Arc<dyn Store>) -> Result<BTreeSet<RemoteFile>, StoreError> {
    let prefix = match store.layout() {
        Layout::S3 => "000",
        Layout::Tree => "ltx/",
    };
    let objects = store.list(prefix, None).await?;
    Ok(objects
        .iter()
        .filter_map(|object| parse_key(store.layout(), object))
        .collect())
}

/// The newest TXID over all levels; zero for an empty replica.
///
/// All levels count, because a replica whose level 0 was cleaned up still has its history. Level 0
/// alone would restart the numbers below an existing snapshot.
pub fn newest(files: &BTreeSet<RemoteFile>) -> Txid {
    files
        .iter()
        .map(|file| file.max)
        .max()
        .unwrap_or(Txid::ZERO)
}

/// As [`newest`], if TXIDs are left after it.
///
/// # Errors
///
/// [`RemoteError::LastNumber`] when none is left. No real writer reaches this TXID, so the object
/// is forged.
pub fn newest_with_room(layout: Layout, files: &BTreeSet<RemoteFile>) -> Result<Txid, RemoteError> {
    let last = files.iter().find(|file| file.max >= LAST_TXID);
    match last {
        Some(file) => Err(RemoteError::LastNumber {
            key: key(layout, file.level, file.name()),
        }),
        None => Ok(newest(files)),
    }
}

/// TXID of the newest snapshot; zero when there is none.
pub fn newest_snapshot(files: &BTreeSet<RemoteFile>) -> Txid {
    let copies = files.iter().filter(|file| file.is_snapshot());
    copies.map(|file| file.max).max().unwrap_or(Txid::ZERO)
}

/// The header of one file, by a ranged read of its first 100 bytes.
///
/// # Errors
///
/// The store's error, or bytes that are no LTX header or not the one that the name states.
pub async fn read_header(
    store: &SharedStore,
    file: &RemoteFile,
) -> Result<ltx::Header, RemoteError> {
    let key = key(store.layout(), file.level, file.name());
    let bytes = store.get(&key, Some(0..ltx::HEADER_BYTES as u64)).await?;
    let corrupt = |source| RemoteError::Corrupt {
        key: key.clone(),
        source,
    };
    let Some(bytes) = bytes.first_chunk() else {
        return Err(RemoteError::TooShort {
            key,
            bytes: bytes.len(),
        });
    };
    let header =
        ltx::Header::parse(bytes).map_err(|error| corrupt(ltx::LtxError::Header(error)))?;
    if (header.min_txid, header.max_txid) != (file.min, file.max) {
        return Err(RemoteError::NameMismatch {
            key,
            found: FileName {
                min: header.min_txid,
                max: header.max_txid,
            },
        });
    }
    Ok(header)
}

/// Why a stored file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The store did not return the file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes of the file are damaged.
    #[error("{key} is damaged: {source}")]
    Corrupt {
        /// The object.
        key: String,
        /// The damage.
        source: ltx::LtxError,
    },
    /// The file ends inside its header.
    #[error("{key} has only {bytes} bytes")]
    TooShort {
        /// The object.
        key: String,
        /// Its size.
        bytes: usize,
    },
    /// The bytes of the file belong under another name.
    #[error("{key} holds the bytes of {found}")]
    NameMismatch {
        /// The object.
        key: String,
        /// The name that the header states.
        found: FileName,
    },
    /// No TXID is left after the file.
    #[error("{key} has a TXID after which nothing can be stored: remove it")]
    LastNumber {
        /// The object.
        key: String,
    },
}

impl RemoteError {
    /// The object whose bytes are wrong; none when the store failed.
    pub fn key(&self) -> Option<&str> {
        match self {
            RemoteError::Store(_) => None,
            RemoteError::Corrupt { key, .. }
            | RemoteError::TooShort { key, .. }
            | RemoteError::NameMismatch { key, .. }
            | RemoteError::LastNumber { key } => Some(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str) -> ObjectInfo {
        ObjectInfo {
            key: key.into(),
            size: 7,
            modified_ms: 3,
            version: None,
        }
    }

    #[test]
    fn keys_are_litestreams_in_both_layouts_and_read_back() {
        let name = FileName {
            min: Txid::new(1),
            max: Txid::new(0x1f),
        };
        let text = "0000000000000001-000000000000001f.ltx";
        for (layout, expected) in [
            (Layout::S3, format!("0009/{text}")),
            (Layout::Tree, format!("ltx/9/{text}")),
        ] {
            assert_eq!(key(layout, 9, name), expected);
            let file = parse_key(layout, &object(&expected)).unwrap();
            assert_eq!((file.level, file.name()), (9, name));
            assert!(file.is_snapshot());
        }
    }

    #[test]
    fn foreign_objects_are_not_ours() {
        for text in [
            "lock.json",
            "000a/0000000000000001-000000000000001f.ltx",
            "0000/x.ltx",
        ] {
            assert_eq!(parse_key(Layout::S3, &object(text)), None, "{text}");
        }
    }

    #[test]
    fn a_file_without_pages_is_told_by_its_size() {
        let header = ltx::Header {
            flags: ltx::Header::NO_CHECKSUM,
            page_size: sqlite_format::PageSize::MIN,
            commit: 9,
            min_txid: Txid::new(7),
            max_txid: Txid::new(7),
            timestamp_ms: 1,
            pre_apply: 0,
            wal_offset: 32,
            wal_size: 0,
            wal_salts: sqlite_format::Salts { salt1: 1, salt2: 1 },
            node_id: 1,
            reserved: [0; 20],
        };
        for pages in 0..2 {
            let mut encoder = ltx::Encoder::new(Vec::new(), header).unwrap();
            for pgno in 1..=pages {
                encoder.encode_page(pgno, &[0; 512]).unwrap();
            }
            let (bytes, _) = encoder.finish().unwrap();
            let object = ObjectInfo {
                size: bytes.len() as u64,
                ..object("0000/0000000000000007-0000000000000007.ltx")
            };
            let file = parse_key(Layout::S3, &object).unwrap();
            assert_eq!(file.has_pages(), pages > 0);
        }
    }
}
