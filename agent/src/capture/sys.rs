//! System calls that neither aya nor nix offer. Each does one thing and returns the kernel's error.

#![expect(unsafe_code, reason = "raw system calls")]

use std::{
    ffi::CString,
    io,
    mem::size_of_val,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType};

// Commands of bpf(2), <linux/bpf.h>.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `SO_NETNS_COOKIE` of <asm-generic/socket.h>, which libc does not have for every target.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `NS_GET_NSTYPE` of <linux/nsfs.h>: `_IO(0xb7, 0x3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Opens what is pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // struct { __aligned_u64 pathname; __u32 bpf_fd; __u32 file_flags; }
    let mut attr = [path.as_ptr() as u64, 0];
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel just gave us the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces a link's program, without a moment in which there is none.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // struct { __u32 link_fd; __u32 new_prog_fd; __u32 flags; __u32 old_prog_fd; }
    let mut attr = [link.as_raw_fd(), program.as_raw_fd(), 0, 0];
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link at once, however many pins and descriptors it still has.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [link.as_raw_fd()];
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

fn bpf<T: Copy, const N: usize>(command: libc::c_int, attr: &mut [T; N]) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is the part of the kernel's union that the command reads, of the size given; the kernel takes what
    // is missing for zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of_val(attr)) };
    // Descriptors and error codes fit an int.
    libc::c_int::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}

/// Returns the cookie of the calling thread's network namespace.
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket =
        nix::sys::socket::socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    #[expect(clippy::cast_possible_truncation, reason = "8")]
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Returns the monotonic clock's nanoseconds, which programs know as `bpf_ktime_get_ns`.
pub(super) fn monotonic() -> io::Result<u64> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes the time.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, ptr::from_mut(&mut now)) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Since boot, and never negative.
    Ok(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
}

/// Returns the `CLONE_NEW…` flag of a namespace's kind.
pub(super) fn namespace_type(file: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets the loopback interface of the calling thread's network namespace up; that it is up already is no error.
pub(super) fn raise_loopback() -> io::Result<()> {
    let socket =
        nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeroes are a valid `ifreq`: integers and a pointer that is not read.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed();
    }
    // SAFETY: both requests read the name; the first writes the flags, the second reads them.
    unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, ptr::from_mut(&mut request)) < 0 {
            return Err(io::Error::last_os_error());
        }
        #[expect(clippy::cast_possible_truncation, reason = "1")]
        let up = libc::IFF_UP as libc::c_short;
        if request.ifr_ifru.ifru_flags & up == up {
            return Ok(());
        }
        request.ifr_ifru.ifru_flags |= up;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, ptr::from_mut(&mut request)) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Opens a process, so that its end can be seen.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = libc::c_int::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just gave us the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Succeeds as long as the process has not been reaped.
pub(super) fn pidfd_exists(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: signal 0 is only checked for, and needs no `siginfo_t`.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, ptr::null::<libc::siginfo_t>(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets `IP_BIND_ADDRESS_NO_PORT`: `bind` to port 0 leaves the choice to `connect`, which knows the other end and can
/// use a port once for each.
pub(super) fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    #[expect(clippy::cast_possible_truncation, reason = "4")]
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `on`. The option is one of IPPROTO_IP for IPv6 sockets too (ip(7)).
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            ptr::from_ref(&on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns how many bytes the peer of a TCP socket has not acknowledged yet, its FIN counted as one (`SIOCOUTQ`).
pub(super) fn unacknowledged(socket: impl AsFd) -> io::Result<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int. TIOCOUTQ and SIOCOUTQ are one number (tcp(7)).
    let result =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, ptr::from_mut(&mut bytes)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}
