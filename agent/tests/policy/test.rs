//! `culvert policy test`.

use std::fs;

use quick_junit::{NonSuccessKind, Report, TestCaseStatus};

use crate::place::Place;

/// A pod that only `shop/front` may reach, in files of its own, and a policy that cannot be read.
const OBJECTS: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {serviceAccountName: web}, status: {podIP: 10.0.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: front, namespace: shop}, spec: {serviceAccountName: front}, status: {podIP: 10.0.0.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: out, namespace: shop, labels: {culvert.dev/mesh: disabled}}, status: {podIP: 10.0.0.3}}
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: readers, namespace: shop}
  spec:
    selector: {matchLabels: {app: web}}
    rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}]
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: broken, namespace: shop}
  spec:
    selector: {matchLabels: {app: web}}
    action: PERMIT
"#;

const GOOD: &str = "
files: [objects.yaml]
cases:
- name: the front end may
  from: {pod: shop/front}
  to: {pod: shop/web, port: 80}
  expect: allow
  policy: shop/readers
- name: nobody else may
  from: {ip: 192.0.2.1}
  to: {pod: shop/web, port: 80}
  expect: deny
  policy: none
  dryRun: deny
";

const BAD: &str = "
files: [objects.yaml]
cases:
- name: the front end may not
  from: {pod: shop/front}
  to: {pod: shop/web, port: 80}
  expect: deny
  policy: shop/other
  dryRun: deny
- name: it may
  from: {pod: shop/front}
  to: {pod: shop/web, port: 80}
  expect: allow
";

#[test]
fn cases_that_pass_are_listed_as_by_cargo() {
    let place = Place::new(&[("objects.yaml", OBJECTS), ("good.yaml", GOOD)]);
    let ran = place.policy(&["test", "good.yaml"]);
    let expected = "
running 2 tests
test good.yaml: the front end may ... ok
test good.yaml: nobody else may ... ok

test result: ok. 2 passed; 0 failed; 0 filtered out
";
    assert_eq!((ran.code, ran.stdout.as_str()), (0, expected));
    let warning = "warning: ./objects.yaml:19: AuthorizationPolicy shop/broken: spec.action: \"PERMIT\"";
    assert!(ran.stderr.starts_with(&warning.replace("./", "")), "{}", ran.stderr);
}

