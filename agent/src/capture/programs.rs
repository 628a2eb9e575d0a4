//! The eBPF programs: loading, attaching or replacing, pinning.

use std::{
    fs::File,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use agent_ebpf::maps;
use aya::{
    Ebpf, EbpfLoader,
    pin::PinError,
    programs::{
        CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramFd, ProgramType, SkLookup, SockOps,
        links::FdLink,
    },
    sys::{BpfHelper, is_helper_supported},
};

use super::{
    Error, NetNs,
    pins::Pins,
    sys,
    tables::{self, Tables},
};
use crate::memory;

/// The object that `build.rs` made of `agent-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert-ebpf"));

/// The programs that are attached to the cgroup root. `sockops` first and the connect hooks last: what is captured needs
/// all the others.
const NODE_PROGRAMS: [&str; 5] =
    ["culvert_sockops", "culvert_peer4", "culvert_peer6", "culvert_conn4", "culvert_conn6"];

/// The program that is attached to each pod's namespace.
const POD_PROGRAM: &str = "culvert_lookup";

/// Loads the programs of the node and attaches them to the cgroup root, or puts them in the place of those that an
/// earlier agent attached.
pub(super) fn load(pins: &Pins, cgroup: &File, host: &NetNs) -> Result<Tables, Error> {
    let mut ebpf = object(pins, Place { slot: u32::MAX, netns: 0, host: host.cookie() }, None)?;
    for name in NODE_PROGRAMS {
        let program = ebpf.program_mut(name).expect("build.rs has built this program");
        load_one(program).map_err(Error::program(name))?;
        place(program, &pins.link(name), |program| attach_to_cgroup(program, cgroup))
            .map_err(Error::program(name))?;
    }
    Tables::new(&mut ebpf)
}

/// Loads a copy of the pod program for one slot, and attaches it to the pod's namespace, or puts it in the place of the one
/// that an earlier agent attached. The map of handshakes that it shares with the node's programs is that of the copy before,
/// where there is one.
pub(super) fn attach_pod(
    pins: &Pins,
    tables: &Tables,
    host: &NetNs,
    netns: &NetNs,
    slot: u32,
) -> Result<(), Error> {
    let handshakes = pins.pod_handshakes(netns.cookie());
    let place_of = Place { slot, netns: netns.cookie(), host: host.cookie() };
    let mut ebpf = object(pins, place_of, Some(&handshakes))?;
    let program = ebpf.program_mut(POD_PROGRAM).expect("build.rs has built this program");
    load_one(program).map_err(Error::program(POD_PROGRAM))?;
    tables.set_handshakes(netns.cookie(), &tables::take(&mut ebpf, maps::OWN_HANDSHAKES)?)?;
    let program = ebpf.program_mut(POD_PROGRAM).expect("build.rs has built this program");
    place(program, &pins.pod_link(netns.cookie()), |program| attach_to_netns(program, netns))
        .map_err(Error::program(POD_PROGRAM))
}

/// Where a copy of the programs runs.
struct Place {
    /// The pod's slot.
    slot: u32,
    /// The pod's network namespace.
    netns: u64,
    /// The network namespace of the node itself.
    host: u64,
}

/// Parses the object and makes its maps, or opens those that are pinned; a pod's copy also the pod's map of handshakes.
fn object(pins: &Pins, Place { slot, netns, host }: Place, handshakes: Option<&Path>) -> Result<Ebpf, Error> {
    let set_retval = u32::from(has(BpfHelper::BPF_FUNC_set_retval));
    let mptcp_sock = u32::from(tells_mptcp());
    memory::keep_heaps_short();
    let mut loader = EbpfLoader::new();
    loader
        .override_global("SLOT", &slot, true)
        .override_global("NETNS", &netns, true)
        .override_global("HOST", &host, true)
        .override_global("HAS_SET_RETVAL", &set_retval, true)
        .override_global("HAS_MPTCP_SOCK", &mptcp_sock, true);
    for name in maps::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    if let Some(path) = handshakes {
        loader.map_pin_path(maps::OWN_HANDSHAKES, path);
    }
    let loaded = loader.load(OBJECT);
    // It has parsed the kernel's whole BTF, some 20 MB, which malloc would keep.
    drop(loader);
    memory::trim_heap();
    Ok(loaded?)
}

/// Returns whether the programs can tell an MPTCP connection.
pub(super) fn tells_mptcp() -> bool {
    has(BpfHelper::BPF_FUNC_skc_to_mptcp_sock)
}

fn has(helper: BpfHelper) -> bool {
    uninterrupted(|| is_helper_supported(ProgramType::CgroupSockAddr, helper)).unwrap_or(false)
}

fn load_one(program: &mut Program) -> Result<(), ProgramError> {
    uninterrupted(|| match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    })
}

/// Loads again where a signal came in between: the verifier gives up then with EAGAIN (kernel/bpf/verifier.c, `do_check`), also
/// where all that came was a stop and a continuation. libbpf does the same (tools/lib/bpf/bpf.c, `sys_bpf_prog_load`).
fn uninterrupted<T>(mut load: impl FnMut() -> Result<T, ProgramError>) -> Result<T, ProgramError> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if is_interruption(&error) => {}
            done => return done,
        }
    }
    load()
}

fn is_interruption(error: &ProgramError) -> bool {
    let error = match error {
        ProgramError::LoadError { io_error, .. } => io_error,
        ProgramError::SyscallError(error) => &error.io_error,
        _ => return false,
    };
    error.raw_os_error() == Some(libc::EAGAIN)
}

/// Far more than signals come while a program is verified, which takes some milliseconds.
const ATTEMPTS: u32 = 50;

/// Puts a program where the pinned link is, or makes and pins a link.
fn place(
    program: &mut Program,
    pin: &Path,
    attach: impl FnOnce(&mut Program) -> Result<FdLink, ProgramError>,
) -> Result<(), ProgramError> {
    if let Ok(link) = sys::open_pin(pin) {
        // ENOLINK and the like: what it was attached to has gone, and so may the link.
        if sys::link_update(link.as_fd(), descriptor(program)?).is_ok() {
            return Ok(());
        }
        std::fs::remove_file(pin)?;
    }
    match attach(program)?.pin(pin) {
        Ok(_pinned) => Ok(()),
        Err(PinError::SyscallError(error)) => Err(error.into()),
        Err(error) => Err(std::io::Error::other(error).into()),
    }
}

fn descriptor(program: &Program) -> Result<BorrowedFd<'_>, ProgramError> {
    let fd: &ProgramFd = match program {
        Program::CgroupSockAddr(program) => program.fd()?,
        Program::SockOps(program) => program.fd()?,
        Program::SkLookup(program) => program.fd()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    Ok(fd.as_fd())
}

fn attach_to_cgroup(program: &mut Program, cgroup: &File) -> Result<FdLink, ProgramError> {
    // A link allows other programs beside it anyway, and the kernel refuses the flag that says so (EINVAL).
    let mode = CgroupAttachMode::Single;
    let link = match program {
        Program::CgroupSockAddr(program) => {
            let id = CgroupSockAddr::attach(program, cgroup, mode)?;
            FdLink::try_from(program.take_link(id)?)
        }
        Program::SockOps(program) => {
            let id = SockOps::attach(program, cgroup, mode)?;
            FdLink::try_from(program.take_link(id)?)
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    link.map_err(|error| std::io::Error::other(error).into())
}

fn attach_to_netns(program: &mut Program, netns: &NetNs) -> Result<FdLink, ProgramError> {
    let program: &mut SkLookup = program.try_into()?;
    let id = program.attach(netns)?;
    Ok(program.take_link(id)?.into())
}
