//! An API server alone, with its etcd, on a node of a mesh: for what only watches and writes objects. It is there in two
//! seconds. No controller runs and no pod does; who wants a pod's status writes it.

use std::{fs, path::PathBuf, process::Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    control_plane::{ControlPlane, DEADLINE, ETCD, Site},
    kubectl,
    tools::Tools,
};
use crate::{Mesh, NetNs, Process};

/// A running API server. Dropping it ends it; what it stored is in the mesh's directory.
pub struct ApiServer {
    site: Site,
    server: Option<Process>,
    _etcd: Process,
}

impl ApiServer {
    /// Starts one in a node's namespace, and waits until it serves. Other nodes and pods reach it at the node's own address.
    ///
    /// # Errors
    /// Where its programs are missing, or one of them does not start.
    pub fn start_on(mesh: &Mesh, node: &str) -> Result<Self> {
        let node = mesh.node(node);
        let directory = mesh.directory().join(format!("{}.apiserver", node.name()));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        Self::start_in(node.netns(), node.ipv4().into(), directory)
    }

    fn start_in(netns: &NetNs, address: std::net::IpAddr, directory: PathBuf) -> Result<Self> {
        let site = Site { netns: netns.clone(), address, directory, tools: Tools::find()? };
        site.credentials().create(&[])?;
        let etcd = launch(&site, ControlPlane::Etcd)?;
        let server = launch(&site, ControlPlane::ApiServer)?;
        Ok(Self { site, server: Some(server), _etcd: etcd })
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.site.credentials().kubeconfig("admin")
    }

    /// Runs kubectl as the administrator, with `input` as its standard input, and returns what it printed.
    ///
    /// # Errors
    /// Where it fails, with what it complained of.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        kubectl::run(&self.site, args, input)
    }

    /// As [`ApiServer::kubectl`], for a command that may fail.
    pub fn kubectl_output(&self, args: &[&str], input: &str) -> Result<Output> {
        kubectl::output(&self.site, args, input)
    }

    /// Applies manifests.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl(&["apply", "-f", "-"], yaml).map(drop)
    }

    /// A kubeconfig of a service account, which must exist, with a token of a day.
    pub fn service_account_kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        kubectl::service_account_kubeconfig(&self.site, namespace, account)
    }

    /// A token of a service account for an audience (a TokenRequest), as a pod gets it by a projected volume.
    pub fn token(&self, namespace: &str, account: &str, audience: &str) -> Result<String> {
        kubectl::token(&self.site, namespace, account, audience)
    }

    /// Ends the API server, as a node that fails does: at once. What it stored stays.
    pub fn stop(&mut self) {
        // Dropping a process kills it.
        self.server = None;
    }

    /// Has etcd forget all that was before now, as API servers have it do every five minutes.
    ///
    /// # Errors
    /// Where etcd's gateway (JSON over HTTP) refuses, or curl is missing.
    pub fn compact(&self) -> Result<()> {
        let ask = |method: &str, body: &Value| -> Result<Value> {
            let url = format!("http://127.0.0.1:{ETCD}/v3/kv/{method}");
            let mut command = self.site.netns.command("curl");
            let output = command.args(["-sS", "--fail-with-body", "--noproxy", "*", "-m", "10"]);
            let output = output.args(["-d", &body.to_string(), &url]).output().context("package curl")?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(
                output.status.success(),
                "etcd: {method}: {said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            serde_json::from_str(&said).with_context(|| format!("etcd: {method}: {said}"))
        };
        // Any key will do: every answer says the revision. Bytes are base64 in JSON.
        let newest = ask("range", &json!({"key": "AA=="}))?["header"]["revision"].clone();
        ensure!(newest.is_string(), "etcd does not say its revision: {newest}");
        ask("compaction", &json!({"revision": newest, "physical": true})).map(drop)
    }

    /// Starts it again, with what it stored.
    pub fn start(&mut self) -> Result<()> {
        if self.server.is_none() {
            self.server = Some(launch(&self.site, ControlPlane::ApiServer)?);
        }
        Ok(())
    }
}

fn launch(site: &Site, program: ControlPlane) -> Result<Process> {
    let log = site.directory.join(format!("{}.log", program.name()));
    let process = Process::start(&mut program.command(site), &log, None)?;
    process.until(DEADLINE, || program.check(site))?;
    Ok(process)
}
