//! What the container runtime said of the pods' network namespaces, by CNI ADD and DEL.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::TooMany;
use crate::{mesh::Workload, run_directory::write_private};

/// More than any node has pods (the agent enrols 1,024): beyond, the runtime forgets to send DEL.
const MAX: usize = 4096;

/// A pod's sandbox as the container runtime describes it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attachment {
    /// The pod's `metadata.uid`; of a static pod the kubelet's own, which the API server does not know. Empty where the
    /// runtime does not tell.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The id of the sandbox's container.
    pub container: String,
    /// The interface inside.
    pub interface: String,
    /// A file that the network namespace is mounted on.
    pub netns: PathBuf,
    /// The addresses that it was given, canonical.
    pub addresses: Vec<IpAddr>,
}

/// All of a node, oldest first.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Attachments(Vec<Attachment>);

impl Attachments {
    /// Reads what was saved; nothing where there is no file or it cannot be read: the processes tell then.
    pub(super) fn load(path: &Path) -> Self {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "the saved attachments of pods cannot be read; pods are found by their processes");
                Self::default()
            }),
            Err(_) => Self::default(),
        }
    }

    /// Writes the file anew, whole or not at all.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        write_private(path, &serde_json::to_vec(self)?)
    }

    pub(super) fn add(&mut self, attachment: Attachment) -> Result<(), TooMany> {
        self.remove(&attachment.container, &attachment.interface);
        if self.0.len() >= MAX {
            return Err(TooMany(MAX));
        }
        self.0.push(attachment);
        Ok(())
    }

    /// Returns the last that was added for a pod: by its uid, and where the uid is none of the API server's (a static
    /// pod) or was not told, by its name.
    pub(super) fn of(&self, pod: &Workload) -> Option<Attachment> {
        let named = |attachment: &&Attachment| {
            *attachment.namespace == *pod.namespace && *attachment.name == *pod.name
        };
        let last = |by_uid: bool| {
            let mut found = self.0.iter().rev();
            found.find(|attachment| if by_uid { *attachment.uid == *pod.uid } else { named(attachment) })
        };
        // A manifest without a uid makes one of the name.
        let named_only = pod.uid.contains('/');
        let by_name = || last(false).filter(|found| named_only || may_be_unknown(&found.uid));
        last(true).or_else(by_name).cloned()
    }

    /// Returns whether there was one.
    pub(super) fn remove(&mut self, container: &str, interface: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|known| known.container != container || known.interface != interface);
        self.0.len() != before
    }

    pub(super) fn retain(&mut self, valid: &[(String, String)]) -> bool {
        let before = self.0.len();
        self.0.retain(|known| {
            valid
                .iter()
                .any(|(container, interface)| known.container == *container && known.interface == *interface)
        });
        self.0.len() != before
    }
}

/// Whether a uid is one that the API server may not know the pod by: none, or a static pod's, which is a hash without
/// dashes (the kubelet's `applyDefaults`). A uid of the API server's names one pod alone, and a pod of the same name after
/// it has another.
fn may_be_unknown(uid: &str) -> bool {
    !uid.contains('-')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mesh::{Identity, TrustDomain};

    fn attachment(uid: &str, container: &str) -> Attachment {
        Attachment {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            container: container.to_owned(),
            interface: "eth0".to_owned(),
            netns: format!("/var/run/netns/{container}").into(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
        }
    }

    fn pod(uid: &str) -> Workload {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let identity = Identity::new(domain, "shop", "web").unwrap();
        let unknown = Workload::unknown("shop".into(), Arc::default(), identity);
        Workload { uid: uid.into(), name: "web".into(), ..unknown }
    }

    fn check(added: &[(&str, &str)], uid: &str, expected: Option<&str>) {
        let mut attachments = Attachments::default();
        for (uid, container) in added {
            attachments.add(attachment(uid, container)).unwrap();
        }
        let found = attachments.of(&pod(uid)).map(|found| found.container);
        assert_eq!(found.as_deref(), expected, "{added:?}");
    }

    #[test]
    fn the_last_sandbox_of_a_pod_counts_and_another_pod_of_the_name_has_none() {
        check(&[("a-1", "one"), ("a-1", "two")], "a-1", Some("two"));
        check(&[("a-1", "one"), ("b-2", "two")], "a-1", Some("one"));
        check(&[("a-1", "one")], "b-2", None);
    }

    #[test]
    fn a_static_pod_and_one_without_uid_are_found_by_name() {
        check(&[("0123456789abcdef", "one")], "a-1", Some("one"));
        check(&[("", "one")], "shop/web", Some("one"));
    }

    #[test]
    fn the_end_of_an_old_sandbox_does_not_take_the_new_one_along() {
        let mut attachments = Attachments::default();
        attachments.add(attachment("a-1", "old")).unwrap();
        attachments.add(attachment("a-1", "new")).unwrap();
        assert!(attachments.remove("old", "eth0"));
        assert_eq!(attachments.of(&pod("a-1")).unwrap().container, "new");
        assert!(!attachments.remove("old", "eth0"), "DEL may come again");
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let mut attachments = Attachments::default();
        for number in 0..MAX {
            attachments.add(attachment("a-1", &number.to_string())).unwrap();
        }
        assert!(attachments.add(attachment("a-1", "one more")).is_err());
        assert!(attachments.add(attachment("a-1", "7")).is_ok(), "the same one again");
        assert!(attachments.retain(&[("9".to_owned(), "eth0".to_owned())]));
        assert_eq!(attachments.of(&pod("a-1")).unwrap().container, "9");
    }

    #[test]
    fn what_was_saved_is_read_again_and_a_spoilt_file_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-cni.json");
        let mut attachments = Attachments::default();
        attachments.add(attachment("a-1", "one")).unwrap();
        attachments.save(&path).unwrap();
        assert_eq!(Attachments::load(&path).0, attachments.0);
        fs::write(&path, "[{").unwrap();
        assert!(Attachments::load(&path).0.is_empty());
    }
}
