//! Rules, read and compared at once: what is wrong anywhere in them is found, as nothing is left out.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::{Bad, Read, get, known, list, map, name, spec, text};
use crate::mesh::{Connection, Identity};

/// Whether an AuthorizationPolicy matches.
pub(super) fn matches(object: &Value, denies: bool, connection: &Connection<'_>) -> Read<bool> {
    let spec = spec(object)?;
    known(&spec, &["selector", "targetRefs", "rules", "action"])?;
    if let Some(action) = get(&spec, "action") {
        if !["ALLOW", "DENY", "AUDIT", "CUSTOM"].contains(&text(action)?) {
            return Err(Bad);
        }
    }
    let (namespace, _) = name(object);
    let mut any = false;
    for rule in list(&spec, "rules")? {
        let mut eye = Eye { namespace, connection, denies, was_blind: false };
        let matches = eye.rule(map(rule)?)?;
        any |= matches && (denies || !eye.was_blind);
    }
    Ok(any)
}

/// What looks at a rule.
struct Eye<'a> {
    namespace: &'a str,
    connection: &'a Connection<'a>,
    denies: bool,
    was_blind: bool,
}

impl Eye<'_> {
    fn rule(&mut self, rule: &Map<String, Value>) -> Read<bool> {
        known(rule, &["from", "to", "when"])?;
        let from = self.clause(list(rule, "from")?, "source")?;
        let to = self.clause(list(rule, "to")?, "operation")?;
        let mut when = true;
        for condition in list(rule, "when")? {
            when &= self.condition(map(condition)?)?;
        }
        Ok(from && to && when)
    }

    fn clause(&mut self, entries: &[Value], object: &str) -> Read<bool> {
        let mut any = entries.is_empty();
        for entry in entries {
            let entry = map(entry)?;
            known(entry, &[object])?;
            if let Some(fields) = get(entry, object) {
                any |= self.entry(map(fields)?, object)?;
            }
        }
        Ok(any)
    }

    fn entry(&mut self, fields: &Map<String, Value>, object: &str) -> Read<bool> {
        let is_there = |value: &Value| !value.is_null() && value.as_array().is_none_or(|it| !it.is_empty());
        let fields: Vec<_> = fields.iter().filter(|(_, value)| is_there(value)).collect();
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        let has = |wanted: &[&str]| wanted.iter().any(|name| names.contains(name));
        if has(&["serviceAccounts", "notServiceAccounts"])
            && has(&["principals", "notPrincipals", "namespaces", "notNamespaces"])
        {
            return Err(Bad);
        }
        let mut all = !fields.is_empty();
        for (name, values) in fields {
            all &= match (object, name.as_str()) {
                ("source", "principals") => self.any("principal", values)?,
                ("source", "notPrincipals") => !self.any("principal", values)?,
                ("source", "namespaces") => self.any("namespace", values)?,
                ("source", "notNamespaces") => !self.any("namespace", values)?,
                ("source", "serviceAccounts") => self.any("account", values)?,
                ("source", "notServiceAccounts") => !self.any("account", values)?,
                ("source", "trustDomains") => self.any("domain", values)?,
                ("source", "notTrustDomains") => !self.any("domain", values)?,
                ("source", "ipBlocks") => self.any("source", values)?,
                ("source", "notIpBlocks") => !self.any("source", values)?,
                ("operation", "ports") => self.any("port", values)?,
                ("operation", "notPorts") => !self.any("port", values)?,
                ("operation", "methods" | "notMethods") | ("source", "requestPrincipals") => {
                    self.any("methods", values)?;
                    self.blind()
                }
                _ => self.blind(),
            };
        }
        Ok(all)
    }

    fn condition(&mut self, condition: &Map<String, Value>) -> Read<bool> {
        known(condition, &["key", "values", "notValues"])?;
        let attribute = match text(get(condition, "key").ok_or(Bad)?)? {
            "" => return Err(Bad),
            "source.principal" => "principal",
            "source.namespace" => "namespace",
            "source.serviceAccount" => "account",
            "source.trustDomain" => "domain",
            "source.ip" => "source",
            "destination.ip" => "destination",
            "destination.port" => "port",
            _ => "methods",
        };
        let (values, not_values) = (list(condition, "values")?, list(condition, "notValues")?);
        if values.is_empty() && not_values.is_empty() {
            return Err(Bad);
        }
        let holds = values.is_empty() || self.any(attribute, &Value::from(values.to_vec()))?;
        let not_holds = not_values.is_empty() || !self.any(attribute, &Value::from(not_values.to_vec()))?;
        Ok(if attribute == "methods" { self.blind() } else { holds && not_holds })
    }

    fn blind(&mut self) -> bool {
        self.was_blind = true;
        self.denies
    }

    fn any(&self, attribute: &str, values: &Value) -> Read<bool> {
        let mut any = false;
        for value in values.as_array().ok_or(Bad)? {
            let value = text(value)?;
            if value.is_empty() {
                return Err(Bad);
            }
            any |= self.one(attribute, value)?;
        }
        Ok(any)
    }

    fn one(&self, attribute: &str, value: &str) -> Read<bool> {
        let of = |part: &dyn Fn(&Identity) -> String| self.connection.identity.map(part);
        match attribute {
            "principal" => {
                let value = value.strip_prefix("spiffe://").unwrap_or(value);
                let principal = |it: &Identity| it.to_string()["spiffe://".len()..].to_owned();
                wildcard(value, of(&principal).as_deref())
            }
            "namespace" => wildcard(value, of(&|it| it.namespace().to_owned()).as_deref()),
            "domain" => wildcard(value, of(&|it| it.trust_domain().to_string()).as_deref()),
            "account" => {
                let parts: Vec<_> = value.split('/').collect();
                if value.contains('*') || parts.len() > 2 || parts.contains(&"") {
                    return Err(Bad);
                }
                let value =
                    if parts.len() == 1 { format!("{}/{value}", self.namespace) } else { value.into() };
                let account = |it: &Identity| format!("{}/{}", it.namespace(), it.service_account());
                Ok(of(&account).as_ref() == Some(&value))
            }
            "source" => block(value, self.connection.source),
            "destination" => block(value, self.connection.destination.ip()),
            "port" => match value.parse::<u16>() {
                Ok(port) if port > 0 => Ok(port == self.connection.destination.port()),
                _ => Err(Bad),
            },
            _ => Ok(true),
        }
    }
}

