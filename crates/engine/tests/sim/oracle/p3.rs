//! P3: one writer. A superseded one cannot change the replica, even while it still runs.

use ltx::Txid;

use engine::replica::lease::LEASE_KEY;
use engine::replica::manifest::{self, RemoteFile};

use super::{Landed, Look, Stored, parse};

/// Longest age of the last read of the lease before a step that put-if-absent does not protect. A
/// compaction reads its inputs in between: at most 500 ms for each that is no longer on the local
/// disk.
const SURE_MS: u64 = 20_000;

/// A process that lost the lease must not continue with steps that put-if-absent does not protect,
/// except those that began while it was sure.
pub(super) fn is_unsure(stored: &Stored, name: &str, key: &str, now_ms: u64) -> Result<(), String> {
    let protected = key == LEASE_KEY || parse(key, 0).is_some_and(|file| file.level == 0);
    if protected || stored.holder == name {
        return Ok(());
    }
    let holder = &stored.holder;
    match stored.sure_ms.get(name) {
        None => Err(format!("{holder} holds the lease, and it never did")),
        Some(sure_ms) if now_ms - sure_ms > SURE_MS => Err(format!(
            "{holder} holds the lease, and it looked {} ms ago",
            now_ms - sure_ms
        )),
        Some(_) => Ok(()),
    }
}

/// A name is used once. After a file of one epoch, no earlier epoch continues.
pub(super) fn overwrites(stored: &Stored, file: RemoteFile, landed: Landed) -> Result<(), String> {
    let before = match file.level {
        0 => stored.captured.get(&file.max),
        _ => stored.copies.get(&file.max),
    };
    if before.is_some_and(|before| before.digest != landed.digest) {
        return Err("it had other bytes before".to_owned());
    }
    if file.level > 0 {
        // A snapshot that arrives late: its effect on the newest point is checked there.
        return Ok(());
    }
    let fence = stored.captured.range(..file.max);
    match fence.map(|(txid, file)| (file.epoch, *txid)).max() {
        Some((epoch, txid)) if epoch > landed.epoch => Err(format!(
            "its writer had epoch {}, that of {txid} before it {epoch}",
            landed.epoch
        )),
        _ => Ok(()),
    }
}

/// Once a file of the lease holder was acknowledged to it, the newest point is one of its own.
pub(super) fn is_the_holders(look: &Look<'_>) -> Result<(), String> {
    let holder = &look.stored.holder;
    let mut told = look.stored.acked.values();
    if !told.any(|acked| acked.own && acked.writer == *holder) {
        return Ok(());
    }
    let owner = owner(look);
    match owner.as_ref() == Some(holder) {
        true => Ok(()),
        false => {
            let newest = manifest::newest(look.files);
            Err(format!("{newest} is of {owner:?}, and {holder} writes"))
        }
    }
}

/// The writer of the newest position.
fn owner(look: &Look<'_>) -> Option<String> {
    let mut txid = manifest::newest(look.files);
    loop {
        let mut files = look.files.iter();
        let is_snapshot = files.any(|file| file.is_snapshot() && file.max == txid);
        let copy = look.stored.copies.get(&txid).filter(|_| is_snapshot);
        let file = copy.or_else(|| look.stored.captured.get(&txid));
        if let Some(written) = file.and_then(|file| look.written.get(&file.digest)) {
            return Some(written.writer.clone());
        }
        txid = Txid::new(txid.get().checked_sub(1)?);
    }
}
