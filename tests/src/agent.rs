//! An agent: the binary `culvert`, as an operator starts it, in its node's network namespace.

use std::{
    env,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{AccessRecord, Metrics, NetNs, PATIENCE, Process, http, mesh::Shared, process::tail};

/// Where agents answer health checks and metrics; every node has a loopback of its own.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);

/// The trust domain of the mesh's certificate authority.
const TRUST_DOMAIN: &str = "cluster.local";

/// How the files of an agent's log and access log end.
const LOG: &str = "agent.log";
const ACCESS_LOG: &str = "access.jsonl";

/// An agent that has been started. It is killed when it is dropped; what it pinned goes with the mesh.
pub struct Agent {
    shared: Arc<Shared>,
    recipe: Recipe,
    process: Mutex<Process>,
}

/// An agent to be started.
#[must_use = "an agent does nothing until it is started"]
pub struct AgentBuilder {
    shared: Arc<Shared>,
    node: String,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    binary: Option<PathBuf>,
    manifests: Option<PathBuf>,
    ca: Option<PathBuf>,
    authority: Option<Vec<OsString>>,
}

/// What is needed to start the agent once more.
struct Recipe {
    netns: NetNs,
    node: String,
    binary: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    files: Files,
}

struct Files {
    log: PathBuf,
    access_log: PathBuf,
    socket: PathBuf,
}

impl AgentBuilder {
    pub(crate) fn new(shared: Arc<Shared>, node: &str) -> Self {
        let node = node.to_owned();
        let (args, env) = (Vec::new(), Vec::new());
        Self { shared, node, args, env, binary: None, manifests: None, ca: None, authority: None }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// An environment variable, such as `RUST_LOG`.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another binary than [`culvert`] finds.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Another directory of manifests than the mesh's.
    pub fn manifests(mut self, directory: impl Into<PathBuf>) -> Self {
        self.manifests = Some(directory.into());
        self
    }

    /// Another certificate authority than the mesh's.
    pub fn ca_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.ca = Some(directory.into());
        self
    }

    /// The arguments that name another authority than a directory.
    pub fn authority(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.authority = Some(args.into_iter().map(Into::into).collect());
        self
    }

    /// Starts it; [`Agent::wait_ready`] waits until it serves.
    pub fn start(self) -> Result<Agent> {
        let Self { shared, node: name, args: more, env, binary, manifests, ca, authority } = self;
        let node = shared.node(&name)?;
        let authority = match authority {
            Some(authority) => authority,
            None => vec!["--ca-dir".into(), ca.map_or_else(|| ensure_ca(&shared), Ok)?.into()],
        };
        let manifests = manifests.unwrap_or_else(|| shared.manifests.directory().to_owned());
        let files = Files {
            log: shared.directory.join(format!("{name}.{LOG}")),
            access_log: shared.directory.join(format!("{name}.{ACCESS_LOG}")),
            socket: shared.directory.join(format!("{name}.sock")),
        };
        let mut args: Vec<OsString> = vec!["agent".into(), "--node".into(), node.unique_name().into()];
        args.extend(["--manifests".into(), manifests.into()]);
        args.extend(authority);
        args.extend([
            "--admin".into(),
            ADMIN.to_string().into(),
            "--socket".into(),
            files.socket.clone().into(),
        ]);
        args.extend(["--access-log", "json", "--log-format", "json"].map(OsString::from));
        args.extend(more);
        let binary = binary.map_or_else(culvert, Ok)?;
        let recipe = Recipe { netns: node.netns().clone(), node: name, binary, args, env, files };
        let process = Mutex::new(recipe.start()?);
        Ok(Agent { shared, recipe, process })
    }
}

impl Recipe {
    fn start(&self) -> Result<Process> {
        let mut command = self.netns.command(self.binary.to_str().context("the agent's path is not UTF-8")?);
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        Process::start(&mut command, &self.files.log, Some(&self.files.access_log))
            .with_context(|| format!("the agent of {}", self.node))
    }
}

impl Agent {
    /// The node's name, as people read it.
    pub fn node(&self) -> &str {
        &self.recipe.node
    }

    /// Waits until `/healthz/ready` says so. An agent may ask an API server again after half a minute only.
    pub fn wait_ready(&self) -> Result<()> {
        self.process()
            .until(3 * PATIENCE, || self.ready())
            .with_context(|| format!("{} is not ready", self.node()))
    }

    /// Whether it says that it is ready; an error says what it lacks.
    pub fn ready(&self) -> Result<()> {
        let http::Response { status, body } = self.get("/healthz/ready")?;
        ensure!(status == 200, "/healthz/ready answers {status}: {}", body.trim());
        Ok(())
    }

    /// `GET path` at the admin address.
    pub fn get(&self, path: &str) -> Result<http::Response> {
        let stream = self.recipe.netns.run(|| TcpStream::connect_timeout(&ADMIN, http::DEADLINE));
        let stream = stream.with_context(|| format!("the admin address of {}", self.node()))?;
        stream.set_read_timeout(Some(http::DEADLINE))?;
        http::get(stream, path)
    }

    /// `GET path` at the unix socket.
    pub fn get_private(&self, path: &str) -> Result<http::Response> {
        http::get_unix(self.socket(), path)
    }

    /// What `/metrics` says now.
    pub fn metrics(&self) -> Result<Metrics> {
        let http::Response { status, body } = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answers {status}");
        Ok(Metrics::parse(&body))
    }

    /// Every connection that the agent has reported, restarts included.
    pub fn access_log(&self) -> Vec<AccessRecord> {
        AccessRecord::parse(&String::from_utf8_lossy(
            &fs::read(&self.recipe.files.access_log).unwrap_or_default(),
        ))
    }

    /// Its own log, restarts included.
    pub fn logs(&self) -> String {
        self.process().logs()
    }

    /// The unix socket for the CLI.
    pub fn socket(&self) -> &Path {
        &self.recipe.files.socket
    }

    /// Runs another subcommand of the same binary in the node's namespace, told of the agent's socket as the agent was:
    /// `agent.cli(&["status"])`.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.recipe.netns.command(&self.recipe.binary.display().to_string());
        command.args(args).env("CULVERT_SOCKET", self.socket()).output().context("running culvert")
    }

    /// SIGKILL.
    pub fn kill9(&self) {
        self.process().kill9();
    }

    /// SIGTERM, without waiting.
    pub fn begin_terminate(&self) {
        self.process().signal(Signal::SIGTERM);
    }

    /// Waits for its end.
    pub fn wait_end(&self, deadline: Duration) -> Result<ExitStatus> {
        self.process().wait(deadline)
    }

    /// SIGTERM, and its end within a minute: longer than the agent's own grace period.
    pub fn terminate(&self) -> Result<ExitStatus> {
        self.process().terminate(Duration::from_secs(60))
    }

    /// Any signal, SIGSTOP for one.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Starts it again with the same arguments; kills it first where it still runs.
    pub fn restart(&self) -> Result<()> {
        let mut process = self.process();
        process.kill9();
        *process = self.recipe.start()?;
        Ok(())
    }

    /// Removes the node's pins, links and maps by `culvert cleanup`; the agent must have ended.
    pub fn cleanup(&self) -> Result<Output> {
        let node = self.shared.node(self.node())?;
        self.cli(&["cleanup", "--node", node.unique_name()])
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process().is_running()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Descriptors that it has open.
    pub fn fd_count(&self) -> usize {
        self.process().fd_count()
    }

    /// Its resident memory in bytes.
    pub fn rss(&self) -> u64 {
        self.process().rss()
    }

    /// What of that is its own in bytes, and not a file's.
    pub fn own_memory(&self) -> u64 {
        self.process().own_memory()
    }

    /// Its threads.
    pub fn threads(&self) -> u64 {
        self.process().threads()
    }

    /// The processor time that it has used.
    pub fn cpu_time(&self) -> Duration {
        self.process().cpu_time()
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The binary under test: `CULVERT_BIN`, else `culvert` beside this executable or in the folder above it, as cargo
/// lays them out (`target/debug/deps/suite-…`, `target/debug/xtask`).
pub fn culvert() -> Result<PathBuf> {
    if let Some(path) = env::var_os("CULVERT_BIN") {
        return Ok(path.into());
    }
    let here = env::current_exe().context("this executable's path")?;
    let found =
        here.ancestors().skip(1).take(2).map(|folder| folder.join("culvert")).find(|path| path.is_file());
    let Some(path) = found else {
        bail!("no `culvert` near {}: run `cargo build -p culvert`, or set CULVERT_BIN", here.display());
    };
    Ok(path)
}

/// Makes the mesh's certificate authority unless it is there.
pub(crate) fn ensure_ca(shared: &Shared) -> Result<PathBuf> {
    // One at a time: the directory says whether it was made.
    let _objects = shared.objects();
    let directory = shared.directory.join("ca");
    if !directory.exists() {
        make_ca(&directory, TRUST_DOMAIN)?;
    }
    Ok(directory)
}

/// Runs `culvert ca init`.
pub(crate) fn make_ca(directory: &Path, trust_domain: &str) -> Result<()> {
    let mut init = Command::new(culvert()?);
    init.args(["ca", "init"]).arg(directory).args(["--trust-domain", trust_domain]);
    let output = init.output().context("running `culvert ca init`")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "culvert ca init: {}: {}", output.status, complaint.trim());
    Ok(())
}

/// Prints the end of every agent's log of a mesh: what a failing test needs first.
pub(crate) fn print_logs(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(LOG) || name.ends_with(ACCESS_LOG) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            println!("--- the end of {name}:\n{}", tail(&text, 20));
        }
    }
}
