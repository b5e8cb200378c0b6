//! P1: everything stored is restorable, and is the state that its writer had.

use std::collections::HashMap;
use std::sync::Arc;

use engine::replica::manifest::RemoteFile;
use engine::replica::restore_plan::plan_restore;
use ltx::Txid;

use super::{Landed, Look, Stored, Written, apply, apply_one, checksum, digest};
use crate::model::{Image, Place};

/// The database that a new file leads to. Its place must have had it.
pub(super) fn state_after(
    stored: &Stored,
    written: &HashMap<u64, Written>,
    place: &Place,
    file: RemoteFile,
    content: &[u8],
) -> Result<Image, String> {
    let image_of = |landed: Option<&Landed>| {
        let written = written.get(&landed?.digest)?;
        Some(Arc::clone(&written.image))
    };
    let mut image = match file.is_snapshot() {
        true => Image::new(),
        // A writer that begins with a snapshot may store the file of its TXID after it.
        false => match image_of(stored.copies.get(&file.max)) {
            Some(image) => (*image).clone(),
            None => (*before(stored, &image_of, file.max)?).clone(),
        },
    };
    apply_one(&mut image, file, content)?;
    let captured = image_of(stored.captured.get(&file.max));
    if captured.is_some_and(|captured| *captured != image) {
        return Err("it is not the database of the captured file".to_owned());
    }
    match place.app.lock().unwrap().has_had(&image) {
        true => Ok(image),
        false => Err("the database never was like this".to_owned()),
    }
}

/// The database before a captured file.
fn before(
    stored: &Stored,
    image_of: &impl Fn(Option<&Landed>) -> Option<Arc<Image>>,
    mut txid: Txid,
) -> Result<Arc<Image>, String> {
    loop {
        let Some(earlier) = txid.get().checked_sub(1) else {
            return Err("nothing leads to it".to_owned());
        };
        txid = Txid::new(earlier);
        let (captured, copy) = (stored.captured.get(&txid), stored.copies.get(&txid));
        match image_of(captured).or_else(|| image_of(copy)) {
            Some(image) => return Ok(image),
            // A file without pages changes nothing.
            None if captured.is_some() => {}
            None => return Err(format!("nothing leads to it: there is no {txid}")),
        }
    }
}

/// Restores a point and compares it with the written and the acknowledged state. False when no
/// file leads there, because not every TXID is a position.
pub(super) fn is_what_its_writer_had(look: &Look<'_>, point: Txid) -> Result<bool, String> {
    let Ok(plan) = plan_restore(look.files, Some(point)) else {
        return Ok(false);
    };
    let restored = apply(&plan.files, look.objects).map_err(|why| format!("{point}: {why}"))?;
    let expected = expected(look, &plan.files).map_err(|why| format!("{point}: {why}"))?;
    if *expected != restored {
        return Err(format!(
            "{point} is not what its writer had: {:?}",
            plan.files
        ));
    }
    if let Some(acked) = look.stored.acked.get(&point)
        && acked.checksum != checksum(&restored)
    {
        return Err(format!("{point} is not what {} was told of", acked.writer));
    }
    Ok(true)
}

/// The state that the last file of a plan must lead to.
fn expected(look: &Look<'_>, plan: &[RemoteFile]) -> Result<Arc<Image>, String> {
    let Some((last, before)) = plan.split_last() else {
        return Err("nothing leads here".to_owned());
    };
    if last.is_snapshot() {
        return match look.written.get(&digest(&look.objects[last])) {
            Some(written) => Ok(Arc::clone(&written.image)),
            None => Err(format!("nobody wrote {}", last.name())),
        };
    }
    // A file without changes leads to the state before it.
    for (_, file) in look.stored.captured.range(last.min..=last.max).rev() {
        if let Some(written) = look.written.get(&file.digest) {
            return Ok(Arc::clone(&written.image));
        }
    }
    expected(look, before)
}
