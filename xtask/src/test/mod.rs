//! `cargo xtask test`: everything that a change must pass, and one closing line that counts it.
//!
//! ```text
//! setup ──► lint ──► build all test programs once ──► unit ──► fuzz ──► privileged (as root) ──► VMs (6.1, 6.12)
//! ```
//!
//! Programs are built by the user and only run by root, so that no file in the checkout comes to belong to root.

mod again;
mod fuzz;
mod programs;
mod tally;

use std::process::Command;

use anyhow::{Result, bail};

use self::{
    again::Again,
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
    let mut again = Again::default();
    if all || options.unit {
        heading("unit");
        run_unit(&programs, options, tally, &mut again)?;
    }
    if all || options.fuzz {
        heading("fuzz");
        fuzz::run(options.filter.as_deref(), tally)?;
    }
    if let Some(root) = root {
        heading("privileged");
        run_privileged(root, &programs, options, tally, &mut again)?;
    }
    if all || options.vm {
        run_vms(&programs.for_vm()?, options, tally, &mut again);
    }
    Ok(())
}

fn run_unit(programs: &Programs, options: &Options, tally: &mut Tally, again: &mut Again) -> Result<()> {
    for program in programs.units() {
        let command = || {
            let mut command = Command::new(&program.path);
            command.arg(format!("--test-threads={UNIT_THREADS}"));
            Ok(command)
        };
        tally.merge(&run_program(program, command, options, again)?);
    }
    Ok(())
}

/// Runs the suites one after the other: they share the machine's one kernel.
fn run_privileged(
    root: Root,
    programs: &Programs,
    options: &Options,
    tally: &mut Tally,
    again: &mut Again,
) -> Result<()> {
    let mut any = false;
    for program in programs.suites() {
        any = true;
        let command = || {
            let mut command = root.command("timeout", &programs.variables()?);
            // `--foreground` keeps Ctrl-C working.
            command.args(["--foreground", "--kill-after=10", SUITE_LIMIT]).arg(&program.path);
            command.arg(format!("--test-threads={SUITE_THREADS}"));
            Ok(command)
        };
        tally.merge(&run_program(program, command, options, again)?);
    }
    if !any {
        bail!("there is no privileged suite: tests/tests holds none");
    }
    Ok(())
}

/// Runs a program by `command`, and what failed once more.
fn run_program(
    program: &Program,
    command: impl Fn() -> Result<Command>,
    options: &Options,
    again: &mut Again,
) -> Result<Tally> {
    println!("\n{program}");
    let seen = run_once(program, command()?.args(&options.filter))?;
    again.settle(&program.to_string(), seen, |names| run_once(program, command()?.arg("--exact").args(names)))
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

fn run_vms(programs: &vm::Programs, options: &Options, tally: &mut Tally, again: &mut Again) {
    for kernel in vm::Kernel::ALL {
        heading(&format!("kernel {kernel}"));
        let seen = run_vm(kernel, programs, options.filter.as_deref());
        let settled = again.settle(&format!("kernel {kernel}"), seen, |names| {
            let mut seen = Tally::default();
            names.iter().for_each(|name| seen.merge(&run_vm(kernel, programs, Some(name))));
            Ok(seen)
        });
        match settled {
            Ok(settled) => tally.merge(&settled),
            Err(_) => tally.fail(),
        }
    }
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
