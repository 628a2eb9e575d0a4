//! Which node gets which certificate.

use super::*;

#[tokio::test]
async fn an_agent_gets_the_certificates_of_its_nodes_pods_and_each_is_in_the_audit() {
    let world = World::new().await;
    let svid = world.ask(&world.agent(&claims("node-a")), "web").await.unwrap();
    assert_eq!(svid.chain().len(), 2, "leaf and intermediate");
    let line = world.audited();
    assert_eq!(line["outcome"], "issued");
    assert_eq!(line["caller"], "system:serviceaccount:culvert-system:culvert-agent");
    assert_eq!(line["pod"], "culvert-agent-node-a");
    assert_eq!(line["node"], "node-a");
    assert_eq!(line["identity"], identity("web").to_string());
    assert_eq!(line["serial"], svid.serial());
    let not_after = humantime::parse_rfc3339(line["notAfter"].as_str().unwrap()).unwrap();
    assert_eq!(not_after, svid.not_after());
    assert!(line["remote"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(line["time"].is_string() && line.get("reason").is_none());
    assert_eq!(world.counted("issued"), 1);
}

#[tokio::test]
async fn an_identity_that_runs_only_on_another_node_is_denied_to_this_one() {
    let world = World::new().await;
    let (a, b) = (world.agent(&claims("node-a")), world.agent(&claims("node-b")));
    for (agent, name, here, there) in [(&a, "db", "node-a", "node-b"), (&b, "web", "node-b", "node-a")] {
        let (code, message) = refusal(&world.ask(agent, name).await.unwrap_err());
        assert_eq!(code, Code::PermissionDenied, "{message}");
        for part in [&identity(name).to_string(), here, there] {
            assert!(message.contains(part), "{message}");
        }
        let line = world.audited();
        assert_eq!((&line["outcome"], &line["reason"]), (&json!("refused"), &json!("not_on_node")));
        assert_eq!((&line["node"], &line["identity"]), (&json!(here), &json!(identity(name).to_string())));
    }
    // The control: the same agents for their own pods.
    world.ask(&a, "web").await.unwrap();
    world.ask(&b, "db").await.unwrap();
    assert_eq!((world.counted("not_on_node"), world.counted("issued")), (2, 2));
}

#[tokio::test]
async fn a_pod_that_is_not_yet_known_is_unavailable_until_it_is() {
    let world = World::new().await;
    let agent = world.agent(&claims("node-a"));
    let (code, message) = refusal(&world.ask(&agent, "new").await.unwrap_err());
    assert_eq!(code, Code::Unavailable, "{message}");
    assert_eq!(world.audited()["reason"], "unknown_identity");
    world.mesh.send_replace(mesh(&[("", "new")]));
    let (code, _) = refusal(&world.ask(&agent, "new").await.unwrap_err());
    assert_eq!(code, Code::Unavailable, "it has no node yet");
    world.mesh.send_replace(mesh(&[("node-a", "new")]));
    world.ask(&agent, "new").await.unwrap();
}

#[tokio::test]
async fn without_a_name_it_is_the_callers_own_identity_by_the_same_rule() {
    let world = World::new().await;
    let own = "spiffe://cluster.local/ns/istio-system/sa/ztunnel".parse::<Identity>().unwrap();
    let claims = with(
        with(claims("node-a"), "/kubernetes.io/namespace", json!("istio-system")),
        "/kubernetes.io/serviceaccount/name",
        json!("ztunnel"),
    );
    let token = world.issuer.sign(&with(claims, "/sub", json!("system:serviceaccount:istio-system:ztunnel")));
    let ask = async || {
        let csr = requests::csr_pem(&own);
        requests::send(&world, &token, CertificateRequest { csr, ..CertificateRequest::default() }).await
    };
    assert_eq!(ask().await.unwrap_err().code(), Code::Unavailable, "no pod of its own is known");
    let ztunnel = Workload { identity: own.clone(), node: "node-a".into(), ..pod("ztunnel", &[]) };
    world.mesh.send_replace(Arc::new(snapshot(vec![ztunnel], vec![])));
    ask().await.unwrap();
    assert_eq!(world.audited()["identity"], own.to_string());
}

#[tokio::test]
async fn a_node_that_asks_too_often_is_told_when_to_ask_again_and_others_are_not() {
    let world = World::with(|config| config.requests_per_node = NonZeroU32::MIN).await;
    let (a, b) = (world.agent(&claims("node-a")), world.agent(&claims("node-b")));
    let mut asked = 0;
    let status = loop {
        match world.ask(&a, "web").await {
            Ok(_) => asked += 1,
            Err(error) => break refusal(&error),
        }
        assert!(asked < 1000, "there is no limit");
    };
    assert!(asked >= 20, "{asked}: twenty seconds' worth at once");
    assert_eq!(status.0, Code::ResourceExhausted, "{}", status.1);
    assert_eq!(world.audited()["reason"], "rate_limited");
    world.ask(&b, "db").await.unwrap();

    let token = world.issuer.sign(&claims("node-a"));
    let request = requests::request(&identity("web"));
    let status = requests::send(&world, &token, request).await.unwrap_err();
    let retry: i64 =
        status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!((1..=1000).contains(&retry), "{retry}");
    until(async || world.ask(&a, "web").await.is_ok()).await;
}
