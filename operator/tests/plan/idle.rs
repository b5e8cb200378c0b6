//! Without a reason, the operator writes nothing.

use crate::fixture::{Cluster, seconds, well};

#[test]
fn a_cluster_at_rest_gets_no_writes_and_no_events() {
    let mut cluster = Cluster::at_rest();
    for _ in 0..30 {
        cluster.pass_time(seconds(10));
        cluster.answer("orders-0", Ok(well()));
        let plan = cluster.plan();
        assert_eq!((plan.changes, plan.events), (vec![], vec![]));
    }
}

#[test]
fn a_busy_database_rewrites_the_status_only_now_and_then() {
    let mut cluster = Cluster::at_rest();
    let mut writes = 0;
    for tick in 0..30u64 {
        cluster.pass_time(seconds(10));
        let mut busy = well();
        let target = &mut busy.databases[0].targets[0];
        target.lag_ms = tick % 3 * 600;
        target.backlog_bytes = tick * 4096;
        target.last_sync = Some(cluster.world.now);
        target.position.as_mut().unwrap().txid = format!("{tick:016x}");
        cluster.answer("orders-0", Ok(busy));
        writes += cluster.settle().len();
    }
    assert_eq!(writes, 10, "one each 30 s");
}

#[test]
fn a_namespace_that_is_not_listed_yet_is_not_judged() {
    let mut cluster = Cluster::at_rest();
    cluster.world.pods.clear();
    assert_eq!(cluster.plan().changes, vec![]);
}
