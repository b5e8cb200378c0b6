//! Order of init containers: network and identity, restore, replication, and then the user's own
//! init containers, such as migrations.

use api::names::{RESTORE_CONTAINER, SIDECAR_CONTAINER};
use serde_json::Value;

use super::edit::Editor;
use super::pod::{Container, items};

/// Native sidecars that give a Pod its network or identity: the restore needs both.
const PROXIES: [&str; 8] = [
    "istio-proxy",
    "linkerd-proxy",
    "kuma-sidecar",
    "consul-dataplane",
    "osm-proxy",
    "azwi-proxy",
    "gke-metadata-proxy",
    "spiffe-helper",
];

/// Init containers that prepare the network for those sidecars. They come first only together with
/// a proxy that is a native sidecar. With a proxy that starts with the application, any init
/// container after them has no network.
const PROXY_INITS: [&str; 8] = [
    "istio-init",
    "istio-validation",
    "linkerd-init",
    "linkerd-network-validator",
    "kuma-init",
    "kuma-validation",
    "consul-connect-inject-init",
    "azwi-proxy-init",
];

/// Path of the list.
const INIT_CONTAINERS: [&str; 2] = ["spec", "initContainers"];

/// Position of an init container. The order of the variants is the order in the Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Surroundings,
    Restore,
    Replicate,
    User,
}

/// Sorts the init containers. Foreign containers keep their relative order.
pub(super) fn arrange(editor: &mut Editor) {
    let Some(Value::Array(all)) = editor.at(&INIT_CONTAINERS) else {
        return;
    };
    let native_proxy = has_native_proxy(all);
    let mut ranks: Vec<Rank> = all
        .iter()
        .map(|c| rank(Container(c), native_proxy))
        .collect();
    // Insertion sort: stable, and its moves are the patch.
    for index in 1..ranks.len() {
        let target = ranks[..index].partition_point(|before| *before <= ranks[index]);
        if target < index {
            editor.pull(&INIT_CONTAINERS, index, target);
            ranks[target..=index].rotate_right(1);
        }
    }
}

/// The index of an injected container in a list that is otherwise sorted.
pub(super) fn position(editor: &Editor, name: &str) -> usize {
    let all: Vec<&Value> = items(editor.at(&INIT_CONTAINERS)).collect();
    let own = if name == RESTORE_CONTAINER {
        Rank::Restore
    } else {
        Rank::Replicate
    };
    let native_proxy = all.iter().any(|c| is_native_proxy(Container(c)));
    all.iter()
        .position(|c| rank(Container(c), native_proxy) > own)
        .unwrap_or(all.len())
}

fn rank(container: Container<'_>, native_proxy: bool) -> Rank {
    match container.name() {
        RESTORE_CONTAINER => Rank::Restore,
        SIDECAR_CONTAINER => Rank::Replicate,
        _ if is_native_proxy(container) => Rank::Surroundings,
        name if native_proxy && PROXY_INITS.contains(&name) => Rank::Surroundings,
        _ => Rank::User,
    }
}

fn has_native_proxy(all: &[Value]) -> bool {
    all.iter().any(|c| is_native_proxy(Container(c)))
}

fn is_native_proxy(container: Container<'_>) -> bool {
    container.is_sidecar() && PROXIES.contains(&container.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn arranged(containers: Value) -> (Vec<String>, usize) {
        let mut editor = Editor::new(json!({"spec": {"initContainers": containers}}));
        arrange(&mut editor);
        let names = items(editor.at(&INIT_CONTAINERS)).map(|c| Container(c).name().to_owned());
        (names.collect(), editor.finish().0.len())
    }

    fn native(name: &str) -> Value {
        json!({"name": name, "restartPolicy": "Always"})
    }

    #[test]
    fn a_native_mesh_comes_first_with_its_inits_and_users_keep_their_order() {
        let (names, moves) = arranged(json!([
            {"name": "migrate"}, native(SIDECAR_CONTAINER), {"name": "linkerd-init"},
            native("linkerd-proxy"), {"name": "seed"}, {"name": RESTORE_CONTAINER},
        ]));
        let expected = [
            "linkerd-init",
            "linkerd-proxy",
            RESTORE_CONTAINER,
            SIDECAR_CONTAINER,
            "migrate",
            "seed",
        ];
        assert_eq!(names, expected);
        assert!(moves <= 4);
    }

    #[test]
    fn a_classic_mesh_cuts_the_network_so_its_init_comes_after_us() {
        let (names, _) = arranged(json!([
            {"name": "istio-init"}, {"name": RESTORE_CONTAINER}, native(SIDECAR_CONTAINER),
        ]));
        assert_eq!(names, [RESTORE_CONTAINER, SIDECAR_CONTAINER, "istio-init"]);
    }

    #[test]
    fn a_list_in_order_is_left_alone() {
        let (_, moves) = arranged(json!([
            native("istio-proxy"), {"name": RESTORE_CONTAINER}, native(SIDECAR_CONTAINER),
            native("other-sidecar"), {"name": "migrate"},
        ]));
        assert_eq!(moves, 0);
    }
}
