//! The kinds that are watched, and how the API server calls each.

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    core::PartialObjectMeta,
};

use super::{
    super::{Kind, Object},
    watch::{Ended, Feed},
};

/// The kinds that make up a mesh. Nothing is published before each has been listed.
pub(in crate::control) const KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
];

impl Kind {
    /// Returns what the API server calls the kind in paths and rules: its group and its plural.
    pub(super) fn resource(self) -> (&'static str, &'static str) {
        match self {
            Self::Namespace => ("", "namespaces"),
            Self::Node => ("", "nodes"),
            Self::Pod => ("", "pods"),
            Self::Service => ("", "services"),
            Self::EndpointSlice => ("discovery.k8s.io", "endpointslices"),
            Self::PeerAuthentication => (POLICY_GROUP, "peerauthentications"),
            Self::AuthorizationPolicy => (POLICY_GROUP, "authorizationpolicies"),
        }
    }
}

/// Follows a kind until nobody wants it any more.
pub(super) async fn follow(kind: Kind, client: Client, feed: Feed) {
    match kind {
        Kind::Namespace => {
            let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
            let object = |PartialObjectMeta { metadata, .. }: PartialObjectMeta<Namespace>| {
                Object::Namespace(Box::new(Namespace { metadata, ..Namespace::default() }))
            };
            feed.follow(api, object).await;
        }
        // Its labels alone, since its kubelet writes the rest again and again.
        Kind::Node => {
            let api: Api<PartialObjectMeta<Node>> = Api::all(client);
            let object = |PartialObjectMeta { metadata, .. }: PartialObjectMeta<Node>| {
                Object::Node(Box::new(Node { metadata, ..Node::default() }))
            };
            feed.follow(api, object).await;
        }
        Kind::Pod => {
            feed.follow(Api::<Pod>::all(client), |pod| Object::Pod(Box::new(pod))).await;
        }
        Kind::Service => {
            feed.follow(Api::<Service>::all(client), |service| Object::Service(Box::new(service))).await;
        }
        Kind::EndpointSlice => {
            let api: Api<EndpointSlice> = Api::all(client);
            feed.follow(api, |slice| Object::EndpointSlice(Box::new(slice))).await;
        }
        Kind::PeerAuthentication => follow_policies(kind, client, feed, Object::PeerAuthentication).await,
        Kind::AuthorizationPolicy => follow_policies(kind, client, feed, Object::AuthorizationPolicy).await,
    }
}

/// Follows a kind of policies. The API server may not know it, or only in an older version, or only later on.
async fn follow_policies(
    kind: Kind,
    client: Client,
    feed: Feed,
    object: fn(Box<serde_json::Value>) -> Object,
) {
    let policy = move |mut policy: DynamicObject| {
        policy.managed_fields_mut().clear();
        // Of texts and maps of texts: that cannot fail.
        object(Box::new(serde_json::to_value(policy).unwrap_or_default()))
    };
    loop {
        for version in POLICY_VERSIONS {
            let (group, plural) = kind.resource();
            let kind = GroupVersionKind::gvk(group, version, kind.as_str());
            let resource = ApiResource::from_gvk_with_plural(&kind, plural);
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            match feed.follow(api, policy).await {
                Ended::Unwanted => return,
                Ended::NotServed => {}
            }
        }
        if feed.absent().await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

const POLICY_GROUP: &str = "security.istio.io";
/// The stored version of Istio's definitions since 1.22, and the only one of those before.
const POLICY_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
/// How often to look for a kind that the API server did not know: its definition may be installed any time.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
