//! Lists of objects and directories, page by page.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::Object;

use super::sent::Kind;
use super::{Inner, place};
use crate::object::ObjectInfo;
use crate::{StoreError, key};

/// Limit on the pages of one list, of 1,000 objects each, in case a broken store never ends its
/// list.
const MAX_PAGES: u32 = 100_000;

/// Parameters of a list request.
#[derive(Default, Clone, Copy)]
struct Asked<'a> {
    start: Option<&'a str>,
    token: Option<&'a str>,
    max_keys: Option<i32>,
    delimiter: Option<&'a str>,
}

impl Inner {
    pub(super) async fn list(
        &self,
        prefix: &str,
        start_after: Option<&str>,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let start = start_after.and_then(safe_start);
        let (full, full_start) = (self.full(prefix), start.map(|start| self.full(start)));
        let mut found = self.pages(prefix, &full, full_start.as_deref()).await?;
        let slashed = self.prefix.is_empty() && full != prefix;
        if found.is_empty() && slashed && self.drops_slashes(prefix).await? {
            found = self.pages(prefix, prefix, start).await?;
        }
        if found.is_empty() {
            self.refuse_other_names(prefix).await?;
        }
        // Some stores ignore `start-after` or do not sort by bytes, and the request starts a little
        // earlier.
        found.retain(|info| start_after.is_none_or(|after| info.key.as_str() > after));
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        found.dedup_by(|a, b| a.key == b.key);
        Ok(found)
    }

    /// Returns whether the store drops the slash at the start of our keys, which have one below an
    /// empty prefix. SeaweedFS does, and then lists the keys without it.
    async fn drops_slashes(&self, prefix: &str) -> Result<bool, StoreError> {
        let Some(key) = self.first(prefix).await? else {
            return Ok(false);
        };
        match self.head(&key).await {
            Ok(_) => Ok(true),
            // The object belongs to another program, in a store that distinguishes `/key` and
            // `key`.
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the names directly below a directory that have objects below them.
    pub(super) async fn directories(&self, directory: &str) -> Result<Vec<String>, StoreError> {
        let full = key::directory(&self.prefix) + &key::below(directory);
        let mut found = self.common_prefixes(&full).await?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Returns the next path component after `full`, for every key that starts with `full`.
    async fn common_prefixes(&self, full: &str) -> Result<Vec<String>, StoreError> {
        let mut found = Vec::new();
        let asked = Asked {
            delimiter: Some("/"),
            ..Asked::default()
        };
        self.every_page(full, asked, |page| {
            let prefixes = page.common_prefixes().iter();
            let names = prefixes.filter_map(|prefix| prefix.prefix()?.strip_prefix(full));
            let names = names.filter_map(|name| name.strip_suffix('/'));
            let names = names.filter(|name| key::is_directory_name(name));
            found.extend(names.map(str::to_owned));
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Returns all pages of a list of full keys that start with `full`, which belongs to `prefix`.
    async fn pages(
        &self,
        prefix: &str,
        full: &str,
        start: Option<&str>,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let mut found = Vec::new();
        let asked = Asked {
            start,
            ..Asked::default()
        };
        self.every_page(full, asked, |page| {
            for object in page.contents() {
                found.push(self.object_info(prefix, object)?);
            }
            Ok(())
        })
        .await?;
        Ok(found)
    }

    async fn every_page(
        &self,
        full: &str,
        asked: Asked<'_>,
        mut take: impl FnMut(ListObjectsV2Output) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let asked = Asked {
                token: token.as_deref(),
                ..asked
            };
            let (page, next) = self.page(full, asked).await?;
            take(page)?;
            if next.is_none() {
                return Ok(());
            }
            if next == token {
                break;
            }
            token = next;
        }
        Err(self.bad_answer("list", self.relative(full), "the list does not end"))
    }

    /// Returns the full key of the first object that starts with `full`.
    pub(super) async fn first(&self, full: &str) -> Result<Option<String>, StoreError> {
        let asked = Asked {
            max_keys: Some(1),
            ..Asked::default()
        };
        let (page, _) = self.page(full, asked).await?;
        Ok(page
            .contents()
            .first()
            .and_then(Object::key)
            .map(str::to_owned))
    }

    /// Returns one page of a list by full keys, and the token of the next one.
    async fn page(
        &self,
        full: &str,
        asked: Asked<'_>,
    ) -> Result<(ListObjectsV2Output, Option<String>), StoreError> {
        let below = self.relative(full);
        let request = self.client.list_objects_v2().bucket(&self.bucket);
        let page = request
            .prefix(full)
            .set_start_after(asked.start.map(str::to_owned))
            .set_continuation_token(asked.token.map(str::to_owned))
            .set_max_keys(asked.max_keys)
            .set_delimiter(asked.delimiter.map(str::to_owned))
            .customize()
            .interceptor(self.sent(Kind::List))
            .send()
            .await
            .map_err(|error| self.failure("list", below, error))?;
        let more = page.is_truncated().unwrap_or_default();
        let next = page.next_continuation_token().map(str::to_owned);
        if more && next.is_none() {
            return Err(self.bad_answer("list", below, "a list goes on without saying where"));
        }
        Ok((page, next.filter(|_| more)))
    }

    pub(super) fn object_info(
        &self,
        prefix: &str,
        object: &Object,
    ) -> Result<ObjectInfo, StoreError> {
        let full = object.key().unwrap_or_default();
        let key = place::below(&key::stem(&self.prefix, prefix), full);
        let key = key.filter(|key| key.starts_with(prefix));
        let Some(key) = key else {
            if place::is_odd(&self.prefix) {
                return Err(self.other_name(prefix));
            }
            return Err(self.bad_answer("list", prefix, "a key without the prefix asked for"));
        };
        let stored = object
            .last_modified()
            .and_then(|time| time.to_millis().ok());
        Ok(ObjectInfo {
            key: key.to_owned(),
            size: self.size("list", key, object.size())?,
            modified_ms: stored.unwrap_or_default(),
            version: object.e_tag().map(str::to_owned),
        })
    }
}

/// Returns a start for a list that leaves out nothing after `after`.
///
/// A store that keeps directories (SeaweedFS) skips all of `dir/` when a list starts after `dir`,
/// although `dir/x` sorts after it. So start a little earlier, at a text that ends before a letter
/// or digit: every key in a directory of that name sorts before `after` anyway.
fn safe_start(after: &str) -> Option<&str> {
    let end = after.char_indices().rev().find(|(_, c)| *c > '/')?.0;
    after.get(..end).filter(|start| !start.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_starts_early_enough_for_stores_that_skip_directories() {
        let all = [
            "0", "0-", "0/x", "00", "00/x", "1", "1-", "1/", "1/x", "1/x-", "1/x/y", "1/xy",
        ];
        for after in all {
            let start = safe_start(after).unwrap_or_default();
            assert!(start <= after);
            // Such a store leaves out all keys up to the start, and those in a directory of its
            // name.
            let below = format!("{start}/");
            let skipped =
                |key: &&&str| !start.is_empty() && (**key <= start || key.starts_with(&below));
            assert!(
                all.iter().filter(skipped).all(|key| *key <= after),
                "{after}: {start}"
            );
        }
        let name = "0000/00000000000000ff-00000000000000ff.ltx";
        assert_eq!(safe_start(name), Some(&name[..name.len() - 1]));
    }
}
