//! Event sources that wake the capture thread and idle databases: inotify and an eventfd.

use std::collections::HashMap;
use std::collections::hash_map;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tokio::sync::Notify;

/// Recipient of an event.
#[derive(Debug)]
enum Whom {
    /// The capture thread, for this attachment.
    Attached(u64),
    /// An idle database.
    Idle(Arc<Notify>),
}

/// Watches that give one event and end. Any thread may add one.
#[derive(Debug, Clone)]
pub(super) struct Watches {
    /// None where the system gives no events.
    kernel: Option<inotify::Watches>,
    known: Arc<Mutex<HashMap<WatchDescriptor, Whom>>>,
}

impl Watches {
    fn add(&self, path: &Path, mask: WatchMask, whom: Whom) -> Option<WatchDescriptor> {
        // An event may arrive before `add` returns; its handling waits for this lock.
        let mut known = self.known();
        let watch = self
            .kernel
            .clone()?
            .add(path, mask | WatchMask::ONESHOT)
            .ok()?;
        match known.entry(watch.clone()) {
            // The same file under another path: one of the two relies on polling alone.
            hash_map::Entry::Occupied(_) => None,
            hash_map::Entry::Vacant(entry) => {
                entry.insert(whom);
                Some(watch)
            }
        }
    }

    /// Watches for the next write to the WAL of an attached database, or for the end of a process
    /// that wrote it. None means that no event will come.
    pub(super) fn attached(&self, log: &Path, id: u64) -> Option<WatchDescriptor> {
        let mask = WatchMask::MODIFY | WatchMask::CLOSE_WRITE;
        self.add(log, mask, Whom::Attached(id))
    }

    /// Watches a file of an idle database. The event comes before any process can change a closed
    /// file, or with the next write to an open one.
    pub(super) fn idle(&self, path: &Path) -> Option<IdleWatch> {
        let mask = WatchMask::OPEN
            | WatchMask::MODIFY
            | WatchMask::ATTRIB
            | WatchMask::MOVE_SELF
            | WatchMask::DELETE_SELF;
        let changed = Arc::new(Notify::new());
        let watch = self.add(path, mask, Whom::Idle(Arc::clone(&changed)))?;
        Some(IdleWatch {
            watches: self.clone(),
            watch,
            changed,
        })
    }

    /// Ends a watch, unless it has ended.
    pub(super) fn remove(&self, watch: &WatchDescriptor) {
        let was_there = self.known().remove(watch).is_some();
        if let Some(mut kernel) = self.kernel.clone().filter(|_| was_there) {
            // Removal fails when the file is gone, and then the watch is gone too.
            let _removed = kernel.remove(watch.clone());
        }
    }

