//! Culvert itself is replaced.

use lab::eventually;

use crate::world::{PATIENCE, ROOT, Shop, alone, rolled_out};

#[test]
fn a_rolling_update_of_the_agents_refuses_no_connection() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "updated", true);
    for _ in 0..2 {
        cluster.kubectl(&["-n", ROOT, "rollout", "restart", "daemonset/culvert"], "").unwrap();
        rolled_out(cluster, ROOT, "daemonset/culvert");
        shop.wait_answers(10);
    }
    shop.assert_no_failure();
    shop.assert_unharmed();
    shop.wait_enrolled(true);
}

#[test]
fn a_rolling_update_of_the_authority_leaves_every_certificate_good() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "authority", true);
    let root = || cluster.get(&["-n", ROOT, "configmap", "culvert-ca-root"]).unwrap()["data"].clone();
    let before = root();
    cluster.kubectl(&["-n", ROOT, "rollout", "restart", "deployment/culvert-ca"], "").unwrap();
    rolled_out(cluster, ROOT, "deployment/culvert-ca");
    assert_eq!(root(), before, "the authority is the same");
    // An identity that nobody had yet. An agent may still ask the server that has just gone, and again after its deadline.
    let other = Shop::open(cluster, "newcomer", true);
    eventually(PATIENCE, || other.answers().last().is_some_and(|answer| answer.starts_with("200 ")));
    shop.assert_no_failure();
}
