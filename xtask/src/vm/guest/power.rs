//! Switching the machine off with a number, by qemu's `isa-debug-exit` device.

use std::io::Write as _;

use nix::{
    sys::reboot::{RebootMode, reboot},
    sys::termios::tcdrain,
};

/// The device's port, as given to qemu.
const PORT: u16 = 0xf4;

/// What is written to the port where all went well.
pub(super) const SUCCESS: u8 = 0x10;

/// What is written to the port where something failed.
pub(super) const FAILURE: u8 = 0x11;

/// Returns the status with which qemu exits when `value` is written (hw/misc/debugexit.c).
pub(super) const fn status(value: u8) -> i32 {
    ((value as i32) << 1) | 1
}

/// Ends the machine with `value`. Returns only where everything failed.
pub(super) fn off(value: u8) {
    // The device ends qemu at once, with whatever the console has not sent yet.
    let flushed = std::io::stdout().flush();
    let drained = tcdrain(std::io::stdout());
    if flushed.is_err() || drained.is_err() {
        eprintln!("guest: the console's last words may be missing");
    }
    write_port(value);
    // There is no such device. qemu then ends with 0, which counts as failure.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("guest: switching off: {error}");
}

/// Writes to the port. Debian's cloud kernels have no `/dev/port`, so this is the processor's own instruction.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "port I/O has no safe interface")]
fn write_port(value: u8) {
    // SAFETY: `ioperm` takes numbers and no pointers; it grants this thread four ports, or fails.
    let granted = unsafe { libc::ioperm(u64::from(PORT), 4, 1) };
    if granted != 0 {
        eprintln!("guest: port {PORT:#x} is refused: {}", std::io::Error::last_os_error());
        return;
    }
    // SAFETY: the port was granted above, and the device behind it does nothing but end the machine.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") PORT, in("al") value, options(nomem, nostack, preserves_flags));
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn write_port(_value: u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_is_no_status_that_anything_else_has() {
        assert_eq!(status(SUCCESS), 33);
        assert_ne!(status(FAILURE), status(SUCCESS));
    }
}
