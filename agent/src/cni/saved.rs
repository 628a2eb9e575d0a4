//! What the agent knew last of its node's pods, in a file, for the plugin to read while neither the agent nor the API server
//! can be asked.
//!
//! It says of each pod of the node whether it is to be enrolled. Of a namespace it says that it is *not* enrolled where
//! that is certain: it holds a pod without a label of its own that is outside the mesh for want of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::PodName;
use crate::{
    mesh::{Enrollment, NotEnrolled, Snapshot, Workload},
    run_directory::write_private,
};

/// How often the file is written at most.
const PAUSE: Duration = Duration::from_secs(1);

/// What the agent knew last.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Saved {
    /// The node's pods by uid, static ones by `<namespace>/<name>`: whether they are to be enrolled.
    pods: BTreeMap<String, bool>,
    /// Namespaces whose pods are not enrolled unless their own label says so.
    outside: BTreeSet<String>,
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Known {
    /// It is to be enrolled.
    Enrolled,
    /// It is not, or its namespace is not and nobody knows of a label of its own.
    Outside,
    /// Nothing.
    Nothing,
}

impl Saved {
    fn of(snapshot: &Snapshot, node: &str) -> Self {
        let pods = snapshot.on_node(node);
        let pods = pods.map(|pod| (key(pod), pod.enrollment == Enrollment::Enrolled)).collect();
        let outside = snapshot
            .workloads()
            .iter()
            .filter(|pod| pod.enrollment == Enrollment::Not(NotEnrolled::NoLabel))
            .map(|pod| &pod.namespace)
            .collect::<BTreeSet<_>>();
        Self { pods, outside: outside.into_iter().map(|namespace| namespace.to_string()).collect() }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    pub(super) fn of_pod(&self, pod: &PodName) -> Known {
        // Of a static pod the runtime has the kubelet's hash, which has no dashes.
        let by_name = || self.pods.get(&pod.to_string()).filter(|_| !pod.uid.contains('-'));
        match self.pods.get(&pod.uid).or_else(by_name) {
            Some(true) => Known::Enrolled,
            Some(false) => Known::Outside,
            None if self.outside.contains(&pod.namespace) => Known::Outside,
            None => Known::Nothing,
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        write_private(path, &serde_json::to_vec(self)?)
    }

    /// Keeps the file up to date, for as long as the agent lives. The file stays when it ends.
    pub async fn follow(path: PathBuf, mut mesh: watch::Receiver<Arc<Snapshot>>, node: String) {
        let mut written = None;
        loop {
            let snapshot = mesh.borrow_and_update().clone();
            let saved = Self::of(&snapshot, &node);
            drop(snapshot);
            if written.as_ref() != Some(&saved) {
                match saved.write(&path) {
                    Ok(()) => written = Some(saved),
                    Err(error) => {
                        tracing::warn!(file = %path.display(), %error, "the list of pods for the CNI plugin could not be written");
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
            if mesh.changed().await.is_err() {
                return;
            }
        }
    }
}

fn key(pod: &Workload) -> String {
    match pod.kubelet_uid {
        Some(_) => pod.to_string(),
        None => pod.uid.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Identity;

    fn pod(uid: &str, namespace: &str, enrollment: Enrollment) -> Arc<Workload> {
        let identity = Identity::new("cluster.local".parse().unwrap(), namespace, "default").unwrap();
        let unknown = Workload::unknown(namespace.into(), Arc::default(), identity);
        Arc::new(Workload { uid: uid.into(), node: "here".into(), enrollment, ..unknown })
    }

    fn check(uid: &str, namespace: &str, expected: Known) {
        let outside = |why| Enrollment::Not(why);
        let snapshot = Snapshot::new(
            vec![
                pod("in", "shop", Enrollment::Enrolled),
                pod("out", "shop", outside(NotEnrolled::OptedOut)),
                pod("plain", "tools", outside(NotEnrolled::NoLabel)),
                pod("own", "mixed", outside(NotEnrolled::NoLabel)),
                pod("labelled", "mixed", Enrollment::Enrolled),
                pod("host", "hosts", outside(NotEnrolled::HostNetwork)),
            ],
            Vec::new(),
        );
        let pod = PodName { namespace: namespace.into(), name: "x".into(), uid: uid.into() };
        assert_eq!(Saved::of(&snapshot, "here").of_pod(&pod), expected, "{pod:?}");
    }

    #[test]
    fn a_pod_that_was_known_is_known_by_its_uid() {
        check("in", "shop", Known::Enrolled);
        check("out", "shop", Known::Outside);
        check("labelled", "mixed", Known::Enrolled);
    }

    #[test]
    fn a_static_pod_is_known_by_its_name_where_the_runtime_has_the_kubelets_hash() {
        let mut mirror = Workload::clone(&pod("a-1", "shop", Enrollment::Enrolled));
        (mirror.name, mirror.kubelet_uid) = ("x".into(), Some("0123".into()));
        let saved = Saved::of(&Snapshot::new(vec![Arc::new(mirror)], Vec::new()), "here");
        let asked = |uid: &str| PodName { namespace: "shop".into(), name: "x".into(), uid: uid.into() };
        assert_eq!(saved.of_pod(&asked("0123")), Known::Enrolled);
        assert_eq!(saved.of_pod(&asked("b-2")), Known::Nothing, "another pod of the name");
    }

    #[test]
    fn a_new_pod_is_outside_only_where_its_namespace_is_for_certain() {
        check("new", "tools", Known::Outside);
        check("new", "mixed", Known::Outside);
        check("new", "shop", Known::Nothing);
        check("new", "hosts", Known::Nothing);
        check("new", "never-seen", Known::Nothing);
    }
}
