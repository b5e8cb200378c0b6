//! Plans a restore: the files from nothing, or from a restored position, to the requested one.

use std::collections::BTreeSet;

use ltx::Txid;

use crate::replica::manifest::RemoteFile;

/// Why no plan exists. All reasons are about the stored files, none about reaching the store.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// The replica has no files.
    #[error("there is no backup")]
    Empty,
    /// Files exist, but no snapshot to begin with.
    #[error("no snapshot at or before TXID {wanted}: the oldest one ends at {oldest:?}")]
    NoSnapshot {
        /// The requested position.
        wanted: Txid,
        /// End of the oldest snapshot, if one exists.
        oldest: Option<Txid>,
    },
    /// No file continues here, though later ones exist.
    #[error("TXID {after} is followed by nothing: the next stored file begins at {next}")]
    Hole {
        /// The last position that can be reached.
        after: Txid,
        /// First TXID of the next file.
        next: Txid,
    },
    /// The position is inside a compacted file: its own file has expired.
    #[error("TXID {wanted} is no longer a position of its own: {before} and {next} are")]
    Compacted {
        /// The requested position.
        wanted: Txid,
        /// The last position before it.
        before: Txid,
        /// The first position after it.
        next: Txid,
    },
    /// The position was never stored.
    #[error("TXID {wanted} is not stored: the newest is {newest}")]
    NotStored {
        /// The requested position.
        wanted: Txid,
        /// The newest stored position.
        newest: Txid,
    },
}

/// Files to apply in this order; a later page replaces an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The files, the first one continuing at the start of the plan.
    pub files: Vec<RemoteFile>,
    /// The position reached.
    pub txid: Txid,
}

