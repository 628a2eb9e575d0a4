//! Pods that turn out to be virtual machines: the runtime names their network as any other's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use lab::{PATIENCE, eventually, install};

use super::world::World;

/// What carries the virtual machine, in the pod's cgroup, as Kata Containers have it. It goes when it is dropped.
struct Machine {
    process: Child,
    cgroup: PathBuf,
}

impl Machine {
    fn start(world: &World, uid: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = mounts.find(|fields| fields[2] == "cgroup2").expect("cgroup v2 is mounted")[1].to_owned();
        let cgroup = Path::new(&root).join(world.mesh.name());
        let at = cgroup.join(format!("kubepods/pod{uid}/kata_abc"));
        fs::create_dir_all(&at).unwrap();
        let program = world.mesh.directory().join("qemu-system-x86_64");
        install(Path::new("/bin/sleep"), &program);
        let line = format!("echo $$ > {}/cgroup.procs && exec {} 1000", at.display(), program.display());
        let process = Command::new("sh").args(["-c", &line]).spawn().unwrap();
        Self { process, cgroup }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let script = "find \"$0\" -depth -type d -exec rmdir {} +";
        let removed =
            || Command::new("sh").args(["-c", script]).arg(&self.cgroup).status().unwrap().success();
        eventually(PATIENCE, removed);
    }
}

#[test]
fn a_pod_that_turns_out_to_be_a_virtual_machine_is_refused_with_the_reason() {
    let world = World::new();
    let pod = world.manifest("default", "machine", Some("enabled"));
    let text = pod.to_string().replace("spec:\n", "spec:\n  runtimeClassName: kata\n");
    world.mesh.apply("cni-default-machine.yaml", &text).unwrap();
    let sandbox = world.node.sandbox("machine", &pod);
    // Nothing of the pod runs yet.
    sandbox.add().unwrap();
    let _machine = Machine::start(&world, &pod.uid);
    eventually(PATIENCE, || {
        let text = world.readiness();
        let line = text.lines().find(|line| line.contains("pod default/machine is not enrolled"));
        let why = line.filter(|line| line.contains("virtual machine") && line.contains("runtimeClassName"));
        why.map(drop).ok_or(text.clone())
    });
    let check = sandbox.check().unwrap_err();
    assert!(check.contains("virtual machine"), "{check}");
}
