//! What the kernel does with plaintext that comes to a pod: derived from policy, by port.

use std::collections::{BTreeMap, BTreeSet};

use super::{Mode, PolicySet, evaluate, truth::Truth, view::View};
use crate::mesh::Workload;

/// What happens to plaintext connections to an enrolled pod, by the port that they come to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plaintext {
    /// At every port that is not in [`Self::ports`].
    pub otherwise: PlaintextAction,
    /// The ports where it is something else.
    pub ports: BTreeMap<u16, PlaintextAction>,
}

/// What happens to a plaintext connection from outside the pod.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PlaintextAction {
    /// It goes straight to the application: no policy can refuse it, whoever it comes from.
    #[default]
    Pass,
    /// It goes to the agent, which asks the policies: they depend on where it comes from, or a dry run counts it.
    Inspect,
    /// The kernel refuses it: no policy permits it, wherever it comes from.
    Refuse,
}

impl PolicySet {
    /// Returns what the kernel is to do with plaintext that comes to an enrolled pod.
    pub fn plaintext(&self, workload: &Workload) -> Plaintext {
        let (policies, levels) = (self.applicable(workload), self.levels(workload));
        let has_dry_run = policies.iter().any(|policy| policy.dry_run);
        let enforced: Vec<_> = policies.into_iter().filter(|policy| !policy.dry_run).collect();
        let at = |port| {
            if levels.mode(port).0 == Mode::Strict {
                return PlaintextAction::Refuse;
            }
            match evaluate::permit(&enforced, &View::plaintext(port)) {
                Truth::No => PlaintextAction::Refuse,
                Truth::Yes if !has_dry_run => PlaintextAction::Pass,
                Truth::Yes | Truth::Maybe => PlaintextAction::Inspect,
            }
        };
        let by_level = levels.workload.into_iter().flat_map(|policy| policy.ports.keys().copied());
        let by_rule = enforced.iter().flat_map(|policy| policy.ports());
        Plaintext::new(by_level.chain(by_rule), at)
    }
}

impl Plaintext {
    /// Nothing looks at plaintext.
    pub fn pass() -> Self {
        Self { otherwise: PlaintextAction::Pass, ports: BTreeMap::new() }
    }

    /// Returns what happens at a port.
    pub fn at(&self, port: u16) -> PlaintextAction {
        self.ports.get(&port).copied().unwrap_or(self.otherwise)
    }

    /// Asks what happens at each port of `mentioned`, and at one that is not.
    fn new(mentioned: impl Iterator<Item = u16>, at: impl Fn(Option<u16>) -> PlaintextAction) -> Self {
        let inspect_all = Self { otherwise: PlaintextAction::Inspect, ports: Default::default() };
        let mut ports = BTreeSet::new();
        for port in mentioned {
            ports.insert(port);
            if ports.len() > MENTIONED {
                return inspect_all;
            }
        }
        let otherwise = at(None);
        let ports = ports.into_iter().map(|port| (port, at(Some(port))));
        let whole = Self { otherwise, ports: ports.filter(|(_, action)| *action != otherwise).collect() };
        if whole.ports.len() > EXCEPTIONS { inspect_all } else { whole }
    }
}

impl Default for Plaintext {
    fn default() -> Self {
        Self::pass()
    }
}

/// Ports of a pod where the kernel is told something else than elsewhere: more, and the agent inspects all.
const EXCEPTIONS: usize = 64;

/// Ports that are looked at to find out.
const MENTIONED: usize = 1024;
