//! Ctrl-C, SIGTERM and SIGHUP remove every live mesh of the process before it ends.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Condvar, Mutex, Once, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::OFlag,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction},
    unistd::pipe2,
};

use crate::registry;

/// Waits until the user interrupts, and then returns instead of ending the process: the caller drops its meshes itself.
pub fn wait_for_interrupt() -> Result<()> {
    install()?;
    let mut state = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    *state = Held::Waiting;
    while *state == Held::Waiting {
        state = WAKE.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    Ok(())
}

/// Installs the handlers, once a process.
pub(crate) fn install() -> Result<()> {
    static ONCE: Once = Once::new();
    static RESULT: OnceLock<Result<(), String>> = OnceLock::new();
    ONCE.call_once(|| {
        let _ = RESULT.set(try_install().map_err(|error| format!("{error:#}")));
    });
    match RESULT.get() {
        Some(Err(error)) => bail!("installing the handlers of SIGINT, SIGTERM and SIGHUP: {error}"),
        _ => Ok(()),
    }
}

/// An error once an interrupt is being handled, so that nothing is made behind the removal's back.
pub(crate) fn refuse_while_closing() -> Result<()> {
    if CLOSING.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Held {
    No,
    Waiting,
    Released,
}

static HELD: Mutex<Held> = Mutex::new(Held::No);
static WAKE: Condvar = Condvar::new();
static CLOSING: AtomicBool = AtomicBool::new(false);
/// The pipe into which the handler writes; a signal handler can do little else.
static PIPE: AtomicI32 = AtomicI32::new(-1);

fn try_install() -> Result<()> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("a pipe")?;
    PIPE.store(write.as_raw_fd(), Ordering::SeqCst);
    // Open as long as the process lives.
    std::mem::forget(write);
    thread::Builder::new().name("interrupt".to_owned()).spawn(move || watch(read)).context("a thread")?;
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        #[expect(unsafe_code, reason = "a signal handler is unsafe to install")]
        // SAFETY: the handler only writes a byte to a pipe, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("{signal}"))?;
    }
    Ok(())
}

extern "C" fn handler(signal: i32) {
    let byte = [u8::try_from(signal).unwrap_or(0)];
    #[expect(unsafe_code, reason = "`write` by number: borrowing the descriptor is unsafe")]
    // SAFETY: the descriptor was opened before the handler was installed and is never closed.
    let pipe = unsafe { std::os::fd::BorrowedFd::borrow_raw(PIPE.load(Ordering::SeqCst)) };
    let _ = nix::unistd::write(pipe, &byte);
}

fn watch(read: OwnedFd) {
    let mut signal = [0];
    let mut pipe = File::from(read);
    while pipe.read_exact(&mut signal).is_ok() {
        let mut state = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == Held::Waiting {
            *state = Held::Released;
            WAKE.notify_all();
            continue;
        }
        drop(state);
        CLOSING.store(true, Ordering::SeqCst);
        eprintln!("\ninterrupted: removing namespaces, processes and pins …");
        registry::remove_all();
        end_by(i32::from(signal[0]));
    }
}

/// Ends the process as the signal would have, so that a shell sees what happened.
fn end_by(signal: i32) {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let Ok(signal) = Signal::try_from(signal) else { return };
    #[expect(unsafe_code, reason = "a signal's disposition is unsafe to change")]
    // SAFETY: the default disposition runs no code of this process.
    let _ = unsafe { sigaction(signal, &default) };
    let _ = raise(signal);
}
