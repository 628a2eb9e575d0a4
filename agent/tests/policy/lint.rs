//! `culvert policy lint`.

use serde_json::{Value, json};

use crate::place::Place;

const OBJECTS: &str = r#"# Two findings: one of a policy that cannot be read, one of a rule.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  action: DENY
  rules:
  - from:
    - source:
        ipBlocks: ["10.0.0.1/8"]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
"#;

#[test]
fn findings_are_shown_by_file_with_their_remedy() {
    let place = Place::new(&[("policies/a.yaml", OBJECTS), ("policies/notes.txt", "none")]);
    let ran = place.policy(&["lint", "policies"]);
    let expected = "\
policies/a.yaml
  14: warning[host-bits]: AuthorizationPolicy shop/web
      spec.rules[0].from[0].source.ipBlocks[0]: 10.0.0.1/8 has bits after its prefix: it counts as 10.0.0.0/8
      remedy: write the block without them

0 errors, 1 warning, 0 remarks
";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, expected, ""));
}

#[test]
fn findings_are_printed_as_json() {
    let place = Place::new(&[("a.yaml", OBJECTS)]);
    let ran = place.policy(&["lint", "a.yaml", "--json"]);
    let findings: Value = serde_json::from_str(&ran.stdout).unwrap();
    let expected = json!([{
        "code": "host-bits",
        "severity": "warning",
        "object": "AuthorizationPolicy shop/web",
        "file": "a.yaml",
        "line": 14,
        "field": "spec.rules[0].from[0].source.ipBlocks[0]",
        "message": "10.0.0.1/8 has bits after its prefix: it counts as 10.0.0.0/8",
        "remedy": "write the block without them",
    }]);
    assert_eq!(findings, expected);
    let sound = Place::new(&[("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n")]);
    let other = ["lint", "a.yaml", "--json", "--deny", "error"];
    assert_eq!(
        serde_json::from_str::<Value>(&sound.policy(&other).stdout).unwrap()[0]["code"],
        "no-default-deny"
    );
}

#[test]
fn the_exit_code_is_by_the_worst_finding() {
    let unparsable = OBJECTS.replace("action: DENY", "action: NO");
    let place = Place::new(&[
        ("error.yaml", unparsable.as_str()),
        ("warning.yaml", OBJECTS),
        ("info.yaml", &OBJECTS[..OBJECTS.find("---").unwrap()]),
        ("sound.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"),
    ]);
    let code = |file: &str, deny: &[&str]| place.policy(&[&["lint", file], deny].concat()).code;
    assert_eq!(code("error.yaml", &[]), 1);
    assert_eq!(code("warning.yaml", &[]), 0);
    assert_eq!(code("warning.yaml", &["--deny", "warning"]), 1);
    assert_eq!(code("info.yaml", &["--deny", "warning"]), 0);
    assert_eq!(code("info.yaml", &["--deny", "info"]), 1);
    assert_eq!(code("sound.yaml", &["--deny", "info"]), 0);
    assert_eq!(code("none.yaml", &[]), 2);
    assert_eq!(code("sound.yaml", &["--deny", "nothing"]), 2);
}

#[test]
fn a_file_that_is_not_well_formed_is_refused_with_its_line() {
    let place = Place::new(&[("a.yaml", "apiVersion: v1\nkind: [\n")]);
    let ran = place.policy(&["lint", "a.yaml"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.starts_with("culvert: a.yaml:3: "), "{}", ran.stderr);
}
