//! User stories, each run once against a real cluster.

mod cluster;
mod containers;
pub(crate) mod disasters;
mod journal;
pub(crate) mod operator_down;
mod outage;
mod quickstart;
mod refusals;
pub(crate) mod restore_tests;
pub(crate) mod rotation;
mod s3;
mod startup;
mod uninstall;
pub(crate) mod way_out;

use crate::runner::Story;

/// Lists stories by their functions, so that name and function cannot differ.
macro_rules! stories {
    ($alone:literal: $($module:ident::$function:ident,)*) => {
        [$(Story { name: stringify!($function), run: $module::$function, alone: $alone },)*]
    };
}

/// All stories, in the order in which they start.
pub fn all() -> Vec<Story> {
    let beside = stories![
        false:
        outage::an_outage_of_the_store_under_load_harms_no_pod_and_loses_no_row,
        cluster::cluster_runs_a_pod_with_a_native_sidecar,
        s3::s3_server_is_reachable_from_a_pod,
        rotation::credentials_rotate_without_a_restart,
        restore_tests::a_restore_test_fails_on_damage_and_passes_again,
        quickstart::the_quickstart_replicates_and_shows_its_health,
        disasters::a_deleted_pod_comes_back_with_every_row,
        disasters::a_force_deleted_pod_loses_only_the_last_moment,
        disasters::every_database_of_a_pattern_comes_back,
        way_out::stock_litestream_restores_the_same_rows,
        refusals::bad_backups_are_refused_with_the_field_named,
        refusals::the_operator_runs_with_least_rights,
        startup::wrong_credentials_never_start_an_empty_database,
        startup::wrong_credentials_do_not_stop_an_application_with_a_database,
        startup::a_store_that_is_down_at_start_is_waited_for,
        startup::a_pod_on_a_lasting_volume_continues_without_a_snapshot,
        journal::a_database_that_is_not_in_wal_mode_is_reported,
        containers::the_named_container_is_mirrored_in_a_pod_with_several,
        containers::an_opted_out_pod_is_left_alone,
        containers::two_namespaces_do_not_touch_each_other,
    ];
    let alone = stories![
        true:
        operator_down::a_stopped_operator_stops_no_application,
        uninstall::deleting_everything_of_ours_leaves_pods_and_data_alone,
    ];
    beside.into_iter().chain(alone).collect()
}
