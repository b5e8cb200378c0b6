//! A replica whose objects and times a test chooses, and its restores.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::restore::{IntegrityCheck, Point, RestoreError, RestoreOptions, Restored, restore};
use jiff::Timestamp;
use lz4_flex::frame::{FrameDecoder, FrameEncoder, FrameInfo};
use serde::Deserialize;
use store::{Body, Memory, PutMeta, PutMode, SharedStore, Store};

/// The content of `states.json`.
#[derive(Deserialize)]
struct Noted {
    page_size: usize,
    objects: BTreeMap<String, i64>,
    states: Vec<State>,
}

/// The state of a database at some time.
#[derive(Debug, Clone, Deserialize)]
pub struct State {
    pub time_ms: i64,
    pub rows: i64,
    pub pages: usize,
    pub checksum: String,
}

/// Objects with their times.
#[derive(Clone)]
pub struct Replica {
    pub page_size: usize,
    pub objects: BTreeMap<String, (Vec<u8>, i64)>,
    pub states: Vec<State>,
}

/// A restored database.
#[derive(Debug)]
pub struct Database {
    pub bytes: Vec<u8>,
    pub rows: i64,
    pub restored: Restored,
}

/// The page sizes of the golden replicas.
pub const PAGE_SIZES: [usize; 2] = [1024, 4096];

impl Replica {
    /// Reads a replica that Litestream 0.3 wrote.
    pub fn golden(page_size: usize) -> Replica {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden-0.3")
            .join(page_size.to_string());
        let text = std::fs::read_to_string(root.join("states.json")).unwrap();
        let noted: Noted = serde_json::from_str(&text).unwrap();
        assert_eq!(noted.page_size, page_size);
        let objects = noted.objects.into_iter();
        let objects = objects.map(|(key, ms)| {
            let bytes = std::fs::read(root.join(&key)).unwrap();
            (key, (bytes, ms))
        });
        Replica {
            page_size,
            objects: objects.collect(),
            states: noted.states,
        }
    }

    /// The key that ends so; exactly one does.
    pub fn key(&self, end: &str) -> String {
        let mut keys = self.objects.keys().filter(|key| key.ends_with(end));
        let key = keys.next().unwrap().clone();
        assert_eq!(keys.next(), None);
        key
    }

    /// The keys of the generation that begins at or before a time.
    pub fn generation_at(&self, ms: i64) -> Vec<String> {
        let newest = self.objects.iter().filter(|(_, object)| object.1 <= ms);
        let (newest, _) = newest.max_by_key(|(_, object)| object.1).unwrap();
        let id = newest.split('/').nth(1).unwrap();
        let of_it = |key: &&String| key.split('/').nth(1) == Some(id);
        self.objects.keys().filter(of_it).cloned().collect()
    }

    pub fn content(&self, key: &str) -> Vec<u8> {
        let mut content = Vec::new();
        let mut decoder = FrameDecoder::new(&self.objects[key].0[..]);
        decoder.read_to_end(&mut content).unwrap();
        content
    }

    /// Stores an object, replacing an existing one.
    pub fn store_content(&mut self, key: &str, content: &[u8], ms: i64) {
        let info = FrameInfo::new().content_checksum(true);
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(content).unwrap();
        let bytes = encoder.finish().unwrap();
        self.objects.insert(key.to_owned(), (bytes, ms));
    }

    pub fn memory(&self) -> Arc<Memory> {
        let memory = Arc::new(Memory::new());
        for (key, (bytes, ms)) in &self.objects {
            put(&memory, key, bytes.clone(), *ms);
        }
        memory
    }

    pub fn restore(&self, at_ms: Option<i64>) -> Result<Database, RestoreError> {
        let store: SharedStore = self.memory();
        restored(&store, at_ms.map_or(Point::Latest, at))
    }
}

pub fn at(ms: i64) -> Point {
    Point::Timestamp(Timestamp::from_millisecond(ms).unwrap())
}

pub fn put(memory: &Arc<Memory>, key: &str, bytes: Vec<u8>, ms: i64) {
    let meta = PutMeta {
        timestamp_ms: Some(ms),
    };
    block_on(memory.put(key, Body::from(bytes), PutMode::Create, &meta)).unwrap();
}

pub fn restored(store: &SharedStore, point: Point) -> Result<Database, RestoreError> {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("restored.db");
    let options = RestoreOptions {
        point,
        output: output.clone(),
        force: false,
        integrity: IntegrityCheck::Full.into(),
        parallelism: 3,
    };
    let result = block_on(restore(store, &options, &|_, _| {}));
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(
        left,
        usize::from(result.is_ok()),
        "files of the restore are left"
    );
    let restored = result?;
    Ok(Database {
        bytes: std::fs::read(&output).unwrap(),
        rows: rows(&output),
        restored,
    })
}

fn rows(path: &Path) -> i64 {
    let connection = rusqlite::Connection::open(path).unwrap();
    let count = "SELECT count(*) FROM item";
    connection.query_row(count, [], |row| row.get(0)).unwrap()
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
