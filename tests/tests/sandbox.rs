//! Pods without the annotation `culvert.dev/netns`: found by their cgroups, in every layout that the kubelet and the
//! container runtimes make of them. The cgroups and the processes in them are real; only who made them is the test.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use lab::{Agent, Mesh, PATIENCE, Pod, Process, eventually, install, manifest::MESH_LABEL, tcp};

/// A mesh with a client in it, whose namespace an annotation names.
struct World {
    client: Pod,
    _a: Agent,
    b: Agent,
    cgroups: Cgroups,
    mesh: Mesh,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
        let start = |node| mesh.agent(node).start().unwrap();
        let (a, b) = (start("node-a"), start("node-b"));
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        let cgroups = Cgroups::new(mesh.name());
        Self { client, _a: a, b, cgroups, mesh }
    }

    /// A pod that is to be in the mesh, of which no manifest says where it is.
    fn pod(&self, name: &str) -> Pod {
        let pod = self.mesh.pod(name).on("node-b").start().unwrap();
        pod.update(|pod| {
            pod.netns = None;
            pod.labels.insert(MESH_LABEL.to_owned(), "enabled".to_owned());
        })
        .unwrap();
        pod
    }

    fn readiness(&self) -> String {
        self.b.get("/healthz/ready").unwrap().body
    }

    /// Whether a connection that is made now comes out of a tunnel at the server's node.
    fn is_tunnelled(&self, target: SocketAddr) -> bool {
        let opened = || {
            let metrics = self.b.metrics().unwrap();
            metrics.sum("istio_tcp_connections_opened_total", &[("reporter", "destination")])
        };
        let before = opened();
        let Ok(mut stream) = self.client.connect(target) else { return false };
        tcp::ping(&mut stream, "tunnelled?").is_ok() && opened() > before
    }

    /// Waits until the pod is in the mesh with the namespace in which its connections end.
    fn is_in_the_mesh(&self, pod: &Pod) {
        let _echo = pod.serve(8080, tcp::echo).unwrap();
        eventually(PATIENCE, || match self.is_tunnelled(pod.at(8080)) {
            true => Ok(()),
            false => Err(self.readiness()),
        });
    }
}

/// Cgroups below one of this test's own, in the hierarchy of version 2. Removed with everything that runs in them.
struct Cgroups(PathBuf);

impl Cgroups {
    fn new(mesh: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = root.into_iter().find(|fields| fields[2] == "cgroup2").expect("cgroup v2 is mounted")[1]
            .to_owned();
        let own = Path::new(&root).join(mesh);
        fs::create_dir(&own).unwrap();
        Self(own)
    }

    fn make(&self, path: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        eventually(PATIENCE, || remove(&self.0).is_ok() || !self.0.exists());
    }
}

