//! What has to be true of a store, from what the writers sealed and what they were told.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hasher;
use std::sync::{Arc, Mutex};

use ltx::{Decoder, Txid};
use store::{Layout, Store};

use crate::lease;
use crate::plan::plan_restore;
use crate::remote::{self, RemoteFile};

use super::chance::Chance;
use super::model::{Image, checksum};
use super::wire::Server;

/// Points of one store that one check restores, at most.
const POINTS: usize = 12;

/// What was sealed: an LTX file, by the digest of its bytes.
#[derive(Clone)]
struct Sealed {
    writer: String,
    /// The database that a restore has to give.
    image: Arc<Image>,
}

/// A position that a writer was told is stored.
struct Acked {
    writer: String,
    checksum: u64,
    /// The writer had sealed it itself.
    own: bool,
}

#[derive(Default)]
struct Stored {
    /// Digest of the file of each TXID that ever came under its name.
    captured: BTreeMap<Txid, u64>,
    copies: BTreeMap<Txid, u64>,
    acked: BTreeMap<Txid, Acked>,
}

#[derive(Default)]
struct State {
    sealed: HashMap<u64, Sealed>,
    stores: BTreeMap<usize, Stored>,
    broken: Vec<String>,
    /// Restored points that were compared.
    compared: u64,
}

#[derive(Default)]
pub(super) struct Oracle(Mutex<State>);

impl Oracle {
    /// A writer sealed a file; restored, it gives `image`.
    pub(super) fn sealed(&self, writer: &str, bytes: &[u8], image: &Arc<Image>) {
        let (writer, image) = (writer.to_owned(), Arc::clone(image));
        let sealed = Sealed { writer, image };
        let state = &mut *self.0.lock().unwrap();
        state.sealed.entry(digest(bytes)).or_insert(sealed);
    }

    /// An object got its bytes.
    pub(super) fn landed(&self, store: usize, actor: u64, key: &str, bytes: &[u8]) {
        let Some(file) = parse(key, bytes.len()) else {
            return;
        };
        let digest = digest(bytes);
        let state = &mut *self.0.lock().unwrap();
        let known = state.sealed.contains_key(&digest);
        let stored = state.stores.entry(store).or_default();
        let before = match file.level {
            0 => stored.captured.insert(file.max, digest),
            9 => stored.copies.insert(file.max, digest),
            _ => return,
        };
        if before.is_some_and(|before| before != digest) {
            let broken = format!("store {store}: {key} was stored with other bytes by {actor}");
            state.broken.push(broken);
        }
        if !known && file.has_pages() {
            let broken = format!("store {store}: {key} by {actor} was never sealed");
            state.broken.push(broken);
        }
    }

    /// A writer was told that a position is stored.
    pub(super) fn acked(&self, store: usize, writer: &str, txid: Txid, checksum: u64) {
        let state = &mut *self.0.lock().unwrap();
        let stored = state.stores.entry(store).or_default();
        let digests = [stored.captured.get(&txid), stored.copies.get(&txid)];
        let mut digests = digests.into_iter().flatten();
        let own = digests.any(|digest| {
            let sealed = state.sealed.get(digest);
            sealed.is_some_and(|sealed| sealed.writer == writer)
        });
        let writer = writer.to_owned();
        match stored.acked.get(&txid) {
            Some(acked) if acked.checksum != checksum => state.broken.push(format!(
                "store {store}: {} and {writer} were told of different databases at {txid}",
                acked.writer
            )),
            Some(acked) if acked.own => {}
            _ => {
                stored.acked.insert(
                    txid,
                    Acked {
                        writer,
                        checksum,
                        own,
                    },
                );
            }
        }
    }

    /// Something that must not be was seen.
    pub(super) fn broken(&self, what: String) {
        self.0.lock().unwrap().broken.push(what);
    }

    pub(super) fn verdict(&self) -> Result<u64, String> {
        let state = self.0.lock().unwrap();
        match state.broken.first() {
            Some(first) => Err(first.clone()),
            None => Ok(state.compared),
        }
    }

