//! Policies and connections at random, of few words, so that they often meet; now and then a word is wrong.

use std::net::IpAddr;

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Map, Value, json};

use super::ROOT;

/// A connection: who, from where, to which pod, which port.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) identity: Option<&'static str>,
    pub(super) source: IpAddr,
    pub(super) pod: &'static str,
    pub(super) port: u16,
}

pub(super) fn attempt() -> impl Strategy<Value = Attempt> {
    let identities = select(vec![
        "spiffe://cluster.local/ns/shop/sa/front",
        "spiffe://cluster.local/ns/shop/sa/other",
        "spiffe://cluster.local/ns/bank/sa/teller",
        "spiffe://other.domain/ns/shop/sa/front",
    ]);
    let pods = select(vec!["shop/web", "shop/db", "bank/web", "culvert-system/console"]);
    (option::weighted(0.6, identities), source(), pods, port())
        .prop_map(|(identity, source, pod, port)| Attempt { identity, source, pod, port })
}

pub(super) fn source() -> impl Strategy<Value = IpAddr> {
    let addresses = ["10.0.0.9", "::ffff:10.0.0.9", "10.1.0.1", "192.0.2.1", "fd00::9", "2001:db8::1"];
    select(addresses.to_vec()).prop_map(|address| address.parse().unwrap())
}

pub(super) fn port() -> impl Strategy<Value = u16> {
    select(vec![80, 443, 8080])
}

/// Policies of both kinds, each with a name of its own.
pub(super) fn policies() -> impl Strategy<Value = Vec<Value>> {
    let policy = prop_oneof![4 => authorization(), 2 => authentication()];
    vec(policy, 0..7).prop_map(|mut policies| {
        for (number, policy) in policies.iter_mut().enumerate() {
            policy["metadata"]["name"] = format!("p{number}").into();
        }
        policies
    })
}

/// An AuthorizationPolicy called `new`.
pub(super) fn authorization() -> impl Strategy<Value = Value> {
    let action = prop_oneof![
        6 => Just(None),
        6 => Just(Some(json!("DENY"))),
        2 => Just(Some(json!("ALLOW"))),
        1 => select(vec![json!("CUSTOM"), json!("AUDIT"), json!("deny"), json!(1), json!([]), Value::Null]).prop_map(Some),
    ];
    let dry_run = prop_oneof![8 => Just(None), 1 => Just(Some("true")), 1 => Just(Some("True"))];
    let rules = vec(rule(), 0..3).prop_map(Value::from);
    let rules = prop_oneof![30 => rules, 1 => select(vec![json!(5), json!([null]), json!([{"form": []}])])];
    (namespace(), target(), action, dry_run, rules).prop_map(
        |(namespace, mut spec, action, dry_run, rules)| {
            spec.insert("rules".to_owned(), rules);
            spec.extend(action.map(|action| ("action".to_owned(), action)));
            let mut metadata = json!({"name": "new", "namespace": namespace});
            if let Some(dry_run) = dry_run {
                metadata["annotations"] = json!({"istio.io/dry-run": dry_run});
            }
            json!({"kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
        },
    )
}

fn authentication() -> impl Strategy<Value = Value> {
    let mode = || {
        let modes = [json!("STRICT"), json!("PERMISSIVE"), json!("DISABLE"), json!("UNSET"), Value::Null];
        prop_oneof![20 => select(modes.to_vec()), 1 => Just(json!("strict"))]
            .prop_map(|mode| json!({"mode": mode}))
    };
    let ports = vec((select(vec!["80", "8080", "443"]), mode()), 0..3);
    let created = select(vec![json!("2026-01-01T00:00:00Z"), json!("2026-01-02T00:00:00Z"), Value::Null]);
    (namespace(), selector(), mode(), ports, created).prop_map(
        |(namespace, mut spec, mode, ports, created)| {
            spec.insert("mtls".to_owned(), mode);
            if !ports.is_empty() && spec.contains_key("selector") {
                let ports =
                    ports.into_iter().map(|(port, mode)| (port.to_owned(), mode)).collect::<Map<_, _>>();
                spec.insert("portLevelMtls".to_owned(), ports.into());
            }
            let metadata = json!({"name": "new", "namespace": namespace, "creationTimestamp": created});
            json!({"kind": "PeerAuthentication", "metadata": metadata, "spec": spec})
        },
    )
}

fn namespace() -> impl Strategy<Value = &'static str> {
    prop_oneof![5 => Just("shop"), 1 => Just("bank"), 3 => Just(ROOT)]
}

fn selector() -> impl Strategy<Value = Map<String, Value>> {
    let selector = prop_oneof![
        3 => Just(json!({"matchLabels": {"app": "web"}})),
        2 => Just(json!({"matchLabels": {"app": "web", "tier": "front"}})),
        1 => Just(json!({"matchLabels": {"app": "db"}})),
        1 => select(vec![json!({}), json!({"matchLabels": {}}), json!({"matchExpressions": []}), json!("web")]),
    ];
    option::of(selector)
        .prop_map(|selector| selector.map(|it| ("selector".to_owned(), it)).into_iter().collect())
}

fn target() -> impl Strategy<Value = Map<String, Value>> {
    let reference = select(vec![
        json!({"kind": "Service", "group": "", "name": "web"}),
        json!({"kind": "Service", "group": "", "name": "bare"}),
        json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "web"}),
    ]);
    let references =
        vec(reference, 0..3).prop_map(|it| Map::from_iter([("targetRefs".to_owned(), it.into())]));
    prop_oneof![6 => selector(), 1 => references]
}

