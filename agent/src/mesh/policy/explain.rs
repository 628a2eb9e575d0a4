//! The whole evaluation of a connection, for people: which policies applied, and which rule matched or which field failed.
//!
//! Each part's outcome comes from the very function that [`PolicySet::authorize`] decides by, and nothing is concluded
//! here from the parts: an explanation cannot contradict a decision.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{
    Action, AuthorizationPolicy, Clause, Connection, Denial, Entry, Field, Level, Mode, PeerAuthentication,
    Permit, PolicySet, Rule, Rules, peer::Levels, truth::Truth, view::View, words::entry_path,
};
use crate::mesh::Workload;

/// Why a connection is permitted or refused.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The pod, as `namespace/name`.
    pub workload: String,
    /// Who the client proved to be; none for plaintext.
    pub identity: Option<String>,
    /// The client's address.
    pub source: IpAddr,
    /// What the client asks for.
    pub destination: SocketAddr,
    /// Whether the port accepts plaintext.
    pub mode: ModeExplanation,
    /// The AuthorizationPolicies that apply, in the order of their names.
    pub policies: Vec<PolicyExplanation>,
    /// What is enforced.
    pub verdict: Verdict,
    /// What would be if the dry-run policies were enforced too; none where none applies.
    pub dry_run: Option<Verdict>,
}

/// Whether a port accepts plaintext, and who says so.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModeExplanation {
    /// The mode in force: never UNSET.
    pub mode: Mode,
    /// The PeerAuthentication of each level, from the narrowest, which counts first. Where nobody decides, PERMISSIVE does.
    pub levels: Vec<LevelExplanation>,
}

/// What one level says about a port.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LevelExplanation {
    /// The level.
    pub level: Level,
    /// The PeerAuthentication that counts at it, as `namespace/name`.
    pub policy: String,
    /// Its mode there.
    pub mode: Mode,
    /// Whether it could be read; otherwise it counts as STRICT.
    pub readable: bool,
    /// Whether this is the level that decides.
    pub decides: bool,
}

/// How one AuthorizationPolicy compares with the connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyExplanation {
    /// `namespace/name`.
    pub policy: String,
    /// What a match means.
    pub action: Action,
    /// Whether it is only counted what it would do.
    pub dry_run: bool,
    /// Whether it could be read; otherwise it matches always where it denies, and never where it allows.
    pub readable: bool,
    /// Whether it matches.
    pub matches: bool,
    /// Its rules, of which one must match.
    pub rules: Vec<RuleExplanation>,
}

/// How one rule compares.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleExplanation {
    /// Where it stands in the policy's `spec`, such as `rules[0]`.
    pub path: String,
    /// Whether it matches.
    pub matches: bool,
    /// Whether it is about anything that cannot be seen of a TCP connection: in an ALLOW policy it never matches then.
    pub blind: bool,
    /// The clauses that are there, each of which must match.
    pub clauses: Vec<ClauseExplanation>,
}

/// How one clause compares.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClauseExplanation {
    /// Which one: of `from` and `to` one entry must match, of `when` every one.
    pub clause: Clause,
    /// Whether it matches.
    pub matches: bool,
    /// Its entries.
    pub entries: Vec<EntryExplanation>,
}

/// How one source, operation or condition compares.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryExplanation {
    /// Where it stands, such as `rules[0].from[1].source`.
    pub path: String,
    /// The key of a condition.
    pub key: Option<String>,
    /// Whether it matches.
    pub matches: bool,
    /// Why not, where that is not for a field.
    pub why: Option<String>,
    /// Its fields, each of which must match.
    pub fields: Vec<FieldExplanation>,
}

/// How one field compares.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldExplanation {
    /// Where it stands, such as `rules[0].from[1].source.principals`.
    pub path: String,
    /// Whether it matches.
    pub matches: bool,
    /// What it was compared with, such as `does not hold the port 8080`.
    pub why: String,
}

/// What follows.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Whether the connection is permitted.
    pub allowed: bool,
    /// The policy that decided, as `namespace/name`, where one did.
    pub policy: Option<String>,
    /// Why, in one line.
    pub why: String,
}

