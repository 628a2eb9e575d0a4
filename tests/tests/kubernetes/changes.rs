//! Services, endpoints and policies that change under traffic.

use lab::{cluster::images, eventually};

use crate::world::{PATIENCE, Shop, is_enrolled, shared};

/// What curl says of a request to the shop's `web` by `client`: the first word of the answer, or how it failed.
fn ask(shop: &Shop, url: &str) -> String {
    let command = format!("curl -s -m 5 {url} || echo curl failed with $?");
    shop.exec("client", &command).trim().to_owned()
}

/// Waits until the answers are as wanted.
fn eventually_says(shop: &Shop, url: &str, wanted: impl Fn(&str) -> bool) -> String {
    eventually(PATIENCE, || {
        let said = ask(shop, url);
        if wanted(&said) { Ok(said) } else { Err(said) }
    })
}

#[test]
fn a_service_is_followed_wherever_it_leads() {
    let (cluster, _used) = shared();
    let shop = Shop::open(cluster, "moved", true);
    shop.apply(&OTHER.replace("IMAGE", images::TOOLS));
    shop.kubectl(&["wait", "--for=condition=Ready", "pod/other", "--timeout=180s"]);
    shop.wait_enrolled(true);

    // To other pods, by its selector.
    let select = |app: &str| {
        let patch = format!(r#"{{"spec":{{"selector":{{"app":"{app}"}}}}}}"#);
        shop.kubectl(&["patch", "service", "web", "-p", &patch]);
    };
    select("other");
    eventually_says(&shop, "http://web/", |said| said.starts_with("other "));
    shop.assert_no_failure();

    // To nobody: refused at once, which is 7, and not by waiting, which is 28.
    select("nobody");
    eventually_says(&shop, "http://web/", |said| said == "curl failed with 7");
    select("web");
    eventually_says(&shop, "http://web/", |said| said.starts_with("web-"));

    // By another port of the same service, and by a name of a port that goes to another number.
    let ports = r#"{"spec":{"ports":[{"name":"a","port":80,"targetPort":"http"},{"name":"b","port":81,"targetPort":8080}]}}"#;
    shop.kubectl(&["patch", "service", "web", "-p", ports]);
    eventually_says(&shop, "http://web:81/", |said| said.starts_with("web-"));

    // By endpoints that nothing selects: somebody else writes the slice.
    let other = cluster.get(&["-n", "moved", "pod", "other"]).unwrap();
    let address = other["status"]["podIP"].as_str().unwrap();
    shop.apply(&BY_HAND.replace("ADDRESS", address));
    let said = eventually_says(&shop, "http://by-hand/", |said| said.starts_with("other "));
    assert!(said.contains("greets"), "{said}");
    eventually(PATIENCE, || {
        let log = shop.access_log();
        let line = log.iter().find(|line| line["dst.service"] == "moved/by-hand" && line["result"] == "ok");
        line.is_some_and(|line| line["security"] == "mutual_tls").then_some(()).ok_or(format!("{log:?}"))
    });
    shop.kubectl(&["delete", "endpointslice", "by-hand"]);
    eventually_says(&shop, "http://by-hand/", |said| said == "curl failed with 7");
}

#[test]
fn a_policy_counts_when_it_is_applied_changed_and_deleted() {
    let (cluster, _used) = shared();
    let shop = Shop::open(cluster, "ruled", true);
    let policy = |account: &str| {
        let principal = format!("cluster.local/ns/ruled/sa/{account}");
        shop.apply(&READERS.replace("PRINCIPAL", &principal));
    };
    let is_let_in = |said: &str| said.starts_with("web-");
    let is_refused = |said: &str| said.starts_with("curl failed with");

    policy("default");
    eventually(PATIENCE, || {
        let policy = cluster.get(&["-n", "ruled", "authorizationpolicies", "readers"]).unwrap();
        let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let in_effect = conditions.iter().find(|it| it["type"] == "culvert.dev/InEffect");
        in_effect.is_some_and(|it| it["status"] == "True").then_some(()).ok_or(format!("{conditions:?}"))
    });
    eventually_says(&shop, "http://web/", is_let_in);
    shop.assert_no_failure();

    policy("somebody-else");
    eventually_says(&shop, "http://web/", is_refused);
    // The probes are the node's own, and no policy is about them.
    shop.assert_unharmed();
    // The refusal says who, to whom, by which policy. What a probe left open behind it may be ended too.
    let denied = eventually(PATIENCE, || {
        let log = shop.denials();
        log.into_iter().find(|line| line["src.workload"] == "client").ok_or("nobody says so")
    });
    assert_eq!(denied["src.identity"], "spiffe://cluster.local/ns/ruled/sa/default", "{denied}");
    assert!(denied.to_string().contains("ruled/readers"), "{denied}");

    policy("default");
    eventually_says(&shop, "http://web/", is_let_in);
    policy("somebody-else");
    eventually_says(&shop, "http://web/", is_refused);
    shop.kubectl(&["delete", "authorizationpolicy", "readers"]);
    eventually_says(&shop, "http://web/", is_let_in);
    assert!(shop.pods().iter().all(is_enrolled), "nobody left the mesh meanwhile");
    shop.assert_unharmed();
}

const OTHER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: other, labels: {app: other}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: IMAGE
    imagePullPolicy: Never
    ports: [{containerPort: 8080, name: http}]
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 5}
";

const BY_HAND: &str = "
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: by-hand, labels: {kubernetes.io/service-name: by-hand}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [ADDRESS], conditions: {ready: true}}]
";

const READERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {principals: [PRINCIPAL]}}]}]
";
