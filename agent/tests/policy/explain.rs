//! `culvert policy explain`.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    thread,
};

use serde_json::Value;

use crate::place::Place;

const OBJECTS: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, spec: {serviceAccountName: web}, status: {podIP: 10.0.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: front, namespace: shop}, spec: {serviceAccountName: front}, status: {podIP: 10.0.0.2}}
- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: shop}, spec: {mtls: {mode: STRICT}}}
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: no-get, namespace: shop}
  spec: {action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ["81"]}}], when: [{key: source.namespace, values: [blog]}]}]}
- {apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: shut, namespace: shop, annotations: {istio.io/dry-run: "true"}}, spec: {action: DENY, rules: [{}]}}
"#;

fn explain(place: &Place, from: &str, more: &[&str]) -> (i32, String) {
    let ran = place.policy(&[&["explain", "--from", from, "--to", "shop/web:80"], more].concat());
    (ran.code, ran.stdout + &ran.stderr)
}

#[test]
fn the_evaluation_is_shown_as_a_tree() {
    let place = Place::new(&[("a.yaml", OBJECTS)]);
    let expected = "\
10.0.0.2 (spiffe://cluster.local/ns/shop/sa/front) to 10.0.0.1:80 (shop/web)
ALLOW: no DENY policy matches, and no ALLOW policy applies
in dry run: DENY: AuthorizationPolicy shop/shut denies it: its rules[0] matches
✓ port 80 is STRICT
  ✓ namespace: PeerAuthentication shop/strict: STRICT; it decides
✗ DENY shop/no-get: no rule matches
  ✗ rules[0] does not match
    ✗ to (one must match)
      ✗ rules[0].to[0].operation
        ✓ methods cannot be seen of a TCP connection, and so counts as matching
        ✗ ports does not hold the port 80
    ✗ when (each must match)
      ✗ rules[0].when[0] (source.namespace)
        ✗ values does not hold the namespace shop
✓ DENY shop/shut (dry run): it matches
  ✓ rules[0] is empty, and so always matches
";
    assert_eq!(explain(&place, "shop/front", &["a.yaml"]), (0, expected.to_owned()));
}

#[test]
fn plaintext_and_what_decides_before_policy_are_explained() {
    let place = Place::new(&[("a.yaml", OBJECTS)]);
    let verdict = |from: &str| {
        let (code, text) = explain(&place, from, &["a.yaml"]);
        assert_eq!(code, 0, "{text}");
        text.lines().nth(1).unwrap().to_owned()
    };
    assert!(
        verdict("192.0.2.1").starts_with("DENY: PeerAuthentication shop/strict refuses plaintext (STRICT)")
    );
    assert_eq!(verdict("shop/web"), "ALLOW: a pod's traffic to itself is let alone");
    assert_eq!(
        verdict("spiffe://other.org/ns/shop/sa/front@192.0.2.1"),
        "DENY: an identity of another trust domain is refused in the handshake"
    );
}

#[test]
fn the_answer_is_printed_as_json() {
    let place = Place::new(&[("a.yaml", OBJECTS)]);
    let (code, text) = explain(&place, "192.0.2.1", &["a.yaml", "--json"]);
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 0);
    assert_eq!((&answer["allowed"], &answer["decidedBy"][0]), (&false.into(), &"shop/strict".into()));
    assert_eq!((&answer["mode"]["mode"], &answer["source"]), (&"STRICT".into(), &"192.0.2.1".into()));
}

#[test]
fn what_cannot_be_answered_ends_with_two() {
    let place = Place::new(&[("a.yaml", OBJECTS)]);
    let error = |from: &str, more: &[&str]| {
        let (code, text) = explain(&place, from, more);
        assert_eq!(code, 2, "{text}");
        text
    };
    assert_eq!(error("shop/nobody", &["a.yaml"]), "culvert: there is no pod shop/nobody\n");
    assert!(error("nobody", &["a.yaml"]).contains("is no client"));
    assert!(error("shop/front", &["none.yaml"]).starts_with("culvert: none.yaml: cannot be read"));
    assert!(error("shop/front", &["--agent", "none.sock"]).contains("no agent answers at none.sock"));
    assert!(error("shop/front", &[]).contains("required"));
}

/// The agent's side of it has suites of its own: here it is what the command asks for, and what it makes of the answer.
#[test]
fn an_agent_is_asked_over_its_socket() {
    let place = Place::new(&[("a.yaml", OBJECTS)]);
    let (_, answer) = explain(&place, "192.0.2.1", &["a.yaml", "--json"]);
    let (_, tree) = explain(&place, "192.0.2.1", &["a.yaml"]);
    for (answer, code, expected) in
        [(answer, 0, tree), ("there is no pod shop/x\n".to_owned(), 2, "there is no pod shop/x\n".to_owned())]
    {
        let _ = std::fs::remove_file(place.path().join("agent.sock"));
        let listener = UnixListener::bind(place.path().join("agent.sock")).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            write!(stream, "HTTP/1.0 200 OK\r\n\r\n{answer}").unwrap();
            String::from_utf8(request).unwrap()
        });
        let (ended, shown) = explain(&place, "192.0.2.1", &["--agent", "agent.sock"]);
        let request = agent.join().unwrap();
        assert!(
            request.starts_with("GET /policy/explain?from=192.0.2.1&to=shop%2Fweb%3A80 HTTP/1.0\r\n"),
            "{request}"
        );
        assert_eq!(ended, code, "{shown}");
        assert!(shown.ends_with(&expected), "{shown}");
    }
}
