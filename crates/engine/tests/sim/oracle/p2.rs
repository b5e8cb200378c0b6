//! P2: no commit is lost that was acknowledged, or that a process reported as stored.

use std::collections::BTreeSet;

use engine::replica::manifest::{self, RemoteFile};
use engine::replica::restore_plan::plan_restore;

use super::{Look, Objects, apply};
use crate::model::Place;

/// The newest point exists, and is no older than the last acknowledged position.
pub(super) fn is_kept(look: &Look<'_>) -> Result<(), String> {
    let Some((told, acked)) = look.stored.acked.last_key_value() else {
        return Ok(());
    };
    if manifest::newest(look.files) < *told {
        return Err(format!("{told}, acknowledged to {}, is gone", acked.writer));
    }
    match plan_restore(look.files, None) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "the newest point, after {told} was told of: {error}"
        )),
    }
}

/// The newest point is this commit of a place, or a later one.
pub(super) fn is_at_least(
    files: &BTreeSet<RemoteFile>,
    objects: &Objects,
    place: &Place,
    commit: usize,
) -> Result<(), String> {
    let plan = plan_restore(files, None).map_err(|error| error.to_string())?;
    let image = apply(&plan.files, objects)?;
    match place.app.lock().unwrap().is_at_least(&image, commit) {
        true => Ok(()),
        false => Err(format!("{} lacks commits", plan.txid)),
    }
}