fn rule() -> impl Strategy<Value = Value> {
    let entry = |name: &'static str, fields: BoxedStrategy<Value>| prop_oneof![15 => fields.prop_map(move |fields| json!({name: fields})), 1 => Just(json!({}))];
    let from = vec(entry("source", source_fields().boxed()), 0..3);
    let to = vec(entry("operation", operation_fields().boxed()), 0..2);
    let when = vec(condition(), 0..2);
    (from, to, when).prop_map(|(from, to, when)| json!({"from": from, "to": to, "when": when}))
}

fn source_fields() -> impl Strategy<Value = Value> {
    let field = prop_oneof![
        4 => named("principals", "notPrincipals", principals().boxed()),
        3 => named("namespaces", "notNamespaces", words(&["shop", "bank", "sh*", "*"]).boxed()),
        1 => named("serviceAccounts", "notServiceAccounts", accounts().boxed()),
        1 => named("trustDomains", "notTrustDomains", words(&["cluster.local", "*.domain"]).boxed()),
        4 => named("ipBlocks", "notIpBlocks", blocks().boxed()),
        1 => named("requestPrincipals", "colour", words(&["x"]).boxed()),
    ];
    vec(field, 0..3).prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into())
}

fn operation_fields() -> impl Strategy<Value = Value> {
    let field = prop_oneof![
        8 => named("ports", "notPorts", words(&["80", "8080"]).boxed()),
        1 => named("methods", "notMethods", words(&["GET"]).boxed()),
    ];
    vec(field, 0..3).prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into())
}

fn condition() -> impl Strategy<Value = Value> {
    let keyed = prop_oneof![
        (Just("source.principal"), principals().boxed()),
        (Just("source.namespace"), words(&["shop", "bank", "*"]).boxed()),
        (Just("source.serviceAccount"), accounts().boxed()),
        (Just("source.trustDomain"), words(&["cluster.local", "other*"]).boxed()),
        (Just("source.ip"), blocks().boxed()),
        (Just("destination.ip"), words(&["10.0.0.1", "10.0.0.0/30"]).boxed()),
        (Just("destination.port"), words(&["80", "443"]).boxed()),
        (Just("request.headers[x]"), words(&["y"]).boxed()),
    ];
    let name = prop_oneof![Just("values"), Just("notValues")];
    (keyed, name).prop_map(|((key, values), name)| json!({"key": key, name: values}))
}

/// A field under its name or that of its twin.
fn named(
    name: &'static str,
    twin: &'static str,
    values: BoxedStrategy<Value>,
) -> impl Strategy<Value = (String, Value)> {
    (prop_oneof![2 => Just(name), 1 => Just(twin)], values)
        .prop_map(|(name, values)| (name.to_owned(), values))
}

fn principals() -> impl Strategy<Value = Value> {
    words(&[
        "cluster.local/ns/shop/sa/front",
        "spiffe://cluster.local/ns/bank/sa/teller",
        "cluster.local/ns/shop/*",
        "*/sa/front",
        "*",
    ])
}

fn accounts() -> impl Strategy<Value = Value> {
    words(&["front", "shop/other", "bank/teller"])
}

fn blocks() -> impl Strategy<Value = Value> {
    words(&["10.0.0.9", "10.0.0.0/24", "10.1.2.3/8", "::ffff:10.0.0.0/104", "::/0", "0.0.0.0/0", "fd00::/8"])
}

/// A list of some of the words, of none, or with a wrong one.
fn words(words: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let good = vec(select(words), 1..3).prop_map(|words| json!(words));
    let bad =
        select(vec![json!([]), json!([""]), json!(["a*b"]), json!([80]), json!("x"), json!(["x", null])]);
    prop_oneof![40 => good, 1 => bad]
}
