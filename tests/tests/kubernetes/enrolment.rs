//! Pods come into the mesh and leave it as they run.

use lab::{cluster::images, eventually};

use crate::world::{MARKER, PATIENCE, Shop, is_enrolled, rolled_out, shared};

#[test]
fn a_label_puts_what_runs_on_mutual_tls_and_takes_it_back_without_a_restart_or_a_failed_request() {
    let (cluster, _used) = shared();
    let shop = Shop::open(cluster, "labelled", false);
    let marker = format!("{MARKER}-labelled");
    // The control: between the nodes the request is read by anybody.
    let on_wire = |wanted: bool| {
        eventually(PATIENCE, || {
            let capture = cluster.capture(cluster.node("node-a")).unwrap();
            shop.wait_answers(10);
            let captured = capture.stop().map_err(|error| format!("{error:#}"))?;
            if captured.contains(&marker) == wanted { Ok(()) } else { Err(format!("read: {}", !wanted)) }
        });
    };
    on_wire(true);
    shop.kubectl(&["label", "namespace", "labelled", "culvert.dev/mesh=enabled"]);
    shop.wait_enrolled(true);
    on_wire(false);
    // The client may have been in the mesh a moment before the servers: what it said then was plaintext.
    let line = eventually(PATIENCE, || {
        let mut log = shop.access_log().into_iter();
        let tunnelled = log.find(|line| line["result"] == "ok" && line["security"] == "mutual_tls");
        tunnelled.ok_or("no line of a connection by mutual TLS")
    });
    assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/labelled/sa/default", "{line}");
    assert_eq!(line["dst.service"], "labelled/web", "{line}");

    shop.kubectl(&["label", "namespace", "labelled", "culvert.dev/mesh-"]);
    shop.wait_enrolled(false);
    on_wire(true);
    shop.assert_no_failure();
    shop.assert_unharmed();
}

#[test]
fn under_strict_the_kubelets_probes_go_on_and_whoever_is_outside_is_refused() {
    let (cluster, _used) = shared();
    let shop = Shop::open(cluster, "strict", true);
    let outside = Shop::open(cluster, "outside", false);
    let ask = || outside.exec("client", "curl -s -m 5 http://web.strict; echo $?");
    // PERMISSIVE takes anybody.
    eventually(PATIENCE, || {
        let said = ask();
        said.contains("greets").then_some(()).ok_or(said)
    });
    shop.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n",
    );
    // 7: the connection was refused; 52 and 56: it was reset.
    eventually(PATIENCE, || {
        let said = ask();
        ["7", "52", "56"].contains(&said.trim()).then_some(()).ok_or(said)
    });
    // Each replica's probes, several times over.
    shop.wait_answers(30);
    shop.assert_unharmed();
    shop.assert_no_failure();
    let status = cluster.get(&["-n", "strict", "peerauthentications", "default"]).unwrap();
    eventually(PATIENCE, || {
        let policy = cluster.get(&["-n", "strict", "peerauthentications", "default"]).unwrap();
        policy["status"]["conditions"].is_array().then_some(()).ok_or_else(|| status.to_string())
    });
}

#[test]
fn pods_that_come_by_scaling_and_rollouts_are_in_the_mesh_when_they_start() {
    let (cluster, _used) = shared();
    let shop = Shop::open(cluster, "scaled", true);
    shop.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n",
    );
    shop.kubectl(&["scale", "deployment/web", "--replicas=5"]);
    rolled_out(cluster, "scaled", "deployment/web");
    shop.wait_enrolled(true);
    shop.kubectl(&["scale", "deployment/web", "--replicas=2"]);
    shop.kubectl(&["rollout", "restart", "deployment/web"]);
    rolled_out(cluster, "scaled", "deployment/web");
    shop.wait_answers(20);
    shop.assert_no_failure();
}

#[test]
fn a_stateful_sets_pods_are_reached_by_their_names() {
    let (cluster, _used) = shared();
    let shop = Shop::open(cluster, "stateful", true);
    shop.apply(&STATEFUL.replace("IMAGE", images::TOOLS));
    rolled_out(cluster, "stateful", "statefulset/store");
    shop.wait_enrolled(true);
    for name in ["store-0", "store-1"] {
        let address = format!("http://{name}.store.stateful.svc.cluster.local:8080/");
        let said = eventually(PATIENCE, || {
            let said = shop.exec("client", &format!("curl -s -m 5 {address} || true"));
            said.contains("greets").then_some(said.clone()).ok_or(said)
        });
        assert!(said.starts_with(name), "{said}");
        eventually(PATIENCE, || {
            let log = shop.access_log();
            let line = log.iter().find(|line| line["dst.workload"] == name);
            line.is_some_and(|line| line["security"] == "mutual_tls").then_some(()).ok_or(format!("{log:?}"))
        });
    }
}

/// The CNI plugin lets no container start before the pod is enrolled: its very first request goes through the tunnel.
#[test]
fn a_pods_first_request_is_in_the_mesh() {
    let (cluster, _used) = shared();
    let shop = Shop::open(cluster, "first", true);
    shop.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n",
    );
    eventually(PATIENCE, || {
        let policy = cluster.get(&["-n", "first", "peerauthentications", "default"]).unwrap();
        policy["status"]["conditions"].is_array()
    });
    let node = cluster.node("node-b").unique_name();
    for name in ["one", "two", "three"] {
        shop.apply(&FIRST.replace("NAME", name).replace("IMAGE", images::TOOLS).replace("NODE", &node));
        let said = eventually(PATIENCE, || {
            let said =
                cluster.kubectl(&["-n", "first", "logs", name], "").map_err(|error| error.to_string())?;
            said.contains("done").then_some(said.clone()).ok_or(said)
        });
        assert!(said.contains("greets"), "{said}");
        let pod = cluster.get(&["-n", "first", "pod", name]).unwrap();
        assert!(is_enrolled(&pod), "{pod:#}");
    }
}

const STATEFUL: &str = "
apiVersion: v1
kind: Service
metadata: {name: store}
spec: {clusterIP: None, selector: {app: store}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  serviceName: store
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: store
        image: IMAGE
        imagePullPolicy: Never
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
";

/// What it does first is a request. The service's address comes from the environment: a name would first have to be asked for.
const FIRST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  nodeName: NODE
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: first
    image: IMAGE
    imagePullPolicy: Never
    command: [bash, -c, 'curl -sS -m 60 http://$WEB_SERVICE_HOST/ 2>&1; echo done; sleep 1000']
";
