//! `culvert cleanup`: leave the node as it was.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{capture::Capture, cni};

/// Remove every program, map, link and file that Culvert put on this node
///
/// Connections that an agent carried are gone with it; those that bypass the mesh are not touched. It refuses while an
/// agent runs.
#[derive(Args, Clone, Debug)]
pub(super) struct CleanupArgs {
    /// Only what the agent of this node name left [default: of all of them].
    #[arg(long, env = "CULVERT_NODE")]
    node: Option<String>,

    /// The agent's unix socket, where it had one of its own [default: those in /run/culvert].
    #[arg(long, env = "CULVERT_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,

    /// The container runtime's directory of network configurations.
    #[arg(long, env = "CULVERT_CNI_CONF_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,

    /// The container runtime's directory of plugins.
    #[arg(long, env = "CULVERT_CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,

    /// Where the BPF file system is.
    #[arg(long, env = "CULVERT_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

/// Removes everything and says what it was.
pub(super) fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let mut removed = Capture::cleanup(args.node.as_deref(), &args.bpffs)?;
    removed.extend(cni::install::uninstall(&args.cni_conf_dir, &args.cni_bin_dir, args.node.as_deref())?);
    removed.extend(args.socket.as_deref().and_then(remove_socket));
    for what in &removed {
        println!("removed {what}");
    }
    if removed.is_empty() {
        println!("nothing to remove: Culvert left nothing here");
    }
    Ok(())
}

/// Removes the socket that an agent left, and nothing else that may be there.
fn remove_socket(path: &Path) -> Option<String> {
    let dead = UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    let socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    (dead && socket && fs::remove_file(path).is_ok()).then(|| path.display().to_string())
}
