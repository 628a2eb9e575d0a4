//! One enrolled pod.

use std::{
    io,
    net::{IpAddr, TcpListener},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use agent_ebpf::{Address, MAX_ADDRESSES, Pod, Rules, kind, listener};

use super::{Bypass, Capture, Dialler, Error, NetNs, Stats, bypass, listen::Listeners, pins, programs};
use crate::mesh::{OrigDst, Plaintext};

/// One enrolled pod: its listeners and the way into its namespace.
///
/// Dropping it closes its copies of the listeners and leaves the kernel's entries, so that a crashed or restarting agent
/// fails closed; [`Self::unenroll`] takes them away.
#[derive(Debug)]
pub struct PodCapture {
    capture: Arc<Capture>,
    netns: NetNs,
    slot: u32,
    listeners: Listeners,
    /// Its slot has been given back, and may be another's by now.
    released: AtomicBool,
}

impl PodCapture {
    pub(super) fn enroll(
        capture: Arc<Capture>,
        netns: NetNs,
        addresses: &[IpAddr],
        plaintext: &Plaintext,
    ) -> Result<Self, Error> {
        let entry = describe(&netns, addresses)?;
        let slot = capture.slots.take(netns.cookie()).map_err(|why| Error::refused(&netns, why))?;
        match start(&capture, &netns, slot, entry, addresses, plaintext) {
            Ok(listeners) => Ok(Self { capture, netns, slot, listeners, released: AtomicBool::new(false) }),
            Err(error) => {
                // What an earlier agent left stays for the next attempt, and so does what this one made of it.
                capture.slots.abandon(netns.cookie());
                Err(error)
            }
        }
    }

    /// Returns the programs and maps that the pod is enrolled in.
    pub(super) fn capture(&self) -> &Capture {
        &self.capture
    }

    /// Returns the pod's network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Returns whether an earlier agent of the node had enrolled the pod.
    pub fn is_adopted(&self) -> bool {
        self.capture.slots.is_adopted(self.netns.cookie())
    }

    /// Returns non-blocking listeners for captured connections, one for each family in which the pod has an address.
    /// They share one queue with every other copy.
    ///
    /// # Errors
    /// Where there are no descriptors left.
    pub fn outbound_listeners(&self) -> io::Result<Vec<TcpListener>> {
        self.listeners.duplicate([listener::OUTBOUND4, listener::OUTBOUND6])
    }

    /// Returns non-blocking listeners for HBONE connections to the pod, as [`Self::outbound_listeners`] does.
    ///
    /// # Errors
    /// Where there are no descriptors left.
    pub fn hbone_listeners(&self) -> io::Result<Vec<TcpListener>> {
        self.listeners.duplicate([listener::HBONE4, listener::HBONE6])
    }

    /// Returns non-blocking listeners for plaintext from outside that policy has to look at, as
    /// [`Self::outbound_listeners`] does. What they accept has the real client as its peer and the address that was asked
    /// for as its own; its close is a reset until [`end_cleanly`](super::end_cleanly) says otherwise.
    ///
    /// # Errors
    /// Where there are no descriptors left.
    pub fn plaintext_listeners(&self) -> io::Result<Vec<TcpListener>> {
        self.listeners.duplicate([listener::PLAIN4, listener::PLAIN6])
    }

    /// Changes what happens to new plaintext connections from outside. In no moment does one pass that neither the old
    /// nor the new rules let pass.
    ///
    /// # Errors
    /// Where there is no room for the exceptions, or the kernel refuses; the agent then gets to look at all of the pod's
    /// plaintext.
    pub fn set_plaintext(&self, want: &Plaintext) -> Result<(), Error> {
        self.capture.tables.set_plaintext(self.slot, self.netns.cookie(), want)
    }

    /// Returns the connections from outside to the pod's applications that the agent does not carry: not its own, nor
    /// those of the node's own processes. One that is older than the enrolment, and whose listener has been closed since,
    /// cannot be told from one that the pod made itself, and is not among them.
    ///
    /// Takes some microseconds for each socket of the pod, on the thread that calls.
    ///
    /// # Errors
    /// Where the kernel refuses to tell.
    pub fn bypassing(&self) -> io::Result<Vec<Bypass>> {
        let pod = self.capture.tables.read_pod(self.slot).map_err(io::Error::other)?;
        if pod.netns != self.netns.cookie() {
            return Ok(Vec::new()); // un-enrolled
        }
        bypass::find(&self.capture, &self.netns, &pod)
    }

    /// Ends a connection: the application gets ECONNABORTED, and the peer a reset. That it has ended already is no error.
    ///
    /// # Errors
    /// `Unsupported` where the kernel has been built without CONFIG_INET_DIAG_DESTROY; where it refuses otherwise.
    pub fn destroy(&self, bypass: &Bypass) -> io::Result<()> {
        bypass::destroy(&self.netns, bypass)
    }

    /// Takes the original destination of a connection that an outbound listener accepted; it can be taken once.
    ///
    /// The kernel keeps it with the accepted socket itself, so that it can never be that of an earlier or later
    /// connection between the same addresses.
    ///
    /// # Errors
    /// [`Error::NotCaptured`] where the connection did not come through the connect hook.
    pub fn orig_dst(&self, accepted: &impl AsFd) -> Result<OrigDst, Error> {
        match self.capture.tables.take(accepted)? {
            Some(known) if known.kind == kind::ACCEPTED => Ok(OrigDst::new(known.socket_addr())),
            _ => Err(Error::NotCaptured),
        }
    }

    /// Returns what makes connections from inside the pod's namespace.
    pub fn dialler(&self) -> Dialler {
        Dialler::new(self.netns.clone(), Arc::clone(&self.capture.tables))
    }

    /// Follows a change of the pod's addresses. A family that the pod did not have when it was enrolled needs a new
    /// enrolment.
    ///
    /// # Errors
    /// Where the namespace does not hold the addresses, or the kernel refuses.
    pub fn set_addresses(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let entry = describe(&self.netns, addresses)?;
        let tables = &self.capture.tables;
        tables.update_pod(self.slot, self.netns.cookie(), |now| Pod {
            addresses: entry.addresses,
            redirect4: entry.redirect4,
            redirect6: entry.redirect6,
            ..now
        })?;
        tables.node().set_addresses(self.netns.cookie(), addresses)
    }

    /// The first step of un-enrolment: the pod's new connections are let alone from now on. What comes to its HBONE
    /// port is still handed to the agent.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn stop_capture(&self) -> Result<(), Error> {
        self.capture.tables.update_pod(self.slot, self.netns.cookie(), |now| Pod { captures: 0, ..now })
    }

    /// Takes [`Self::stop_capture`] back: the pod is wanted again.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn resume_capture(&self) -> Result<(), Error> {
        self.capture.tables.update_pod(self.slot, self.netns.cookie(), |now| Pod { captures: 1, ..now })
    }

    /// The second step of un-enrolment: takes the pod's entries, programs and slot away. What is established lives on.
    ///
    /// # Errors
    /// Where the kernel refuses; [`Capture::forget_others`] then finishes what is left.
    pub fn unenroll(&self) -> Result<(), Error> {
        if self.released.swap(true, Ordering::AcqRel) || self.capture.is_handed_over() {
            return Ok(());
        }
        let removed = remove(&self.capture, self.netns.cookie(), self.slot);
        match removed {
            Ok(()) => self.capture.slots.release(self.netns.cookie()),
            Err(_) => self.capture.slots.abandon(self.netns.cookie()),
        }
        removed
    }

    /// Leaves the kernel's entries to whoever enrolls the namespace next: until then its captured connections are
    /// refused.
    pub fn hand_over(&self) {
        if !self.released.swap(true, Ordering::AcqRel) {
            self.capture.slots.abandon(self.netns.cookie());
        }
    }

    /// Takes the listeners from where `sk_lookup` finds them: new connections are refused from now on, and what waits in
    /// the queues can still be accepted. To be called on the way out, before the listeners are closed: closing resets
    /// what waits. The other entries stay, and fail closed. Those of a node that has been handed over are the
    /// successor's.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn drain(&self) -> Result<(), Error> {
        if self.capture.is_handed_over() {
            return Ok(());
        }
        (0..listener::COUNT).try_for_each(|which| self.capture.tables.clear_listener(self.slot, which))
    }

    /// Returns the kernel's counters and how full the maps are, with the handshakes of this pod alone.
    ///
    /// # Errors
    /// Where the kernel refuses to tell.
    pub fn stats(&self) -> Result<Stats, Error> {
        Stats::read(&self.capture.tables, vec![self.netns.cookie()])
    }
}

