//! Limits of the process: local state on disk and memory for page images, snapshots, compaction and
//! uploads, shared by all of its databases.
//!
//! Limits per database would add up to more than the Pod has, because its volume and its memory
//! are limits of the whole Pod. So all databases take from one budget, and give back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit of [`Budgets::memory`] and [`Budgets::upload`].
const PERMIT_BYTES: u64 = 64 << 10;
/// Uploads up to this size need no permit: 64 of them at once are 16 MiB.
const SMALL_UPLOAD_BYTES: u64 = 256 << 10;

/// Limits on the disk space and memory that the process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of local state of all databases together: captured files, page hashes and page images
    /// that do not fit into memory.
    pub state_bytes: u64,
    /// Bytes of memory of the process. A part of it bounds the memory that grows with the load.
    pub memory_bytes: u64,
}

impl Default for Limits {
    /// For a process whose environment sets no limits: 4 GiB of local state, 256 MiB of memory.
    fn default() -> Limits {
        Limits {
            state_bytes: 4 << 30,
            memory_bytes: 256 << 20,
        }
    }
}

/// Work that holds its bytes in memory. Each kind has separate memory: a kind that waits for a
/// store must not delay the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A snapshot in progress.
    Snapshot,
    /// A compaction.
    Compaction,
    /// The upload of a captured file.
    Upload,
}

/// The budgets of the process. Cheap to clone through [`Arc`].
#[derive(Debug)]
pub struct Budgets {
    pages: Arc<PageMemory>,
    state: Arc<StateBudget>,
    snapshots: Shares,
    compactions: Shares,
    uploads: Shares,
}

impl Budgets {
    /// Creates budgets within these limits.
    pub fn new(limits: Limits) -> Arc<Budgets> {
        let part = |divisor: u64, least: u64, most: u64| {
            (limits.memory_bytes / divisor).clamp(least << 20, most << 20)
        };
        let pages = usize::try_from(part(10, 4, 24)).unwrap_or(usize::MAX);
        Arc::new(Budgets {
            pages: Arc::new(PageMemory::new(pages)),
            state: Arc::new(StateBudget::new(limits.state_bytes)),
            // Of 256 MiB: 24 for page images, and twice 25.6, 25.6 and 16.
            snapshots: Shares::new(part(10, 8, 32)),
            compactions: Shares::new(part(10, 8, 32)),
            uploads: Shares::new(part(16, 8, 32)),
        })
    }

    /// The account of one database in the local-state budget, until it is dropped.
    pub fn account(&self) -> Arc<Account> {
        self.state.databases.fetch_add(1, Ordering::Relaxed);
        Arc::new(Account {
            budget: Arc::clone(&self.state),
            bytes: AtomicU64::new(0),
        })
    }

    /// Memory for page images.
    pub(crate) fn page_memory(&self) -> Arc<PageMemory> {
        Arc::clone(&self.pages)
    }

    /// Waits for memory for work of the target with this index. Grants at most the whole share.
    pub async fn memory(&self, work: Work, target: usize, bytes: u64) -> OwnedSemaphorePermit {
        let shares = match work {
            Work::Snapshot => &self.snapshots,
            Work::Compaction => &self.compactions,
            Work::Upload => &self.uploads,
        };
        shares.acquire(target, bytes).await
    }

    /// Waits for memory for an upload. Small ones need none, so they never wait behind large ones.
    pub async fn upload(&self, target: usize, bytes: u64) -> Option<OwnedSemaphorePermit> {
        if bytes <= SMALL_UPLOAD_BYTES {
            return None;
        }
        Some(self.memory(Work::Upload, target, bytes).await)
    }

    /// Bytes of local state in use.
    pub fn state_bytes(&self) -> u64 {
        self.state.used.load(Ordering::Relaxed)
    }

    /// The limit of local state, in bytes.
    pub fn state_limit(&self) -> u64 {
        self.state.limit
    }
}

/// Memory for one kind of work: one share for the first target of each database, and one for all
/// other targets. So while a store does not answer, work for targets of the other share continues.
#[derive(Debug)]
struct Shares {
    /// Permits of each share.
    permits: u32,
    first: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Shares {
    /// Creates two shares of this many bytes each.
    fn new(bytes: u64) -> Shares {
        let permits = u32::try_from(bytes / PERMIT_BYTES).unwrap_or(u32::MAX);
        let share = || Arc::new(Semaphore::new(permits as usize));
        Shares {
            permits,
            first: share(),
            others: share(),
        }
    }

    async fn acquire(&self, target: usize, bytes: u64) -> OwnedSemaphorePermit {
        let share = match target {
            0 => &self.first,
            _ => &self.others,
        };
        let wanted = bytes
            .div_ceil(PERMIT_BYTES)
            .clamp(1, u64::from(self.permits));
        let permit = Arc::clone(share).acquire_many_owned(wanted as u32).await;
        permit.expect("nothing closes it")
    }
}

/// Local state of all databases.
///
/// One half of the limit is common. The other half is divided into equal shares. A database that
/// has used its share grows only while less than half of the limit is in use. So no database takes
/// the share of another, and the sum stays within the limit, except for the file being written.
#[derive(Debug)]
struct StateBudget {
    limit: u64,
    used: AtomicU64,
    databases: AtomicUsize,
}

impl StateBudget {
    fn new(limit: u64) -> StateBudget {
        StateBudget {
            limit,
            used: AtomicU64::new(0),
            databases: AtomicUsize::new(0),
        }
    }

