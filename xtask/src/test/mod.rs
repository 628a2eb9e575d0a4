//! `cargo xtask test`: everything that a change must pass, and one closing line that counts it.
//!
//! ```text
//! setup ──► lint ──► build all test programs once ──► unit ──► fuzz ──► privileged (as root) ──► VMs (6.1, 6.12)
//! ```
//!
//! Programs are built by the user and only run by root, so that no file in the checkout comes to belong to root.

mod fuzz;
mod programs;
mod tally;

use std::process::Command;

use anyhow::{Result, bail};

use self::{
    programs::{Program, Programs},
    tally::Tally,
};
use crate::{command, command::Root, lint, setup, vm};

/// Which parts to run; all of them where none is named.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run the tests that need nothing
    #[arg(long)]
    unit: bool,
    /// Give random bytes to what reads identities, certificates and signing requests, for a minute and a half
    #[arg(long)]
    fuzz: bool,
    /// Run the suites that need root: pods in network namespaces, real agents, real programs
    #[arg(long)]
    privileged: bool,
    /// Run the eBPF suite in virtual machines, on each of the supported Debian kernels
    #[arg(long)]
    vm: bool,
    /// Run only tests whose names contain this
    filter: Option<String>,
}

impl Options {
    fn is_everything(&self) -> bool {
        !(self.unit || self.fuzz || self.privileged || self.vm)
    }

    /// What is fuzzed is built apart, and needs none of the test programs.
    fn is_fuzzing_alone(&self) -> bool {
        self.fuzz && !(self.unit || self.privileged || self.vm)
    }
}

/// Runs the parts and prints the closing line, whatever happens on the way.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut tally = Tally::default();
    if let Err(error) = run_parts(options, &mut tally) {
        eprintln!("error: {error:#}");
        tally.fail();
    }
    for name in tally.unsteady() {
        println!("\nUNSTEADY: {name} failed, and passed by itself: its first failure is above");
    }
    // Alone on its line: machines read it too.
    println!("\n{tally}");
    tally.verdict()
}

/// Runs the parts in the order of their cost. An error here is one that leaves nothing to go on with.
fn run_parts(options: &Options, tally: &mut Tally) -> Result<()> {
    let all = options.is_everything();
    setup::run(setup::Purpose::Test)?;
    let privileged = all || options.privileged;
    // Asked for first, so that nobody waits at a machine that waits for a password.
    let root = if privileged { Some(Root::acquire("running the privileged suites")?) } else { None };
    if all {
        heading("lint");
        tally.add(lint::count(), lint::failures().len());
    }
    if options.is_fuzzing_alone() {
        heading("fuzz");
        return fuzz::run(options.filter.as_deref(), tally);
    }
    heading("build");
    let programs = Programs::build()?;
    if all || options.unit {
        heading("unit");
        run_unit(&programs, options, tally)?;
    }
    if all || options.fuzz {
        heading("fuzz");
        fuzz::run(options.filter.as_deref(), tally)?;
    }
    if let Some(root) = root {
        heading("privileged");
        run_privileged(root, &programs, options, tally)?;
    }
    if all || options.vm {
        run_vms(&programs.for_vm()?, options, tally)?;
    }
    Ok(())
}

fn run_unit(programs: &Programs, options: &Options, tally: &mut Tally) -> Result<()> {
    for program in programs.units() {
        let command = || {
            let mut command = Command::new(&program.path);
            command.arg(format!("--test-threads={UNIT_THREADS}"));
            command
        };
        run_program(program, command, options, tally)?;
    }
    Ok(())
}

/// Runs the suites one after the other: they share the machine's one kernel.
fn run_privileged(root: Root, programs: &Programs, options: &Options, tally: &mut Tally) -> Result<()> {
    let variables = programs.variables()?;
    let mut any = false;
    for program in programs.suites() {
        any = true;
        let command = || {
            let mut command = root.command("timeout", &variables);
            // `--foreground` keeps Ctrl-C working.
            command.args(["--foreground", "--kill-after=10", SUITE_LIMIT]).arg(&program.path);
            command.arg(format!("--test-threads={SUITE_THREADS}"));
            command
        };
        run_program(program, command, options, tally)?;
    }
    if !any {
        bail!("there is no privileged suite: tests/tests holds none");
    }
    Ok(())
}

/// Runs a program by `command`, and what failed once more.
fn run_program(
    program: &Program,
    command: impl Fn() -> Command,
    options: &Options,
    tally: &mut Tally,
) -> Result<()> {
    println!("\n{program}");
    let seen = run_once(program, command().args(&options.filter))?;
    tally.settle(&program.to_string(), seen, |names| run_once(program, command().arg("--exact").args(names)))
}

fn run_once(program: &Program, command: &mut Command) -> Result<Tally> {
    // As cargo does it, so that a test finds its own package's files.
    command.current_dir(&program.folder);
    let mut seen = Tally::default();
    let status = command::watch(command, |line| seen.read(line))?;
    if !status.success() && seen.failed() == 0 {
        eprintln!("error: {program} ended early: {status}");
        seen.fail();
    }
    Ok(seen)
}

fn run_vms(programs: &vm::Programs, options: &Options, tally: &mut Tally) -> Result<()> {
    for kernel in vm::Kernel::ALL {
        heading(&format!("kernel {kernel}"));
        let seen = run_vm(kernel, programs, options.filter.as_deref());
        tally.settle(&format!("kernel {kernel}"), seen, |names| {
            let mut seen = Tally::default();
            names.iter().for_each(|name| seen.merge(&run_vm(kernel, programs, Some(name))));
            Ok(seen)
        })?;
    }
    Ok(())
}

fn run_vm(kernel: vm::Kernel, programs: &vm::Programs, filter: Option<&str>) -> Tally {
    let mut seen = Tally::default();
    let outcome = vm::run_suite(kernel, programs, filter, |line| seen.read(line));
    if let Err(error) = outcome {
        eprintln!("error: kernel {kernel}: {error:#}");
        if seen.failed() == 0 {
            seen.fail();
        }
    }
    seen
}

fn heading(part: &str) {
    println!("\n=== {part} ===");
}

/// Builds what runs in virtual machines.
pub(crate) fn vm_programs() -> Result<vm::Programs> {
    Programs::build()?.for_vm()
}

/// Seconds that one suite may take natively: several times what the longest takes on two cores.
const SUITE_LIMIT: &str = "900";

/// Tests of one program without privileges that run at once: many wait for a deadline or for a file to be noticed.
const UNIT_THREADS: usize = 4;

/// Tests of one suite that run at once. They wait more than they compute, but they measure the machine they share.
const SUITE_THREADS: usize = 3;
