//! The configuration files of a cluster's programs. Text in, text out.

use serde_json::{Value, json};

/// Inputs of the files.
#[derive(Debug, Clone)]
pub(crate) struct Config<'a> {
    /// Name of the image that holds a Pod's namespaces.
    pub(crate) pause_image: &'a str,
    /// Folder of the CNI plugins.
    pub(crate) cni_plugins: &'a str,
    /// Folder for the generated files.
    pub(crate) folder: &'a str,
    /// Address range of Pods.
    pub(crate) pods: &'a str,
    /// URL of the API server.
    pub(crate) server: &'a str,
    /// File with the certificate of the API server.
    pub(crate) server_certificate: &'a str,
    /// Token of the administrator.
    pub(crate) token: &'a str,
    /// Parent of all containers' control groups.
    pub(crate) cgroup: &'a str,
}

/// The one node.
pub(crate) const NODE: &str = "node";

/// Socket of containerd, inside the cluster.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

impl Config<'_> {
    /// containerd, version 1.6 or later.
    pub(crate) fn containerd(&self) -> String {
        let Config {
            pause_image,
            cni_plugins,
            folder,
            ..
        } = self;
        // Without CAP_SYS_RESOURCE, as on most nested machines, no container can lower its
        // oom_score_adj. `restrict_oom_score_adj` makes containerd request only an allowed value.
        format!(
            r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  restrict_oom_score_adj = true
  disable_apparmor = true

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_plugins}"
    conf_dir = "{folder}/cni"
"#
        )
    }

    /// The network of the Pods.
    pub(crate) fn cni(&self) -> Value {
        json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pods",
                    "isGateway": true,
                    // A Pod may reach itself through its Service.
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.pods}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
            ],
        })
    }

    /// The kubelet of a throw-away cluster, which permits everything to every client.
    pub(crate) fn kubelet(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
            "cgroupDriver": "cgroupfs",
            // Only with groups for each Pod does the kubelet pass this parent on to containers.
            "cgroupsPerQOS": true,
            "cgroupRoot": self.cgroup,
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            // A full disk of the machine is outside the scope of the tests.
            "evictionHard": {},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            // No name server exists: a look-up fails at once instead of hanging.
            "resolvConf": format!("{}/resolv.conf", self.folder),
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "serializeImagePulls": false,
        })
    }

    /// The Pods' `resolv.conf`. No server listens at its address, so every look-up is refused.
    pub(crate) fn resolv_conf(&self) -> &'static str {
        "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
    }

    /// The administrator's credentials, which the cluster's programs also use.
    pub(crate) fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "e2e",
                "cluster": {"server": self.server, "certificate-authority": self.server_certificate},
            }],
            "users": [{"name": "admin", "user": {"token": self.token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "admin"}}],
            "current-context": "e2e",
        })
    }

    /// The API server's static tokens: one administrator.
    pub(crate) fn tokens(&self) -> String {
        format!("{},admin,admin,system:masters\n", self.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Config<'static> = Config {
        pause_image: "localhost/pause:1",
        cni_plugins: "/usr/lib/cni",
        folder: "/cluster",
        pods: "10.0.0.0/24",
        server: "https://10.0.1.2:6443",
        server_certificate: "/cluster/tls/apiserver.crt",
        token: "secret",
        cgroup: "/tests-1",
    };

    #[test]
    fn containers_stay_in_the_clusters_own_control_group() {
        let kubelet = CONFIG.kubelet();
        assert_eq!(kubelet["cgroupRoot"], "/tests-1");
        assert_eq!(kubelet["cgroupsPerQOS"], true);
    }

    #[test]
    fn containerd_is_told_of_the_pause_image_and_the_plugins() {
        let text = CONFIG.containerd();
        for line in [
            r#"sandbox_image = "localhost/pause:1""#,
            r#"bin_dir = "/usr/lib/cni""#,
            r#"conf_dir = "/cluster/cni""#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
