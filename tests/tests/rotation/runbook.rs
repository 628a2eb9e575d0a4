//! docs/root-rotation.md, step by step.

use std::{thread, time::Duration};

use lab::{PATIENCE, eventually, tcp};

use super::{
    fleet::{Directories, Fleet, SHORT},
    traffic::Traffic,
};

/// Long enough for the steps that come before the old certificates' end, short enough to wait for that.
const LIFETIME: &str = "60s";

impl Fleet {
    /// Steps 1 and 2: another root, trusted by every node beside the old one. Returns both fingerprints.
    fn trust_both(&self) -> [String; 2] {
        let [old] = &Self::trusted(&self.agents[0])[..] else { panic!("one root at the beginning") };
        let said = self.ca("root new master --root-key offline.key");
        assert!(said.contains("offline.key") && said.contains("culvert ca intermediate master"), "{said}");
        let list = self.ca("root list master");
        let new = list
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .find(|word| word.len() == 64 && word != old)
            .unwrap_or_else(|| panic!("{list}"))
            .to_owned();
        for (agent, copy) in self.agents.iter().zip(&self.copies) {
            self.copy("root.pem", copy);
            eventually(PATIENCE, || Self::trusted(agent) == [old.clone(), new.clone()]);
        }
        [old.clone(), new]
    }

    /// Step 3: an intermediate under the new root.
    fn replace_intermediate(&self) {
        let said = self.ca("intermediate master --root-key offline.key");
        assert!(said.contains("retired"), "{said}");
    }

    /// Step 3, on one node: it signs with the new intermediate, and what it signed before is renewed.
    fn hand_out_intermediate(&self, node: usize, root: &str) {
        for file in ["intermediate.pem", "intermediate.key"] {
            self.copy(file, &self.copies[node]);
        }
        eventually(PATIENCE * 4, || {
            let shown = Self::certificates_of(&self.agents[node]);
            if shown.iter().all(|held| held.root == root) { Ok(()) } else { Err(format!("{shown:?}")) }
        });
    }

    /// `culvert ca root remove` with what every node recorded.
    fn remove(&self, root: &str) -> Result<String, String> {
        let records: String =
            self.copies.iter().map(|copy| format!(" --signed {}", copy.join("signed").display())).collect();
        self.try_ca(&format!("root remove master {root}{records}"))
    }
}

#[test]
fn root_is_replaced_step_by_step_without_a_failed_connection() {
    let fleet = Fleet::new(Directories::CopyEach, LIFETIME);
    let traffic = Traffic::start(&fleet);

    let [old, new] = fleet.trust_both();
    traffic.assert_moving();
    let refusal = fleet.remove(&old).unwrap_err();
    assert!(refusal.contains("signs in this directory: replace it first"), "{refusal}");

    fleet.replace_intermediate();
    for node in [0, 1] {
        fleet.hand_out_intermediate(node, &new);
        // One node is ahead of the other here: each accepts what the other shows.
        traffic.assert_moving();
    }

    // Nobody uses the old certificates any more, but whoever has one could: they are valid for a while.
    let refusal = fleet.remove(&old).unwrap_err();
    assert!(refusal.contains("are valid until") && refusal.contains("--force"), "{refusal}");
    let refusal = fleet.try_ca(&format!("root remove master {old}")).unwrap_err();
    assert!(refusal.contains("--signed"), "without the nodes' records nothing is known: {refusal}");
    assert_eq!(fleet.ca("root list master").matches(&old).count(), 1);

    eventually(PATIENCE * 5, || {
        // As an operator tries: each try is a process, and the traffic needs the processors too.
        thread::sleep(Duration::from_secs(1));
        fleet.remove(&old)
    });
    for (agent, copy) in fleet.agents.iter().zip(&fleet.copies) {
        fleet.copy("root.pem", copy);
        eventually(PATIENCE, || Fleet::trusted(agent) == [new.clone()]);
        traffic.assert_moving();
    }

    let tally = traffic.stop();
    println!("{tally}");
    tally.assert_flawless(&fleet);
}

#[test]
fn root_that_is_removed_by_force_too_early_makes_connections_fail() {
    let fleet = Fleet::new(Directories::CopyEach, LIFETIME);
    let [old, new] = fleet.trust_both();
    fleet.replace_intermediate();
    fleet.hand_out_intermediate(0, &new);
    // The other node has only certificates under the old root.
    assert!(Fleet::certificates_of(&fleet.agents[1]).iter().all(|held| held.root == old));
    let traffic = Traffic::start(&fleet);
    fleet.remove(&old).unwrap_err();
    fleet.ca(&format!("root remove master {old} --force"));
    fleet.copy("root.pem", &fleet.copies[0]);
    eventually(PATIENCE, || Fleet::trusted(&fleet.agents[0]) == [new.clone()]);

    for (client, server) in &fleet.pairs {
        let connect = || tcp::exchange(client.connect(server.at(SHORT))?, 1);
        eventually(PATIENCE, || connect().is_err());
    }
    traffic.wait_failure();
    let tally = traffic.stop();
    assert!(!tally.failures().is_empty(), "{tally}");
    let refused = |agent: &lab::Agent| {
        agent.access_log().iter().any(|record| record.reason().as_deref() == Some("bad_certificate"))
    };
    eventually(PATIENCE, || fleet.agents.iter().any(refused));

    // The remedy is the step that was left out.
    fleet.copy("root.pem", &fleet.copies[1]);
    fleet.hand_out_intermediate(1, &new);
    for (client, server) in &fleet.pairs {
        eventually(PATIENCE, || tcp::exchange(client.connect(server.at(SHORT))?, 4096));
    }
}
