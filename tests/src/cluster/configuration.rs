//! What the programs of a node read: the plugins' list, the kubelet's and containerd's configuration.

use serde_json::json;

use super::{
    network::{Addresses, CONTROL},
    tools::Tools,
};

/// Where a node sees the files that are no program's own.
pub(crate) const FOLDER: &str = "/run/kubernetes";

/// A file in [`FOLDER`].
pub(crate) fn file(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

/// A bridge for the node's pods, with the node as their gateway.
pub(crate) fn cni(node: &str, addresses: Addresses) -> String {
    let ranges: Vec<_> = addresses.pods().iter().map(|range| json!([{"subnet": range}])).collect();
    let list = json!({
        "cniVersion": "1.0.0",
        "name": node,
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    format!("{list:#}\n")
}

/// A kubelet that shares its machine and lets the API server decide who may ask it.
pub(crate) fn kubelet(node: &str) -> String {
    let configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{node}"),
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        // It cannot tell how full a file system in memory is.
        "localStorageCapacityIsolation": false,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        // Nothing could fetch an image again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        // The default is in a folder of the machine's.
        "volumePluginDir": "/var/lib/kubelet/plugins",
        "oomScoreAdj": 0,
        "resolvConf": "",
        "clusterDomain": "cluster.local",
        "clusterDNS": [CONTROL.to_string()],
        "registerNode": true,
        "serverTLSBootstrap": false,
    });
    format!("{configuration:#}\n")
}

/// containerd with this runc.
pub(crate) fn containerd(tools: &Tools) -> String {
    include_str!("containerd.toml").replace("RUNC", &tools.runc().display().to_string())
}