    /// Bytes that each database may use in any case.
    fn share(&self) -> u64 {
        let databases = self.databases.load(Ordering::Relaxed).max(1) as u64;
        self.limit / 2 / databases
    }

    fn has_room(&self, own_bytes: u64, more_bytes: u64) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        own_bytes + more_bytes <= self.share() || used + more_bytes <= self.limit / 2
    }
}

/// The part of the local-state budget that one database uses.
#[derive(Debug)]
pub struct Account {
    budget: Arc<StateBudget>,
    bytes: AtomicU64,
}

impl Account {
    /// Whether the database may use this many bytes more.
    pub fn has_room(&self, more_bytes: u64) -> bool {
        self.budget
            .has_room(self.bytes.load(Ordering::Relaxed), more_bytes)
    }

    /// Bytes that the database uses.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes bytes if there is room for them.
    #[must_use]
    pub fn try_take(&self, bytes: u64) -> bool {
        let has_room = self.has_room(bytes);
        if has_room {
            self.take(bytes);
        }
        has_room
    }

    /// Takes bytes that are already on the disk.
    pub fn take(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives bytes back.
    pub fn give_back(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes up to `wanted` bytes that are free beyond the shares of others, until the reservation
    /// is dropped.
    pub fn reserve(self: &Arc<Account>, wanted: u64) -> Reservation {
        let used = self.budget.used.load(Ordering::Relaxed);
        let common = (self.budget.limit / 2).saturating_sub(used);
        let own = self.budget.share().saturating_sub(self.bytes());
        let bytes = wanted.min(common.max(own));
        self.take(bytes);
        Reservation {
            account: Arc::clone(self),
            bytes,
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget
            .used
            .fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
        self.budget.databases.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes of local state that are reserved until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Account>,
    bytes: u64,
}

impl Reservation {
    /// Number of reserved bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

/// Memory for page images, shared by all page sets of the process.
#[derive(Debug)]
pub(crate) struct PageMemory {
    limit: usize,
    used: AtomicUsize,
}

impl PageMemory {
    pub(crate) fn new(limit: usize) -> PageMemory {
        PageMemory {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// Takes memory if enough is free, or in any case with `always`. True if it was taken.
    pub(crate) fn take(&self, bytes: usize, always: bool) -> bool {
        let fits = |used: usize| (always || used + bytes <= self.limit).then_some(used + bytes);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.is_ok()
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budgets(state_bytes: u64) -> Arc<Budgets> {
        Budgets::new(Limits {
            state_bytes,
            ..Limits::default()
        })
    }

    #[test]
    fn a_database_that_takes_all_it_can_leaves_the_others_their_shares() {
        let budgets = budgets(800);
        let accounts: Vec<_> = (0..4).map(|_| budgets.account()).collect();
        let greedy = &accounts[0];
        while greedy.try_take(10) {}
        assert_eq!(greedy.bytes(), 400);
        for other in &accounts[1..] {
            while other.try_take(10) {}
            assert_eq!(other.bytes(), 100);
        }
        greedy.give_back(350);
        assert!(accounts[1].try_take(10), "there is common room again");
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let budgets = budgets(1000);
        let (one, other) = (budgets.account(), budgets.account());
        one.take(300);
        let reserved = one.reserve(1000);
        assert_eq!((reserved.bytes(), budgets.state_bytes()), (200, 500));
        drop(reserved);
        drop(one);
        assert_eq!(budgets.state_bytes(), 0);
        assert!(other.try_take(500));
    }

    proptest! {
        #[test]
        fn all_together_stay_within_the_limit(
            steps in prop::collection::vec((0usize..8, 1u64..300, any::<bool>()), 1..400),
        ) {
            let budgets = budgets(4000);
            let accounts: Vec<_> = (0..8).map(|_| budgets.account()).collect();
            for (index, bytes, gives) in steps {
                let account = &accounts[index];
                if gives {
                    account.give_back(bytes.min(account.bytes()));
                } else {
                    let _taken = account.try_take(bytes);
                }
                prop_assert!(budgets.state_bytes() <= 4000);
            }
        }
    }

    #[tokio::test]
    async fn work_waits_for_memory_of_its_own_kind_and_target_alone() {
        let budgets = Budgets::new(Limits {
            memory_bytes: 48 << 20,
            ..Limits::default()
        });
        let all = budgets.memory(Work::Snapshot, 0, 1 << 40).await;
        let mut next = std::pin::pin!(budgets.memory(Work::Snapshot, 0, 1));
        assert!(futures::poll!(&mut next).is_pending());
        let _other_target = budgets.memory(Work::Snapshot, 1, 1 << 40).await;
        let _compaction = budgets.memory(Work::Compaction, 0, 1 << 40).await;
        drop(all);
        let _memory = next.await;
        assert!(budgets.upload(0, 1000).await.is_none(), "a small upload");
        assert!(budgets.upload(0, 10 << 20).await.is_some());
    }
}