#[test]
fn a_case_that_fails_is_explained() {
    let place = Place::new(&[("objects.yaml", OBJECTS), ("good.yaml", GOOD), ("bad.yaml", BAD)]);
    let ran = place.policy(&["test", "good.yaml", "bad.yaml"]);
    assert_eq!(ran.code, 1);
    let expected = "
test result: FAILED. 3 passed; 1 failed; 0 filtered out
";
    assert!(ran.stdout.ends_with(expected), "{}", ran.stdout);
    let failure = "
failures:

---- bad.yaml: the front end may not ----
bad.yaml:4: expected deny, got allow
bad.yaml:4: expected policy shop/other, got shop/readers
bad.yaml:4: expected dryRun deny, got allow
10.0.0.2 (spiffe://cluster.local/ns/shop/sa/front) to 10.0.0.1:80 (shop/web)
ALLOW: the ALLOW policy shop/readers matches
✓ port 80 is PERMISSIVE
  ✓ no PeerAuthentication says anything, and so it is PERMISSIVE
✗ ALLOW shop/broken: it could not be read, and so never matches
✓ ALLOW shop/readers: it matches
  ✓ rules[0] matches
    ✓ from (one must match)
      ✓ rules[0].from[0].source
        ✓ principals holds spiffe://cluster.local/ns/shop/sa/front

failures:
    bad.yaml: the front end may not
";
    assert!(ran.stdout.contains(failure), "{}", ran.stdout);
}

#[test]
fn a_filter_picks_cases_by_file_or_name() {
    let place = Place::new(&[("objects.yaml", OBJECTS), ("good.yaml", GOOD), ("bad.yaml", BAD)]);
    let end = |filter: &str| {
        let ran = place.policy(&["test", "good.yaml", "bad.yaml", "--filter", filter]);
        (ran.code, ran.stdout.lines().last().unwrap().to_owned())
    };
    assert_eq!(end("good.yaml"), (0, "test result: ok. 2 passed; 0 failed; 2 filtered out".to_owned()));
    assert_eq!(end("may not"), (1, "test result: FAILED. 0 passed; 1 failed; 3 filtered out".to_owned()));
}

#[test]
fn results_are_written_as_junit() {
    let place = Place::new(&[("objects.yaml", OBJECTS), ("good.yaml", GOOD), ("bad.yaml", BAD)]);
    let ran = place.policy(&["test", "good.yaml", "bad.yaml", "--junit", "report.xml"]);
    assert_eq!(ran.code, 1);
    let xml = fs::read_to_string(place.path().join("report.xml")).unwrap();
    let report = Report::deserialize_from_str(&xml).unwrap();
    assert_eq!((report.tests, report.failures, report.errors), (4, 1, 0));
    let suites: Vec<_> = report.test_suites.iter().map(|suite| suite.name.as_str()).collect();
    assert_eq!(suites, ["good.yaml", "bad.yaml"]);
    let TestCaseStatus::NonSuccess { kind, message, .. } = &report.test_suites[1].test_cases[0].status else {
        panic!("{xml}");
    };
    assert_eq!(*kind, NonSuccessKind::Failure);
    assert!(message.as_ref().unwrap().as_str().starts_with("expected deny, got allow;"), "{xml}");
    let ran = place.policy(&["test", "good.yaml", "--junit", "no/such/directory.xml"]);
    assert_eq!(ran.code, 2);
}

#[test]
fn all_mistakes_of_a_file_are_listed_with_line_and_field() {
    let wrong = "
files: [objects.yaml, missing.yaml]
objects:
- {kind: Pod}
cases:
- name: an unknown field
  form: {ip: 192.0.2.1}
  from: {ip: 192.0.2.1}
  to: {pod: shop/web, port: 80}
  expect: allow
- name: a wrong word
  from: {ip: 192.0.2.1}
  to: {pod: shop/web, port: 80}
  expect: perhaps
- name: a wrong type
  from: {ip: 192.0.2.1}
  to:
    pod: shop/web
    port: \"80\"
  expect: allow
- name: an unknown pod
  from: {pod: shop/nobody}
  to: {pod: shop/web, port: 80}
  expect: allow
- name: no pod of the mesh
  from: {ip: 192.0.2.1}
  to: {pod: shop/out, port: 80}
  expect: allow
- name: nobody
  from: {}
  to: {pod: shop/web, port: 80}
  expect: allow
- name: two at once
  from: {pod: shop/front, identity: \"spiffe://cluster.local/ns/shop/sa/front\"}
  to: {pod: shop/web, port: 80}
  expect: allow
- name: no identity
  from: {identity: front}
  to: {pod: shop/web, port: 80}
  expect: allow
- name: no policy
  from: {pod: shop/front}
  to: {pod: shop/web, port: 80}
  expect: allow
  policy: readers
- from: {pod: shop/front}
  to: {pod: shop/web, port: 80}
  expect: allow
";
    let place = Place::new(&[("objects.yaml", OBJECTS), ("wrong.yaml", wrong), ("good.yaml", GOOD)]);
    let ran = place.policy(&["test", "good.yaml", "wrong.yaml"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    let expected = [
        "2: files[1]: missing.yaml: cannot be read: No such file or directory (os error 2)",
        "4: an object needs an apiVersion and a kind",
        "7: cases[0].form: unknown field `form`",
        "14: cases[1].expect: unknown variant `perhaps`, expected `allow` or `deny`",
        "19: cases[2].to.port: invalid type: string \"80\"",
        "22: cases[3].from.pod: there is no pod shop/nobody",
        "27: cases[4].to.pod: the pod shop/out is not enrolled",
        "30: cases[5].from: it needs a pod, an identity or an ip",
        "34: cases[6].from: a pod has its own identity",
        "38: cases[7].from.identity: \"front\" is not of the form spiffe://",
        "45: cases[8].policy: \"readers\" is neither namespace/name nor none",
        "46: cases[9]: missing field `name`",
    ];
    let lines: Vec<_> = ran.stderr.lines().collect();
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("error: wrong.yaml:{expected}")), "{line}\nwanted {expected}");
    }
    assert_eq!(lines.len(), expected.len(), "{}", ran.stderr);
}

#[test]
fn a_file_that_is_no_test_is_refused() {
    for (text, expected) in [
        ("", "holds no test"),
        ("cases: [\n", ":"),
        ("- a\n", "1: must be a mapping, and is a list"),
        ("cases: [[a]]\n", "1: cases[0]: must be a mapping, and is a list"),
        (
            "cases: [{name: a, from: [], to: {}, expect: allow}]\n",
            "1: cases[0].from: must be a mapping, and is a list",
        ),
        ("text\n", "1: invalid type"),
        ("case: []\n", "1: case: unknown field `case`"),
        ("objects: []\n", "1: missing field `cases`"),
        ("trustDomain: A\ncases: []\n", "1: trustDomain: \"A\" is not a trust domain"),
    ] {
        let place = Place::new(&[("test.yaml", text)]);
        let ran = place.policy(&["test", "test.yaml"]);
        assert_eq!(ran.code, 2, "{text}");
        assert!(
            ran.stderr.starts_with("error: test.yaml:") && ran.stderr.contains(expected),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(Place::new(&[]).policy(&["test", "none.yaml"]).code, 2);
    assert_eq!(Place::new(&[]).policy(&["test"]).code, 2);
}
