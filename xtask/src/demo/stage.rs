//! The stage: nodes, pods, services, and the programs in the pods.
//!
//! ```text
//! node-a   client   web-1   worker (IPv6 only)   outsider (outside the mesh)
//! node-b   web-0            redis  (IPv6 only)
//! ```

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::{Agent, Mesh, Pod, Process, Service, tcp, try_eventually};

use crate::report::{Report, row};

/// The namespace that is in the mesh, by its label.
const SHOP: &str = "shop";

/// Where nginx listens in its pods; the service's port is 80.
const WEB: u16 = 8080;
const REDIS: u16 = 6379;

/// The echo server with which the costs are measured (RFC 862's port).
pub(super) const ECHO: u16 = 7;

/// How long programs may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything that is on stage. The mesh is dropped last, and takes with it what is left.
pub(super) struct Stage {
    pub(super) client: Pod,
    pub(super) web: [Pod; 2],
    pub(super) redis: Pod,
    pub(super) worker: Pod,
    pub(super) outsider: Pod,
    pub(super) web_service: Service,
    pub(super) redis_service: Service,
    _programs: Vec<Process>,
    _echoes: Vec<tcp::Server>,
    pub(super) mesh: Mesh,
}

impl Stage {
    /// Makes the nodes and pods, and starts the programs; no agent yet.
    pub(super) fn set() -> Result<Self> {
        let mesh = Mesh::new()?;
        mesh.enroll_namespace(SHOP)?;
        let pod = |name: &str, node: &str, account: &str| {
            mesh.pod(name).on(node).namespace(SHOP).service_account(account)
        };
        let client = pod("client", "node-a", "front").start()?;
        let web =
            |name: &str, node: &str| pod(name, node, "web").label("app", "web").port("http", WEB).start();
        let web = [web("web-0", "node-b")?, web("web-1", "node-a")?];
        let redis = pod("redis", "node-b", "redis").label("app", "redis").ipv6().start()?;
        let worker = pod("worker", "node-a", "worker").ipv6().start()?;
        let outsider = mesh.pod("outsider").on("node-a").namespace("legacy").start()?;

        let service = |name: &str| mesh.service(name).namespace(SHOP).select("app", name);
        let web_service = service("web").named_port("http", 80, "http").apply()?;
        let redis_service = service("redis").only_port(REDIS, REDIS).apply()?;

        let mut programs = vec![start_redis(&mesh, &redis)?];
        let mut echoes = Vec::new();
        for pod in &web {
            programs.push(start_nginx(&mesh, pod)?);
            echoes.push(pod.serve(ECHO, tcp::echo)?);
        }
        let (_programs, _echoes) = (programs, echoes);
        Ok(Self {
            client,
            web,
            redis,
            worker,
            outsider,
            web_service,
            redis_service,
            _programs,
            _echoes,
            mesh,
        })
    }

    /// Starts an agent on each node and waits until both serve.
    pub(super) fn start_agents(&self, report: &Report) -> Result<[Agent; 2]> {
        let start = Instant::now();
        let agents = [self.mesh.agent("node-a").start()?, self.mesh.agent("node-b").start()?];
        for agent in &agents {
            agent.wait_ready()?;
        }
        report.note(&format!("both agents were ready after {:.2} s", start.elapsed().as_secs_f64()));
        Ok(agents)
    }

    /// Who is where.
    pub(super) fn describe(&self, report: &mut Report) {
        let mut rows = vec![row(["NODE", "POD", "ADDRESS", "RUNS", "IDENTITY IN THE MESH"])];
        for (pod, runs) in [
            (&self.client, "curl, redis-cli"),
            (&self.web[1], "nginx"),
            (&self.worker, "curl, redis-cli; IPv6 only"),
            (&self.outsider, "curl"),
            (&self.web[0], "nginx"),
            (&self.redis, "redis-server; IPv6 only"),
        ] {
            let outside = pod.name() == self.outsider.name();
            let identity = if outside { "none: outside the mesh".to_owned() } else { pod.identity() };
            rows.push([
                pod.node().name().to_owned(),
                pod.name(),
                pod.ip().to_string(),
                runs.to_owned(),
                identity,
            ]);
        }
        report.table(&rows);
    }

    /// Where a web pod's nginx listens itself.
    pub(super) fn web_address(&self, replica: usize) -> SocketAddr {
        self.web[replica].at(WEB)
    }

    /// The clients' addresses that a web pod's nginx has logged.
    pub(super) fn nginx_log(&self, replica: usize) -> Result<String> {
        let path = self.mesh.directory().join(format!("{}.nginx.log", self.web[replica].name()));
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }
}

fn start_nginx(mesh: &Mesh, pod: &Pod) -> Result<Process> {
    let name = pod.name();
    let directory = mesh.directory().join(format!("{name}.nginx"));
    fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
    let log = mesh.directory().join(format!("{name}.nginx.log"));
    let text = format!(
        "daemon off;\nworker_processes 1;\nuser root;\npid {0}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n  \
         log_format seen '$remote_addr $request_uri $status';\n  access_log {1} seen;\n  \
         client_body_temp_path {0}/body;\n  proxy_temp_path {0}/proxy;\n  fastcgi_temp_path {0}/fastcgi;\n  \
         uwsgi_temp_path {0}/uwsgi;\n  scgi_temp_path {0}/scgi;\n  server {{\n    listen {WEB};\n    \
         listen [::]:{WEB};\n    location / {{ return 200 \"{name} greets $remote_addr\\n\"; }}\n  }}\n}}\n",
        directory.display(),
        log.display(),
    );
    let configuration = directory.join("nginx.conf");
    fs::write(&configuration, text).with_context(|| format!("writing {}", configuration.display()))?;
    let nginx = pod.spawn("nginx", &["-e", "stderr", "-c", &configuration.display().to_string()])?;
    wait_for(pod, WEB, nginx)
}

fn start_redis(mesh: &Mesh, pod: &Pod) -> Result<Process> {
    let directory = mesh.directory().display().to_string();
    let port = REDIS.to_string();
    let args = ["--port", &port, "--bind", "::", "--protected-mode", "no", "--save", "", "--dir", &directory];
    let redis = pod.spawn("redis-server", &args)?;
    wait_for(pod, REDIS, redis)
}

/// Waits until a program listens, asked from the pod itself.
fn wait_for(pod: &Pod, port: u16, program: Process) -> Result<Process> {
    try_eventually(PATIENCE, || pod.connect(pod.at(port)))
        .with_context(|| format!("{} in {}: {}", program.name(), pod.name(), program.logs()))?;
    Ok(program)
}
