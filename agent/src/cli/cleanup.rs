//! `culvert cleanup`: leave the node as it was.

use std::path::PathBuf;

use clap::Args;

use crate::capture::Capture;

/// Remove every program, map, link and file that Culvert put on this node
///
/// Connections that an agent carried are gone with it; those that bypass the mesh are not touched. It refuses while an
/// agent runs.
#[derive(Args, Clone, Debug)]
pub(super) struct CleanupArgs {
    /// Only what the agent of this node name left [default: of all of them].
    #[arg(long, env = "CULVERT_NODE")]
    node: Option<String>,

    /// Where the BPF file system is.
    #[arg(long, env = "CULVERT_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

/// Removes everything and says what it was.
pub(super) fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let removed = Capture::cleanup(args.node.as_deref(), &args.bpffs)?;
    for what in &removed {
        println!("removed {what}");
    }
    if removed.is_empty() {
        println!("nothing to remove: Culvert left nothing here");
    }
    Ok(())
}
