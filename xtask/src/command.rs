//! Running other programs, as the user or as root.

use std::{
    ffi::{OsStr, OsString},
    io::{IsTerminal as _, Read, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::Uid;

use crate::layout;

/// Returns cargo itself, to run in the root of the checkout.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(layout::root());
    // What `cargo run` told this process about its own package; build scripts must not see another package's.
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"CARGO_PKG_") || bytes.starts_with(b"CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    // Meant for the cargo inside the agent's build script alone (.cargo/config.toml).
    cargo.env_remove("CARGO_TERM_QUIET");
    cargo
}

/// Runs a command to its end with this process's input and output; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", shown(command)))?;
    ensure!(status.success(), "{} failed: {status}", shown(command));
    Ok(())
}

/// Runs a command and returns what it printed, without the white space around it; anything but success is an error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("starting {}", shown(command)))?;
    ensure!(output.status.success(), "{} failed: {}", shown(command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Returns what a command printed, or nothing where it is not installed or fails.
pub(crate) fn probe(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command, showing its output as it comes, and hands every line of it to `line`.
pub(crate) fn watch(command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("starting {}", shown(command)))?;
    let copied = copy_lines(&mut child, &mut line);
    let status = child.wait().with_context(|| format!("waiting for {}", shown(command)))?;
    copied.with_context(|| format!("reading the output of {}", shown(command)))?;
    Ok(status)
}

fn copy_lines(child: &mut Child, line: &mut impl FnMut(&str)) -> std::io::Result<()> {
    let Some(mut stdout) = child.stdout.take() else { return Ok(()) };
    let (mut chunk, mut pending) = ([0; 8192], Vec::new());
    loop {
        let length = stdout.read(&mut chunk)?;
        // Shown at once and not by the line: libtest prints a test's name before it runs it.
        let mut out = std::io::stdout().lock();
        out.write_all(&chunk[..length])?;
        out.flush()?;
        pending.extend_from_slice(&chunk[..length]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let complete: Vec<u8> = pending.drain(..=end).collect();
            line(String::from_utf8_lossy(&complete).trim_end());
        }
        if length == 0 {
            line(String::from_utf8_lossy(&pending).trim_end());
            return Ok(());
        }
    }
}

/// Returns where programs are looked for: also where Debian puts those for administrators, such as nginx, bpftool and
/// modinfo, and where its ordinary users do not look.
pub(crate) fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// A way to run programs as root.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Root {
    /// This process is root.
    Already,
    /// `sudo` has been asked, and agreed.
    Sudo,
}

impl Root {
    /// Finds a way to be root for `purpose`, asking for the user's password where `sudo` wants it.
    pub(crate) fn acquire(purpose: &str) -> Result<Self> {
        if Uid::effective().is_root() {
            return Ok(Self::Already);
        }
        let advice = "run this as root, or as a user who may use sudo";
        if probe(Command::new("sudo").arg("--version")).is_none() {
            bail!("{purpose} needs root, and there is no sudo: {advice}");
        }
        eprintln!("{purpose} needs root; sudo is used for that alone.");
        let mut sudo = Command::new("sudo");
        if !std::io::stdin().is_terminal() {
            sudo.arg("--non-interactive");
        }
        run(sudo.arg("--validate")).with_context(|| format!("{purpose} needs root: {advice}"))?;
        Ok(Self::Sudo)
    }

    /// Returns a command that runs `program` as root, with `variables` in its environment.
    pub(crate) fn command<N, V>(self, program: impl AsRef<OsStr>, variables: &[(N, V)]) -> Command
    where
        N: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        let mut command = match self {
            Self::Already => Command::new("env"),
            Self::Sudo => Command::new("sudo"),
        };
        if matches!(self, Self::Sudo) {
            command.arg("env");
        }
        for (name, value) in variables {
            let mut assignment = name.as_ref().to_owned();
            assignment.push("=");
            assignment.push(value);
            command.arg(assignment);
        }
        command.arg(program);
        command
    }
}

/// Replaces this process with itself as root for `purpose`, so that Ctrl-C reaches that part alone: the same arguments, and
/// `flag` after the task's name. Of the environment it has `variables`, where programs are, and whether colours are wanted.
pub(crate) fn go_on_as_root(purpose: &str, flag: &str, variables: &[(&str, OsString)]) -> Result<()> {
    let root = Root::acquire(purpose)?;
    let this = std::env::current_exe().context("finding this program's own path")?;
    let mut all = variables.to_vec();
    all.push(("PATH", path()));
    all.extend(std::env::var_os("NO_COLOR").map(|value| ("NO_COLOR", value)));
    let mut command = root.command(this, &all);
    let mut arguments = std::env::args_os().skip(1);
    command.args(arguments.next()).arg(flag).args(arguments);
    Err(command.exec()).context("starting the part that needs root")
}

/// Renders a command as a person would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
