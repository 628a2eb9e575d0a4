//! What there is to find, how bad it is, and what to do about it. docs/policy.md lists the same.

use super::super::Severity;

/// A kind of finding. Its name is stable: people filter by it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Code {
    /// A policy that cannot be read, and fails closed.
    Unparsable,
    /// Another object that cannot be read, and is left out.
    InvalidObject,
    /// An unknown field of a source or operation, or an unknown key.
    UnknownField,
    /// Something that cannot be seen of a TCP connection.
    UnseenByL4,
    /// A field outside of `spec`.
    StrayField,
    /// The action AUDIT.
    AuditIgnored,
    /// The action CUSTOM.
    CustomDenies,
    /// `targetRefs`.
    TargetRefs,
    /// A CIDR with host bits.
    HostBits,
    /// A principal with `spiffe://`.
    SpiffeScheme,
    /// The dry-run annotation with another word than `true` or `false`.
    DryRunValue,
    /// The dry-run annotation on a PeerAuthentication.
    DryRunPeerAuthentication,
    /// One object stands in the files twice.
    DuplicateObject,
    /// The policy selects no pod.
    SelectsNothing,
    /// No pod that the policy selects is in the mesh.
    NotEnforced,
    /// Another PeerAuthentication of the same level is older.
    IgnoredPeerAuthentication,
    /// A rule that no connection can match.
    NeverMatches,
    /// A rule that another one says already.
    ShadowedRule,
    /// A rule that stands in the policy twice.
    DuplicateRule,
    /// An ALLOW rule for what a DENY policy refuses anyway.
    MootAllow,
    /// An ALLOW rule that permits everybody, plaintext too.
    AllowsEverybody,
    /// An ALLOW rule for any identity.
    AnyIdentity,
    /// A trust domain that no identity of the mesh has.
    ForeignTrustDomain,
    /// An identity that no pod of the files has.
    UnknownIdentity,
    /// An identity whose pods are not in the mesh, and so send plaintext.
    ClientNotEnrolled,
    /// A DENY rule by identity where the denied may come in plaintext.
    DenyMissesPlaintext,
    /// An ALLOW rule by identity for a port in DISABLE, to which peers send plaintext.
    DisableHidesIdentity,
    /// A namespace whose pods accept everybody.
    NoDefaultDeny,
    /// STRICT for pods that no other pod could reach.
    StrictWithoutClients,
    /// A policy that is only counted.
    DryRun,
    /// The files hold no pods, so that what is about pods is not checked.
    NoPods,
}

impl Code {
    /// All of them, in the order that they are documented in.
    pub const ALL: [Self; 31] = [
        Self::Unparsable,
        Self::InvalidObject,
        Self::UnknownField,
        Self::UnseenByL4,
        Self::StrayField,
        Self::AuditIgnored,
        Self::CustomDenies,
        Self::TargetRefs,
        Self::HostBits,
        Self::SpiffeScheme,
        Self::DryRunValue,
        Self::DryRunPeerAuthentication,
        Self::DuplicateObject,
        Self::SelectsNothing,
        Self::NotEnforced,
        Self::IgnoredPeerAuthentication,
        Self::NeverMatches,
        Self::ShadowedRule,
        Self::DuplicateRule,
        Self::MootAllow,
        Self::AllowsEverybody,
        Self::AnyIdentity,
        Self::ForeignTrustDomain,
        Self::UnknownIdentity,
        Self::ClientNotEnrolled,
        Self::DenyMissesPlaintext,
        Self::DisableHidesIdentity,
        Self::NoDefaultDeny,
        Self::StrictWithoutClients,
        Self::DryRun,
        Self::NoPods,
    ];

    /// Returns its name, how bad it is, and what to do about it.
    const fn facts(self) -> (&'static str, Severity, &'static str) {
        use Severity::{Error, Info, Warning};
        match self {
            Self::Unparsable => ("unparsable", Error, "mend the field"),
            Self::InvalidObject => ("invalid-object", Error, "mend the field"),
            Self::UnknownField => ("unknown-field", Warning, "correct its name, or take it out"),
            Self::UnseenByL4 => ("unseen-by-l4", Warning, "say it by ports, addresses or identities"),
            Self::StrayField => ("stray-field", Warning, "move it into spec, or take it out"),
            Self::AuditIgnored => ("audit-ignored", Warning, "take the policy out, or make it a dry run"),
            Self::CustomDenies => ("custom-denies", Warning, "make it ALLOW or DENY"),
            Self::TargetRefs => ("target-refs", Warning, "write a selector with the pods' labels"),
            Self::HostBits => ("host-bits", Warning, "write the block without them"),
            Self::SpiffeScheme => ("spiffe-scheme", Warning, "write the principal without spiffe://"),
            Self::DryRunValue => ("dry-run-value", Warning, "write \"true\", or take the annotation out"),
            Self::DryRunPeerAuthentication => {
                ("dry-run-peer-authentication", Warning, "take the annotation out")
            }
            Self::DuplicateObject => ("duplicate-object", Warning, "take one of the two out"),
            Self::SelectsNothing => {
                ("selects-nothing", Warning, "correct the labels, or take the policy out")
            }
            Self::NotEnforced => {
                ("not-enforced", Warning, "label the namespace or the pods culvert.dev/mesh: enabled")
            }
            Self::IgnoredPeerAuthentication => {
                ("ignored-peer-authentication", Warning, "join the two into one object")
            }
            Self::NeverMatches => ("never-matches", Warning, "mend the rule, or take it out"),
            Self::ShadowedRule => ("shadowed-rule", Warning, "take the rule out, or narrow the other"),
            Self::DuplicateRule => ("duplicate-rule", Warning, "take one of the two out"),
            Self::MootAllow => ("moot-allow", Warning, "take the rule out, or narrow the DENY policy"),
            Self::AllowsEverybody => {
                ("allows-everybody", Warning, "name the clients, or take the policy out where that is meant")
            }
            Self::AnyIdentity => ("any-identity", Warning, "name the principals or namespaces that need it"),
            Self::ForeignTrustDomain => {
                ("foreign-trust-domain", Warning, "write the mesh's trust domain (--trust-domain)")
            }
            Self::UnknownIdentity => ("unknown-identity", Info, "check the names"),
            Self::ClientNotEnrolled => {
                ("client-not-enrolled", Warning, "enrol the client, or permit its addresses")
            }
            Self::DenyMissesPlaintext => (
                "deny-misses-plaintext",
                Warning,
                "make the pods STRICT, or deny by notPrincipals: [\"*\"] too",
            ),
            Self::DisableHidesIdentity => {
                ("disable-hides-identity", Warning, "make the port PERMISSIVE, or permit addresses")
            }
            Self::NoDefaultDeny => {
                ("no-default-deny", Warning, "add an AuthorizationPolicy with `spec: {}` to the namespace")
            }
            Self::StrictWithoutClients => {
                ("strict-without-clients", Warning, "enrol the clients, or make it PERMISSIVE")
            }
            Self::DryRun => ("dry-run", Info, "take the annotation out once the counts are as expected"),
            Self::NoPods => ("no-pods", Info, "add the pods' objects, such as by kubectl get pods -o yaml"),
        }
    }

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// Returns how bad it is.
    pub fn severity(self) -> Severity {
        self.facts().1
    }

    /// Returns what to do about it.
    pub fn remedy(self) -> &'static str {
        self.facts().2
    }
}
