//! Point 6 of the demo: new credentials without a restart.

use anyhow::{Result, ensure};

use crate::runner::Context;
use crate::s3::Identity;
use crate::shop::{Shop, identity};

pub(super) fn credentials_rotate_without_a_restart(context: &Context<'_>) -> Result<()> {
    let shop = Shop::open(context)?;
    shop.wait_until_replicating()?;
    let before = shop.restarts()?;
    rotate(&shop, &identity(context, "second"))?;
    let rows = shop.stats()?;
    shop.wait_for_sync_after(rows.written_at_ms)?;
    shop.wait_for_condition("CredentialsValid", "True")?;
    ensure!(shop.restarts()? == before, "a container was restarted");
    Ok(())
}

/// Admits a second identity, writes its keys to the Secret, waits until the sidecar uses them, and
/// revokes the first identity.
pub fn rotate(shop: &Shop<'_>, second: &Identity) -> Result<()> {
    let first = shop.fingerprint()?;
    shop.s3().add_identity(second)?;
    shop.change_credentials(second)?;
    shop.wait_for_other_fingerprint(&first)?;
    shop.s3().remove_identity(&shop.identity.user)
}
