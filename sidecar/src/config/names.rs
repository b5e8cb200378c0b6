//! Database names that are refused, because their backup would not be found again.

use std::collections::BTreeMap;
use std::path::Path;

use engine::replica::lease::LEASE_KEY;
use protocol::config::{Config, Database};
use store::Target;

use super::pattern::{Pattern, is_level};
use super::{ConfigError, Entry, target, targets_of};

/// The database that stores at each destination.
pub(super) type Places = BTreeMap<String, String>;

/// Returns the reason why a database of a pattern cannot be stored, if any.
///
/// # Errors
///
/// An invalid target.
pub(super) fn fault(
    config: &Config,
    entry: &Database,
    pattern: &Pattern,
    path: &Path,
) -> Result<Option<String>, ConfigError> {
    let advice = "rename the file, or name it in exclude";
    let Some(place) = pattern.place(path) else {
        return Ok(Some(format!("its name is not UTF-8: {advice}")));
    };
    if let Err(reason) = store::check_place(place) {
        return Ok(Some(format!(
            "no store can keep a backup under the name {place:?}, {reason}: {advice}"
        )));
    }
    for target in targets_of(config, entry, "", None)? {
        if let Target::S3(s3) = target
            && let Err(error) = s3.below(place).check_prefix()
        {
            return Ok(Some(format!("{error}: {advice}")));
        }
    }
    Ok(None)
}

/// Returns the destinations of all databases.
///
/// # Errors
///
/// An invalid target.
pub(super) fn places(config: &Config, entries: &[Entry]) -> Result<Places, ConfigError> {
    let mut places = Places::new();
    for (index, database, place) in entries {
        let key = format!("dbs[{index}]");
        for target in targets_of(config, database, &key, place.as_deref())? {
            let path = database.path.display().to_string();
            places.insert(target::place(&target), path);
        }
    }
    Ok(places)
}

/// Returns whether a database would store among the objects of another one, for example at
/// `backup/0000` while another one stores at `backup`.
///
/// # Errors
///
/// An invalid target.
/// A target that makes no sense.
pub(super) fn among_others(
    places: &Places,
    config: &Config,
    database: &Database,
    key: &str,
    place: Option<&str>,
) -> Result<Option<String>, ConfigError> {
    for target in targets_of(config, database, key, place)? {
        let own = target::place(&target);
        for (at, _) in own.match_indices('/') {
            let next = own[at + 1..].split('/').next().unwrap_or_default();
            if (is_level(next) || next == LEASE_KEY)
                && let Some(other) = places.get(&own[..at])
            {
                return Ok(Some(format!(
                    "its backup would lie in {next:?} among the objects of {other}: rename it, or \
                     give one of them another place"
                )));
            }
        }
    }
    Ok(None)
}
