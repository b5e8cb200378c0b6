//! Members of a SqliteBackup: its live Pods, with the state of their sidecars.

use api::SqliteBackup;
use api::names::{self, INJECT_LABEL};

use super::key;
use crate::answer::Answer;
use crate::cluster_state::{ClusterState, PodFacts};

/// Failed polls in a row that are tolerated: one may be a restart of the sidecar.
const FAILURES_TOLERATED: u32 = 1;

/// One live Pod that a SqliteBackup selects.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    /// Name of the member.
    pub name: String,
    /// The Pod.
    pub pod: &'a PodFacts,
    /// State of its sidecar.
    pub view: View<'a>,
}

/// State of a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View<'a> {
    /// The Pod has no sidecar of this SqliteBackup.
    NotInjected,
    /// It does not run yet, or was not polled yet.
    Starting,
    /// It does not answer, so its state is unknown.
    Unreachable(&'a str),
    /// It answered.
    Answered(&'a Answer),
}

impl<'a> Member<'a> {
    /// The last answer of a sidecar that is not unreachable.
    pub fn answer(&self) -> Option<&'a Answer> {
        match self.view {
            View::Answered(answer) => Some(answer),
            _ => None,
        }
    }
}

/// Returns the members of a SqliteBackup, ordered by Pod name.
pub fn members<'a>(cluster: &'a ClusterState, backup: &'a SqliteBackup) -> Vec<Member<'a>> {
    let (namespace, name) = key(backup);
    let pods = cluster.pods.get(&namespace).map_or(&[][..], Vec::as_slice);
    let selected = pods.iter().filter(|pod| {
        let opted_out = pod.labels.get(INJECT_LABEL).is_some_and(|v| v == "false");
        pod.is_live() && !opted_out && backup.spec.selector.matches(&pod.labels)
    });
    let member = |pod: &'a PodFacts| Member {
        name: names::member(pod.owner_kind.as_deref(), &pod.name, &name).to_owned(),
        pod,
        view: view(cluster, &name, pod),
    };
    selected.map(|pod| member(pod)).collect()
}

fn view<'a>(cluster: &'a ClusterState, backup: &str, pod: &'a PodFacts) -> View<'a> {
    if !pod.has_sidecar || pod.backup.as_deref() != Some(backup) {
        return View::NotInjected;
    }
    if !pod.sidecar_running {
        return View::Starting;
    }
    let Some(report) = cluster.reports.get(&pod.uid) else {
        return View::Starting;
    };
    match (&report.answer, &report.last_answer) {
        (Ok(answer), _) => View::Answered(answer),
        (Err(_), Some(answer)) if report.failures <= FAILURES_TOLERATED => View::Answered(answer),
        (Err(_), None) if report.failures <= FAILURES_TOLERATED => View::Starting,
        (Err(error), _) => View::Unreachable(error),
    }
}
