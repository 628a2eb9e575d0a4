//! kubectl, run beside the API server.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{credentials::Credentials, network::CONTROL_NETNS, place::Place, tools::Tools};
use crate::NetNs;

/// kubectl as this user, in the control plane's namespace, with this process's own environment.
pub(crate) fn command(place: &Place, tools: &Tools, user: &str) -> Result<Command> {
    let netns = NetNs::open(&place.netns(CONTROL_NETNS))?;
    let mut command = netns.command(&tools.kubernetes("kubectl").to_string_lossy());
    command.env("KUBECONFIG", Credentials::of(place).kubeconfig(user));
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(proxy);
    }
    Ok(command)
}

/// Runs kubectl to its end, with `input` as its standard input, whatever its status.
pub(crate) fn output(place: &Place, tools: &Tools, user: &str, args: &[&str], input: &str) -> Result<Output> {
    let mut command = command(place, tools, user)?;
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting kubectl")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A broken pipe means that it has ended already, and says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().context("waiting for kubectl")
}

/// As [`output`]; anything but success is an error with what kubectl complained of.
pub(crate) fn run(place: &Place, tools: &Tools, user: &str, args: &[&str], input: &str) -> Result<String> {
    let output = output(place, tools, user, args, input)?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("kubectl {} ({}): {}", args.join(" "), output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
