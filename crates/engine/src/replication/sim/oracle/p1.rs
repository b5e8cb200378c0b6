//! P1: everything stored is restorable, and is the state that its writer had.

use std::sync::Arc;

use ltx::Txid;

use crate::replica::manifest::RemoteFile;
use crate::replica::restore_plan::plan_restore;

use super::{Look, apply, checksum, digest};
use crate::replication::sim::model::Image;

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
