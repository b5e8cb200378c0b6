use super::*;

fn progress(first: u64, last: u64) -> ReplicationProgress {
    let file = |txid| LocalFile {
        txid: Txid::new(txid),
        bytes: 10,
        timestamp_ms: txid as i64,
    };
    ReplicationProgress {
        txid: Txid::new(last),
        files: (first..=last)
            .map(|txid| Captured {
                file: file(txid),
                checksum: None,
                oldest_ms: txid as i64 * 100,
            })
            .collect(),
        ..ReplicationProgress::default()
    }
}

fn target(acked: u64, compacted: u64) -> TargetProgress {
    TargetProgress {
        acked: Txid::new(acked),
        compacted: Txid::new(compacted),
        phase: TargetPhase::Connected,
        ..TargetProgress::default()
    }
}

#[test]
fn lag_is_the_age_of_the_oldest_commit_that_is_not_stored() {
    let mut progress = progress(3, 6);
    progress.targets = vec![target(4, 3), target(6, 3)];
    assert_eq!(
        (progress.oldest_waiting_ms(0), progress.backlog_bytes(0)),
        (Some(500), 20)
    );
    assert_eq!(
        (progress.oldest_waiting_ms(1), progress.backlog_bytes(1)),
        (None, 0)
    );
    progress.unwritten.changed(450);
    assert_eq!(progress.oldest_waiting_ms(1), Some(450));
    assert_eq!(progress.oldest_waiting_ms(0), Some(450));
}

#[test]
fn commits_in_files_that_were_removed_count_until_a_snapshot_has_them() {
    let mut progress = progress(3, 9);
    progress.targets = vec![target(8, 8), target(4, 4)];
    progress.remove_oldest(4);
    assert_eq!(progress.oldest_waiting_ms(0), Some(900));
    assert_eq!(progress.oldest_waiting_ms(1), Some(500));
    progress.remove_oldest(1);
    assert_eq!(progress.oldest_waiting_ms(1), Some(500), "and more of them");
    progress.targets[1].acked = Txid::new(8);
    assert_eq!(progress.oldest_waiting_ms(1), Some(900));
    progress.remove_oldest(1);
    assert_eq!(progress.oldest_waiting_ms(1), Some(900), "lost anew");
}

#[test]
fn what_follows_a_cut_stays_until_its_snapshot_is_stored() {
    let mut progress = progress(3, 9);
    let base = TargetProgress {
        needs_snapshot: Some(Txid::new(4)),
        taken_cut: Some(Txid::new(6)),
        ..target(4, 4)
    };
    progress.targets = vec![base];
    for need in [Need::Compaction, Need::Uploading, Need::Furthest] {
        assert_eq!(progress.removable(Txid::new(9), need), 3, "{need:?}");
    }
    assert!(!progress.needs_no_cut());
    progress.targets[0].needs_snapshot = None;
    progress.targets[0].acked = Txid::new(6);
    assert!(progress.needs_no_cut());
}

#[test]
fn files_stay_while_a_target_the_merge_or_the_table_needs_them() {
    let mut progress = progress(3, 9);
    progress.targets = vec![target(9, 8)];
    let removable = |progress: &ReplicationProgress, hashes| {
        progress.removable(Txid::new(hashes), Need::Compaction)
    };
    assert_eq!(removable(&progress, 9), 5);
    assert_eq!(removable(&progress, 5), 2, "the hashes are behind");
    progress.targets.push(TargetProgress {
        phase: TargetPhase::Failing,
        ..target(9, 9)
    });
    assert_eq!(removable(&progress, 9), 0, "a target was not asked yet");
    progress.targets = vec![target(9, 9); 2];
    assert_eq!(removable(&progress, 9), 6, "the newest file stays");
}

#[test]
fn when_space_is_short_first_merging_and_then_the_slowest_target_gives_way() {
    let mut progress = progress(3, 9);
    progress.targets = vec![target(8, 4), target(5, 5)];
    let removable = |need| progress.removable(Txid::new(9), need);
    assert_eq!(removable(Need::Compaction), 1);
    assert_eq!(removable(Need::Uploading), 2);
    assert_eq!(removable(Need::Furthest), 5);
}

#[test]
fn a_target_that_has_ended_needs_nothing_any_more() {
    let mut progress = progress(3, 9);
    let ended = TargetProgress {
        phase: TargetPhase::Ended {
            state: DatabaseState::Superseded,
            message: "by another".into(),
        },
        wants_cut: true,
        needs_snapshot: Some(Txid::new(20)),
        ..target(4, 4)
    };
    progress.targets = vec![target(9, 9), ended];
    assert_eq!(progress.removable(Txid::new(9), Need::Compaction), 6);
    assert!(!progress.lacks_cut());
    assert_eq!(progress.snapshot_above(), None);
    assert_eq!(progress.verdict(), None, "the other one goes on");
}

#[test]
fn all_is_stored_when_every_target_says_so() {
    let has_all = target(9, 9);
    for (other, stored) in [
        (target(9, 3), true),
        (target(8, 3), false),
        (
            TargetProgress {
                needs_snapshot: Some(Txid::new(9)),
                ..has_all.clone()
            },
            false,
        ),
        (
            TargetProgress {
                phase: TargetPhase::Failing,
                ..has_all.clone()
            },
            false,
        ),
    ] {
        let mut progress = progress(3, 9);
        progress.targets = vec![has_all.clone(), other.clone()];
        assert_eq!(progress.is_stored(), stored, "{other:?}");
    }
}

#[test]
fn a_target_lacks_removed_files_until_it_has_the_newest_of_them() {
    let mut target = TargetProgress::default();
    target.lose(Txid::new(9), 100);
    // It begins with a snapshot above 4.
    target.lose(Txid::new(5), 300);
    target.acked = Txid::new(5);
    assert_eq!(target.lost().map(|lost| lost.oldest_ms), Some(100));
    target.acked = Txid::new(9);
    assert_eq!(target.lost(), None);
}
