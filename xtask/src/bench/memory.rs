//! The memory of the proxies: with nothing to do, and with connections that nobody uses.

use anyhow::Result;

use super::stage::{PATIENCE, PORT, Path, Stage};

/// Resident memory of both proxies, in bytes, with so many idle connections across nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) connections: usize,
    pub(super) resident: [u64; 2],
}

/// Measures it, from none on.
pub(super) fn measure(stage: &Stage) -> Result<Vec<Memory>> {
    let mut measured = vec![Memory { connections: 0, resident: stage.proxies.memory() }];
    for connections in [1_000, 10_000] {
        let (client, target) = stage.ends(Path::Across, PORT)?;
        let target = target.to_string();
        let args = ["idle", &target, "--connections", &connections.to_string()];
        let load = client.spawn(stage.load()?, &args)?;
        load.until(PATIENCE, || load.logs().contains("ready"))?;
        measured.push(Memory { connections, resident: stage.proxies.memory() });
        load.kill9();
    }
    Ok(measured)
}