fn wildcard(value: &str, text: Option<&str>) -> Read<bool> {
    let stars = value.matches('*').count();
    if value.is_empty() || stars > 1 || (stars == 1 && !value.starts_with('*') && !value.ends_with('*')) {
        return Err(Bad);
    }
    let Some(text) = text else { return Ok(false) };
    Ok(match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => !text.is_empty(),
        (Some(end), _) => text.ends_with(end),
        (None, Some(start)) => text.starts_with(start),
        (None, None) => text == value,
    })
}

fn block(value: &str, address: IpAddr) -> Read<bool> {
    let net = match value.contains('/') {
        true => value.parse::<IpNet>().map_err(|_| Bad)?,
        false => IpNet::from(value.parse::<IpAddr>().map_err(|_| Bad)?),
    };
    let as_v6 = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let is_v4 = |address: IpAddr| address.to_canonical().is_ipv4();
    let length = match net {
        IpNet::V4(net) => u32::from(net.prefix_len()) + 96,
        IpNet::V6(net) => u32::from(net.prefix_len()),
    };
    // Bit by bit, in one family; a block that is wider than all of IPv4 holds no IPv4 address.
    let same = (0..length).all(|bit| (as_v6(net.addr()) ^ as_v6(address)) >> (127 - bit) & 1 == 0);
    Ok(same && (length >= 96 || !is_v4(address)))
}