    /// Holds a store against all that is known of it.
    pub(super) async fn check(&self, server: &Server, chance: &mut Chance) {
        let files = remote::list(&server.direct()).await.unwrap();
        if files.is_empty() {
            return;
        }
        let objects = objects(server, &files).await;
        let lease = lease::read(&server.direct()).await.unwrap();
        let holder = lease.map(|lease| lease.lease.holder).unwrap_or_default();
        let mut points: Vec<Txid> = {
            let points: BTreeSet<Txid> = files.iter().map(|file| file.max).collect();
            points.into_iter().collect()
        };
        let newest = *points.last().expect("there is a file");
        while points.len() > POINTS {
            points.remove(chance.below(points.len() as u64 - 1) as usize);
        }
        let state = &mut *self.0.lock().unwrap();
        let index = server.index;
        let mut broken = Vec::new();
        let stored = state.stores.entry(index).or_default();
        for point in points {
            let Ok(plan) = plan_restore(&files, Some(point)) else {
                // Not every TXID is a position of its own; whatever was acknowledged last is.
                continue;
            };
            let restored = match apply(&plan.files, &objects) {
                Ok(restored) => restored,
                Err(error) => {
                    broken.push(format!("{point}: {error}"));
                    continue;
                }
            };
            state.compared += 1;
            match expected(stored, &state.sealed, &plan.files, &objects) {
                Ok(expected) if *expected == restored => {}
                Ok(_) => broken.push(format!(
                    "{point} is not what its writer had: {:?}",
                    plan.files
                )),
                Err(error) => broken.push(format!("{point}: {error}")),
            }
            if let Some(acked) = stored.acked.get(&point)
                && acked.checksum != checksum(&restored)
            {
                broken.push(format!("{point} is not what {} was told of", acked.writer));
            }
        }
        if let Some((told, acked)) = stored.acked.last_key_value() {
            if newest < *told {
                broken.push(format!("{told}, acknowledged to {}, is gone", acked.writer));
            }
            if let Err(error) = plan_restore(&files, None) {
                broken.push(format!(
                    "the newest point, after {told} was told of: {error}"
                ));
            }
        }
        let told = |acked: &Acked| acked.own && acked.writer == holder;
        if stored.acked.values().any(told) {
            let owner = owner(stored, &state.sealed, &files);
            if owner.as_deref() != Some(&holder) {
                broken.push(format!("{newest} is of {owner:?}, and {holder} writes"));
            }
        }
        let said = broken
            .into_iter()
            .map(|what| format!("store {index}: {what}"));
        state.broken.extend(said);
    }

    /// The restored newest point has to be this very database.
    pub(super) async fn check_newest(&self, server: &Server, image: &Image) {
        let files = remote::list(&server.direct()).await.unwrap();
        let objects = objects(server, &files).await;
        let restored = plan_restore(&files, None)
            .map_err(|error| error.to_string())
            .and_then(|plan| apply(&plan.files, &objects));
        let index = server.index;
        match restored {
            Ok(restored) if restored == *image => {}
            Ok(_) => self.broken(format!("store {index}: the newest point lacks commits")),
            Err(error) => self.broken(format!("store {index}: the newest point: {error}")),
        }
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
    remote::parse_key(Layout::Tree, &object)
}

type Objects = BTreeMap<RemoteFile, Vec<u8>>;

async fn objects(server: &Server, files: &BTreeSet<RemoteFile>) -> Objects {
    let mut objects = BTreeMap::new();
    for file in files {
        let key = remote::key(Layout::Tree, file.level, file.name());
        let bytes = server.inner.get(&key, None).await.unwrap();
        objects.insert(*file, bytes.to_vec());
    }
    objects
}

/// What the files give, one after the other.
fn apply(files: &[RemoteFile], objects: &Objects) -> Result<Image, String> {
    let mut image = Image::new();
    for file in files {
        let failed = |error: ltx::LtxError| format!("{}: {error}", file.name());
        let mut decoder = Decoder::new(&objects[file][..]).map_err(failed)?;
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
        if let Some(pgno) = (1..=header.commit).find(|pgno| !image.contains_key(pgno)) {
            return Err(format!(
                "{} needs page {pgno}, which is missing",
                file.name()
            ));
        }
    }
    Ok(image)
}

/// What the last file of a plan has to lead to.
fn expected(
    stored: &Stored,
    sealed: &HashMap<u64, Sealed>,
    plan: &[RemoteFile],
    objects: &Objects,
) -> Result<Arc<Image>, String> {
    let Some((last, before)) = plan.split_last() else {
        return Err("nothing leads here".to_owned());
    };
    if last.is_snapshot() {
        let sealed = sealed.get(&digest(&objects[last]));
        return match sealed {
            Some(sealed) => Ok(Arc::clone(&sealed.image)),
            None => Err(format!("nobody sealed {}", last.name())),
        };
    }
    // A file that changes nothing leads to what was there before it.
    for (_, digest) in stored.captured.range(last.min..=last.max).rev() {
        if let Some(sealed) = sealed.get(digest) {
            return Ok(Arc::clone(&sealed.image));
        }
    }
    expected(stored, sealed, before, objects)
}

/// Whose the newest position is.
fn owner(
    stored: &Stored,
    sealed: &HashMap<u64, Sealed>,
    files: &BTreeSet<RemoteFile>,
) -> Option<String> {
    let mut txid = remote::newest(files);
    loop {
        let copy = files
            .iter()
            .any(|file| file.is_snapshot() && file.max == txid);
        let copy = stored.copies.get(&txid).filter(|_| copy);
        let digest = copy.or_else(|| stored.captured.get(&txid));
        if let Some(sealed) = digest.and_then(|digest| sealed.get(digest)) {
            return Some(sealed.writer.clone());
        }
        txid = Txid::new(txid.get().checked_sub(1)?);
    }
}
