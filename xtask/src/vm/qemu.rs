//! One run of qemu, and what its exit status means.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Result, bail};

use super::guest;
use crate::command;

/// What to boot.
pub(super) struct Machine {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
}

/// How the processor is provided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Accelerator {
    Kvm,
    /// Emulation in software.
    Tcg,
}

impl Machine {
    /// Runs the suite under a time limit. Anything but the guest's own word of success is an error.
    pub(super) fn suite(&self, filter: Option<&str>, mut line: impl FnMut(&str)) -> Result<()> {
        for accelerator in accelerators() {
            let mut started = false;
            let mut qemu = Command::new("timeout");
            qemu.args(["--foreground", "--kill-after=5", LIMIT]).args(self.arguments(
                *accelerator,
                &["suite"],
                filter,
            ));
            qemu.stdin(Stdio::null());
            let status = command::watch(&mut qemu, |text| {
                started |= text.contains(guest::GREETING);
                line(text);
            })?;
            if !started && *accelerator == Accelerator::Kvm {
                println!("vm: the machine does not start under KVM; trying without");
                continue;
            }
            return judge(status);
        }
        bail!("the virtual machine did not start");
    }

    /// Gives the terminal to a shell inside, until that ends.
    pub(super) fn shell(&self) -> Result<()> {
        let accelerator = accelerators().last().copied().unwrap_or(Accelerator::Tcg);
        let words = self.arguments(accelerator, &["shell"], None);
        let status = Command::new(&words[0]).args(&words[1..]).status()?;
        judge(status)
    }

    /// Returns qemu's command line, itself included; `task` goes to the guest's first program.
    fn arguments(&self, accelerator: Accelerator, task: &[&str], filter: Option<&str>) -> Vec<String> {
        let accelerator = match accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        };
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let task = task.iter().copied().chain(filter).collect::<Vec<_>>().join(" ");
        // Everything after `--` is handed to the first program.
        let parameters = format!("console=ttyS0 panic=-1 quiet rdinit=/init -- {task}");
        let (kernel, initramfs) = (path(&self.kernel), path(&self.initramfs));
        let mut words = vec!["qemu-system-x86_64", "-accel", accelerator];
        words.extend(FIXED);
        words.extend(["-kernel", &kernel, "-initrd", &initramfs, "-append", &parameters]);
        words.into_iter().map(str::to_owned).collect()
    }
}

/// Returns what to try, the fastest first.
fn accelerators() -> &'static [Accelerator] {
    // Where neither module is loaded `/dev/kvm` may open nevertheless, and the guest dies at its first instruction.
    let is_loaded = |module: &&str| Path::new("/sys/module").join(module).is_dir();
    if ["kvm_intel", "kvm_amd"].iter().any(is_loaded) {
        return &[Accelerator::Kvm, Accelerator::Tcg];
    }
    &[Accelerator::Tcg]
}

/// Reads qemu's exit status. A guest that panics makes qemu end with 0, so success has a number of its own.
fn judge(status: ExitStatus) -> Result<()> {
    match status.code() {
        Some(guest::PASSED) => Ok(()),
        Some(guest::FAILED) => bail!("failed in the virtual machine; it says above why"),
        Some(124 | 137) => bail!("the virtual machine was stopped after {LIMIT} s"),
        Some(0) => bail!("the virtual machine ended by itself: its kernel panicked, or it was switched off"),
        _ => bail!("qemu ended with {status}"),
    }
}

/// Seconds that the suite may take: emulated, a machine starts in 4 s and computes some ten times slower.
const LIMIT: &str = "420";

/// `-cpu max`: the default processor has no instructions for AES.
const FIXED: &[&str] = &[
    "-machine",
    "q35",
    "-cpu",
    "max",
    "-smp",
    "2",
    "-m",
    "1024",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-no-reboot",
    "-chardev",
    "stdio,id=console,signal=off",
    "-serial",
    "chardev:console",
    "-device",
    "isa-debug-exit,iobase=0xf4,iosize=0x04",
];
