//! Which package may depend on which.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Violation;
use crate::command;

/// Packages that must build where another does not, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("xtask", &["culvert", "agent-ebpf", "aya"], "it installs what these are built with"),
    ("lab", &["culvert", "agent-ebpf", "aya"], "xtask uses the harness; only its suites may name these"),
    ("agent-ebpf", &["culvert", "tokio"], "it runs in the kernel"),
];

/// A package of the workspace, and what it depends on outside its tests.
pub(super) struct Package {
    name: String,
    dependencies: Vec<String>,
}

impl Package {
    /// Asks cargo for the packages of the workspace.
    pub(super) fn read_all() -> Result<Vec<Self>> {
        let mut cargo = command::cargo();
        let text = command::output(cargo.args(["metadata", "--no-deps", "--format-version", "1"]))?;
        let metadata: Value = serde_json::from_str(&text).context("reading cargo's metadata")?;
        let packages = metadata["packages"].as_array().context("cargo's metadata name no packages")?;
        Ok(packages.iter().map(Self::from_metadata).collect())
    }

    fn from_metadata(package: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let shipped = dependencies.filter(|dependency| dependency["kind"] != "dev");
        Self {
            name: text(&package["name"]),
            dependencies: shipped.map(|dependency| text(&dependency["name"])).collect(),
        }
    }
}

/// Checks the dependencies of all packages.
pub(super) fn check(packages: &[Package]) -> Vec<Violation> {
    let violation = |package: &Package, name: &str, why: &str| Violation {
        file: format!("the manifest of {}", package.name),
        line: 0,
        message: format!("`{}` must not depend on `{name}`: {why}", package.name),
    };
    let mut violations = Vec::new();
    for package in packages {
        for (_, forbidden, why) in FORBIDDEN.iter().filter(|(name, ..)| *name == package.name) {
            let named = package.dependencies.iter().filter(|name| forbidden.contains(&name.as_str()));
            violations.extend(named.map(|name| violation(package, name, why)));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtask_must_not_depend_on_the_agent() {
        let package = |name: &str, dependency: &str| Package {
            name: name.to_owned(),
            dependencies: vec![dependency.to_owned()],
        };
        assert_eq!(check(&[package("xtask", "culvert")]).len(), 1);
        assert_eq!(check(&[package("xtask", "lab"), package("culvert", "aya")]), []);
    }

    #[test]
    fn a_test_may_depend_on_what_its_package_must_not() {
        let dependency = |kind: Option<&str>| serde_json::json!({ "name": "culvert", "kind": kind });
        let package = |kind| serde_json::json!({ "name": "lab", "dependencies": [dependency(kind)] });
        assert_eq!(check(&[Package::from_metadata(&package(Some("dev")))]), []);
        assert_eq!(check(&[Package::from_metadata(&package(None))]).len(), 1);
    }
}
