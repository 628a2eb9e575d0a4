//! The API server: who may what, its end and its return; and one alone, on a node of a mesh.

use std::process::Output;

use lab::{ApiServer, Cluster, Mesh};

use crate::world::cluster;

/// Asks for something with a kubeconfig of one's own.
fn ask(cluster: &Cluster, kubeconfig: &std::path::Path, args: &[&str]) -> Output {
    let mut command = cluster.kubectl_command();
    command.env("KUBECONFIG", kubeconfig).args(args).output().unwrap()
}

fn create_account(cluster: &Cluster, name: &str) {
    cluster.kubectl(&["create", "serviceaccount", name], "").unwrap();
}

#[test]
fn a_service_account_may_what_its_role_says_and_nothing_else() {
    let cluster = cluster();
    create_account(cluster, "reader");
    let kubeconfig = cluster.service_account_kubeconfig("default", "reader").unwrap();
    assert!(!ask(cluster, &kubeconfig, &["get", "pods"]).status.success());
    cluster.kubectl(&["create", "role", "reader", "--verb=get,list", "--resource=pods"], "").unwrap();
    cluster
        .kubectl(&["create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:reader"], "")
        .unwrap();
    lab::eventually(lab::PATIENCE, || ask(cluster, &kubeconfig, &["get", "pods"]).status.success());
    assert!(!ask(cluster, &kubeconfig, &["get", "secrets"]).status.success());
}

#[test]
fn a_token_is_for_its_audience_and_the_api_server_says_whose_it_is() {
    let cluster = cluster();
    create_account(cluster, "shower");
    let token = cluster.token("default", "shower", "culvert-ca").unwrap();
    let review = |audience: &str| {
        let object = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        });
        let answer = cluster.kubectl(&["create", "-o", "json", "-f", "-"], &object.to_string()).unwrap();
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()["status"].clone()
    };
    let status = review("culvert-ca");
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:shower", "{status}");
    assert_ne!(review("somebody-else")["authenticated"], true);
}

#[test]
fn an_api_server_alone_keeps_its_objects_over_a_restart() {
    let mesh = Mesh::new().unwrap();
    let mut server = ApiServer::start_on(&mesh, "node-a").unwrap();
    server.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept, namespace: default}\n").unwrap();
    server.stop();
    assert!(server.kubectl(&["get", "configmaps"], "").is_err());
    server.start().unwrap();
    server.kubectl(&["get", "configmap", "kept"], "").unwrap();
    // From the other node too: agents are there.
    let mut command = mesh
        .node("node-b")
        .command(&lab::cluster::Tools::find().unwrap().kubernetes("kubectl").to_string_lossy());
    let output =
        command.env("KUBECONFIG", server.kubeconfig()).args(["get", "configmap", "kept"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
