//! PeerAuthentication to the model's.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    super::{Invalid, Key},
    fields::port,
    metadata,
    node::Node,
    notice::{Notices, PolicyNotice, Topic},
    target::selector,
};
use crate::mesh::{Labels, Mode, PeerAuthentication, PolicyKind};

/// Converts a policy.
pub(in super::super) fn convert(object: &Value, key: &Key) -> (PeerAuthentication, Vec<PolicyNotice>) {
    let mut notices = Notices::of(key);
    metadata::warn_of_strays(object, &mut notices);
    if !matches!(metadata::dry_run(object), Ok(None)) {
        let message = "means nothing on a PeerAuthentication: it is enforced";
        notices.warn(Topic::DryRunPeerAuthentication, metadata::dry_run_path(), message);
    }
    let (created, selector, modes) = (metadata::created(object), read_selector(object), modes(object));
    let faults = [created.as_ref().err(), selector.as_ref().err(), modes.as_ref().err()];
    let faults: Vec<Invalid> = faults.into_iter().flatten().cloned().collect();
    let is_readable = faults.is_empty();
    notices.errors(faults, "it counts as STRICT", selector.is_ok());
    let (mode, ports) = match modes {
        Ok(modes) if is_readable => modes,
        _ => (Mode::Strict, BTreeMap::new()),
    };
    let policy = PeerAuthentication {
        name: metadata::name(PolicyKind::PeerAuthentication, key),
        created: created.unwrap_or_default(),
        selector: selector.unwrap_or_default(),
        mode,
        ports,
        is_readable,
    };
    (policy, notices.finish())
}

fn read_selector(object: &Value) -> Result<Option<Labels>, Invalid> {
    match metadata::spec(object)? {
        Some(spec) => selector(&spec),
        None => Ok(None),
    }
}

type Modes = (Mode, BTreeMap<u16, Mode>);

fn modes(object: &Value) -> Result<Modes, Invalid> {
    let Some(spec) = metadata::spec(object)? else { return Ok(Modes::default()) };
    spec.only(&["selector", "mtls", "portLevelMtls"])?;
    let whole = spec.field("mtls")?.map(|mtls| mode(&mtls)).transpose()?.unwrap_or_default();
    let mut ports = BTreeMap::new();
    let Some(levels) = spec.field("portLevelMtls")? else { return Ok((whole, ports)) };
    for (key, mtls) in levels.fields()? {
        let port = port(key).map_err(|message| mtls.path.clone().invalid(message))?;
        if ports.insert(port, mode(&mtls)?).is_some() {
            return Err(mtls.path.invalid("the port stands here twice"));
        }
    }
    if !levels.map()?.is_empty() && selector(&spec)?.is_none() {
        return Err(levels.path.invalid("needs a selector: ports are a workload's"));
    }
    Ok((whole, ports))
}

/// Reads the `mode` of `mtls`, or of a port's.
fn mode(mtls: &Node<'_>) -> Result<Mode, Invalid> {
    mtls.only(&["mode"])?;
    let Some(mode) = mtls.field("mode")? else { return Ok(Mode::Unset) };
    match mode.text()? {
        "UNSET" => Ok(Mode::Unset),
        "STRICT" => Ok(Mode::Strict),
        "PERMISSIVE" => Ok(Mode::Permissive),
        "DISABLE" => Ok(Mode::Disable),
        other => {
            Err(mode.path.invalid(format!("{other:?} is none of STRICT, PERMISSIVE, DISABLE and UNSET")))
        }
    }
}
