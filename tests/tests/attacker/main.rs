//! What an attacker gets who has a pod, with CAP_NET_RAW, CAP_NET_ADMIN and namespaces of its own in it, or a whole
//! node's certificates: no other pod's identity, no place as the pod itself, nothing that is another's, and no way to keep
//! others out. docs/security.md says the same in prose.

mod forged;
mod hostile;
mod packets;
mod shares;
mod world;
