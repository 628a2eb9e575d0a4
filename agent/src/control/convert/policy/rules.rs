//! `rules` of an AuthorizationPolicy.

use super::{
    super::Invalid,
    fields::{self, Attribute},
    node::Node,
    notice::{Notices, Topic},
};
use crate::mesh::{Action, Entry, Field, Rule, Test};

/// What reading rules needs to know of the policy that they stand in.
#[derive(Debug)]
pub(super) struct RuleReader<'a, 'k> {
    /// The policy's namespace.
    pub(super) namespace: &'a str,
    /// What the policy does, for the notices about what cannot be seen.
    pub(super) action: Action,
    pub(super) notices: &'a mut Notices<'k>,
}

impl RuleReader<'_, '_> {
    /// Reads all rules.
    pub(super) fn read(&mut self, spec: &Node<'_>) -> Result<Vec<Rule>, Invalid> {
        let Some(rules) = spec.field("rules")? else { return Ok(Vec::new()) };
        rules.elements()?.map(|rule| self.rule(&rule)).collect()
    }

    fn rule(&mut self, rule: &Node<'_>) -> Result<Rule, Invalid> {
        rule.only(&["from", "to", "when"])?;
        let from = self.clause(rule, "from", Self::source_entry)?;
        let to = self.clause(rule, "to", Self::operation_entry)?;
        let when = self.clause(rule, "when", Self::condition)?;
        Ok(Rule::new(from, to, when))
    }

    fn clause(
        &mut self,
        rule: &Node<'_>,
        name: &'static str,
        read: fn(&mut Self, &Node<'_>) -> Result<Entry, Invalid>,
    ) -> Result<Vec<Entry>, Invalid> {
        let Some(entries) = rule.field(name)? else { return Ok(Vec::new()) };
        entries.elements()?.map(|entry| read(self, &entry)).collect()
    }

    fn source_entry(&mut self, entry: &Node<'_>) -> Result<Entry, Invalid> {
        entry.only(&["source"])?;
        let Some(source) = entry.field("source")? else { return Ok(Entry { key: None, fields: Vec::new() }) };
        accounts_stand_alone(&source)?;
        self.entry(&source, |name| match name {
            "principals" => Known::Seen(Attribute::Principal),
            "namespaces" => Known::Seen(Attribute::Namespace),
            "serviceAccounts" => Known::Seen(Attribute::ServiceAccount),
            "trustDomains" => Known::Seen(Attribute::TrustDomain),
            "ipBlocks" => Known::Seen(Attribute::SourceIp),
            "remoteIpBlocks" => Known::UnseenBlocks,
            "requestPrincipals" => Known::UnseenTexts,
            _ => Known::No,
        })
    }

    fn operation_entry(&mut self, entry: &Node<'_>) -> Result<Entry, Invalid> {
        entry.only(&["operation"])?;
        let Some(operation) = entry.field("operation")? else {
            return Ok(Entry { key: None, fields: Vec::new() });
        };
        self.entry(&operation, |name| match name {
            "ports" => Known::Seen(Attribute::DestinationPort),
            "hosts" | "methods" | "paths" => Known::UnseenTexts,
            _ => Known::No,
        })
    }

    fn entry(&mut self, object: &Node<'_>, known: fn(&str) -> Known) -> Result<Entry, Invalid> {
        let mut fields = Vec::new();
        for (name, list) in object.fields()?.filter(|(_, list)| !list.is_empty_list()) {
            let (negated, positive) = positive(name);
            let test = self.test(known(&positive), negated, &list)?;
            fields.push(Field { name: name.to_owned().into(), test });
        }
        Ok(Entry { key: None, fields })
    }

    fn condition(&mut self, condition: &Node<'_>) -> Result<Entry, Invalid> {
        condition.only(&["key", "values", "notValues"])?;
        let key = condition.field("key")?.map(|key| key.text()).transpose()?.unwrap_or_default();
        if key.is_empty() {
            return Err(condition.path.clone().key("key").invalid("is needed"));
        }
        let known = match key {
            "source.ip" => Known::Seen(Attribute::SourceIp),
            "source.namespace" => Known::Seen(Attribute::Namespace),
            "source.principal" => Known::Seen(Attribute::Principal),
            "source.serviceAccount" => Known::Seen(Attribute::ServiceAccount),
            "source.trustDomain" => Known::Seen(Attribute::TrustDomain),
            "destination.ip" => Known::Seen(Attribute::DestinationIp),
            "destination.port" => Known::Seen(Attribute::DestinationPort),
            "remote.ip" => Known::UnseenBlocks,
            _ if ["request.", "connection.", "experimental."]
                .iter()
                .any(|family| key.starts_with(family)) =>
            {
                Known::UnseenTexts
            }
            _ => Known::UnknownKey,
        };
        let mut fields = Vec::new();
        for (name, negated) in [("values", false), ("notValues", true)] {
            if let Some(list) = condition.field(name)?.filter(|list| !list.is_empty_list()) {
                fields.push(Field { name: name.into(), test: self.test(known, negated, &list)? });
            }
        }
        if fields.is_empty() {
            return Err(condition.path.clone().invalid("has neither values nor notValues"));
        }
        Ok(Entry { key: Some(key.to_owned()), fields })
    }

    fn test(&mut self, known: Known, negated: bool, list: &Node<'_>) -> Result<Test, Invalid> {
        match known {
            Known::Seen(attribute) => {
                let values = fields::values(attribute, list, self.namespace, self.notices)?;
                return Ok(if negated { Test::Not(values) } else { Test::Is(values) });
            }
            Known::UnseenBlocks => drop(fields::blocks(list, self.notices)?),
            Known::UnseenTexts | Known::UnknownKey => drop(list.texts()?),
            Known::No => {}
        }
        let (topic, subject) = match known {
            Known::No => (Topic::UnknownField, "this field is not known"),
            Known::UnknownKey => (Topic::UnknownField, "the key of this condition is not known"),
            _ => (Topic::Unseen, "this cannot be seen of a TCP connection"),
        };
        let effect = match self.action.denies() {
            true => "in a DENY policy it counts as matching, so that the rule denies more",
            false => "the rule never matches, as the policy is to ALLOW",
        };
        self.notices.warn(topic, list.path.clone(), format!("{subject}: {effect}"));
        Ok(Test::Unseen)
    }
}

/// What is known of a field.
#[derive(Clone, Copy, Debug)]
enum Known {
    Seen(Attribute),
    UnseenBlocks,
    UnseenTexts,
    UnknownKey,
    No,
}

/// Whether a field's name begins with `not`, and what it is called without.
fn positive(name: &str) -> (bool, String) {
    let Some(rest) = name.strip_prefix("not") else { return (false, name.to_owned()) };
    let mut letters = rest.chars();
    match letters.next() {
        Some(first) if first.is_ascii_uppercase() => {
            (true, first.to_ascii_lowercase().to_string() + letters.as_str())
        }
        _ => (false, name.to_owned()),
    }
}

/// As Istio's own validation has it.
fn accounts_stand_alone(source: &Node<'_>) -> Result<(), Invalid> {
    let mut accounts = None;
    let mut beside = false;
    for (name, field) in source.fields()?.filter(|(_, field)| !field.is_empty_list()) {
        match name {
            "serviceAccounts" | "notServiceAccounts" => accounts = Some(field.path),
            "principals" | "notPrincipals" | "namespaces" | "notNamespaces" => beside = true,
            _ => {}
        }
    }
    match accounts {
        Some(path) if beside => Err(path
            .invalid("must not stand beside principals or namespaces: make two sources of it, or one field")),
        _ => Ok(()),
    }
}
