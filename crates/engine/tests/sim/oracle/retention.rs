//! The promise of retention: every captured TXID inside the exact span, and every end of a file of
//! level 1 inside the window.

use std::time::Duration;

use engine::replica::restore_plan::plan_restore;
use ltx::Txid;

use super::Look;
use crate::writer::RETENTION;

/// Tolerance for honest clocks that differ, and for files in transit.
const TOLERANCE: Duration = Duration::from_secs(10);

/// Every promised point can be restored.
pub(super) fn is_kept(look: &Look<'_>) -> Result<(), String> {
    let since = |span: Duration| {
        let span = span.saturating_sub(TOLERANCE);
        look.now_ms.saturating_sub(span.as_millis() as u64)
    };
    let (exact, window) = (since(RETENTION.exact), since(RETENTION.window));
    let captured = look.stored.captured.iter();
    let captured = captured.filter(|(_, file)| file.at_ms > exact);
    for (txid, _) in captured {
        is_restorable(look, *txid, "exact")?;
    }
    for (txid, merged_ms) in &look.stored.compacted {
        // A compacted file may arrive late. Its point is as old as the captured file.
        let captured = look.stored.captured.get(txid);
        if captured.map_or(*merged_ms, |file| file.at_ms) > window {
            is_restorable(look, *txid, "window")?;
        }
    }
    Ok(())
}

fn is_restorable(look: &Look<'_>, txid: Txid, promise: &str) -> Result<(), String> {
    match plan_restore(look.files, Some(txid)) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{txid} is promised ({promise}): {error}")),
    }
}
