//! Agents that end without a word.

use std::time::Duration;

use lab::{ClusterNode, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::world::{MARKER, PATIENCE, ROOT, Settled, Shop, agent_pod, agent_process, alone, rolled_out};

/// A container that failed is started again at once, the second time after ten seconds.
const AGAIN: Duration = Duration::from_secs(90);

/// What a client asks in a loop of its own, beside the one that it began with.
struct Loop<'a> {
    shop: &'a Shop,
    file: String,
}

impl<'a> Loop<'a> {
    fn start(shop: &'a Shop, url: &str) -> Self {
        let file = format!("/tmp/{}", url.replace('/', "-"));
        let ask = format!("curl -s -m 5 -o /dev/null -w '%{{http_code}} %{{errormsg}}\\n' http://{url}");
        shop.exec("client", &format!("while sleep 0.1; do {ask}; done > {file} 2> /dev/null < /dev/null &"));
        Self { shop, file }
    }

    fn answers(&self) -> Vec<String> {
        self.shop.exec("client", &format!("cat {}", self.file)).lines().map(str::to_owned).collect()
    }

    fn wait_answers(&self, more: usize) {
        let before = self.answers().len();
        eventually(PATIENCE, || self.answers().len() >= before + more);
    }

    fn assert_no_failure(&self) {
        let answers = self.answers();
        let failed: Vec<_> = answers.iter().filter(|answer| !answer.starts_with("200 ")).collect();
        assert!(failed.is_empty(), "{}: {} of {} failed: {failed:?}", self.file, failed.len(), answers.len());
    }
}

/// Waits until the client's newest answers are all good.
fn wait_well(shop: &Shop) {
    eventually(PATIENCE, || {
        let answers = shop.answers();
        let newest = answers.iter().rev().take(20);
        let wrong: Vec<_> = newest.filter(|answer| !answer.starts_with("200 ")).collect();
        wrong.is_empty().then_some(()).ok_or(format!("{wrong:?}"))
    });
}

/// Waits until another process than this one is the node's agent, and ready.
fn wait_successor(shop: &Shop, node: &ClusterNode, gone: i32) {
    eventually(AGAIN, || agent_process(shop.cluster, node).is_some_and(|process| process != gone));
    rolled_out(shop.cluster, ROOT, "daemonset/culvert");
}

#[test]
fn an_agent_that_ends_without_a_word_lets_nothing_out_in_plaintext_and_touches_nobody_outside() {
    let (cluster, _alone) = alone();
    let node = cluster.node("node-a");
    let _settled = Settled(cluster);
    let shop = Shop::open(cluster, "forced", true);
    let outside = Shop::open(cluster, "bystander", false);
    // What bypasses the mesh at one end: it is outside as well.
    let bypasses = [Loop::start(&shop, "web.bystander"), Loop::start(&outside, "web.forced")];
    bypasses.iter().for_each(|one| one.wait_answers(5));
    // Some of these are under way at any moment.
    for number in 0..3 {
        Loop::start(&shop, &format!("web/{MARKER}-forced-{number}"));
    }
    let capture = cluster.capture(node).unwrap();

    let first = eventually(PATIENCE, || agent_process(cluster, node));
    let pod = agent_pod(cluster, node).unwrap();
    cluster.kubectl(&["-n", ROOT, "delete", "pod", &pod, "--grace-period=0", "--force"], "").unwrap();
    wait_successor(&shop, node, first);
    wait_well(&shop);

    // With no successor at hand.
    let second = eventually(PATIENCE, || agent_process(cluster, node));
    kill(Pid::from_raw(second), Signal::SIGKILL).unwrap();
    wait_successor(&shop, node, second);
    wait_well(&shop);

    for one in &bypasses {
        one.wait_answers(5);
        one.assert_no_failure();
    }
    outside.assert_no_failure();
    outside.assert_unharmed();
    // Probes are the node's own, and go on without an agent.
    shop.assert_unharmed();
    let captured = capture.stop().unwrap();
    assert!(captured.contains(format!("{MARKER}-bystander")), "what is in plaintext is seen");
    assert!(!captured.contains(format!("{MARKER}-forced")), "a captured pod's request was read on the wire");
}
