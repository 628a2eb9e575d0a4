//! What becomes of a connection that somebody asks about, and why: for people, and for policy tests.

use serde::{Deserialize, Serialize};

use super::{Action, BeforePolicy, Explanation, Mode, PolicyExplanation, PolicySet, Query, QueryError};
use crate::mesh::Snapshot;

/// What becomes of a connection, and why.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// What decides before any policy is asked; what the policies would have said stands beside it.
    #[serde(default)]
    pub before_policy: Option<BeforePolicy>,
    /// What the policies say.
    #[serde(flatten)]
    pub explanation: Explanation,
}

impl Answer {
    /// Answers a question.
    pub fn new(query: &Query, policies: &PolicySet) -> Self {
        Self {
            before_policy: query.before_policy(),
            explanation: policies.explain(&query.workload, &query.connection()),
        }
    }

    /// Answers a question that is asked in words: see [`Client`](super::Client) and [`Server`](super::Server).
    ///
    /// # Errors
    /// Where the words are not understood, or a pod is unknown, or the destination not enrolled.
    pub fn find(from: &str, to: &str, snapshot: &Snapshot) -> Result<Self, QueryError> {
        let query = Query::resolve(&from.parse()?, &to.parse()?, snapshot)?;
        Ok(Self::new(&query, snapshot.policies()))
    }

    /// Returns whether the connection is permitted.
    pub fn is_allowed(&self) -> bool {
        self.before_policy.map_or(self.explanation.verdict.allowed, BeforePolicy::permits)
    }

    /// Returns whether it would be if the dry-run policies were enforced too.
    pub fn would_be_allowed(&self) -> bool {
        match (&self.before_policy, &self.explanation.dry_run) {
            (None, Some(dry_run)) => dry_run.allowed,
            _ => self.is_allowed(),
        }
    }

    /// Returns why, in one line.
    pub fn why(&self) -> &str {
        match self.before_policy {
            Some(before) => before.as_str(),
            None => &self.explanation.verdict.why,
        }
    }

    /// Returns the policies of which each decides it so, as `namespace/name`: empty where none does.
    pub fn deciders(&self) -> Vec<&str> {
        let Explanation { verdict, policies, .. } = &self.explanation;
        let Some(decider) = verdict.policy.as_deref().filter(|_| self.before_policy.is_none()) else {
            return Vec::new();
        };
        if self.is_refused_plaintext() {
            return vec![decider];
        }
        let decides = |policy: &&PolicyExplanation| {
            policy.matches && !policy.dry_run && (policy.action == Action::Allow) == verdict.allowed
        };
        policies.iter().filter(decides).map(|policy| policy.policy.as_str()).collect()
    }

    /// Whether a PeerAuthentication refuses it.
    fn is_refused_plaintext(&self) -> bool {
        self.explanation.identity.is_none() && self.explanation.mode.mode == Mode::Strict
    }
}
