//! The memory of the proxies: with nothing to do, and with connections that nobody uses.

use std::{thread, time::Duration};

use anyhow::Result;

use super::stage::{PATIENCE, PORT, Path, Stage};

/// Resident memory of both proxies, in bytes, with so many idle connections across nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) connections: usize,
    pub(super) resident: [u64; 2],
}

/// How long a proxy has done nothing before it is looked at: it may give memory back now and then only.
const REST: Duration = Duration::from_secs(20);

/// Measures it, from none on.
pub(super) fn measure(stage: &Stage) -> Result<Vec<Memory>> {
    let at_rest = |connections| {
        thread::sleep(REST);
        Memory { connections, resident: stage.proxies.memory() }
    };
    let mut measured = vec![at_rest(0)];
    for connections in [1_000, 10_000] {
        let (client, target) = stage.ends(Path::Across, PORT)?;
        let target = target.to_string();
        let args = ["idle", &target, "--connections", &connections.to_string()];
        let load = client.spawn(stage.load()?, &args)?;
        load.until(PATIENCE, || load.logs().contains("ready"))?;
        measured.push(at_rest(connections));
        load.kill9();
    }
    Ok(measured)
}
