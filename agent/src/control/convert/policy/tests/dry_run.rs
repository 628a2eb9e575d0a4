//! Policies that are counted and not enforced.

use super::*;

fn dry(mut policy: Value) -> Value {
    policy["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    policy
}

/// What is enforced, and what would be.
fn check(policies: &[Value], verdict: &str, dry_run: Option<&str>) {
    let decision = World::new(policies).decide("shop/sa/front", "shop/web");
    let would = decision.dry_run.as_ref().map(|dry_run| short(&dry_run.verdict));
    assert_eq!((short(&decision.verdict).as_str(), would.as_deref()), (verdict, dry_run), "{policies:?}");
}

#[test]
fn dry_run_is_counted_beside_the_others_and_never_enforced() {
    let allow = authorization("shop/allow", json!({"rules": [{}]}));
    let deny = dry(authorization("shop/deny", json!({"action": "DENY", "rules": [{}]})));
    let nothing = dry(authorization("shop/nothing", json!({})));
    check(std::slice::from_ref(&allow), "allow shop/allow", None);
    check(std::slice::from_ref(&deny), "allow -", Some("deny shop/deny"));
    check(std::slice::from_ref(&nothing), "allow -", Some("deny none of shop/nothing"));
    check(&[allow.clone(), deny], "allow shop/allow", Some("deny shop/deny"));
    check(&[allow, nothing], "allow shop/allow", Some("allow shop/allow"));
    let closed = authorization("shop/closed", json!({}));
    let open = dry(authorization("shop/open", json!({"rules": [{}]})));
    check(&[closed, open], "deny none of shop/closed", Some("allow shop/open"));
}

#[test]
fn unparsable_dry_run_is_not_enforced_either() {
    check(
        &[dry(authorization("shop/a", json!({"action": "DENY", "rules": 5})))],
        "allow -",
        Some("deny shop/a"),
    );
    check(&[dry(authorization("shop/a", json!({"rules": 5})))], "allow -", Some("deny none of shop/a"));
}

#[test]
fn only_the_exact_word_makes_a_dry_run() {
    for (word, warns) in [("True", true), ("", true), ("yes", true), ("false", false)] {
        let mut policy = authorization("shop/a", json!({"action": "DENY", "rules": [{}]}));
        policy["metadata"]["annotations"] = json!({"istio.io/dry-run": word});
        check(std::slice::from_ref(&policy), "deny shop/a", None);
        assert_eq!(!World::new(&[policy]).warnings().is_empty(), warns, "{word}");
    }
    // No text at all: the object cannot be read, and fails closed.
    let mut policy = authorization("shop/a", json!({"rules": [{}]}));
    policy["metadata"]["annotations"] = json!({"istio.io/dry-run": true});
    check(&[policy], "deny none of shop/a", None);
}

#[test]
fn refusal_of_plaintext_stands_in_the_dry_run_too() {
    let strict = authentication("shop/strict", json!({"mtls": {"mode": "STRICT"}}));
    let world = World::new(&[strict, dry(authorization("shop/a", json!({"rules": [{}]})))]);
    let decision = world.decide("-", "shop/web");
    assert_eq!(short(&decision.dry_run.unwrap().verdict), "deny shop/strict");
}
