//! An answer as a tree that a person can read.

use std::fmt::Write as _;

use super::paint::{Ink, Paint};
use crate::mesh::{
    Action, Answer, Clause, ClauseExplanation, EntryExplanation, Explanation, FieldExplanation,
    LevelExplanation, Mode, PolicyExplanation, RuleExplanation, Verdict,
};

/// Renders an answer.
pub(super) fn render(answer: &Answer, paint: Paint) -> String {
    let Explanation { workload, identity, source, destination, mode, policies, dry_run, verdict: _ } =
        &answer.explanation;
    let who = identity.as_deref().unwrap_or("plaintext, no identity");
    let mut tree = Tree { text: String::new(), paint };
    let _ = writeln!(tree.text, "{source} ({who}) to {destination} ({workload})");
    let _ = writeln!(tree.text, "{}", tree.verdict(answer.is_allowed(), answer.why()));
    if let Some(dry_run) = dry_run.as_ref().filter(|_| answer.before_policy.is_none()) {
        let Verdict { allowed, why, policy: _ } = dry_run;
        let _ = writeln!(tree.text, "in dry run: {}", tree.verdict(*allowed, why));
    }
    let levels: Vec<_> = mode.levels.iter().map(|level| tree.level(level)).collect();
    let default = "no PeerAuthentication says anything, and so it is PERMISSIVE".to_owned();
    let levels = if levels.iter().any(|level| level.marked) {
        levels
    } else {
        levels.into_iter().chain([Node::leaf(true, default)]).collect()
    };
    let mode_is_well = identity.is_some() || mode.mode != Mode::Strict;
    let mode_line = format!("port {} is {}", destination.port(), mode.mode.as_str());
    tree.draw(&Node { marked: mode_is_well, line: mode_line, children: levels }, "");
    for policy in policies {
        let node = tree.policy(policy);
        tree.draw(&node, "");
    }
    if policies.is_empty() {
        tree.draw(&Node::leaf(true, "no AuthorizationPolicy applies".to_owned()), "");
    }
    tree.text
}

struct Tree {
    text: String,
    paint: Paint,
}

/// A line, and the lines under it.
struct Node {
    /// Whether it matches.
    marked: bool,
    line: String,
    children: Vec<Self>,
}

impl Node {
    fn leaf(marked: bool, line: String) -> Self {
        Self { marked, line, children: Vec::new() }
    }
}

impl Tree {
    fn verdict(&self, allowed: bool, why: &str) -> String {
        let word =
            if allowed { self.paint.ink(Ink::Good, "ALLOW") } else { self.paint.ink(Ink::Bad, "DENY") };
        format!("{word}: {why}")
    }

    fn draw(&mut self, node: &Node, indent: &str) {
        let mark =
            if node.marked { self.paint.ink(Ink::Good, "✓") } else { self.paint.ink(Ink::Faint, "✗") };
        let _ = writeln!(self.text, "{indent}{mark} {}", node.line);
        let below = format!("{indent}  ");
        node.children.iter().for_each(|child| self.draw(child, &below));
    }

    fn level(&self, level: &LevelExplanation) -> Node {
        let LevelExplanation { level, policy, mode, readable, decides } = level;
        let unreadable = if *readable { "" } else { ", as it could not be read" };
        let counts = if *decides { "; it decides" } else { "" };
        let line =
            format!("{}: PeerAuthentication {policy}: {}{unreadable}{counts}", level.as_str(), mode.as_str());
        Node::leaf(*decides, line)
    }

    fn policy(&self, policy: &PolicyExplanation) -> Node {
        let PolicyExplanation { policy, action, dry_run, readable, matches, rules } = policy;
        let dry_run = if *dry_run { self.paint.ink(Ink::Doubtful, " (dry run)") } else { String::new() };
        let why = match (*readable, rules.is_empty()) {
            (false, _) if *matches => ": it could not be read, and so always matches",
            (false, _) => ": it could not be read, and so never matches",
            (true, true) => ": it has no rules, and so never matches",
            (true, false) if *matches => ": it matches",
            (true, false) => ": no rule matches",
        };
        Node {
            marked: *matches,
            line: format!("{} {policy}{dry_run}{why}", action.as_str()),
            children: rules.iter().map(|rule| rule_node(rule, *action)).collect(),
        }
    }
}

fn rule_node(rule: &RuleExplanation, action: Action) -> Node {
    let RuleExplanation { path, matches, blind, clauses } = rule;
    let why = match (*matches, *blind && action == Action::Allow, clauses.is_empty()) {
        (true, _, true) => " is empty, and so always matches",
        (true, ..) => " matches",
        (false, true, _) => " needs what cannot be seen of a TCP connection, and so never matches",
        (false, ..) => " does not match",
    };
    let children = clauses.iter().map(clause_node).collect();
    Node { marked: *matches, line: format!("{path}{why}"), children }
}

fn clause_node(clause: &ClauseExplanation) -> Node {
    let ClauseExplanation { clause, matches, entries } = clause;
    let wanted = match clause {
        Clause::From | Clause::To => "one must match",
        Clause::When => "each must match",
    };
    let line = format!("{} ({wanted})", clause.as_str());
    Node { marked: *matches, line, children: entries.iter().map(entry_node).collect() }
}

fn entry_node(entry: &EntryExplanation) -> Node {
    let EntryExplanation { path, key, matches, why, fields } = entry;
    let key = key.as_ref().map_or_else(String::new, |key| format!(" ({key})"));
    let why = why.as_ref().map_or_else(String::new, |why| format!(" {why}"));
    let children = fields.iter().map(|field| field_node(field, path)).collect();
    Node { marked: *matches, line: format!("{path}{key}{why}"), children }
}

fn field_node(field: &FieldExplanation, entry: &str) -> Node {
    let FieldExplanation { path, matches, why } = field;
    let name = path.strip_prefix(entry).and_then(|rest| rest.strip_prefix('.')).unwrap_or(path);
    Node::leaf(*matches, format!("{name} {why}"))
}
