//! Checks stores against the files that writers wrote and the positions acknowledged to them.
//!
//! The known state is here. The rules are in [`p1`], [`p2`], [`p3`] and [`retention`], one for
//! each promise.

mod p1;
mod p2;
mod p3;
mod retention;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::Hasher;
use std::sync::{Arc, Mutex};

use ltx::{Decoder, Txid};
use store::{Layout, Store};

use engine::replica::lease::{self, LEASE_KEY, Lease};
use engine::replica::manifest::{self, RemoteFile};

use super::chance::Chance;
use super::model::{Image, Place, checksum};
use super::wire::Server;

/// Most points of one store that one check restores.
const POINTS: usize = 12;

/// A broken promise, as docs/guarantees.md numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    P1,
    P2,
    P3,
    P5,
    Retention,
    /// The reported lag is true.
    Lag,
}

/// A written LTX file, by the digest of its bytes.
#[derive(Clone)]
struct Written {
    writer: String,
    /// The database that a restore must give.
    image: Arc<Image>,
}

/// A position that was acknowledged to a writer.
struct Acked {
    writer: String,
    checksum: u64,
    /// The writer had written the file itself.
    own: bool,
}

/// A file of level 0 or 9 that was stored under its name.
#[derive(Clone, Copy)]
struct Landed {
    digest: u64,
    /// The epoch with which its writer held the lease. The epoch in the file may be older: a file
    /// is captured before it is known which process may store it.
    epoch: u64,
    /// The time that the store gives it, which its age counts from.
    at_ms: u64,
}

#[derive(Default)]
struct Stored {
    /// The file of each TXID that was ever stored under its name.
    captured: BTreeMap<Txid, Landed>,
    copies: BTreeMap<Txid, Landed>,
    /// Checksums of the databases that captured files and snapshots lead to.
    states: BTreeSet<u64>,
    /// When each TXID first was the last one of a file of level 1.
    compacted: BTreeMap<Txid, u64>,
    acked: BTreeMap<Txid, Acked>,
    /// The holder of the lease.
    holder: String,
    /// The epoch with which each process held it.
    epochs: BTreeMap<String, u64>,
    /// When each process last saw that it holds the lease.
    sure_ms: BTreeMap<String, u64>,
}

#[derive(Default)]
struct State {
    written: HashMap<u64, Written>,
    places: BTreeMap<usize, Arc<Place>>,
    stores: BTreeMap<usize, Stored>,
    broken: Vec<(Promise, String)>,
    /// Number of restored points that were compared.
    compared: u64,
}

#[derive(Default)]
pub(super) struct Oracle(Mutex<State>);

/// A store at this moment, and what is known of it.
struct Look<'a> {
    files: &'a BTreeSet<RemoteFile>,
    objects: &'a Objects,
    written: &'a HashMap<u64, Written>,
    stored: &'a Stored,
    now_ms: u64,
}

impl Oracle {
    /// A place that processes write from.
    pub(super) fn knows(&self, place: &Arc<Place>) {
        let state = &mut *self.0.lock().unwrap();
        state.places.insert(place.number, Arc::clone(place));
    }

    /// Reads the checksums of all states of databases that were ever stored in a store.
    pub(super) fn stored<T>(&self, store: usize, read: impl FnOnce(&BTreeSet<u64>) -> T) -> T {
        let state = &mut *self.0.lock().unwrap();
        read(&state.stores.entry(store).or_default().states)
    }

    /// A process reads the lease.
    pub(super) fn looks(&self, store: usize, name: &str, now_ms: u64) {
        self.store(store, |_, stored| {
            if stored.holder == name {
                stored.sure_ms.insert(name.to_owned(), now_ms);
            }
            None
        });
    }

    /// A process sends a request that changes a store.
    pub(super) fn sends(&self, store: usize, name: &str, what: &str, key: &str, now_ms: u64) {
        self.store(store, |_, stored| {
            let unsure = p3::is_unsure(stored, name, key, now_ms).err();
            unsure.map(|why| (Promise::P3, format!("{name} sent {what} {key}: {why}")))
        });
    }

