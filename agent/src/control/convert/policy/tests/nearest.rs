//! What a refusal says about the ALLOW policies that did not match.

use super::*;

fn nearest(world: &World, from: &str, source: &str, port: u16) -> String {
    match world.decide_at(from, source, "shop/web", port).verdict {
        Err(Denial::NotAllowed { nearest: Some(nearest), .. }) => {
            format!("{} {} {}", nearest.policy, nearest.field, nearest.why)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn first_field_that_failed_in_the_nearest_policy_is_named() {
    let far = json!({"rules": [{"from": [{"source": {"principals": ["a/*"]}}], "to": [{"operation": {"ports": ["1"]}}]}]});
    let near = json!({"rules": [
        {"from": [{"source": {"namespaces": ["bank"]}}, {"source": {"principals": ["*/front"], "ipBlocks": ["192.0.2.1"]}}],
         "to": [{"operation": {"ports": ["8080"]}}]}]});
    let world = World::new(&[authorization("shop/a-far", far), authorization("shop/b-near", near)]);
    let of = |from, source, port| nearest(&world, from, source, port);
    assert_eq!(
        of("shop/sa/front", "10.0.0.9", 8080),
        "shop/b-near rules[0].from[0].source.namespaces does not hold the namespace shop"
    );
    assert_eq!(
        of("bank/sa/teller", "10.0.0.9", 80),
        "shop/b-near rules[0].to[0].operation.ports does not hold the port 80"
    );
    assert_eq!(
        of("shop/sa/other", "192.0.2.1", 8080),
        "shop/b-near rules[0].from[0].source.namespaces does not hold the namespace shop"
    );
}

#[test]
fn plaintext_is_told_that_it_needs_an_identity() {
    let world = World::new(&[authorization(
        "shop/a",
        json!({"rules": [{"when": [
        {"key": "source.namespace", "values": ["shop"]}]}]}),
    )]);
    assert_eq!(
        nearest(&world, "-", "10.0.0.9", 80),
        "shop/a rules[0].when[0].values needs an identity, and the connection is plaintext: put the client into the mesh"
    );
}

#[test]
fn what_can_never_match_says_so() {
    let check = |spec: Value, expected: &str| {
        let world = World::new(&[authorization("shop/a", spec)]);
        assert_eq!(nearest(&world, "shop/sa/front", "10.0.0.9", 80), format!("shop/a {expected}"));
    };
    check(json!({}), "rules are none, and so match nothing");
    check(json!({"rules": 5}), "spec could not be read, and so matches nothing: mend it");
    check(
        json!({"rules": [{"from": [{"source": {}}]}]}),
        "rules[0].from[0].source is empty, and so matches nothing",
    );
    check(
        json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}, {"operation": {"ports": ["80"]}}]}]}),
        "rules[0].to[0].operation.methods cannot be seen of a TCP connection, and so the rule never matches",
    );
    check(
        json!({"rules": [{"from": [{"source": {"notPrincipals": ["*"]}}]}]}),
        "rules[0].from[0].source.notPrincipals holds spiffe://cluster.local/ns/shop/sa/front",
    );
}

#[test]
fn denial_says_everything_in_one_line() {
    let spec = json!({"rules": [{"from": [{"source": {"serviceAccounts": ["front"]}}]}]});
    let world = World::new(&[authorization("shop/a", spec), authorization("shop/b", json!({}))]);
    let denial = world.decide("shop/sa/other", "shop/web").verdict.unwrap_err();
    assert_eq!(
        denial.to_string(),
        "no allow policy matched; tried shop/a shop/b; nearest was shop/a, whose \
         rules[0].from[0].source.serviceAccounts does not hold the service account shop/other"
    );
}
