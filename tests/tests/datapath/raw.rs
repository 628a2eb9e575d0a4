//! Sockets that the standard library does not make.

#![expect(unsafe_code, reason = "raw system calls")]

use std::{
    io,
    mem::size_of_val,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    ptr,
};

use nix::{
    libc,
    sched::{CloneFlags, clone},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind as nix_bind,
            connect as nix_connect, sendto, socket,
        },
        wait::{WaitStatus, waitpid},
    },
};

const IPPROTO_MPTCP: libc::c_int = 262;

/// Makes a TCP socket that is neither bound nor connected.
pub(crate) fn tcp(of: SocketAddr) -> OwnedFd {
    let family = if of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("making a socket")
}

/// Makes an MPTCP socket; none where the kernel has no MPTCP.
pub(crate) fn mptcp(of: SocketAddr) -> Option<OwnedFd> {
    let family = if of.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP) };
    // SAFETY: the kernel just gave us the descriptor.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn connect(socket: &impl AsFd, to: SocketAddr) -> io::Result<()> {
    Ok(nix_connect(socket.as_fd().as_raw_fd(), &SockaddrStorage::from(to))?)
}

pub(crate) fn bind(socket: &impl AsFd, to: SocketAddr) -> io::Result<()> {
    Ok(nix_bind(socket.as_fd().as_raw_fd(), &SockaddrStorage::from(to))?)
}

/// Connects by a process of its own that is in a cgroup.
pub(crate) fn connect_in_cgroup(cgroup: &Path, socket: &impl AsFd, to: SocketAddr) -> io::Result<()> {
    let (wait, go) = io::pipe()?;
    let child = || {
        let moved = nix::unistd::read(&wait, &mut [0]).map_err(io::Error::from);
        let connected = moved.and_then(|_| connect(socket, to));
        connected.err().map_or(0, |error| error.raw_os_error().unwrap_or(255)) as isize
    };
    // It shares this process's descriptors. With copies of them, as after fork, it would keep open for a while what other tests
    // close meanwhile: sockets that are to end, and the lock of an agent that starts again.
    let (flags, mut stack) = (CloneFlags::CLONE_FILES, vec![0; 64 * 1024]);
    // SAFETY: the child makes nothing but system calls, on a stack of its own, and ends.
    let child = unsafe { clone(Box::new(child), &mut stack, flags, Some(libc::SIGCHLD)) }?;
    std::fs::write(cgroup.join("cgroup.procs"), child.to_string())?;
    nix::unistd::write(&go, &[0])?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, code) => Err(io::Error::from_raw_os_error(code)),
        status => panic!("the process in {} ended with {status:?}", cgroup.display()),
    }
}

