//! Objects of one watch, by namespace and name.
//!
//! The cache adds three things to kube's watcher. Equal values cause no change. Answers to our own
//! writes are visible at once. Values are reduced to the few fields that plans need. The decision
//! page 0016 gives the reasons.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kube::runtime::watcher::Event;
use tokio::sync::watch;

/// Namespace (empty for cluster-scoped objects) and name.
pub type Key = (String, String);

/// A value with a key and a resource version.
pub trait Entry: PartialEq {
    /// Namespace and name.
    fn key(&self) -> Key;
    /// Its `metadata.resourceVersion`.
    fn resource_version(&self) -> Option<&str>;
}

/// Objects of one watch, and whether the first list is complete.
///
/// Readers see whole lists only: a restarted watch replaces all objects at once.
#[derive(Debug)]
pub struct Cache<V> {
    entries: RwLock<BTreeMap<Key, Arc<V>>>,
    ready: AtomicBool,
    changed: watch::Sender<()>,
}

impl<V: Entry> Cache<V> {
    /// Creates an empty cache that notifies `changed` of every change.
    pub fn new(changed: watch::Sender<()>) -> Self {
        Cache {
            entries: RwLock::default(),
            ready: AtomicBool::new(false),
            changed,
        }
    }

    /// Whether the first list is complete. Until then a missing object proves nothing.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Arc<V>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Key, Arc<V>>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every entry, ordered by namespace and name.
    pub fn all(&self) -> Vec<Arc<V>> {
        self.read().values().cloned().collect()
    }

    /// The entries of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<V>> {
        let first = (namespace.to_owned(), String::new());
        let entries = self.read();
        let range = entries.range(first..);
        range
            .take_while(|((ns, _), _)| ns == namespace)
            .map(|(_, v)| Arc::clone(v))
            .collect()
    }

    /// Applies one event of the watch. `buffer` collects a list until it is complete.
    pub fn take(&self, event: Event<V>, buffer: &mut BTreeMap<Key, Arc<V>>) {
        match event {
            Event::Init => buffer.clear(),
            Event::InitApply(value) => {
                buffer.insert(value.key(), Arc::new(value));
            }
            Event::InitDone => {
                *self.write() = std::mem::take(buffer);
                self.ready.store(true, Ordering::Release);
                self.changed.send_replace(());
            }
            Event::Apply(value) => self.put(value),
            Event::Delete(value) => {
                self.write().remove(&value.key());
                self.changed.send_replace(());
            }
        }
    }

    /// Applies the answer to a write of ours, ahead of the watch. An object that the cache lacks is
    /// not added: the watch may have seen its deletion, and a late answer must not bring it back.
    pub fn refresh(&self, value: V) {
        let mut entries = self.write();
        if let Some(held) = entries.get_mut(&value.key())
            && is_newer(held, &value)
        {
            *held = Arc::new(value);
            drop(entries);
            self.changed.send_replace(());
        }
    }

    /// Applies an object of the watch, unless the answer to a later write of ours is in the cache.
    fn put(&self, value: V) {
        let key = value.key();
        let mut entries = self.write();
        if entries.get(&key).is_none_or(|held| is_newer(held, &value)) {
            entries.insert(key, Arc::new(value));
            drop(entries);
            self.changed.send_replace(());
        }
    }
}

/// Whether `offered` differs and is not older. Resource versions of one kind are ordered numbers.
fn is_newer<V: Entry>(held: &Arc<V>, offered: &V) -> bool {
    let version = |v: &V| v.resource_version()?.parse::<u128>().ok();
    let older =
        matches!((version(held), version(offered)), (Some(held), Some(offered)) if held > offered);
    !older && **held != *offered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Thing(&'static str, &'static str);

    impl Entry for Thing {
        fn key(&self) -> Key {
            ("ns".into(), self.0.into())
        }
        fn resource_version(&self) -> Option<&str> {
            Some(self.1)
        }
    }

    fn cache() -> Cache<Thing> {
        Cache::new(watch::Sender::new(()))
    }

    fn versions(cache: &Cache<Thing>) -> Vec<&'static str> {
        cache.in_namespace("ns").iter().map(|t| t.1).collect()
    }

    #[test]
    fn a_list_shows_only_when_it_is_complete() {
        let (cache, mut buffer) = (cache(), BTreeMap::new());
        cache.take(Event::Init, &mut buffer);
        cache.take(Event::InitApply(Thing("a", "5")), &mut buffer);
        assert!(cache.all().is_empty() && !cache.is_ready());
        cache.take(Event::InitDone, &mut buffer);
        assert!(cache.is_ready());
        assert_eq!(versions(&cache), ["5"]);
    }

    #[test]
    fn a_restarted_watch_forgets_what_is_gone() {
        let (cache, mut buffer) = (cache(), BTreeMap::new());
        cache.take(Event::Apply(Thing("gone", "1")), &mut buffer);
        for event in [
            Event::Init,
            Event::InitApply(Thing("a", "5")),
            Event::InitDone,
        ] {
            cache.take(event, &mut buffer);
        }
        assert_eq!(cache.all().len(), 1);
    }

    #[test]
    fn a_late_event_does_not_undo_a_newer_answer() {
        let (cache, mut buffer) = (cache(), BTreeMap::new());
        cache.take(Event::Apply(Thing("a", "8")), &mut buffer);
        cache.refresh(Thing("a", "10"));
        cache.take(Event::Apply(Thing("a", "9")), &mut buffer);
        assert_eq!(versions(&cache), ["10"]);
        cache.take(Event::Apply(Thing("a", "11")), &mut buffer);
        assert_eq!(versions(&cache), ["11"]);
        cache.refresh(Thing("a", "10"));
        assert_eq!(versions(&cache), ["11"]);
    }

    #[test]
    fn a_late_answer_does_not_revive_what_was_deleted() {
        let (cache, mut buffer) = (cache(), BTreeMap::new());
        cache.take(Event::Apply(Thing("a", "8")), &mut buffer);
        cache.take(Event::Delete(Thing("a", "10")), &mut buffer);
        cache.refresh(Thing("a", "9"));
        assert_eq!(versions(&cache), [""; 0]);
        cache.take(Event::Apply(Thing("a", "11")), &mut buffer);
        assert_eq!(versions(&cache), ["11"]);
    }
}
