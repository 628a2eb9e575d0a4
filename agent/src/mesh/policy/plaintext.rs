//! What the kernel does with plaintext that comes to a pod: derived from policy, by port.

use std::collections::BTreeMap;

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

impl Plaintext {
    /// Nothing looks at plaintext.
    pub fn pass() -> Self {
        Self { otherwise: PlaintextAction::Pass, ports: BTreeMap::new() }
    }

    /// Returns what happens at a port.
    pub fn at(&self, port: u16) -> PlaintextAction {
        self.ports.get(&port).copied().unwrap_or(self.otherwise)
    }
}

impl Default for Plaintext {
    fn default() -> Self {
        Self::pass()
    }
}
