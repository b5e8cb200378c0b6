//! `replicate --dry-run`: reports the planned replication and changes nothing.

use engine::replica::lease;
use engine::replica::manifest;
use engine::replication::DatabaseSettings;
use engine::replication::uploader::TargetSettings;
use futures::StreamExt;
use protocol::exit::ExitCode;
use store::Store;

use super::unusable;
use crate::config::Settings;
use crate::failure::{Failure, lease_code};
use crate::near;

/// Number of databases examined at the same time.
const DATABASES_AT_ONCE: usize = 8;

/// Examines each database and each of its targets, and reports their state.
///
/// # Errors
///
/// The first database or target that cannot work, after all of them were examined.
pub async fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    let looks = (settings.databases.iter())
        .map(|database| look(&database.settings, database.restore_first));
    let mut looks = futures::stream::iter(looks).buffered(DATABASES_AT_ONCE);
    let mut failure = None;
    while let Some((lines, failed)) = looks.next().await {
        for line in lines {
            println!("{line}");
        }
        for failed in failed {
            if failure.is_some() {
                tracing::error!("{failed}");
            }
            failure.get_or_insert(failed);
        }
    }
    for refused in &settings.refused {
        let path = refused.path.display();
        println!("{path}: cannot be replicated");
        let message = format!("{path}: {}", refused.message);
        let failed = Failure::message(ExitCode::BadSource, message);
        if failure.is_some() {
            tracing::error!("{failed}");
        }
        failure.get_or_insert(failed);
    }
    failure.map_or(Ok(ExitCode::Done), Err)
}

/// Returns lines for people, and the failures.
async fn look(database: &DatabaseSettings, restore_first: bool) -> (Vec<String>, Vec<Failure>) {
    let path = database.path.display();
    let mut failures = Vec::new();
    let mut lines = match unusable(&database.path, restore_first) {
        None => vec![format!("{path}: would be replicated")],
        Some(failure) => {
            let line = format!("{path}: cannot be replicated");
            failures.push(failure);
            vec![line]
        }
    };
    for target in &database.targets {
        let (name, place) = (&target.name, target.store.describe());
        let found = found(target).await.unwrap_or_else(|failure| {
            failures.push(failure.context(&path).context(&place));
            "cannot be asked".to_owned()
        });
        lines.push(format!("  to {name}, {place}: {found}"));
    }
    (lines, failures)
}

/// Describes the content of a target. Write access is not tested.
async fn found(target: &TargetSettings) -> Result<String, Failure> {
    let lease = lease::read(&target.store)
        .await
        .map_err(|error| Failure::new(lease_code(&error), error))?;
    let files = manifest::list(&target.store).await?;
    if files.is_empty() {
        return Ok(format!("no backup yet{}", near::hint(&target.store).await));
    }
    let txid = manifest::newest(&files);
    Ok(match lease {
        Some(stored) => format!(
            "a backup up to TXID {txid}, last written by {} with epoch {}",
            stored.lease.holder, stored.lease.epoch
        ),
        None => format!(
            "a backup up to TXID {txid}, written by Litestream: it would be taken over, from a \
             snapshot on"
        ),
    })
}
