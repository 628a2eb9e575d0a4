//! What the conversion of the objects says of them, and objects that do not count.

use super::{
    super::{FieldPath, Kind, Objects, Topic},
    Code, Findings, World,
};

pub(super) fn check(objects: &Objects, world: &World<'_>, findings: &mut Findings<'_>) {
    for (notice, place) in objects.notices() {
        findings.add_at(code(notice.topic), (&notice.key, place), &notice.path, notice.message.clone());
    }
    for (key, problem) in objects.invalid() {
        findings.problem(Code::InvalidObject, key, problem);
    }
    for (key, place) in objects.replaced() {
        let message = "the files hold another object of this name later: that one counts";
        findings.add_at(Code::DuplicateObject, (key, place), &FieldPath::default(), message);
    }
    for policy in world.snapshot.policies().authorization().iter().filter(|policy| policy.dry_run) {
        let path = FieldPath::of(&["metadata", "annotations", "istio.io/dry-run"]);
        findings.policy(Code::DryRun, &policy.name, &path, "the policy is counted, and not enforced");
    }
    let is_policy = |kind| matches!(kind, Kind::PeerAuthentication | Kind::AuthorizationPolicy);
    if objects.keys().any(|key| is_policy(key.kind)) && !world.has_pods() {
        let message = "the files hold no pods: whom the policies are for, and whom they name, is not checked";
        findings.general(Code::NoPods, message);
    }
}

fn code(topic: Topic) -> Code {
    match topic {
        Topic::Unparsable => Code::Unparsable,
        Topic::UnknownField => Code::UnknownField,
        Topic::Unseen => Code::UnseenByL4,
        Topic::StrayField => Code::StrayField,
        Topic::Audit => Code::AuditIgnored,
        Topic::Custom => Code::CustomDenies,
        Topic::TargetRefs => Code::TargetRefs,
        Topic::HostBits => Code::HostBits,
        Topic::SpiffeScheme => Code::SpiffeScheme,
        Topic::DryRunValue => Code::DryRunValue,
        Topic::DryRunPeerAuthentication => Code::DryRunPeerAuthentication,
    }
}
