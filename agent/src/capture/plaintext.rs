//! The rules for plaintext: what a pod's programs do with what comes from outside it, by port.

use std::collections::{BTreeMap, HashMap};

use agent_ebpf::{MAX_PLAINTEXT_OF_POD, PodPort, Rules, maps, plaintext};
use aya::maps::{HashMap as BpfHashMap, MapData, MapError};

use super::{Error, error::absent_is_fine};
use crate::mesh::{Plaintext, PlaintextAction};

/// The ports that have a rule of their own, with a copy of what the kernel has.
pub(super) struct Ports {
    map: BpfHashMap<MapData, PodPort, u32>,
    have: HashMap<u64, BTreeMap<u16, u32>>,
}

impl Ports {
    /// Takes over what an earlier agent wrote.
    pub(super) fn adopt(map: BpfHashMap<MapData, PodPort, u32>) -> Result<Self, Error> {
        let mut have: HashMap<u64, BTreeMap<u16, u32>> = HashMap::new();
        for entry in &map {
            let (PodPort { netns, port, .. }, rule) = entry.map_err(Error::map(maps::PLAINTEXT))?;
            // A port has 16 bits; the field is wider for the kernel's sake only.
            #[expect(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
            have.entry(netns).or_default().insert(port as u16, rule);
        }
        Ok(Self { map, have })
    }

    /// Changes a pod's rules to what is wanted. `now` is the word in the pod's entry, which `write` replaces.
    ///
    /// A program reads that word, looks the port up, and reads the word again. The order makes every port go from its
    /// old rule to its new one in one step:
    ///
    /// 1. Every port that has a rule of its own, or had one, gets the new rule. The others still follow the old word.
    /// 2. The word changes: now the others follow the new one.
    /// 3. The rules that say no more than the word does go. A program that read the old word, and then misses a rule
    ///    that has gone, finds the word changed, and hands the connection to the agent.
    ///
    /// Where that cannot be done the agent gets to look at everything: what an earlier step wrote counts no more, since
    /// the word says so at once.
    pub(super) fn change(
        &mut self,
        netns: u64,
        now: Rules,
        want: &Plaintext,
        write: impl Fn(Rules) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let changed = self.change_to(netns, now, want, &write);
        if changed.is_err() {
            write(now.next(plaintext::INSPECT, false))?;
            self.retain(netns, |_| false).map_err(Error::map(maps::PLAINTEXT))?;
        }
        changed
    }

    fn change_to(
        &mut self,
        netns: u64,
        now: Rules,
        want: &Plaintext,
        write: impl Fn(Rules) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let differs = |port: &u16| want.at(*port) != want.otherwise;
        let own = want.ports.keys().filter(|port| differs(port)).count();
        if own > MAX_PLAINTEXT_OF_POD {
            return Err(Error::TooManyPorts { netns, ports: own });
        }
        let failed = |error| Error::map(maps::PLAINTEXT)(error);
        let had: Vec<u16> = self.have.get(&netns).into_iter().flat_map(BTreeMap::keys).copied().collect();
        for port in want.ports.keys().filter(|port| differs(port)).chain(&had) {
            self.set(netns, *port, code(want.at(*port))).map_err(failed)?;
        }
        let then = now.next(code(want.otherwise), own > 0);
        if (now.otherwise(), now.has_ports()) != (then.otherwise(), then.has_ports())
            || !had.iter().all(differs)
        {
            write(then)?;
        }
        self.retain(netns, |port| differs(&port)).map_err(failed)
    }

    /// Forgets a pod whose programs are detached.
    pub(super) fn forget(&mut self, netns: u64) -> Result<(), Error> {
        self.retain(netns, |_| false).map_err(Error::map(maps::PLAINTEXT))
    }

    fn set(&mut self, netns: u64, port: u16, rule: u32) -> Result<(), MapError> {
        let have = self.have.entry(netns).or_default();
        if have.get(&port) != Some(&rule) {
            self.map.insert(key(netns, port), rule, 0)?;
            have.insert(port, rule);
        }
        Ok(())
    }

    fn retain(&mut self, netns: u64, keep: impl Fn(u16) -> bool) -> Result<(), MapError> {
        let Some(have) = self.have.get_mut(&netns) else { return Ok(()) };
        let old: Vec<u16> = have.keys().filter(|port| !keep(**port)).copied().collect();
        for port in old {
            absent_is_fine(self.map.remove(&key(netns, port)))?;
            have.remove(&port);
        }
        if have.is_empty() {
            self.have.remove(&netns);
        }
        Ok(())
    }
}

fn key(netns: u64, port: u16) -> PodPort {
    PodPort { netns, port: port.into(), pad: 0 }
}

fn code(action: PlaintextAction) -> u32 {
    match action {
        PlaintextAction::Pass => plaintext::PASS,
        PlaintextAction::Inspect => plaintext::INSPECT,
        PlaintextAction::Refuse => plaintext::REFUSE,
    }
}