impl Plan {
    /// Bytes to read from the store.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Plans a restore from nothing to exactly `wanted`, or to the newest position.
///
/// The plan begins with the newest snapshot at or before the position. It then takes, each time,
/// the file that leads furthest, the highest level first among equals. A chain that stops early is
/// an error, never a shorter restore.
///
/// # Errors
///
/// See [`PlanError`].
pub fn plan_restore(files: &BTreeSet<RemoteFile>, wanted: Option<Txid>) -> Result<Plan, PlanError> {
    let newest = files
        .iter()
        .map(|file| file.max)
        .max()
        .ok_or(PlanError::Empty)?;
    let wanted = wanted.unwrap_or(newest);
    if wanted > newest {
        return Err(PlanError::NotStored { wanted, newest });
    }
    let bases = files.iter().filter(|file| file.is_snapshot());
    let base = bases
        .clone()
        .filter(|file| file.max <= wanted)
        .max_by_key(|file| rank(file));
    let Some(base) = base else {
        return Err(PlanError::NoSnapshot {
            wanted,
            oldest: bases.map(|file| file.max).min(),
        });
    };
    let mut plan = plan_from(files, base.max, wanted)?;
    plan.files.insert(0, *base);
    Ok(plan)
}

/// Plans the files that lead from the restored position `from` to exactly `wanted`.
///
/// # Errors
///
/// See [`PlanError`].
pub fn plan_from(
    files: &BTreeSet<RemoteFile>,
    from: Txid,
    wanted: Txid,
) -> Result<Plan, PlanError> {
    let mut plan = Plan {
        files: Vec::new(),
        txid: from,
    };
    while plan.txid < wanted {
        let continuing = |file: &&RemoteFile| file.min <= plan.txid.next() && file.max > plan.txid;
        let next = files
            .iter()
            .filter(continuing)
            .filter(|file| file.max <= wanted);
        let Some(next) = next.max_by_key(|file| rank(file)) else {
            return Err(no_way_on(files, plan.txid, wanted));
        };
        plan.files.push(*next);
        plan.txid = next.max;
    }
    Ok(plan)
}

fn rank(file: &RemoteFile) -> (Txid, u8, Txid) {
    (file.max, file.level, file.min)
}

fn no_way_on(files: &BTreeSet<RemoteFile>, after: Txid, wanted: Txid) -> PlanError {
    let across = files
        .iter()
        .filter(|file| file.min <= after.next() && file.max > wanted)
        .map(|file| file.max)
        .min();
    if let Some(next) = across {
        return PlanError::Compacted {
            wanted,
            before: after,
            next,
        };
    }
    let next = files
        .iter()
        .map(|file| file.min)
        .filter(|min| *min > after)
        .min();
    PlanError::Hole {
        after,
        next: next.unwrap_or(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(level: u8, min: u64, max: u64) -> RemoteFile {
        RemoteFile {
            level,
            min: Txid::new(min),
            max: Txid::new(max),
            size: 1,
            modified_ms: 0,
        }
    }

    fn set(files: &[(u8, u64, u64)]) -> BTreeSet<RemoteFile> {
        files
            .iter()
            .map(|(level, min, max)| file(*level, *min, *max))
            .collect()
    }

    fn names(plan: &Plan) -> Vec<(u8, u64, u64)> {
        plan.files
            .iter()
            .map(|file| (file.level, file.min.get(), file.max.get()))
            .collect()
    }

    #[test]
    fn the_newest_base_and_the_widest_files_are_taken() {
        let files = set(&[
            (9, 1, 1),
            (9, 1, 5),
            (0, 6, 6),
            (0, 7, 7),
            (1, 6, 7),
            (0, 8, 8),
        ]);
        let plan = plan_restore(&files, None).unwrap();
        assert_eq!(names(&plan), [(9, 1, 5), (1, 6, 7), (0, 8, 8)]);
        let plan = plan_restore(&files, Some(Txid::new(6))).unwrap();
        assert_eq!(names(&plan), [(9, 1, 5), (0, 6, 6)]);
    }

    #[test]
    fn a_chain_that_stops_early_is_an_error_and_says_where() {
        let hole = set(&[(9, 1, 3), (0, 4, 4), (0, 6, 6)]);
        let after = Txid::new(4);
        assert_eq!(
            plan_restore(&hole, None),
            Err(PlanError::Hole {
                after,
                next: Txid::new(6)
            })
        );
        let compacted = set(&[(9, 1, 3), (1, 4, 8)]);
        let wanted = Txid::new(6);
        let expected = PlanError::Compacted {
            wanted,
            before: Txid::new(3),
            next: Txid::new(8),
        };
        assert_eq!(plan_restore(&compacted, Some(wanted)), Err(expected));
    }

    #[test]
    fn nothing_stored_and_nothing_to_begin_with_are_told_apart() {
        assert_eq!(plan_restore(&BTreeSet::new(), None), Err(PlanError::Empty));
        let wanted = Txid::new(4);
        assert_eq!(
            plan_restore(&set(&[(0, 4, 4)]), None),
            Err(PlanError::NoSnapshot {
                wanted,
                oldest: None
            })
        );
        assert_eq!(
            plan_restore(&set(&[(9, 1, 2)]), Some(wanted)),
            Err(PlanError::NotStored {
                wanted,
                newest: Txid::new(2)
            })
        );
    }

    /// Walks every chain of files; slow and evidently correct.
    fn reachable(files: &BTreeSet<RemoteFile>, wanted: Txid) -> bool {
        let mut reached: BTreeSet<Txid> = files
            .iter()
            .filter(|file| file.is_snapshot())
            .map(|file| file.max)
            .collect();
        loop {
            let more: BTreeSet<Txid> = files
                .iter()
                .filter(|file| {
                    reached
                        .iter()
                        .any(|at| file.min <= at.next() && file.max > *at)
                })
                .map(|file| file.max)
                .collect();
            let before = reached.len();
            reached.extend(more);
            if reached.len() == before {
                return reached.contains(&wanted);
            }
        }
    }

    proptest! {
        #[test]
        fn a_plan_is_contiguous_and_exact_and_exists_where_the_newest_base_leads(
            ranges in prop::collection::vec((0u8..3, 1u64..20, 0u64..6), 1..30),
            wanted in 1u64..25,
        ) {
            let files: BTreeSet<RemoteFile> = ranges
                .iter()
                .map(|(level, min, span)| {
                    if *min == 1 { file(9, 1, 1 + span) } else { file(*level, *min, min + span) }
                })
                .collect();
            let wanted = Txid::new(wanted);
            match plan_restore(&files, Some(wanted)) {
                Ok(plan) => {
                    prop_assert_eq!(plan.txid, wanted);
                    let mut at = Txid::ZERO;
                    for file in &plan.files {
                        prop_assert!(file.min <= at.next() && file.max > at);
                        at = file.max;
                    }
                    prop_assert_eq!(at, wanted);
                    prop_assert!(plan.files[0].is_snapshot());
                    prop_assert!(reachable(&files, wanted));
                }
                Err(_) => {
                    let base = files.iter().filter(|f| f.is_snapshot() && f.max <= wanted)
                        .map(|f| f.max).max();
                    let from_base: BTreeSet<RemoteFile> = files.iter().copied()
                        .filter(|f| !f.is_snapshot() || Some(f.max) == base)
                        .filter(|f| f.max <= wanted)
                        .collect();
                    prop_assert!(!reachable(&from_base, wanted));
                }
            }
        }
    }
}
