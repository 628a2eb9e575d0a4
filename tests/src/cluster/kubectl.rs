//! kubectl and helm, run beside the API server.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use super::control_plane::Site;

/// kubectl as the administrator, beside the API server, with this process's own environment.
pub(crate) fn command(site: &Site) -> Command {
    let mut command = site.netns.command(&site.tools.kubernetes("kubectl").to_string_lossy());
    equip(&mut command, site);
    command
}

/// Helm as the administrator, likewise.
pub(crate) fn helm(site: &Site) -> Command {
    let mut command = site.netns.command(&site.tools.helm().to_string_lossy());
    equip(&mut command, site);
    for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(folder, site.directory.join("helm"));
    }
    command
}

/// Says who asks, keeps what is cached out of the home directory, and goes by no proxy.
fn equip(command: &mut Command, site: &Site) {
    command.env("KUBECONFIG", site.credentials().kubeconfig("admin"));
    command.env("KUBECACHEDIR", site.directory.join("kubectl"));
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(proxy);
    }
}

/// Runs kubectl to its end, with `input` as its standard input, whatever its status.
pub(crate) fn output(site: &Site, args: &[&str], input: &str) -> Result<Output> {
    let mut child = command(site)
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
pub(crate) fn run(site: &Site, args: &[&str], input: &str) -> Result<String> {
    let output = output(site, args, input)?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("kubectl {} ({}): {}", args.join(" "), output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A token of a service account for an audience.
pub(crate) fn token(site: &Site, namespace: &str, account: &str, audience: &str) -> Result<String> {
    let audience = format!("--audience={audience}");
    let token = run(site, &["create", "token", account, "--namespace", namespace, &audience], "")?;
    Ok(token.trim().to_owned())
}

/// A kubeconfig of a service account, with a token of a day.
pub(crate) fn service_account_kubeconfig(site: &Site, namespace: &str, account: &str) -> Result<PathBuf> {
    let token = run(site, &["create", "token", account, "--namespace", namespace, "--duration=24h"], "")?;
    site.credentials().write_kubeconfig(&format!("{namespace}.{account}"), token.trim())
}
