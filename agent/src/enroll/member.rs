//! One pod that is in the mesh, or leaves it: what of it the kernel has been told.

use std::net::IpAddr;

use tokio::time::Instant;

use crate::{
    capture,
    mesh::Plaintext,
    proxy::{Pod, Terms},
};

use super::place::Place;

/// A pod that is in the mesh, or leaves it.
pub(super) struct Member {
    pub(super) pod: Pod,
    pub(super) place: Place,
    /// When the pod has left the mesh, where it leaves.
    pub(super) leaving: Option<Instant>,
    /// The addresses that the kernel knows.
    addresses: Vec<IpAddr>,
    /// What the kernel is to do with plaintext, by the pod's terms.
    wanted: Plaintext,
    /// What the kernel does with plaintext; none where nobody knows, since it could not be told.
    plaintext: Option<Plaintext>,
    /// The connections that bypass the agent are to be looked at, once the kernel knows what it does with plaintext.
    sweep: bool,
}

impl Member {
    /// Takes in a pod for which the kernel has been told what it does with plaintext.
    pub(super) fn new(pod: Pod, place: Place, addresses: &[IpAddr], plaintext: Plaintext) -> Self {
        let addresses = addresses.to_vec();
        let wanted = plaintext.clone();
        Self { pod, place, leaving: None, addresses, wanted, plaintext: Some(plaintext), sweep: false }
    }

    /// Returns what the kernel does with plaintext; none where it could not be told.
    pub(super) fn plaintext(&self) -> Option<&Plaintext> {
        self.plaintext.as_ref()
    }

    /// Takes the terms of a newer snapshot: what the agent itself decides follows at once.
    pub(super) fn set_terms(&mut self, terms: Terms) {
        if self.pod.set_terms(terms) {
            self.sweep = true;
            self.wanted = self.pod.terms().plaintext();
        }
    }

    /// Begins the pod's leave, which is over when [`Self::leaving`] says: its new connections are let alone from now on,
    /// and so is plaintext that comes to it, which peers send that know.
    pub(super) fn stop_capture(&mut self) {
        let workload = self.pod.workload();
        if let Err(error) = self.pod.capture().stop_capture() {
            tracing::error!(pod = %workload, %error, "its traffic is still captured");
        }
        // Who leaves or comes back does so with its old connections, as any pod does.
        self.sweep = false;
        self.pod.let_be();
        if let Err(error) = self.tell(&Plaintext::pass()) {
            tracing::error!(pod = %workload, %error, "policy still applies to plaintext that comes to it");
        }
    }

    /// Keeps up to date a pod that is in the mesh, or comes back.
    pub(super) fn keep(&mut self, addresses: &[IpAddr]) -> Result<(), capture::Error> {
        if self.leaving.is_some() {
            self.pod.capture().resume_capture()?;
            self.leaving = None;
            tracing::info!(pod = %self.pod.workload(), "the pod is back in the mesh");
        }
        if self.addresses != addresses {
            self.pod.capture().set_addresses(addresses)?;
            self.addresses = addresses.to_vec();
        }
        Ok(())
    }

    /// Tells the kernel what to do with plaintext where that has changed, and then has the connections looked at that it
    /// let in before.
    pub(super) fn enforce(&mut self) -> Result<(), capture::Error> {
        let told = self.tell(&self.wanted.clone());
        if std::mem::take(&mut self.sweep) && self.leaving.is_none() {
            self.pod.sweep();
        }
        told
    }

    fn tell(&mut self, want: &Plaintext) -> Result<(), capture::Error> {
        if self.plaintext.as_ref() == Some(want) {
            return Ok(());
        }
        // Where it fails, the agent gets to look at all of it (`PodCapture::set_plaintext`), and it is tried again.
        self.plaintext = None;
        self.pod.capture().set_plaintext(want)?;
        self.plaintext = Some(want.clone());
        Ok(())
    }
}

/// What of a pod has gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Gone {
    /// The pod itself.
    Pod,
    /// The network namespace that it had.
    Namespace,
    /// The identity that it had; its namespace is that of its successor.
    Identity,
    /// Its place in the mesh only: its connections go on.
    Membership,
}

/// Ends a pod's membership. Its entries in the kernel stay where its namespace has an heir, who takes them over.
pub(super) fn end(member: &Member, gone: bool, heir: bool) {
    let workload = member.pod.workload();
    if gone {
        member.pod.abort();
    }
    if heir {
        member.pod.capture().hand_over();
    } else if let Err(error) = member.pod.capture().unenroll() {
        tracing::error!(pod = %workload, %error, "what the kernel holds for the pod could not be removed");
    }
    tracing::info!(pod = %workload, gone, "the pod is out of the mesh");
}
