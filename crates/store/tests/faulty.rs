//! The wrapper with planned failures.

use std::time::Duration;

use store::{Body, Fault, FaultPlan, Faulty, Memory, PutMeta, PutMode, Store, StoreErrorKind};

const LOST: Fault = Fault::ApplyThenFail(StoreErrorKind::Unreachable);

async fn put(store: &impl Store, key: &str) -> Result<(), StoreErrorKind> {
    let body = Body::from(&b"x"[..]);
    let put = store.put(key, body, PutMode::Create, &PutMeta::default());
    put.await.map_err(|error| error.kind())
}

#[tokio::test]
async fn the_call_named_by_the_plan_fails_and_no_other() {
    let fail = Fault::Fail(StoreErrorKind::Throttled);
    let store = Faulty::new(Memory::new(), FaultPlan::none().at(1, fail));
    assert_eq!(put(&store, "a").await, Ok(()));
    assert_eq!(put(&store, "b").await, Err(StoreErrorKind::Throttled));
    assert_eq!(put(&store, "c").await, Ok(()));
    assert_eq!(store.inner().keys(), ["a", "c"]);
    assert_eq!(store.operations(), 3);
    assert_eq!(store.calls()[1].to_string(), "put b (Fail(Throttled))");
}

#[tokio::test]
async fn a_lost_answer_hides_that_the_object_was_stored() {
    let store = Faulty::new(Memory::new(), FaultPlan::none().at(0, LOST));
    assert_eq!(put(&store, "a").await, Err(StoreErrorKind::Unreachable));
    assert_eq!(put(&store, "a").await, Err(StoreErrorKind::Exists));
    assert_eq!(store.inner().keys(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_call_never_returns() {
    for (fault, stored) in [(Fault::Stall, 0), (Fault::ApplyThenStall, 1)] {
        let store = Faulty::new(Memory::new(), FaultPlan::none().from(0, fault));
        let hour = Duration::from_secs(3_600);
        assert!(tokio::time::timeout(hour, put(&store, "a")).await.is_err());
        assert_eq!(store.inner().keys().len(), stored);
    }
}

#[tokio::test]
async fn an_outage_lasts_until_the_plan_changes() {
    let down = Fault::Fail(StoreErrorKind::Unreachable);
    let store = Faulty::new(Memory::new(), FaultPlan::none().from(1, down));
    assert_eq!(put(&store, "a").await, Ok(()));
    for _ in 0..3 {
        assert_eq!(put(&store, "b").await, Err(StoreErrorKind::Unreachable));
        assert_eq!(
            store.list("", None).await.unwrap_err().kind(),
            StoreErrorKind::Unreachable
        );
    }
    store.set_plan(FaultPlan::none());
    assert_eq!(put(&store, "b").await, Ok(()));
}

#[tokio::test]
async fn random_faults_follow_from_the_seed() {
    let faults = async |seed| {
        let store = Faulty::new(Memory::new(), FaultPlan::none().random(seed, 4, &[LOST]));
        for n in 0..200 {
            let _ = put(&store, &format!("{n}")).await;
        }
        store
            .calls()
            .iter()
            .map(|call| call.fault.is_some())
            .collect::<Vec<_>>()
    };
    let first = faults(7).await;
    assert_eq!(first, faults(7).await);
    assert_ne!(first, faults(8).await);
    let share = first.iter().filter(|fault| **fault).count();
    assert!((25..=75).contains(&share), "{share} of 200");
}
