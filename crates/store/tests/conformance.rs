//! Every store passes the same suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use store::testing::Weed;
use store::{Credentials, FaultPlan, Faulty, FileStore, Memory, S3Store, SharedStore, conformance};

#[tokio::test]
async fn memory_conforms() {
    conformance::run(async || Arc::new(Memory::new()) as SharedStore).await;
}

#[tokio::test]
async fn a_directory_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let count = AtomicU64::new(0);
    conformance::run(async || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        // The directory does not exist before the first put.
        let path = directory.path().join(format!("stores/{number}"));
        Arc::new(FileStore::new(path)) as SharedStore
    })
    .await;
}

#[tokio::test]
async fn a_faulty_store_without_faults_conforms() {
    conformance::run(async || {
        Arc::new(Faulty::new(Memory::new(), FaultPlan::none())) as SharedStore
    })
    .await;
}

#[tokio::test]
async fn a_bucket_conforms() {
    let weed = Weed::start();
    weed.create_bucket("conformance").await;
    let count = AtomicU64::new(0);
    conformance::run(async || {
        let prefix = format!("some/prefix-{}", count.fetch_add(1, Ordering::Relaxed));
        let credentials = Credentials::Static(weed.admin());
        let target = weed.target("conformance", &prefix, credentials);
        Arc::new(S3Store::new(&target).unwrap()) as SharedStore
    })
    .await;
}