    /// An object was stored by a process at a place.
    pub(super) fn landed(
        &self,
        store: usize,
        (name, place): (&str, usize),
        key: &str,
        bytes: &[u8],
        (now_ms, dated_ms): (u64, u64),
    ) {
        if key == LEASE_KEY {
            let lease: Lease = serde_json::from_slice(bytes).expect("we wrote it");
            self.store(store, |_, stored| {
                stored.sure_ms.insert(lease.holder.clone(), now_ms);
                stored.epochs.insert(lease.holder.clone(), lease.epoch);
                stored.holder = lease.holder;
                None
            });
            return;
        }
        let Some(file) = parse(key, bytes.len()) else {
            return;
        };
        if !matches!(file.level, 0 | 9) {
            return self.store(store, |_, stored| {
                if file.level == 1 {
                    stored.compacted.entry(file.max).or_insert(now_ms);
                }
                None
            });
        }
        let place = Arc::clone(&self.0.lock().unwrap().places[&place]);
        self.store(store, |written, stored| {
            let landed = Landed {
                digest: digest(bytes),
                epoch: stored.epochs.get(name).copied().unwrap_or(0),
                at_ms: dated_ms,
            };
            let broken = p3::overwrites(stored, file, landed).err();
            let broken = broken.map(|why| (Promise::P3, format!("{key} by {name}: {why}")));
            let state = match written.get(&landed.digest) {
                Some(known) => Ok(Some(Arc::clone(&known.image))),
                None if !file.has_pages() => Ok(None),
                None => {
                    let state = p1::state_after(stored, written, &place, file, bytes);
                    state.map(|image| Some(Arc::new(image)))
                }
            };
            let landed_before = match file.level {
                0 => &mut stored.captured,
                _ => &mut stored.copies,
            };
            // A file that arrives twice keeps the age of its first arrival.
            landed_before.entry(file.max).or_insert(landed);
            match state {
                Ok(None) => broken,
                Ok(Some(image)) => {
                    stored.states.insert(checksum(&image));
                    let writer = name.to_owned();
                    let new = || Written { writer, image };
                    written.entry(landed.digest).or_insert_with(new);
                    broken
                }
                Err(why) => Some((Promise::P1, format!("{key} by {name}: {why}"))),
            }
        });
    }

    /// A position was acknowledged to a writer.
    pub(super) fn acked(&self, store: usize, writer: &str, txid: Txid, checksum: u64) {
        self.store(store, |written, stored| {
            let files = [stored.captured.get(&txid), stored.copies.get(&txid)];
            let own = files.into_iter().flatten().any(|file| {
                let written = written.get(&file.digest);
                written.is_some_and(|written| written.writer == writer)
            });
            let writer = writer.to_owned();
            match stored.acked.get(&txid) {
                Some(acked) if acked.checksum != checksum => {
                    let told = format!("{} and {writer} were told of different", acked.writer);
                    return Some((Promise::P1, format!("{told} databases at {txid}")));
                }
                Some(acked) if acked.own => {}
                _ => {
                    let acked = Acked {
                        writer,
                        checksum,
                        own,
                    };
                    stored.acked.insert(txid, acked);
                }
            }
            None
        });
    }

    /// Records a broken promise.
    pub(super) fn broken(&self, promise: Promise, what: String) {
        self.0.lock().unwrap().broken.push((promise, what));
    }

    pub(super) fn verdict(&self) -> Result<u64, Broken> {
        let state = self.0.lock().unwrap();
        match state.broken.is_empty() {
            true => Ok(state.compared),
            false => Err(Broken(state.broken.clone())),
        }
    }

    /// Changes the known state of a store, and records a promise that this breaks.
    fn store(
        &self,
        index: usize,
        change: impl FnOnce(&mut HashMap<u64, Written>, &mut Stored) -> Option<(Promise, String)>,
    ) {
        let state = &mut *self.0.lock().unwrap();
        let stored = state.stores.entry(index).or_default();
        if let Some((promise, what)) = change(&mut state.written, stored) {
            state
                .broken
                .push((promise, format!("store {index}: {what}")));
        }
    }

