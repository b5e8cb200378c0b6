//! Watches of Pods: one for each relevant namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{Instrument, info_span};

use super::slim::SlimPod;
use super::{PAGE, follow};
use crate::cache::Cache;
use crate::cluster_state::PodFacts;

/// Watches of the Pods of some namespaces.
pub(super) struct PodWatches {
    client: Client,
    changed: watch::Sender<()>,
    running: Mutex<BTreeMap<String, Running>>,
}

struct Running {
    cache: Arc<Cache<PodFacts>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl PodWatches {
    pub(super) fn new(client: Client, changed: watch::Sender<()>) -> Self {
        PodWatches {
            client,
            changed,
            running: Mutex::default(),
        }
    }

    /// Starts and ends watches, so that exactly these namespaces are watched. Needs a runtime.
    pub(super) fn keep(&self, namespaces: &BTreeSet<String>) {
        let mut running = self.lock();
        running.retain(|namespace, _| namespaces.contains(namespace));
        for namespace in namespaces {
            running
                .entry(namespace.clone())
                .or_insert_with(|| self.start(namespace));
        }
    }

    fn start(&self, namespace: &str) -> Running {
        let cache = Arc::new(Cache::new(self.changed.clone()));
        let api = Api::<SlimPod>::namespaced(self.client.clone(), namespace);
        let kept = Arc::clone(&cache);
        let watch = async move {
            let config = watcher::Config::default().page_size(PAGE);
            follow(api, config, &kept, PodFacts::from).await;
        };
        let task = tokio::spawn(watch.instrument(info_span!("pods", namespace)));
        Running {
            cache,
            task: task.abort_handle(),
        }
    }

    /// The Pods of every namespace whose list is complete, ordered by name.
    pub(super) fn listed(&self) -> BTreeMap<String, Vec<Arc<PodFacts>>> {
        let running = self.lock();
        let ready = running.iter().filter(|(_, r)| r.cache.is_ready());
        ready
            .map(|(namespace, r)| (namespace.clone(), r.cache.all()))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for PodWatches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodWatches")
            .field("namespaces", &self.lock().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use kube::runtime::watcher::Event;

    use super::*;

    #[tokio::test]
    async fn a_namespace_is_absent_until_its_list_is_complete() {
        let nobody = Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(nobody).unwrap();
        let watches = PodWatches::new(client, watch::Sender::new(()));
        watches.keep(&BTreeSet::from(["shop".to_owned()]));
        assert_eq!(watches.listed(), BTreeMap::new());
        let cache = Arc::clone(&watches.lock()["shop"].cache);
        cache.take(Event::InitDone, &mut BTreeMap::new());
        let empty = BTreeMap::from([("shop".to_owned(), Vec::new())]);
        assert_eq!(watches.listed(), empty);
    }
}
