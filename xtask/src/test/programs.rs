//! The test programs: which there are, building them, and what they find in their environment.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{build, command, layout, vm};

/// The package of the harness; its integration tests are the privileged suites.
const HARNESS: &str = "lab";

/// The suite that also runs in virtual machines.
const VM_SUITE: &str = "datapath";

/// What was built.
pub(super) struct Programs {
    agent: PathBuf,
    /// This very program, as the build left it: it may have replaced the file that is running.
    xtask: PathBuf,
    tests: Vec<Program>,
}

/// A built test program.
#[derive(Debug)]
pub(super) struct Program {
    package: String,
    name: String,
    kind: String,
    pub(super) path: PathBuf,
    /// The folder of its package, where it is run.
    pub(super) folder: PathBuf,
}

impl Program {
    /// Returns whether it is one of the suites that need root.
    fn is_suite(&self) -> bool {
        self.package == HARNESS && self.kind == "test"
    }

    fn from_message(message: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        // `--all-targets` builds what says `test = false` as a test too, with a `main` of its own that never ends.
        let is_test = message["reason"] == "compiler-artifact"
            && message["profile"]["test"] == true
            && message["target"]["test"] != false;
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
        is_test.then_some(Self {
            package: package_name(message["package_id"].as_str()?, folder)?,
            name: text(&message["target"]["name"])?,
            kind: text(&message["target"]["kind"][0])?,
            path: text(&message["executable"])?.into(),
            folder: folder.to_owned(),
        })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} of {})", self.name, self.kind, self.package)
    }
}

impl Programs {
    /// Builds everything by one command. With one command for each part, cargo would choose each time which features the
    /// libraries need together, and compile them again.
    pub(super) fn build() -> Result<Self> {
        let mut cargo = command::cargo();
        cargo.args(["build", "--workspace", "--all-targets", "--message-format=json-render-diagnostics"]);
        let output = cargo.stderr(Stdio::inherit()).output().context("starting cargo")?;
        ensure!(output.status.success(), "the agent and its tests do not build");
        let text = String::from_utf8(output.stdout).context("reading cargo's messages")?;
        let messages: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mut tests: Vec<_> = messages.iter().filter_map(Program::from_message).collect();
        tests.sort_by(|a, b| (&a.package, &a.name).cmp(&(&b.package, &b.name)));
        let binary = |name| messages.iter().find_map(|message| binary(message, name));
        let binary = |name| binary(name).with_context(|| format!("cargo built no {name}"));
        let xtask = binary("xtask")?;
        // Linked once more, which takes seconds: what is tested is what is shipped.
        Ok(Self { agent: build::agent(false)?, xtask, tests })
    }

    /// Returns the test programs that need nothing.
    pub(super) fn units(&self) -> impl Iterator<Item = &Program> {
        self.tests.iter().filter(|program| !program.is_suite())
    }

    /// Returns the suites that need root.
    pub(super) fn suites(&self) -> impl Iterator<Item = &Program> {
        self.tests.iter().filter(|program| program.is_suite())
    }

    /// Returns what virtual machines run.
    pub(super) fn for_vm(&self) -> Result<vm::Programs> {
        let suite = self.suites().find(|program| program.name == VM_SUITE);
        let suite = suite.with_context(|| format!("there is no suite tests/tests/{VM_SUITE}.rs"))?;
        Ok(vm::Programs { init: self.xtask.clone(), suite: suite.path.clone(), agent: self.agent.clone() })
    }

    /// Returns what the suites find in their environment; `sudo` passes on nothing by itself.
    ///
    /// # Errors
    /// Where there is no cache.
    pub(super) fn variables(&self) -> Result<Vec<(&'static str, OsString)>> {
        let backtrace = std::env::var_os("RUST_BACKTRACE").unwrap_or_else(|| "1".into());
        Ok(vec![
            ("PATH", command::path()),
            ("RUST_BACKTRACE", backtrace),
            ("CULVERT_BIN", self.agent.clone().into()),
            (lab::cluster::tools::CACHE_VARIABLE, layout::cache()?.into()),
        ])
    }
}

/// Reads where a program was put, if a message says so.
fn binary(message: &Value, name: &str) -> Option<PathBuf> {
    let target = &message["target"];
    let fits = target["name"] == name && target["kind"][0] == "bin" && message["profile"]["test"] == false;
    if fits { message["executable"].as_str().map(PathBuf::from) } else { None }
}

/// Reads a package's name from its id: `path+file:///folder#name@version`, or without the name where that is the folder's.
fn package_name(id: &str, folder: &Path) -> Option<String> {
    let (_, fragment) = id.rsplit_once('#')?;
    match fragment.split_once('@') {
        Some((name, _)) => Some(name.to_owned()),
        None => Some(folder.file_name()?.to_str()?.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(package_id: &str, kind: &str) -> Value {
        serde_json::json!({
            "reason": "compiler-artifact",
            "package_id": package_id,
            "manifest_path": "/src/culvert/tests/Cargo.toml",
            "target": { "name": "datapath", "kind": [kind] },
            "profile": { "test": true },
            "executable": "/src/culvert/target/debug/deps/datapath-1",
        })
    }

    #[test]
    fn an_integration_test_of_the_harness_is_a_suite() {
        let program = |id, kind| Program::from_message(&message(id, kind)).unwrap();
        assert!(program("path+file:///src/culvert/tests#lab@0.1.0", "test").is_suite());
        assert!(!program("path+file:///src/culvert/tests#lab@0.1.0", "lib").is_suite());
        assert!(!program("path+file:///src/culvert/agent#culvert@0.1.0", "test").is_suite());
    }

    #[test]
    fn a_program_that_is_no_test_is_not_run() {
        let mut built = message("path+file:///src/culvert/agent#culvert@0.1.0", "bin");
        built["profile"]["test"] = false.into();
        assert!(Program::from_message(&built).is_none());
        assert!(binary(&built, "culvert").is_none());
        built["target"]["name"] = "culvert".into();
        assert!(binary(&built, "culvert").is_some());
        let mut fuzzed = message("path+file:///src/culvert/tests/fuzz#fuzz@0.1.0", "bin");
        assert!(Program::from_message(&fuzzed).is_some());
        fuzzed["target"]["test"] = false.into();
        assert!(Program::from_message(&fuzzed).is_none());
    }
}
