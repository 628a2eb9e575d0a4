//! Which module of the agent may import which, and which crates belong to which module.

use super::{
    Violation,
    paths::{self, Mention},
};

/// A module of the agent, and the modules that it may import. docs/architecture.md, "Imports", shows the same.
const MODULES: &[(&str, &[&str])] = &[
    ("mesh", &[]),
    ("identity", &["mesh", "file_stamp"]),
    ("control", &["mesh", "apiserver", "file_stamp"]),
    // The API server as several components know it: how it is reached, who leads.
    ("apiserver", &[]),
    ("sandbox", &["mesh", "run_directory"]),
    // The protocol between the CNI plugin, the agent and the API server, and the plugin's place in the node's configuration.
    ("cni", &["mesh", "sandbox", "apiserver", "run_directory"]),
    ("capture", &["mesh", "memory", "sandbox", "run_directory"]),
    ("hbone", &["mesh", "identity"]),
    ("proxy", &["mesh", "identity", "hbone", "capture", "shutdown"]),
    ("enroll", &["mesh", "identity", "capture", "proxy", "sandbox"]),
    ("admin", &["mesh"]),
    ("ca_server", &["mesh", "identity", "shutdown", "apiserver"]),
    // Reads what each component says of itself, for `admin` to show.
    (
        "report",
        &[
            "mesh",
            "identity",
            "control",
            "capture",
            "hbone",
            "proxy",
            "enroll",
            "admin",
            "shutdown",
            "apiserver",
            "sandbox",
            "cni",
        ],
    ),
    ("shutdown", &[]),
    ("run_directory", &[]),
    ("memory", &[]),
    ("file_stamp", &[]),
];

/// The modules that put the others together, and may import them all.
const ROOTS: &[&str] = &["lib", "main", "cli", "succession", "container_runtime"];

/// Crates that only these modules may name: each is a decision that must be possible to change in one place.
const CONFINED: &[(&str, &[&str])] = &[
    ("aya", &["capture"]),
    ("aya_log", &["capture"]),
    ("aya_obj", &["capture"]),
    ("agent_ebpf", &["capture"]),
    ("k8s_openapi", &["control", "apiserver", "ca_server", "cni", "cli"]),
    ("kube", &["control", "apiserver", "ca_server", "cni", "cli"]),
    // Modules have error enums of their own: a caller must be able to tell the reasons apart.
    ("anyhow", ROOTS),
];

/// All that the model may name besides itself: no I/O, nothing asynchronous, no Kubernetes. `rand` picks among endpoints
/// that are equally good; `serde` prints reasons in logs.
const MODEL_CRATES: &[&str] = &["std", "core", "alloc", "ipnet", "rand", "serde", "thiserror"];

/// The agent's sources.
const SOURCES: &str = "agent/src/";

/// Checks one file of the agent; other files have no table.
pub(super) fn check(file: &str, parsed: &syn::File) -> Vec<Violation> {
    let Some(modules) = module_path(file) else { return Vec::new() };
    let own = modules.first().map_or_else(|| root_name(file), String::as_str);
    let violation = |line, message| Violation { file: file.to_owned(), line, message };
    if !ROOTS.contains(&own) && allowed(own).is_none() {
        let message = format!("module `{own}` is not in the table of imports (xtask/src/tidy/imports.rs)");
        return vec![violation(0, message)];
    }
    let mut violations: Vec<_> = paths::mentions(parsed, &modules)
        .iter()
        .filter_map(|mention| Some(violation(mention.line, judge(own, mention)?)))
        .collect();
    violations.dedup();
    violations
}

/// Says what is wrong with a path that module `own` names, if anything.
fn judge(own: &str, mention: &Mention) -> Option<String> {
    let (first, rest) = mention.path.split_first()?;
    if first == "crate" {
        let target = rest.first()?;
        let fits = ROOTS.contains(&own) || own == target || allowed(own)?.contains(&target.as_str());
        return (!fits).then(|| match allowed(target) {
            Some(_) => format!("`{own}` must not import `{target}`"),
            None => format!("`{own}` must not import `crate::{target}`, which is no module of the table"),
        });
    }
    if own == "mesh" && mention.is_external && !MODEL_CRATES.contains(&first.as_str()) {
        return Some(format!("`mesh` must not name the crate `{first}`"));
    }
    let (_, owners) = CONFINED.iter().find(|(name, _)| name == first)?;
    (!owners.contains(&own)).then(|| format!("`{own}` must not name `{first}`, which belongs to {owners:?}"))
}