    /// Checks a store against its known state.
    pub(super) async fn check(&self, server: &Server, chance: &mut Chance) {
        let files = manifest::list(&server.direct()).await.unwrap();
        if files.is_empty() {
            return;
        }
        let objects = objects(server, &files).await;
        let points: BTreeSet<Txid> = files.iter().map(|file| file.max).collect();
        let mut points: Vec<Txid> = points.into_iter().collect();
        while points.len() > POINTS {
            points.remove(chance.below(points.len() as u64 - 1) as usize);
        }
        let state = &mut *self.0.lock().unwrap();
        let stored = state.stores.entry(server.index).or_default();
        let look = Look {
            files: &files,
            objects: &objects,
            written: &state.written,
            stored,
            now_ms: server.log.now_ms(),
        };
        let mut broken = Vec::new();
        for point in points {
            match p1::is_what_its_writer_had(&look, point) {
                Ok(compared) => state.compared += u64::from(compared),
                Err(why) => broken.push((Promise::P1, why)),
            }
        }
        broken.extend(p2::is_kept(&look).err().map(|why| (Promise::P2, why)));
        broken.extend(
            p3::is_the_holders(&look)
                .err()
                .map(|why| (Promise::P3, why)),
        );
        let lost = retention::is_kept(&look).err();
        broken.extend(lost.map(|why| (Promise::Retention, why)));
        let index = server.index;
        let said = broken
            .into_iter()
            .map(|(promise, what)| (promise, format!("store {index}: {what}")));
        state.broken.extend(said);
    }

    /// The restored newest point must be this commit of a place or a later one, if the process
    /// still writes there.
    pub(super) async fn check_newest(
        &self,
        server: &Server,
        writer: &str,
        (place, commit): (&Place, usize),
    ) {
        let lease = lease::read(&server.direct()).await.unwrap();
        if lease.is_none_or(|lease| lease.lease.holder != writer) {
            return;
        }
        let files = manifest::list(&server.direct()).await.unwrap();
        let objects = objects(server, &files).await;
        if let Err(why) = p2::is_at_least(&files, &objects, place, commit) {
            let index = server.index;
            let broken = format!("store {index}: {writer} said that all is stored: {why}");
            self.broken(Promise::P2, broken);
        }
    }
}

/// All broken promises.
#[derive(Debug)]
pub(super) struct Broken(Vec<(Promise, String)>);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.iter();
        let lines: Vec<String> = lines
            .map(|(promise, what)| format!("{promise:?} {what}"))
            .collect();
        f.write_str(&lines.join("; "))
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn parse(key: &str, len: usize) -> Option<RemoteFile> {
    let object = store::ObjectInfo {
        key: key.to_owned(),
        size: len as u64,
        modified_ms: 0,
        version: None,
    };
    manifest::parse_key(Layout::Tree, &object)
}

type Objects = BTreeMap<RemoteFile, Vec<u8>>;

async fn objects(server: &Server, files: &BTreeSet<RemoteFile>) -> Objects {
    let mut objects = BTreeMap::new();
    for file in files {
        let key = manifest::key(Layout::Tree, file.level, file.name());
        let bytes = server.inner.get(&key, None).await.unwrap();
        objects.insert(*file, bytes.to_vec());
    }
    objects
}

/// The database that the files give when they are applied in order.
fn apply(files: &[RemoteFile], objects: &Objects) -> Result<Image, String> {
    let mut image = Image::new();
    for file in files {
        apply_one(&mut image, *file, &objects[file])?;
    }
    Ok(image)
}

fn apply_one(image: &mut Image, file: RemoteFile, content: &[u8]) -> Result<(), String> {
    let failed = |error: ltx::LtxError| format!("{}: {error}", file.name());
    let mut decoder = Decoder::new(content).map_err(failed)?;
    let header = *decoder.header();
    if (header.min_txid, header.max_txid) != (file.min, file.max) {
        return Err(format!("{} has the bytes of another file", file.name()));
    }
    image.retain(|pgno, _| *pgno <= header.commit);
    let mut bytes = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut bytes).map_err(failed)? {
        image.insert(pgno, bytes[..].into());
    }
    decoder.finish().map_err(failed)?;
    match (1..=header.commit).find(|pgno| !image.contains_key(pgno)) {
        Some(pgno) => Err(format!(
            "{} needs page {pgno}, which is missing",
            file.name()
        )),
        None => Ok(()),
    }
}