impl Drop for PodCapture {
    fn drop(&mut self) {
        // Un-enrolled, its namespace may be enrolled anew while its last connections still hold this.
        if !*self.released.get_mut() {
            self.capture.slots.abandon(self.netns.cookie());
        }
    }
}

/// Enrolls: the entry that starts capture comes last, when everything that it needs is there.
fn start(
    capture: &Capture,
    netns: &NetNs,
    slot: u32,
    entry: Pod,
    addresses: &[IpAddr],
    plaintext: &Plaintext,
) -> Result<Listeners, Error> {
    let tables = &capture.tables;
    let listeners = Listeners::bind(netns, addresses)?;
    let ports = listeners.ports().map_err(Error::netns(netns))?;
    // A pod that is taken over goes from its old rules to the new ones; one that is new begins with the strictest, before
    // its program is there.
    let now = tables.read_pod(slot)?;
    let rules = if now.netns == entry.netns { now.rules } else { Rules::default() };
    tables.write_pod(slot, &Pod { ports, captures: 1, rules, ..entry })?;
    if let Err(error) = tables.set_plaintext(slot, netns.cookie(), plaintext) {
        // Not enrolled it would get all plaintext unseen; now the agent looks at all of it.
        tracing::warn!(%netns, %error, "the kernel cannot sort the pod's plaintext");
    }
    tables.node().set_addresses(netns.cookie(), addresses)?;
    listeners.publish(tables, slot)?;
    programs::attach_pod(&capture.pins, tables, &capture.host, netns, slot)?;
    tables.admit(netns.cookie(), slot)?;
    Ok(listeners)
}

