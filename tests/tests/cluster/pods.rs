//! Pods run, are probed, answer behind a service, and can be looked into.

use std::collections::BTreeSet;

use lab::{Cluster, PATIENCE, cluster::images, eventually};

use crate::world::{cluster, idle_pod, web};

/// What a pod's container answers to a command.
fn exec(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl(&["exec", pod, "--", "bash", "-c", script], "").unwrap()
}

/// The addresses of the service `web`, one of each family.
fn addresses(cluster: &Cluster) -> Vec<String> {
    let service = cluster.get(&["service", "web"]).unwrap();
    let listed = service["spec"]["clusterIPs"].as_array().unwrap().iter();
    listed.map(|address| address.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_deployment_is_ready_on_both_nodes_once_its_probes_have_passed() {
    let (cluster, pods) = (cluster(), web());
    let listed = cluster.get(&["pods", "-l", "app=web"]).unwrap();
    let nodes: BTreeSet<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| pod["spec"]["nodeName"].as_str().unwrap().to_owned())
        .collect();
    let expected: BTreeSet<_> = cluster.nodes().iter().map(|node| node.unique_name()).collect();
    assert_eq!(nodes, expected);
    for pod in pods {
        // The line comes to the log by way of the container runtime.
        eventually(PATIENCE, || {
            let log = cluster.kubectl(&["logs", pod], "").unwrap();
            let probed = log.contains("GET /probe") && log.contains("kube-probe");
            if probed { Ok(()) } else { Err(format!("{pod} was not probed: {log}")) }
        });
    }
}

#[test]
fn a_service_answers_from_every_pod_over_both_families() {
    let (cluster, pods) = (cluster(), web());
    let expected: BTreeSet<_> = pods.iter().map(|pod| pod.trim_start_matches("pod/").to_owned()).collect();
    for address in addresses(cluster) {
        let host = if address.contains(':') { format!("[{address}]") } else { address };
        let mut seen = BTreeSet::new();
        // kube-proxy picks a pod by chance each time, the client's own neighbour on its bridge among them.
        eventually(PATIENCE, || {
            let answer = exec(cluster, &pods[0], &format!("curl -sS -g -m 5 http://{host}/ || true"));
            // It hears of pods that are ready a moment after the API server.
            if answer.contains(" greets ") {
                seen.insert(answer.split(' ').next().unwrap_or_default().to_owned());
            }
            if seen == expected { Ok(()) } else { Err(format!("{seen:?}, and last {answer:?}")) }
        });
    }
}

#[test]
fn a_pod_finds_a_service_by_its_name() {
    let (cluster, _) = (cluster(), web());
    idle_pod(cluster, "resolves", "node-a");
    // The DNS hears of a service a moment after the API server.
    eventually(PATIENCE, || {
        exec(cluster, "resolves", "curl -sS -m 5 http://web/ || true").contains(" greets ")
    });
    let unknown = exec(cluster, "resolves", "getent hosts nobody.default.svc.cluster.local || echo unknown");
    assert_eq!(unknown.trim(), "unknown");
    cluster.kubectl(&["delete", "pod", "resolves"], "").unwrap();
}

#[test]
fn exec_passes_on_input_output_and_exit_status() {
    let (cluster, pods) = (cluster(), web());
    let args = ["exec", "-i", &pods[0], "--", "bash", "-c", "cat; echo err >&2; exit 7"];
    let output = cluster.kubectl_output(&args, "hello").unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello");
    assert!(String::from_utf8_lossy(&output.stderr).contains("err"));
}

#[test]
fn a_pod_reaches_the_api_server_with_its_own_token() {
    let cluster = cluster();
    idle_pod(cluster, "asks", "node-b");
    eventually(PATIENCE, || {
        let answer = exec(
            cluster,
            "asks",
            "cd /var/run/secrets/kubernetes.io/serviceaccount && curl -sS -m 5 --cacert ca.crt \
             -H \"Authorization: Bearer $(cat token)\" https://$KUBERNETES_SERVICE_HOST/api/v1/secrets || true",
        );
        // It is known, and may not.
        let refused =
            answer.contains("system:serviceaccount:default:default") && answer.contains("\"code\": 403");
        if refused { Ok(()) } else { Err(answer) }
    });
    cluster.kubectl(&["delete", "pod", "asks"], "").unwrap();
}

#[test]
fn the_agents_image_holds_all_that_the_agent_needs() {
    let cluster = cluster();
    let image = images::culvert("culvert.test/culvert:suite", &lab::culvert().unwrap()).unwrap();
    cluster.add_image(&image).unwrap();
    let args = [
        "run",
        "version",
        "--image=culvert.test/culvert:suite",
        "--image-pull-policy=Never",
        "--restart=Never",
        "--overrides={\"spec\":{\"dnsPolicy\":\"Default\"}}",
        "--",
        "--version",
    ];
    cluster.kubectl(&args, "").unwrap();
    cluster.wait_for("pod/version", "jsonpath={.status.phase}=Succeeded").unwrap();
    eventually(PATIENCE, || cluster.kubectl(&["logs", "version"], "").unwrap().starts_with("culvert "));
    cluster.kubectl(&["delete", "pod", "version"], "").unwrap();
}