/// Dissolves a connection by `connect` to AF_UNSPEC, so that the socket can be used again.
pub(crate) fn disconnect(socket: &impl AsFd) -> io::Result<()> {
    let unspec = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the kernel reads the structure.
    let result = unsafe {
        libc::connect(socket.as_fd().as_raw_fd(), &raw const unspec, size_of_val(&unspec) as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Connects and sends in one call, TCP Fast Open's `sendto`.
pub(crate) fn send_fast_open(socket: &impl AsFd, to: SocketAddr, data: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    Ok(sendto(socket.as_fd().as_raw_fd(), data, &SockaddrStorage::from(to), flags)?)
}

/// Sets an option whose value is a number.
pub(crate) fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set_bytes(socket, level, option, &value.to_ne_bytes())
}

/// Sets an option whose value is anything.
pub(crate) fn set_bytes(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    // SAFETY: the kernel reads `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a SYN that no socket made, as a process with CAP_NET_RAW can.
pub(crate) fn forge_syn(from: SocketAddr, to: SocketAddr) {
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let (source, destination) = (octets(from.ip()), octets(to.ip()));
    let pseudo = [&source[..], &destination, &[0, 6, 0, 20], &tcp].concat();
    tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    // For IPv4 the kernel fills in the header's checksum and length.
    let (family, start) = match to.ip() {
        IpAddr::V4(_) => (AddressFamily::Inet, vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]),
        IpAddr::V6(_) => (AddressFamily::Inet6, vec![0x60, 0, 0, 0, 0, 20, 6, 64]),
    };
    let packet = [start, source, destination, tcp].concat();
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).expect("a raw socket");
    // The port says which protocol a raw IPv6 socket sends, and it is in the header already.
    let to = SocketAddr::new(to.ip(), 0);
    sendto(raw.as_raw_fd(), &packet, &SockaddrStorage::from(to), MsgFlags::empty())
        .expect("sending a forged SYN");
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// A descriptor as a stream.
pub(crate) fn stream(socket: OwnedFd) -> TcpStream {
    socket.into()
}

/// What a pinned object of bpf(2) is: the kind that the test says, and the kernel's id.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum BpfId {
    Program(u32),
    Map(u32),
    Link(u32),
}

const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;

/// Returns the ids of what is pinned at a path: of a map, or of a link and its program.
pub(crate) fn ids(path: &Path) -> Vec<BpfId> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let link = name.starts_with("link-") || name.starts_with("pod-");
    let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("a path");
    let mut get = [c_path.as_ptr() as u64, 0];
    let pinned =
        bpf(BPF_OBJ_GET, &mut get).unwrap_or_else(|error| panic!("opening {}: {error}", path.display()));
    // Both kinds of information begin: type, id; a link's goes on with its program's id.
    let mut info = [0u32; 64];
    // struct { __u32 bpf_fd; __u32 info_len; __aligned_u64 info; }
    let mut ask =
        [u64::from(pinned.as_raw_fd() as u32) | (size_of_val(&info) as u64) << 32, info.as_mut_ptr() as u64];
    bpf_number(BPF_OBJ_GET_INFO_BY_FD, &mut ask).expect("asking for a pin's id");
    if link { vec![BpfId::Link(info[1]), BpfId::Program(info[2])] } else { vec![BpfId::Map(info[1])] }
}

/// Returns whether the map that is pinned at a path has no entry.
pub(crate) fn is_empty(path: &Path) -> bool {
    let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("a path");
    let map = bpf(BPF_OBJ_GET, &mut [c_path.as_ptr() as u64, 0]).expect("opening a pinned map");
    // struct { __u32 map_fd; __aligned_u64 key; __aligned_u64 next_key; __u64 flags; }: no key asks for the first.
    let mut key = [0u64; 32];
    match bpf_number(BPF_MAP_GET_NEXT_KEY, &mut [map.as_raw_fd() as u64, 0, key.as_mut_ptr() as u64, 0]) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => panic!("asking for the first key of {}: {error}", path.display()),
    }
}

/// Returns whether the kernel still has an object.
pub(crate) fn exists(id: BpfId) -> bool {
    let (command, id) = match id {
        BpfId::Program(id) => (BPF_PROG_GET_FD_BY_ID, id),
        BpfId::Map(id) => (BPF_MAP_GET_FD_BY_ID, id),
        BpfId::Link(id) => (BPF_LINK_GET_FD_BY_ID, id),
    };
    bpf(command, &mut [u64::from(id), 0]).is_ok()
}

fn bpf(command: libc::c_int, attr: &mut [u64; 2]) -> io::Result<OwnedFd> {
    let fd = bpf_number(command, attr)?;
    // SAFETY: the kernel just gave us the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf_number<const WORDS: usize>(command: libc::c_int, attr: &mut [u64; WORDS]) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is the part of the kernel's union that the command reads.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of_val(attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

/// Sends one datagram and returns it as the other side got it.
pub(crate) fn datagram(from: &UdpSocket, to: SocketAddr) {
    from.connect(to).expect("connecting a UDP socket");
    from.send(b"datagram").expect("sending a datagram");
}
