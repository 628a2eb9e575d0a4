//! What the authority of the cluster gives to whom.

use std::{fs, time::Duration};

use culvert::identity::{CaError, CertificateAuthority as _, Csr, GrpcCa, GrpcConfig, Svid, ca::GrpcError};
use lab::{Cluster, ClusterNode, cluster::images, eventually};
use rcgen::KeyPair;

use crate::world::{PATIENCE, ROOT, Shop, agent_process, rolled_out, shared};

/// The token that the kubelet has projected into the pod of a node's agent, as the agent itself reads it.
fn agents_token(cluster: &Cluster, node: &ClusterNode) -> String {
    let process = eventually(PATIENCE, || agent_process(cluster, node));
    fs::read_to_string(format!("/proc/{process}/root/var/run/secrets/culvert/token")).unwrap()
}

/// Asks the authority from a node, as its agent does, by the service's address and the roots in the ConfigMap.
fn ask(node: &ClusterNode, cluster: &Cluster, token: &str, identity: &str) -> Result<Svid, CaError> {
    let directory = tempfile::tempdir().unwrap();
    let (roots, file) = (directory.path().join("roots.pem"), directory.path().join("token"));
    let map = cluster.get(&["-n", ROOT, "configmap", "culvert-ca-root"]).unwrap();
    fs::write(&roots, map["data"]["root.pem"].as_str().unwrap()).unwrap();
    fs::write(&file, token).unwrap();
    let service = cluster.get(&["-n", ROOT, "service", "culvert-ca"]).unwrap();
    let address = service["spec"]["clusterIP"].as_str().unwrap();
    let config = GrpcConfig {
        address: format!("https://{address}:15012").parse().unwrap(),
        server_name: Some(format!("culvert-ca.{ROOT}.svc").try_into().unwrap()),
        roots,
        server_roots: None,
        token: file,
        cluster: None,
        lifetime: Duration::from_secs(3600),
    };
    let asking = async {
        let agent = GrpcCa::new(config)?;
        let identity = identity.parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let issued = agent.sign(&Csr::new(&identity, &key).unwrap(), &identity).await?;
        Ok(Svid::new(&identity, &key, issued, agent.trust()).expect("what the authority gives out is good"))
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    node.netns().unwrap().run(|| runtime().block_on(asking))
}

#[test]
fn the_token_of_a_nodes_agent_is_good_for_the_pods_of_that_node_only() {
    let (cluster, _used) = shared();
    let shop = Shop::open(cluster, "tokens", false);
    let (a, b) = (cluster.node("node-a"), cluster.node("node-b"));
    for (name, node) in [("here", a), ("there", b)] {
        shop.apply(
            &POD.replace("NAME", name).replace("IMAGE", images::TOOLS).replace("NODE", &node.unique_name()),
        );
        shop.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=180s"]);
    }
    rolled_out(cluster, ROOT, "daemonset/culvert");
    let identity = |account: &str| format!("spiffe://cluster.local/ns/tokens/sa/{account}");
    let token = agents_token(cluster, a);

    let granted = eventually(PATIENCE, || {
        ask(a, cluster, &token, &identity("here")).map_err(|error| error.to_string())
    });
    drop(granted);
    let refused = || match ask(a, cluster, &token, &identity("there")) {
        Ok(_) => panic!("node-a's agent has a certificate of a pod of node-b"),
        Err(CaError::Grpc(GrpcError::Refused { code, message, .. })) => Ok(format!("{code:?}: {message}")),
        // A server that goes; another one answers.
        Err(other) => Err(other.to_string()),
    };
    let said = eventually(PATIENCE, refused);
    for part in ["PermissionDenied", &a.unique_name(), &b.unique_name()] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    // The other agent's own is good for it: the refusal was about the node.
    let other = agents_token(cluster, b);
    eventually(PATIENCE, || {
        ask(b, cluster, &other, &identity("there")).map(drop).map_err(|error| error.to_string())
    });
    // The audit has it, whichever of the servers it was.
    eventually(PATIENCE, || {
        let args = ["-n", ROOT, "logs", "-l", "app.kubernetes.io/name=culvert-ca", "--tail=-1"];
        let audit = cluster.kubectl(&args, "").map_err(|error| error.to_string())?;
        let line =
            audit.lines().find(|line| line.contains("not_on_node") && line.contains(&identity("there")));
        line.map(drop).ok_or(audit)
    });
}

const POD: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: NAME}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  nodeName: NODE
  serviceAccountName: NAME
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, imagePullPolicy: Never}
";