impl PolicySet {
    /// Explains what [`Self::authorize`] decides.
    pub fn explain(&self, workload: &Workload, connection: &Connection<'_>) -> Explanation {
        let view = View::of(connection);
        let decision = self.authorize(workload, connection);
        let policies = self.applicable(workload);
        Explanation {
            workload: workload.to_string(),
            identity: connection.identity.map(ToString::to_string),
            source: connection.source,
            destination: connection.destination,
            mode: ModeExplanation::new(self.levels(workload), view.port),
            policies: policies.into_iter().map(|policy| PolicyExplanation::new(policy, &view)).collect(),
            verdict: Verdict::new(&decision.verdict),
            dry_run: decision.dry_run.map(|dry_run| Verdict::new(&dry_run.verdict)),
        }
    }
}

impl ModeExplanation {
    fn new(levels: Levels<'_>, port: Option<u16>) -> Self {
        let decision = levels.decision(port);
        let explain = |(level, mode, policy): (Level, Mode, &PeerAuthentication)| LevelExplanation {
            level,
            policy: policy.name.to_string(),
            mode,
            readable: policy.is_readable,
            decides: decision.is_some_and(|(decisive, ..)| decisive == level),
        };
        Self { mode: levels.mode(port).0, levels: levels.at(port).map(explain).collect() }
    }
}

impl PolicyExplanation {
    fn new(policy: &AuthorizationPolicy, view: &View<'_>) -> Self {
        let rules = policy.rules().iter().enumerate();
        Self {
            policy: policy.name.to_string(),
            action: policy.action,
            dry_run: policy.dry_run,
            readable: policy.rules != Rules::Unreadable,
            matches: policy.evaluate(view) == Truth::Yes,
            rules: rules.map(|(at, rule)| RuleExplanation::new(at, rule, policy.action, view)).collect(),
        }
    }
}

impl RuleExplanation {
    fn new(at: usize, rule: &Rule, action: Action, view: &View<'_>) -> Self {
        let clauses = Clause::ALL.into_iter().filter(|clause| !rule.clause(*clause).is_empty());
        Self {
            path: format!("rules[{at}]"),
            matches: rule.evaluate(action, view) == Truth::Yes,
            blind: rule.is_blind(),
            clauses: clauses.map(|clause| ClauseExplanation::new((at, rule), clause, action, view)).collect(),
        }
    }
}

impl ClauseExplanation {
    fn new((at, rule): (usize, &Rule), clause: Clause, action: Action, view: &View<'_>) -> Self {
        let entries = rule.clause(clause).iter().enumerate();
        let explain =
            |(number, entry)| EntryExplanation::new(entry_path(at, clause, number), entry, action, view);
        Self {
            clause,
            matches: rule.evaluate_clause(clause, action, view) == Truth::Yes,
            entries: entries.map(explain).collect(),
        }
    }
}

impl EntryExplanation {
    fn new(path: String, entry: &Entry, action: Action, view: &View<'_>) -> Self {
        let explain = |field: &Field| FieldExplanation {
            path: field.path(&path),
            matches: field.evaluate(action, view) == Truth::Yes,
            why: field.why(action, view),
        };
        Self {
            key: entry.key.clone(),
            matches: entry.evaluate(action, view) == Truth::Yes,
            why: entry.why().map(str::to_owned),
            fields: entry.fields.iter().map(explain).collect(),
            path,
        }
    }
}

impl Verdict {
    fn new(verdict: &Result<Permit, Denial>) -> Self {
        let (policy, why) = match verdict {
            Ok(permit) => match permit.policy() {
                Some(policy) => (Some(policy), format!("the ALLOW policy {policy} matches")),
                None => (None, "no DENY policy matches, and no ALLOW policy applies".to_owned()),
            },
            Err(denial) => (denial.policy(), denial.to_string()),
        };
        Self { allowed: verdict.is_ok(), policy: policy.map(ToString::to_string), why }
    }
}
