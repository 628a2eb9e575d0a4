//! `cargo xtask chart`: the Helm chart, and what helm renders of it for those who have kubectl alone.
//!
//! The chart's definitions of the kinds of policy are the agent's (`culvert crds`), and `deploy/culvert.yaml` is the chart with
//! its default values. Neither is edited by hand; the check says where one is not what it should be.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use lab::cluster::Tools;

use crate::{command, layout, setup};

/// What to do with the chart.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write nothing: say what is not as it should be
    #[arg(long)]
    check: bool,
}

/// Writes, or checks, what is derived.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.check {
        return check();
    }
    setup::run(setup::Purpose::Cluster)?;
    for (path, wanted) in derived()? {
        fs::write(&path, wanted).with_context(|| format!("writing {}", path.display()))?;
        println!("chart: wrote {}", path.display());
    }
    Ok(())
}

/// Checks the chart by `helm lint`, that wrong values are refused, and that what is derived is up to date.
pub(crate) fn check() -> Result<()> {
    command::output(helm()?.args(["lint", "--quiet", "--strict", CHART]))?;
    for wrong in WRONG {
        let accepted = command::probe(template(&mut helm()?).args(["--set", wrong])).is_some();
        ensure!(!accepted, "the chart takes {wrong}: values.schema.json must refuse it");
    }
    for (path, wanted) in derived()? {
        let found = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(found == wanted, "{} is outdated: cargo xtask chart", path.display());
    }
    Ok(())
}

/// The files that are made of others, and what they are to hold.
fn derived() -> Result<[(PathBuf, String); 2]> {
    let root = layout::root();
    let definitions = root.join(DEFINITIONS);
    let definitions =
        fs::read_to_string(&definitions).with_context(|| format!("reading {}", definitions.display()))?;
    let copy = root.join(CHART).join("files/crds.yaml");
    let known = fs::read_to_string(&copy).unwrap_or_default();
    if known != definitions {
        // What helm renders holds it.
        fs::write(&copy, &definitions).with_context(|| format!("writing {}", copy.display()))?;
    }
    let rendered = command::output(template(&mut helm()?).args(["--set", "namespace.create=true"]));
    if known != definitions {
        fs::write(&copy, &known).with_context(|| format!("writing {}", copy.display()))?;
    }
    let rendered = format!("{HEADER}{}\n", rendered?.trim_end());
    Ok([(copy, definitions), (root.join(MANIFEST), rendered)])
}

fn helm() -> Result<Command> {
    let mut helm = Command::new(Tools::find()?.helm());
    helm.current_dir(layout::root());
    Ok(helm)
}

fn template(helm: &mut Command) -> &mut Command {
    // The oldest Kubernetes that the chart is for: without a cluster helm takes one at its own choice.
    helm.args(["template", "culvert", CHART, "--namespace", "culvert-system", "--kube-version", "1.30.0"])
}

const CHART: &str = "deploy/chart/culvert";
const MANIFEST: &str = "deploy/culvert.yaml";
const DEFINITIONS: &str = "agent/src/cli/crds.yaml";
const HEADER: &str = "\
# Culvert, as helm renders deploy/chart/culvert with its default values. Not edited by hand: `cargo xtask chart` writes it.
#
#   kubectl apply --server-side -f culvert.yaml
";
/// Values that are refused, by what makes a mesh that does not work.
const WRONG: &[&str] = &[
    "ca.replicas=0",
    "ca.enabled=false",
    "agent.accesLog=json",
    "agent.accessLog=xml",
    "agent.certificateLifetime=1y",
    "agent.cni.confDir=etc/cni",
    "agent.podRanges={10.0.0.0}",
    "agent.gracePeriodSeconds=-1",
    "agent.resources.request.cpu=1",
    "agent.extraArgs=--log=debug",
    "ca.address=http://ca:15012",
    "ca.maxLifetime=24",
    "image.pullPolicy=Sometimes",
    "trustDomain=Example.org",
];
