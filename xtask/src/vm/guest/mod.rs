//! The guest's first program: prepares the machine, runs the suite or the shell, and switches off with a result.
//!
//! It is this very program, started by the kernel as `/init`.

mod power;

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::resource::{Resource, setrlimit},
};

use super::initramfs::{AGENT, MODULES, SUITE};

/// qemu's exit status where all went well.
pub(super) const PASSED: i32 = power::status(power::SUCCESS);

/// qemu's exit status where the guest worked and the suite failed.
pub(super) const FAILED: i32 = power::status(power::FAILURE);

/// What the guest says first.
pub(super) const GREETING: &str = "guest: this is Linux ";

/// Returns whether this process is the first one of a machine that [`super::initramfs`] made.
pub(crate) fn is_init() -> bool {
    std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == "/init")
}

/// Does what the kernel's command line asks for and switches the machine off.
pub(crate) fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let outcome = prepare().and_then(|()| match arguments.split_first() {
        Some((task, filter)) if task == "suite" => suite(filter),
        _ => shell(),
    });
    if let Err(error) = &outcome {
        eprintln!("guest: {error:#}");
    }
    power::off(if outcome.is_ok() { power::SUCCESS } else { power::FAILURE });
    // The kernel panics when its first program ends, and that also ends the machine, as a failure.
    ExitCode::FAILURE
}

/// Mounts what an ordinary machine has and loads the modules.
fn prepare() -> Result<()> {
    for (kind, path) in MOUNTS {
        fs::create_dir_all(path).with_context(|| format!("creating {path}"))?;
        mount(Some(*kind), *path, Some(*kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {path}"))?;
    }
    symlink("/proc/self/mounts", "/etc/mtab").context("linking /etc/mtab")?;
    symlink("/proc/self/fd", "/dev/fd").context("linking /dev/fd")?;
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("asking for the kernel's version")?;
    println!("{GREETING}{}", release.trim());
    load_modules()?;
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).context("allowing more descriptors")?;
    run(program("ip").args(["link", "set", "lo", "up"]))
}

/// Loads the modules in the order of their names.
fn load_modules() -> Result<()> {
    let folder = fs::read_dir(MODULES).with_context(|| format!("reading {MODULES}"))?;
    let mut files =
        folder.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    for file in files {
        let opened = fs::File::open(&file).with_context(|| format!("opening {}", file.display()))?;
        finit_module(&opened, c"", ModuleInitFlags::empty())
            .with_context(|| format!("loading {}", file.display()))?;
    }
    Ok(())
}

/// Runs the suite, one test at a time: under emulation two are no faster than one after the other.
fn suite(filter: &[String]) -> Result<()> {
    run(program(SUITE).arg("--test-threads=1").args(filter))
}

/// Sets up two pods and two agents, and gives a prompt. How the shell ends is not this machine's success or failure.
fn shell() -> Result<()> {
    let profile = "/root/profile";
    fs::write(profile, include_str!("profile.sh")).with_context(|| format!("writing {profile}"))?;
    run(program("bash").args(["-eu", "-c", include_str!("mesh.sh")]))
        .context("setting up the pods and the mesh")?;
    // A session with a terminal of its own, so that Ctrl-C stops what runs in the shell and not the shell.
    program("setsid").args(["-c", "bash", "--rcfile", profile]).status().context("starting the shell")?;
    Ok(())
}

/// Returns a command with the environment of an ordinary root.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("TERM", "linux").current_dir("/root");
    command.env("RUST_BACKTRACE", "1").env("CULVERT_BIN", AGENT);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("starting {name}"))?;
    ensure!(status.success(), "{name} failed: {status}");
    Ok(())
}

/// How many descriptors a process may have: what systemd allows as well. The kernel's own answer is 4096.
const DESCRIPTORS: u64 = 524_288;

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Type and place of each file system, in order.
const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];
