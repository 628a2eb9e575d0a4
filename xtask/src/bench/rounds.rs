//! Rounds: each load over each path, in another order each time.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Options, large,
    load::{Closer, Load, Sample},
    stage::{MESH, Path, Stage},
};

/// Samples by load and path, one a round.
pub(super) type Samples = BTreeMap<(Load, Path), Vec<Sample>>;

/// What is to run.
pub(super) struct Plan {
    rounds: usize,
    seconds: f64,
    sustained: f64,
    loads: Vec<Load>,
    paths: Vec<Path>,
}

impl Plan {
    pub(super) fn new(options: &Options) -> Self {
        let loads = Load::ALL.into_iter();
        let wanted = |load: &Load| {
            options.load.is_empty() || options.load.iter().any(|part| load.name().contains(part))
        };
        let named = |path: &Path| options.path.iter().any(|part| path.name().contains(part.as_str()));
        let wanted_path = |path: &Path| options.path.is_empty() || named(path);
        let chosen: Vec<_> = Path::all(options.with.is_none()).filter(wanted_path).collect();
        // Nothing is a ratio without what it is compared with.
        let is_base = |path: &Path| chosen.iter().any(|chosen| chosen.base() == Some(*path));
        let paths = Path::ALL.into_iter().filter(|path| {
            chosen.contains(path) || is_base(path) || *path == Path::Control && is_base(&Path::Plain)
        });
        Self {
            rounds: options.rounds,
            seconds: options.seconds,
            sustained: options.sustained,
            loads: loads.filter(wanted).collect(),
            paths: paths.collect(),
        }
    }

    /// Runs all of it.
    pub(super) fn run(&self, stage: &Stage) -> Result<Samples> {
        self.repeat(stage, &self.loads, &self.paths)
    }

    /// Connections that come and go for long, over plain TCP and across nodes: what uses ports up shows after some time only.
    pub(super) fn sustain(&self, stage: &Stage) -> Result<Samples> {
        let mut samples = Samples::new();
        let loads = [Load::Churn(16, Closer::Server), Load::Churn(16, Closer::Client)];
        for load in loads.into_iter().filter(|load| self.sustained > 0.0 && self.loads.contains(load)) {
            for path in [Path::Plain, Path::Across] {
                one(stage, load, path, self.sustained, &mut samples)?;
            }
        }
        Ok(samples)
    }

    /// The same with a thousand policies in force at the server, each of which has to be looked at.
    pub(super) fn with_policies(&self, stage: &Stage) -> Result<Samples> {
        let policies: String = (0..POLICIES).map(|number| policy(&number.to_string(), "nobody")).collect();
        stage.mesh.apply("policies.yaml", &(policies + &policy("everybody", "*")))?;
        // Seen by the effect alone: what does not read policies of this form goes on as before.
        sleep(SETTLE);
        let loads = self.churn();
        let samples = self.repeat(stage, &loads, &[Path::Plain, Path::Across]);
        stage.mesh.delete("policies.yaml")?;
        samples
    }

    /// Connections in the mesh as it is, and among many pods and policies that they have nothing to do with: by turns, as a
    /// machine is slower for minutes at times.
    pub(super) fn in_a_large_mesh(&self, stage: &Stage) -> Result<[Samples; 2]> {
        let loads = self.churn();
        let mut samples = <[Samples; 2]>::default();
        if loads.is_empty() {
            return Ok(samples);
        }
        let mut mesh = Surroundings { stage, large: false };
        for round in 0..self.rounds {
            // What was the second is there already.
            for large in if round % 2 == 0 { [false, true] } else { [true, false] } {
                mesh.be(large)?;
                let samples = &mut samples[usize::from(large)];
                self.round(stage, round, (&loads, &[Path::Plain, Path::Across]), samples)?;
            }
        }
        Ok(samples)
    }

    /// The loads of short connections.
    fn churn(&self) -> Vec<Load> {
        self.loads.iter().copied().filter(|load| matches!(load, Load::Churn(..))).collect()
    }

    fn repeat(&self, stage: &Stage, loads: &[Load], paths: &[Path]) -> Result<Samples> {
        let mut samples = Samples::new();
        for round in 0..self.rounds {
            self.round(stage, round, (loads, paths), &mut samples)?;
        }
        Ok(samples)
    }

    fn round(
        &self,
        stage: &Stage,
        round: usize,
        (loads, paths): (&[Load], &[Path]),
        samples: &mut Samples,
    ) -> Result<()> {
        for load in loads {
            for number in 0..paths.len() {
                let path = paths[(number + round) % paths.len()];
                eprint!("\r\x1b[Kround {} of {}: {}, {}", round + 1, self.rounds, load.name(), path.name());
                one(stage, *load, path, self.seconds, samples)?;
            }
        }
        eprint!("\r\x1b[K");
        Ok(())
    }
}

/// Whether there is a large mesh around the stage; there is none afterwards.
struct Surroundings<'a> {
    stage: &'a Stage,
    large: bool,
}

impl Surroundings<'_> {
    fn be(&mut self, large: bool) -> Result<()> {
        if self.large == large {
            return Ok(());
        }
        self.large = large;
        if large {
            large::apply(&self.stage.mesh)?;
            self.stage.proxies.wait_known(large::PODS..)
        } else {
            large::delete(&self.stage.mesh)?;
            self.stage.proxies.wait_known(..large::PODS)
        }
    }
}

impl Drop for Surroundings<'_> {
    fn drop(&mut self) {
        if self.large {
            let _ = large::delete(&self.stage.mesh);
        }
    }
}

fn one(stage: &Stage, load: Load, path: Path, seconds: f64, samples: &mut Samples) -> Result<()> {
    let sample = load.run(stage, path, seconds);
    let sample = sample.with_context(|| format!("{}, {}", load.name(), path.name()))?;
    samples.entry((load, path)).or_default().push(sample);
    Ok(())
}

/// An ALLOW policy for the namespace of the mesh.
fn policy(name: &str, account: &str) -> String {
    let principal =
        if account == "*" { "*".to_owned() } else { format!("cluster.local/ns/{MESH}/sa/{account}-{name}") };
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p-{name}, namespace: {MESH}}}\n\
         spec: {{rules: [{{from: [{{source: {{principals: [\"{principal}\"]}}}}]}}]}}\n"
    )
}

/// How many policies there are beside the one that matches.
const POLICIES: usize = 1_000;
/// How long files take to be read: policies take effect within a second.
const SETTLE: Duration = Duration::from_secs(3);