    /// Number of watches.
    pub(super) fn len(&self) -> usize {
        self.known().len()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, Whom>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch on an idle database; dropping it ends the watch.
#[derive(Debug)]
pub struct IdleWatch {
    watches: Watches,
    watch: WatchDescriptor,
    changed: Arc<Notify>,
}

impl IdleWatch {
    /// Waits for the event.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for IdleWatch {
    fn drop(&mut self) {
        self.watches.remove(&self.watch);
    }
}

/// Events that woke the capture thread.
#[derive(Debug, Default)]
pub(super) struct Woken {
    /// Attachments whose watch has ended.
    pub(super) attached: Vec<u64>,
    /// Events were lost, so every watch was forgotten.
    pub(super) all: bool,
}

/// Event sources that the capture thread waits for.
#[derive(Debug)]
pub(super) struct Events {
    inotify: Option<Inotify>,
    pub(super) watches: Watches,
    wake: Arc<Wake>,
}

impl Events {
    pub(super) fn new(wake: Arc<Wake>) -> Events {
        let inotify = Inotify::init().ok();
        let watches = Watches {
            kernel: inotify.as_ref().map(Inotify::watches),
            known: Arc::default(),
        };
        Events {
            inotify,
            watches,
            wake,
        }
    }

    /// Waits for an event, a signal, or the pause to pass.
    pub(super) fn wait(&mut self, pause: Option<Duration>) -> Woken {
        let wake = self.wake.descriptor.as_fd();
        // Without inotify, poll the eventfd twice.
        let events = self.inotify.as_ref().map_or(wake, |it| it.as_fd());
        let mut descriptors = [wake, events].map(|it| PollFd::from_borrowed_fd(it, PollFlags::IN));
        // A pause too long for the system means no timeout. A signal only makes the thread poll
        // early.
        let timeout = pause.and_then(|pause| pause.try_into().ok());
        let _woken = poll(&mut descriptors, timeout.as_ref());
        let [wake, events] = descriptors.map(|it| !it.revents().is_empty());
        if wake {
            self.wake.clear();
        }
        if events {
            self.read()
        } else {
            Woken::default()
        }
    }

    fn read(&mut self) -> Woken {
        let mut woken = Woken::default();
        let Some(inotify) = &mut self.inotify else {
            return woken;
        };
        let mut buffer = [0u8; 4096];
        // The read fails when no event waits.
        while let Ok(batch) = inotify.read_events(&mut buffer) {
            for event in batch {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    // The lost events hide which watches have ended.
                    woken.all = true;
                    for (_, whom) in self.watches.known().drain() {
                        tell(whom, &mut woken);
                    }
                    continue;
                }
                // The kernel also reports the end of the watch; that second event has no recipient.
                let whom = self.watches.known().remove(&event.wd);
                if let Some(whom) = whom {
                    tell(whom, &mut woken);
                }
            }
        }
        woken
    }
}

fn tell(whom: Whom, woken: &mut Woken) {
    match whom {
        Whom::Attached(id) => woken.attached.push(id),
        Whom::Idle(changed) => changed.notify_one(),
    }
}

/// A descriptor that another thread can make readable.
#[derive(Debug)]
pub(super) struct Wake {
    descriptor: OwnedFd,
}

impl Wake {
    pub(super) fn new() -> std::io::Result<Wake> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Wake {
            descriptor: eventfd(0, flags)?,
        })
    }

    pub(super) fn signal(&self) {
        // This fails only when 2^64 - 2 signals wait, and then the thread is awake.
        let _signalled = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // This fails when no signal waits.
        let _cleared = rustix::io::read(&self.descriptor, &mut [0u8; 8]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn watched(events: &Events, path: &Path) -> IdleWatch {
        events.watches.idle(path).unwrap()
    }

    fn woken(events: &mut Events, watch: &IdleWatch) -> bool {
        events.wait(Some(Duration::ZERO));
        let mut notified = std::pin::pin!(watch.changed());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        notified.as_mut().poll(&mut context).is_ready()
    }

    #[test]
    fn whatever_can_change_an_idle_database_gives_an_event_and_looks_at_it_give_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let other = directory.path().join("other");
        let mut events = Events::new(Arc::new(Wake::new().unwrap()));
        let changes: [(&str, &dyn Fn()); 5] = [
            ("opened", &|| drop(File::open(&path).unwrap())),
            ("written", &|| fs::write(&path, "x").unwrap()),
            ("replaced", &|| {
                fs::write(&other, "y").unwrap();
                fs::rename(&other, &path).unwrap();
            }),
            ("moved", &|| fs::rename(&path, &other).unwrap()),
            ("removed", &|| fs::remove_file(&path).unwrap()),
        ];
        for (what, change) in changes {
            fs::write(&path, "").unwrap();
            let watch = watched(&events, &path);
            fs::metadata(&path).unwrap();
            assert!(!woken(&mut events, &watch), "not {what} yet");
            change();
            assert!(woken(&mut events, &watch), "{what}");
            assert_eq!(events.watches.len(), 0, "{what}: one event");
        }
    }

    #[test]
    fn a_file_is_watched_by_one_path_at_a_time_and_a_watch_ends_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let (path, alias) = (directory.path().join("db"), directory.path().join("alias"));
        fs::write(&path, "").unwrap();
        fs::hard_link(&path, &alias).unwrap();
        let mut events = Events::new(Arc::new(Wake::new().unwrap()));
        let watch = watched(&events, &path);
        assert!(events.watches.idle(&alias).is_none());
        drop(watch);
        assert_eq!(events.watches.len(), 0);
        let watch = watched(&events, &alias);
        drop(File::open(&path).unwrap());
        assert!(woken(&mut events, &watch));
    }

    #[test]
    fn an_attachment_is_told_of_a_write_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db-wal");
        fs::write(&path, "").unwrap();
        let mut events = Events::new(Arc::new(Wake::new().unwrap()));
        events.watches.attached(&path, 7).unwrap();
        drop(File::open(&path).unwrap());
        assert!(events.wait(Some(Duration::ZERO)).attached.is_empty());
        fs::write(&path, "x").unwrap();
        fs::write(&path, "xy").unwrap();
        assert_eq!(events.wait(Some(Duration::ZERO)).attached, [7]);
        assert!(events.wait(Some(Duration::ZERO)).attached.is_empty());
    }
}
