//! The values of one field of a rule.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    super::Invalid,
    node::Node,
    notice::{Notices, Topic},
};
use crate::mesh::{Pattern, Strings, Values};

/// What values are compared with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    DestinationIp,
    DestinationPort,
}

/// Reads a list of values in a policy of `namespace`.
pub(super) fn values(
    attribute: Attribute,
    list: &Node<'_>,
    namespace: &str,
    notices: &mut Notices<'_>,
) -> Result<Values, Invalid> {
    Ok(match attribute {
        Attribute::Principal => Values::Principals(principals(list, notices)?),
        Attribute::Namespace => Values::Namespaces(each(list, pattern)?),
        Attribute::ServiceAccount => Values::ServiceAccounts(accounts(list, namespace)?),
        Attribute::TrustDomain => Values::TrustDomains(each(list, pattern)?),
        Attribute::SourceIp => Values::SourceIps(blocks(list, notices)?.into_iter().collect()),
        Attribute::DestinationIp => Values::DestinationIps(blocks(list, notices)?.into_iter().collect()),
        Attribute::DestinationPort => Values::Ports(each(list, port)?),
    })
}

/// Reads a port of an application.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| format!("{text:?} is not a port: 1 to 65535"))
}

/// Reads addresses and blocks of them. Bits after the prefix are masked off.
pub(super) fn blocks(list: &Node<'_>, notices: &mut Notices<'_>) -> Result<Vec<IpNet>, Invalid> {
    let mut blocks = Vec::new();
    for (at, text) in list.texts()?.into_iter().enumerate() {
        let block = block(text).ok_or_else(|| {
            list.at(at).invalid(format!("{text:?} is neither an IP address nor a block such as 10.0.0.0/8"))
        })?;
        if block.addr() != block.network() {
            notices.warn(
                Topic::HostBits,
                list.at(at),
                format!("{text} has bits after its prefix: it counts as {}", block.trunc()),
            );
        }
        blocks.push(block);
    }
    Ok(blocks)
}

fn block(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    // `parse` alone would take "+8" too.
    let digits = length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|_| digits)?;
    IpNet::new(address.parse().ok()?, length).ok()
}

fn principals(list: &Node<'_>, notices: &mut Notices<'_>) -> Result<Strings, Invalid> {
    let mut patterns = Vec::new();
    for (at, text) in list.texts()?.into_iter().enumerate() {
        let stripped = text.strip_prefix(SCHEME);
        if stripped.is_some() {
            let message = format!("principals are written without {SCHEME}, which is left out");
            notices.warn(Topic::SpiffeScheme, list.at(at), message);
        }
        let parsed = pattern(stripped.unwrap_or(text));
        patterns.push(parsed.map_err(|message| list.at(at).invalid(message))?);
    }
    Ok(patterns.into_iter().collect())
}

fn accounts(list: &Node<'_>, namespace: &str) -> Result<Strings, Invalid> {
    let mut accounts = Vec::new();
    for (at, text) in list.texts()?.into_iter().enumerate() {
        let account = account(text, namespace).map_err(|message| list.at(at).invalid(message))?;
        accounts.push(account);
    }
    Ok(accounts.iter().map(|account| Pattern::Exact(account)).collect())
}

/// `namespace/account`, or `account` in the policy's own namespace.
fn account(text: &str, namespace: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err("service accounts have no stars: write principals instead".to_owned());
    }
    let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
    if namespace.is_empty() || account.is_empty() || account.contains('/') {
        return Err(format!("{text:?} is neither namespace/account nor account"));
    }
    Ok(format!("{namespace}/{account}"))
}

fn pattern(text: &str) -> Result<Pattern<'_>, String> {
    Pattern::parse(text).map_err(|error| format!("{text:?}: {error}"))
}

fn each<'a, T, C: FromIterator<T>>(
    list: &Node<'a>,
    parse: impl Fn(&'a str) -> Result<T, String>,
) -> Result<C, Invalid> {
    let texts = list.texts()?.into_iter().enumerate();
    texts.map(|(at, text)| parse(text).map_err(|message| list.at(at).invalid(message))).collect()
}

const SCHEME: &str = "spiffe://";
