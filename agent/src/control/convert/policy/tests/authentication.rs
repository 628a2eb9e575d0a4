//! PeerAuthentication: modes, their levels, and what the kernel is told.

use super::*;
use crate::mesh::Mode;

fn mode(mode: &str) -> Value {
    json!({"mtls": {"mode": mode}})
}

fn selecting(mut spec: Value) -> Value {
    spec["selector"] = json!({"matchLabels": {"app": "web"}});
    spec
}

fn created(mut policy: Value, at: &str) -> Value {
    policy["metadata"]["creationTimestamp"] = at.into();
    policy
}

/// The mode of port 8080 of `shop/web`.
fn check(policies: &[Value], expected: Mode) {
    assert_eq!(modes(policies, &[8080]), [expected], "{policies:?}");
}

fn modes(policies: &[Value], ports: &[u16]) -> Vec<Mode> {
    let world = World::new(policies);
    let pod = world.workload("shop/web");
    ports.iter().map(|port| world.snapshot.policies().mode(pod, *port)).collect()
}

#[test]
fn narrower_levels_go_first() {
    let mesh = authentication("culvert-system/mesh", mode("STRICT"));
    let namespace = authentication("shop/namespace", mode("DISABLE"));
    let workload = authentication("shop/workload", selecting(mode("PERMISSIVE")));
    check(&[], Mode::Permissive);
    check(std::slice::from_ref(&mesh), Mode::Strict);
    check(&[mesh.clone(), namespace.clone()], Mode::Disable);
    check(&[mesh, namespace, workload], Mode::Permissive);
}

#[test]
fn unset_inherits_from_the_level_above() {
    let mesh = authentication("culvert-system/mesh", mode("STRICT"));
    for unset in [
        mode("UNSET"),
        json!({}),
        json!({"mtls": {}}),
        json!({"mtls": null}),
        json!({"mtls": {"mode": null}}),
    ] {
        let namespace = authentication("shop/namespace", unset.clone());
        let workload = authentication("shop/workload", selecting(unset));
        check(&[mesh.clone(), namespace, workload], Mode::Strict);
    }
}

#[test]
fn port_level_opens_and_closes_that_port_only() {
    let mut spec = selecting(mode("STRICT"));
    spec["portLevelMtls"] =
        json!({"8080": {"mode": "PERMISSIVE"}, "81": {"mode": "UNSET"}, "82": {"mode": "DISABLE"}});
    let policies = [authentication("shop/workload", spec)];
    let expected = [Mode::Permissive, Mode::Strict, Mode::Disable, Mode::Strict];
    assert_eq!(modes(&policies, &[8080, 81, 82, 83]), expected);
    let world = World::new(&policies);
    let policies = world.snapshot.policies();
    assert!(policies.sends_plaintext(world.workload("shop/web"), 82));
    assert!(!policies.sends_plaintext(world.workload("shop/web"), 83));
}

#[test]
fn port_level_counts_without_the_workloads_own_mode() {
    let mesh = authentication("culvert-system/mesh", mode("STRICT"));
    let spec = selecting(json!({"portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}}));
    assert_eq!(modes(&[mesh, authentication("shop/a", spec)], &[8080, 81]), [Mode::Permissive, Mode::Strict]);
}

#[test]
fn oldest_of_a_level_counts_as_a_whole() {
    let old = |spec| created(authentication("shop/z", spec), "2026-01-01T00:00:00Z");
    let new = |spec| created(authentication("shop/a", spec), "2026-01-01T01:00:00+00:30");
    check(&[new(mode("DISABLE")), old(mode("STRICT"))], Mode::Strict);
    check(&[authentication("shop/a", mode("DISABLE")), old(mode("STRICT"))], Mode::Strict);
    check(
        &[authentication("shop/b", mode("DISABLE")), authentication("shop/a", mode("STRICT"))],
        Mode::Strict,
    );
    // Its UNSET goes to the level above, and not to the younger one.
    check(&[old(mode("UNSET")), new(mode("STRICT"))], Mode::Permissive);
    let ports = selecting(json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}}));
    check(&[old(selecting(mode("PERMISSIVE"))), new(ports)], Mode::Permissive);
}

#[test]
fn what_cannot_be_read_is_strict_for_its_scope() {
    let port_without_selector = json!({"portLevelMtls": {"8080": {"mode": "DISABLE"}}});
    for spec in [
        json!(5),
        mode("strict"),
        json!({"mtls": "STRICT"}),
        json!({"mtls": {"mode": 1}}),
        json!({"mtls": {"mode": "DISABLE"}, "colour": "red"}),
        json!({"mtls": {"mode": "DISABLE", "colour": "red"}}),
        json!({"selector": {"matchLabels": {"app": 1}}, "mtls": {"mode": "DISABLE"}}),
        json!({"selector": {"matchExpressions": []}, "mtls": {"mode": "DISABLE"}}),
        json!({"selector": [], "mtls": {"mode": "DISABLE"}}),
        port_without_selector,
    ] {
        let world = World::new(&[authentication("shop/a", spec.clone())]);
        assert_eq!(world.verdict("-", "shop/db"), "deny shop/a", "{spec}");
        assert_eq!(world.verdict("-", "bank/web"), "allow -", "{spec}");
        assert!(world.notices.iter().any(|notice| notice.severity == Severity::Error), "{spec}");
        let world = World::new(&[authentication("culvert-system/a", spec)]);
        assert_eq!(world.verdict("-", "bank/web"), "deny culvert-system/a");
    }
    for port in ["0", "65536", "http", "+80", ""] {
        let spec = selecting(json!({"portLevelMtls": {port: {"mode": "DISABLE"}}}));
        let world = World::new(&[authentication("shop/a", spec)]);
        assert_eq!(
            (world.verdict("-", "shop/web"), world.verdict("-", "shop/db")),
            ("deny shop/a".into(), "allow -".into())
        );
    }
    let untimely = created(authentication("shop/a", mode("DISABLE")), "yesterday");
    check(&[untimely], Mode::Strict);
}

#[test]
fn dry_run_means_nothing_and_is_warned_of() {
    let mut policy = authentication("shop/a", mode("STRICT"));
    policy["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    let world = World::new(&[policy]);
    assert_eq!(world.verdict("-", "shop/web"), "deny shop/a");
    assert!(world.decide("-", "shop/web").dry_run.is_none());
    let warning =
        "metadata.annotations[istio.io/dry-run]: means nothing on a PeerAuthentication: it is enforced";
    assert_eq!(world.warnings(), [warning]);
}

#[test]
fn denial_by_what_cannot_be_read_says_so() {
    let world = World::new(&[authentication("shop/a", mode("strict"))]);
    let denial = world.decide("-", "shop/web").verdict.unwrap_err();
    assert_eq!(
        denial.to_string(),
        "PeerAuthentication shop/a could not be read, and so refuses plaintext as STRICT does: mend it"
    );
}