/// Un-enrolls: first the entry that captures, then the program, then what they used.
pub(super) fn remove(capture: &Capture, netns: u64, slot: u32) -> Result<(), Error> {
    capture.tables.expel(netns)?;
    pins::remove(&capture.pins.pod_link(netns))?;
    pins::remove(&capture.pins.pod_handshakes(netns))?;
    capture.tables.forget(netns, slot)
}

/// Describes the pod for the programs, after a look whether the namespace is the pod's.
fn describe(netns: &NetNs, addresses: &[IpAddr]) -> Result<Pod, Error> {
    if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
        let why = format!("it has {} addresses, and 1 to {MAX_ADDRESSES} can be", addresses.len());
        return Err(Error::refused(netns, why));
    }
    let held = netns.addresses().map_err(Error::netns(netns))?;
    if let Some(missing) = addresses.iter().find(|address| !held.contains(&address.to_canonical())) {
        return Err(Error::missing(netns, *missing));
    }
    let mut pod = Pod { netns: netns.cookie(), ..Pod::default() };
    for (place, address) in pod.addresses.iter_mut().zip(addresses) {
        *place = Address::from(*address);
    }
    let first =
        |v4: bool| pod.addresses.iter().find(|address| !address.is_zero() && address.is_v4() == v4).copied();
    pod.redirect4 = first(true).unwrap_or_default();
    pod.redirect6 = first(false).unwrap_or_default();
    Ok(pod)
}
