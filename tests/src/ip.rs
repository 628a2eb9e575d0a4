//! Links, addresses and routes, by one `ip -batch` for many of them: a process for each would be most of a pod's cost.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::NetNs;

/// Runs the lines as `ip` commands inside `netns`; the first that fails is the error.
pub(crate) fn batch(netns: &NetNs, lines: &[String]) -> Result<()> {
    run(netns.command("ip"), lines).with_context(|| format!("setting up links in {}", netns.name()))
}

fn run(mut ip: Command, lines: &[String]) -> Result<()> {
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `ip` (package iproute2)")?;
    if let Some(mut input) = child.stdin.take() {
        // A broken pipe means that `ip` has failed already and says why.
        let _ = input.write_all((lines.join("\n") + "\n").as_bytes());
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("ip: {}; the batch was:\n{}", complaint.trim(), lines.join("\n"));
    }
    Ok(())
}
