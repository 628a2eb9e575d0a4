//! Meshes with many policies, for measuring what a decision costs.

use std::{net::IpAddr, sync::Arc};

use culvert::mesh::{
    Action, AuthorizationPolicy, Decision, Entry, Field, Identity, Labels, Pattern, PodPolicies, PolicyKind,
    PolicyName, PolicySet, Rule, Rules, Strings, Target, Test, Values, Workload,
};

/// A pod, who asks for it, and all policies.
pub struct World {
    policies: PolicySet,
    /// Those of the pod, which an agent finds once.
    own: PodPolicies,
    pod: Workload,
    client: Identity,
}

impl World {
    /// One policy for the pod, which permits the client, and `others` that select other pods of its namespace.
    pub fn with_policies_elsewhere(others: usize) -> Self {
        let elsewhere = (0..others).map(|number| {
            let labels = Labels::from([("app".to_owned(), format!("other-{number}"))]);
            policy(&format!("other-{number}"), Target::Labels(labels), &[CLIENT])
        });
        Self::new(elsewhere.chain([policy("web", Target::Labels(labels()), &[CLIENT])]).collect())
    }

    /// `policies` that are all for the pod; the last permits the client.
    pub fn with_policies_here(policies: usize) -> Self {
        let others = (1..policies).map(|number| {
            policy(&format!("a-{number:05}"), Target::All, &["cluster.local/ns/bank/sa/teller"])
        });
        Self::new(others.chain([policy("b", Target::All, &[CLIENT])]).collect())
    }

    /// One policy for the pod, which names as many principals; the client is among them.
    pub fn with_principals(principals: usize) -> Self {
        let others: Vec<_> =
            (1..principals).map(|number| format!("cluster.local/ns/shop/sa/client-{number}")).collect();
        let all: Vec<_> = others.iter().map(String::as_str).chain([CLIENT]).collect();
        Self::new(vec![policy("web", Target::All, &all)])
    }

    fn new(policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let identity = |account| {
            Identity::new("cluster.local".parse().expect("a trust domain"), "shop", account)
                .expect("an identity")
        };
        let policies = PolicySet::new(policies, Vec::new(), "culvert-system", &[]);
        let pod = pod(identity("web"));
        Self { own: policies.of_pod(&pod), policies, pod, client: identity("front") }
    }

    /// Decides on a connection of the client.
    pub fn decide(&self) -> Decision {
        self.policies.authorize_with(
            &self.own,
            &self.pod,
            &culvert::mesh::Connection {
                source: IpAddr::from([10, 0, 0, 9]),
                identity: Some(&self.client),
                destination: (self.pod.addresses[0], 8080).into(),
            },
        )
    }
}

fn pod(identity: Identity) -> Workload {
    let addresses = vec![IpAddr::from([10, 0, 0, 1])];
    Workload { addresses, ..Workload::unknown("shop".into(), Arc::new(labels()), identity) }
}

fn labels() -> Labels {
    Labels::from([("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())])
}

fn policy(name: &str, target: Target, principals: &[&str]) -> Arc<AuthorizationPolicy> {
    let principals: Strings = principals.iter().map(|text| Pattern::Exact(text)).collect();
    let field = Field { name: "principals".into(), test: Test::Is(Values::Principals(principals)) };
    let rule = Rule::new(vec![Entry { key: None, fields: vec![field] }], Vec::new(), Vec::new());
    Arc::new(AuthorizationPolicy {
        name: PolicyName {
            kind: PolicyKind::AuthorizationPolicy,
            namespace: "shop".into(),
            name: name.into(),
        },
        target,
        action: Action::Allow,
        dry_run: false,
        rules: Rules::Readable(vec![rule]),
    })
}

/// Who asks, without `spiffe://`.
const CLIENT: &str = "cluster.local/ns/shop/sa/front";
