//! What actions mean, and in which order they count.

use super::*;

fn from_front() -> Value {
    json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/front"]}}]}])
}

#[test]
fn without_policies_everything_is_permitted() {
    let world = World::new(&[]);
    assert_eq!(world.verdict("shop/sa/front", "shop/web"), "allow -");
    assert_eq!(world.verdict("-", "shop/web"), "allow -");
}

#[test]
fn allow_policy_permits_what_it_matches_and_refuses_the_rest() {
    let world = World::new(&[authorization("shop/readers", json!({"rules": from_front()}))]);
    assert_eq!(world.verdict("shop/sa/front", "shop/web"), "allow shop/readers");
    assert_eq!(world.verdict("shop/sa/other", "shop/web"), "deny none of shop/readers");
    assert_eq!(world.verdict("-", "shop/web"), "deny none of shop/readers");
    assert_eq!(world.verdict("-", "bank/web"), "allow -");
}

#[test]
fn deny_goes_before_allow() {
    let deny = authorization("shop/no-front", json!({"action": "DENY", "rules": from_front()}));
    let allow = authorization("shop/all", json!({"rules": [{}]}));
    let world = World::new(&[allow, deny]);
    assert_eq!(world.verdict("shop/sa/front", "shop/web"), "deny shop/no-front");
    assert_eq!(world.verdict("shop/sa/other", "shop/web"), "allow shop/all");
}

#[test]
fn strict_refuses_plaintext_before_any_authorization_policy() {
    let strict = authentication("shop/strict", json!({"mtls": {"mode": "STRICT"}}));
    let world = World::new(&[strict, authorization("shop/deny", json!({"action": "DENY", "rules": [{}]}))]);
    assert_eq!(world.verdict("-", "shop/web"), "deny shop/strict");
    assert_eq!(world.verdict("shop/sa/front", "shop/web"), "deny shop/deny");
    let plaintext = world.snapshot.policies().plaintext(world.workload("shop/web"));
    assert_eq!(plaintext, Plaintext { otherwise: PlaintextAction::Refuse, ..Plaintext::pass() });
    assert!(world.notices.is_empty(), "{:?}", world.notices);
}

#[test]
fn unparsable_policy_fails_closed() {
    let spec = json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": [80]}}]}]});
    let world = World::new(&[authorization("shop/typo", spec)]);
    assert_eq!(world.verdict("shop/sa/front", "shop/web"), "deny shop/typo");
    let [notice] = world.notices.as_slice() else { panic!("{:?}", world.notices) };
    assert_eq!(notice.severity, Severity::Error);
    assert_eq!(
        notice.to_string(),
        "AuthorizationPolicy shop/typo: spec.rules[0].to[0].operation.ports[0]: 80 is a number: write \"80\", in quotes; \
         until it is mended, it denies everything for the pods that it is for"
    );
}
