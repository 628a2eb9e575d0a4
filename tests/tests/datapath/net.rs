//! Network namespaces of the suite's own.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    thread,
};

use culvert::{capture::NetNs, mesh::NetnsRef};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
};

use crate::netlink;

/// A network namespace that lives as long as this value and what was made in it.
pub(crate) struct Net {
    file: File,
}

impl Net {
    /// Makes a namespace with its loopback up.
    pub(crate) fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("this suite needs root: cannot make a network namespace");
            netlink::up(1).expect("bringing lo up");
            File::open("/proc/thread-self/ns/net").expect("opening the new namespace")
        });
        Self { file: file.join().expect("making a namespace") }
    }

    /// Returns another handle on the same namespace.
    pub(crate) fn share(&self) -> Self {
        Self { file: self.file.try_clone().expect("a descriptor") }
    }

    /// Joins two namespaces by a veth pair called eth0.
    pub(crate) fn join(&self, other: &Self, here: &[IpAddr], there: &[IpAddr]) {
        self.join_as("eth0", other, here, there);
    }

    /// Joins two namespaces by a veth pair.
    pub(crate) fn join_as(&self, name: &str, other: &Self, here: &[IpAddr], there: &[IpAddr]) {
        self.run(|| netlink::veth(name, other.file.as_raw_fd()).expect("making a veth pair"));
        for (net, addresses) in [(self, here), (other, there)] {
            net.run(|| {
                let index = if_nametoindex(name).expect("the link has just been made");
                netlink::up(index).expect("bringing a link up");
                for address in addresses {
                    let prefix = if address.is_ipv4() { 24 } else { 64 };
                    netlink::address(index, *address, prefix).expect("giving a link an address");
                }
            });
        }
    }

    /// Sends everything else to a gateway.
    pub(crate) fn default_route(&self, gateway: IpAddr) {
        self.run(|| netlink::default_route(gateway).expect("adding a default route"));
    }

    /// Runs a closure on a thread of its own inside the namespace.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Opens the namespace as the agent does.
    pub(crate) fn open(&self) -> NetNs {
        NetNs::open(&NetnsRef::Path(self.path())).expect("opening a namespace by its path")
    }

    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.file.as_raw_fd().to_string())
    }
}
