//! `cargo xtask cluster`: a Kubernetes cluster of two nodes on this machine, which stays until it is taken down.
//!
//! The user's part installs and builds what is missing; it then replaces itself, by `sudo` where it is not root, with the part
//! that needs root. The cluster itself is made by [`lab::Cluster`]; here are its commands and what they print.
//!
//! ```text
//! setup ──► (sudo) up, down, status, kubectl, helm, enter, load ──► lab::Cluster
//! ```

mod status;

use std::{
    ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command, sync::OnceLock,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use lab::{Cluster, ClusterConfig, cluster::tools};

use crate::{command, layout, setup};

/// What to do with the cluster.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The cluster: lower-case letters and digits. Several can be up at once
    #[arg(long, global = true, default_value = DEFAULT, env = "CULVERT_CLUSTER")]
    name: String,

    /// Everything is installed and built: only do it, as root
    #[arg(long, hide = true)]
    prepared: bool,

    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Bring the cluster up, unless it is
    Up,
    /// Take it down, or what a killed `up` has left of it
    Down,
    /// Show its nodes, pods and programs, and where logs and the kubeconfig are
    Status,
    /// Run kubectl as the administrator
    Kubectl(Words),
    /// Run helm as the administrator
    Helm(Words),
    /// Run a program on a node: in its network and its mounts
    Enter {
        /// The node: `node-a`
        node: String,
        /// The program and its arguments; a shell where there are none
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Put images from archives onto every node
    Load {
        /// What `cargo xtask image` wrote
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
}

#[derive(clap::Args)]
struct Words {
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// The cluster of whoever names none.
const DEFAULT: &str = "culvert";

/// Does it. `kubectl`, `helm` and `enter` replace this process, so that their exit status is its own.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.prepared {
        if matches!(options.action, Action::Up) {
            setup::run(setup::Purpose::Cluster)?;
        }
        return become_root();
    }
    let name = &options.name;
    match &options.action {
        Action::Up => up(name),
        Action::Down => down(name),
        Action::Status => status::show(&find(name)?),
        Action::Kubectl(Words { words }) => replace(find(name)?.kubectl_command().args(words)),
        Action::Helm(Words { words }) => replace(find(name)?.helm_command().args(words)),
        Action::Enter { node, words } => enter(&find(name)?, node, words),
        Action::Load { archives } => {
            let cluster = find(name)?;
            archives.iter().try_for_each(|archive| cluster.load_image(archive))
        }
    }
}

fn become_root() -> Result<()> {
    let mut variables = vec![(tools::CACHE_VARIABLE, layout::cache()?.into_os_string())];
    for name in ["CULVERT_BIN", "CULVERT_CLUSTER", "TERM", "EDITOR"] {
        variables.extend(std::env::var_os(name).map(|value| (name, value)));
    }
    command::go_on_as_root("a cluster's network namespaces and containers", "--prepared", &variables)
}

fn up(name: &str) -> Result<()> {
    if let Ok(Some(cluster)) = Cluster::find(name) {
        let processes = cluster.processes();
        let Some((ended, _)) = processes.iter().find(|(_, pid)| pid.is_none()) else {
            tell(&format!("the cluster {name} is up already"));
            return status::show(&cluster);
        };
        tell(&format!(
            "the cluster {name} is up in part only: {ended} has ended, and so the cluster is made anew"
        ));
    }
    tell(&format!("bringing up the cluster {name}: a control plane and two nodes, in namespaces"));
    let cluster = Cluster::up(ClusterConfig::named(name).progress(tell))?;
    tell("an image with curl, nginx and a shell, for pods to try things with");
    cluster.add_image(&lab::cluster::images::tools()?)?;
    let cluster = cluster.keep();
    tell("up");
    status::hints(&cluster);
    Ok(())
}

fn down(name: &str) -> Result<()> {
    let there = Cluster::down(name)?;
    tell(&if there { format!("the cluster {name} is down") } else { format!("there is no cluster {name}") });
    Ok(())
}

fn find(name: &str) -> Result<Cluster> {
    Cluster::find(name)?.with_context(|| {
        format!("there is no cluster {name}; `cargo xtask cluster --name {name} up` brings one up")
    })
}

fn enter(cluster: &Cluster, node: &str, words: &[OsString]) -> Result<()> {
    let Some(node) = cluster.nodes().iter().find(|known| known.name() == node) else {
        let names: Vec<_> = cluster.nodes().iter().map(|node| node.name()).collect();
        bail!("no node is called {node}; there are {}", names.join(", "));
    };
    let shell = OsString::from("bash");
    let (program, arguments) = words.split_first().unwrap_or((&shell, &[]));
    replace(node.enter_command(program)?.args(arguments))
}

/// Replaces this process with another program.
fn replace(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    Err(command.exec()).with_context(|| format!("starting {}", program.display()))
}

/// Says what is done, and when: seconds since the beginning.
pub(crate) fn tell(what: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    println!("cluster: {:4.1} s: {what}", elapsed.as_secs_f64());
}