fn remove(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// Starts a shell line in a cgroup and in the pod's namespace, and waits until it runs there. Its parent is this process,
/// outside of the pod, as a runtime's shim is.
fn run_in(pod: &Pod, cgroup: &Path, line: &str) -> Process {
    let script = format!("echo $$ > {}/cgroup.procs && {line}", cgroup.display());
    let process = pod.spawn("sh", &["-c", &script]).unwrap();
    eventually(PATIENCE, || {
        fs::read_to_string(cgroup.join("cgroup.procs"))
            .unwrap()
            .lines()
            .any(|pid| pid == process.pid().to_string())
    });
    process
}

const PAUSE: &str = "exec sleep 1000";

/// What the pod's own process does that makes a namespace for itself, with the pod's own address in it.
fn unshare(pod: &Pod) -> String {
    let address = pod.ipv4();
    format!(
        "exec unshare --net sh -c 'ip link set lo up && ip address add {address}/32 dev lo && exec sleep 1000'"
    )
}

/// Waits until a process holds the pod's address in a namespace of its own.
fn wait_apart(process: &Process, pod: &Pod) {
    let net = format!("--net=/proc/{}/ns/net", process.pid());
    let held = || {
        let output = Command::new("nsenter").args([&net, "ip", "address", "show", "dev", "lo"]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).contains(&pod.ipv4().to_string())
    };
    eventually(PATIENCE, held);
}

#[test]
fn every_layout_of_the_kubelets_cgroups_leads_to_the_pods_sandbox() {
    let world = World::new();
    let id = "3f8a".repeat(16);
    for (name, layout) in [
        ("guaranteed", "kubepods/podUID/ID"),
        ("burstable", "kubepods/burstable/podUID/ID"),
        ("best-effort", "kubepods/besteffort/podUID/ID"),
        ("crio", "kubepods/burstable/podUID/crio-ID"),
        ("systemd", "kubepods.slice/kubepods-podU_I_D.slice/cri-containerd-ID.scope"),
        (
            "systemd-burstable",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/cri-containerd-ID.scope",
        ),
        (
            "systemd-crio-rooted",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podU_I_D.slice/crio-ID.scope",
        ),
    ] {
        let pod = world.pod(name);
        let uid = pod.manifest().uid;
        let path = layout.replace("UID", &uid).replace("U_I_D", &uid.replace('-', "_")).replace("ID", &id);
        let _pause = run_in(&pod, &world.cgroups.make(&path), PAUSE);
        world.is_in_the_mesh(&pod);
    }
}

#[test]
fn a_process_of_the_pod_that_has_a_namespace_of_its_own_is_not_taken_for_the_pod() {
    let world = World::new();
    let pod = world.mesh.pod("web").on("node-b").ipv4().start().unwrap();
    let at = format!("kubepods/burstable/pod{}", pod.manifest().uid);
    let sandbox = world.cgroups.make(&format!("{at}/sandbox"));
    let container = world.cgroups.make(&format!("{at}/container"));
    // The sandbox first, as ever; then a container whose program leaves, and one that somebody `exec`s.
    let _pause = run_in(&pod, &sandbox, PAUSE);
    let program = run_in(&pod, &container, &unshare(&pod));
    let exec = run_in(&pod, &sandbox, &unshare(&pod));
    wait_apart(&program, &pod);
    wait_apart(&exec, &pod);
    pod.update(|pod| {
        pod.netns = None;
        pod.labels.insert(MESH_LABEL.to_owned(), "enabled".to_owned());
    })
    .unwrap();
    world.is_in_the_mesh(&pod);
}

#[test]
fn a_pod_without_a_sandbox_process_is_found_by_a_container_that_stayed() {
    let world = World::new();
    let pod = world.pod("web");
    eventually(PATIENCE, || world.readiness().contains("its sandbox is not found"));
    let at = format!("kubepods/pod{}", pod.manifest().uid);
    let _monitor =
        run_in(&pod, &world.cgroups.make(&format!("{at}/crio-conmon-abc")), "exec unshare --net sleep 1000");
    let _container = run_in(&pod, &world.cgroups.make(&format!("{at}/crio-abc")), PAUSE);
    world.is_in_the_mesh(&pod);

    // A new agent finds it again, and nothing of it was let go in between.
    world.b.kill9();
    world.b.restart().unwrap();
    world.b.wait_ready().unwrap();
    world.is_in_the_mesh(&pod);
    assert!(world.b.cleanup().is_ok());
}

#[test]
fn a_static_pod_is_found_by_the_uid_that_the_kubelet_gave_it() {
    let world = World::new();
    let pod = world.pod("static");
    let hash = "0123456789abcdef".repeat(2);
    let mirror = ("kubernetes.io/config.mirror".to_owned(), hash.clone());
    pod.update(|pod| pod.annotations.extend([mirror])).unwrap();
    let at = world.cgroups.make(&format!("kubepods/burstable/pod{hash}/abc"));
    let _pause = run_in(&pod, &at, PAUSE);
    world.is_in_the_mesh(&pod);
}

#[test]
fn a_pod_in_a_virtual_machine_or_without_the_pods_address_is_refused_with_the_reason() {
    let world = World::new();
    let machine = world.pod("machine");
    let program = world.mesh.directory().join("qemu-system-x86_64");
    install(Path::new("/bin/sleep"), &program);
    let at = format!("kubepods/pod{}/kata_abc", machine.manifest().uid);
    let _qemu = run_in(&machine, &world.cgroups.make(&at), &format!("exec {} 1000", program.display()));
    eventually(PATIENCE, || {
        let text = world.readiness();
        let line = text.lines().find(|line| line.contains("pod default/machine is not enrolled"));
        line.is_some_and(|line| line.contains("virtual machine") && line.contains("runtimeClassName"))
    });

    let elsewhere = world.pod("elsewhere");
    let at = format!("kubepods/pod{}/abc", elsewhere.manifest().uid);
    let _other = run_in(&machine, &world.cgroups.make(&at), PAUSE);
    eventually(PATIENCE, || {
        let text = world.readiness();
        let line = text.lines().find(|line| line.contains("pod default/elsewhere is not enrolled"));
        line.is_some_and(|line| line.contains("does not hold the pod's address"))
    });
}

#[test]
fn an_agent_in_process_and_cgroup_namespaces_of_its_own_finds_pods_by_the_hosts_proc() {
    let world = World::new();
    assert!(world.b.terminate().unwrap().success());
    let pod = world.pod("web");
    let own = world.cgroups.make("kubepods/besteffort/podagent/abc");
    let path = world.cgroups.make(&format!("kubepods/besteffort/pod{}/abc", pod.manifest().uid));
    let _pause = run_in(&pod, &path, PAUSE);
    // As a DaemonSet without hostPID: the agent sees its own processes alone, and the host's /proc elsewhere.
    let (host, script) = (world.mesh.directory().join("host-proc"), world.mesh.directory().join("contained"));
    fs::create_dir(&host).unwrap();
    let text = format!(
        "#!/bin/sh\necho $$ > {}/cgroup.procs\nexec unshare --mount --pid --cgroup --fork --kill-child sh -c \
         'mount --rbind /proc {host} && mount -t proc proc /proc && exec {} \"$@\"' contained \"$@\"\n",
        own.display(),
        lab::culvert().unwrap().display(),
        host = host.display(),
    );
    let source = world.mesh.directory().join("contained.source");
    fs::write(&source, text).unwrap();
    install(&source, &script);
    let b = world.mesh.agent("node-b").binary(&script).arg("--host-proc").arg(&host).start().unwrap();
    b.wait_ready().unwrap();
    world.is_in_the_mesh(&pod);
    drop(b);
}