/// Returns what a module may import, or nothing where it is not in the table.
fn allowed(module: &str) -> Option<&'static [&'static str]> {
    MODULES.iter().find(|(name, _)| *name == module).map(|(_, imports)| *imports)
}

/// Returns the path of the module that a file holds, empty for the root of a crate.
fn module_path(file: &str) -> Option<Vec<String>> {
    let path = file.strip_prefix(SOURCES)?.strip_suffix(".rs")?;
    let mut modules: Vec<_> = path.split('/').map(str::to_owned).collect();
    let is_root = modules.len() == 1 && matches!(modules[0].as_str(), "lib" | "main");
    if is_root || modules.last().is_some_and(|last| last == "mod") {
        modules.pop();
    }
    Some(modules)
}

fn root_name(file: &str) -> &'static str {
    if file.ends_with("main.rs") { "main" } else { "lib" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the messages for `source` in `file`.
    fn check_source(file: &str, source: &str, expected: &[&str]) {
        let parsed = syn::parse_file(source).unwrap();
        let violations = check(&format!("{SOURCES}{file}"), &parsed);
        let messages: Vec<_> = violations.iter().map(|violation| violation.message.as_str()).collect();
        assert_eq!(messages, expected, "{file}: {source}");
    }

    #[test]
    fn keeps_to_the_table() {
        check_source("hbone/pool.rs", "use crate::{identity::Svid, mesh::Identity};", &[]);
        check_source("hbone/pool.rs", "use crate::proxy::Copy;", &["`hbone` must not import `proxy`"]);
        check_source(
            "identity/tls.rs",
            "use crate::{mesh::Reason, hbone};",
            &["`identity` must not import `hbone`"],
        );
        check_source("lib.rs", "use crate::{control, proxy, enroll};", &[]);
        check_source("cli/agent.rs", "use crate::control::Manifests;", &[]);
        check_source("proxy/inbound.rs", "use super::copy::Copy; use self::log::Line;", &[]);
    }

    #[test]
    fn finds_an_import_however_it_is_written() {
        let wrong = &["`mesh` must not import `control`"];
        check_source("mesh/route.rs", "use super::super::control::Index;", wrong);
        check_source("mesh/mod.rs", "use super::control;", wrong);
        check_source("mesh/mod.rs", "fn f() { crate::control::g() }", wrong);
        check_source("mesh/mod.rs", "fn f(x: crate::control::Index) {}", wrong);
        check_source("mesh/mod.rs", "fn f() { println!(\"{}\", crate::control::g()) }", wrong);
        check_source("mesh/mod.rs", "mod tests { use super::super::control::Index; }", wrong);
        check_source("mesh/mod.rs", "mod tests { use super::Snapshot; }", &[]);
        check_source("mesh/mod.rs", "pub use crate::control as c;", wrong);
    }

    #[test]
    fn keeps_io_out_of_the_model() {
        check_source("mesh/mod.rs", "use std::sync::Arc; use ipnet::IpNet;", &[]);
        check_source("mesh/mod.rs", "use tokio::sync::watch;", &["`mesh` must not name the crate `tokio`"]);
        check_source("mesh/mod.rs", "#[tokio::test] fn f() {}", &["`mesh` must not name the crate `tokio`"]);
        let names = &["`mesh` must not name the crate `k8s_openapi`"];
        check_source("mesh/mod.rs", "fn f(pod: k8s_openapi::api::core::v1::Pod) {}", names);
        check_source("mesh/mod.rs", "#[derive(thiserror::Error)] struct E;", &[]);
        check_source("mesh/mod.rs", "mod route; pub use route::Route; fn f() { Self::g(); T::h(); }", &[]);
    }

    #[test]
    fn confines_crates_to_their_modules() {
        check_source("capture/maps.rs", "use aya::maps::HashMap; use agent_ebpf::Key;", &[]);
        let wrong = &["`proxy` must not name `aya`, which belongs to [\"capture\"]"];
        check_source("proxy/inbound.rs", "use aya::maps::HashMap;", wrong);
        check_source("proxy/inbound.rs", "fn f() { ::aya::load() }", wrong);
        let wrong = &["`lib` must not name `aya`, which belongs to [\"capture\"]"];
        check_source("lib.rs", "extern crate aya;", wrong);
    }

    #[test]
    fn refuses_a_module_that_the_table_does_not_know() {
        let wrong = &["module `utils` is not in the table of imports (xtask/src/tidy/imports.rs)"];
        check_source("utils/mod.rs", "", wrong);
        let wrong = &["`proxy` must not import `crate::run`, which is no module of the table"];
        check_source("proxy/mod.rs", "use crate::run;", wrong);
    }
}
