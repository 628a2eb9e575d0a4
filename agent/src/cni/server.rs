//! The agent's side: answers the plugin on a unix socket for root alone.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use super::{
    PodName,
    away::Asked,
    protocol::{Answer, MAX_LINE, Request},
};
use crate::{
    mesh::{Enrollment, Snapshot, Workload},
    sandbox::{Attachment, Inode, Sandboxes},
};

/// Questions that are worked on at once; more wait. A node that starts asks for each of its pods, 110 by default.
const MAX_QUESTIONS: usize = 256;
/// How long the plugin may take to ask, and to read the answer.
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// How long the snapshot may take to know a pod before somebody else is asked: the kubelet hears of a pod by the same
/// means and at the same time as the agent.
const KNOWN_LIMIT: Duration = Duration::from_millis(500);
/// How long a pod may take to be enrolled before ADD fails. It takes some milliseconds; the runtime tries again.
const ENROLL_LIMIT: Duration = Duration::from_secs(10);
/// How long accepting rests where it fails (no descriptors).
const BACK_OFF: Duration = Duration::from_millis(100);

/// How a pod stands that is, was or ought to be in the mesh.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It is, with this network namespace.
    Enrolled(Inode),
    /// It leaves, or it cannot be enrolled, and why.
    Not(String),
}

/// How the node's pods stand, by uid.
pub type Standings = watch::Receiver<Arc<HashMap<Arc<str>, Standing>>>;

/// Asks the API server whether a pod is to be enrolled.
pub type Ask = Box<dyn Fn(PodName) -> BoxFuture<'static, Asked> + Send + Sync>;

/// What answers the plugin.
pub struct Server {
    /// The node's name.
    pub node: String,
    /// Which pods are to be enrolled.
    pub mesh: watch::Receiver<Arc<Snapshot>>,
    /// Where ADD and DEL go.
    pub sandboxes: Sandboxes,
    /// How the pods stand.
    pub standings: Standings,
    /// Who is asked about a pod that the snapshot does not know; none where there is no API server: a pod that no manifest
    /// speaks of is not in the mesh.
    pub ask: Option<Ask>,
}

impl Server {
    /// Serves for as long as it is polled. What was asked before it is dropped is still answered.
    pub async fn serve(self, listener: UnixListener) {
        let server = Arc::new(self);
        let places = Arc::new(Semaphore::new(MAX_QUESTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the CNI plugin cannot be heard");
                    sleep(BACK_OFF).await;
                    continue;
                }
            };
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = server.converse(stream).await {
                    tracing::debug!(%error, "a question of the CNI plugin came to nothing");
                }
            });
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        // The socket's mode says so already; a descriptor may have been handed on.
        if stream.peer_cred()?.uid() != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        timeout(LINE_LIMIT, BufReader::new(read.take(MAX_LINE)).read_line(&mut line)).await??;
        let answer = match serde_json::from_str(&line) {
            Ok(request) => self.answer(request).await,
            Err(error) => Answer::Failed(format!(
                "the agent does not understand the plugin ({error}): they are of different versions, and the agent replaces \
                 the plugin when it starts"
            )),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        timeout(LINE_LIMIT, write.write_all(&line)).await?
    }

    async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Add(attachment) => self.add(attachment).await,
            Request::Check(attachment) => self.check(&attachment),
            Request::Del { container, interface } => {
                self.sandboxes.detach(&container, &interface);
                Answer::Done
            }
            Request::Gc { valid } => {
                self.sandboxes.retain(&valid);
                Answer::Done
            }
            Request::Status => Answer::Done,
        }
    }

    async fn add(&self, attachment: Attachment) -> Answer {
        let pod = pod_name(&attachment);
        let inode = self.sandboxes.inode(&attachment);
        // Kept also where the pod is not to be enrolled: its label may come later.
        if let Err(error) = self.sandboxes.attach(attachment) {
            return Answer::Failed(error.to_string());
        }
        let known = timeout(KNOWN_LIMIT, self.known(&pod)).await;
        let workload = match known {
            Ok(workload) => workload,
            Err(_) => match self.ask_about(&pod).await {
                // The snapshot hears of it any moment.
                Ok(()) => match timeout(ENROLL_LIMIT, self.known(&pod)).await {
                    Ok(workload) => workload,
                    Err(_) => {
                        return Answer::Failed(format!(
                            "the API server knows the pod, and the agent has not heard of it within {}: its watch of the API server lags or is broken",
                            humantime::format_duration(ENROLL_LIMIT)
                        ));
                    }
                },
                Err(answer) => return answer,
            },
        };
        if let Enrollment::Not(why) = workload.enrollment {
            return Answer::NotEnrolled(why.to_string());
        }
        match timeout(ENROLL_LIMIT, self.enrolled(&workload, inode)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Failed(format!(
                "it could not be enrolled within {}: {}",
                humantime::format_duration(ENROLL_LIMIT),
                self.why_not(&workload)
            )),
        }
    }

    fn check(&self, attachment: &Attachment) -> Answer {
        let Some(workload) = find(&self.mesh.borrow(), &self.node, &pod_name(attachment)) else {
            return Answer::NotEnrolled("the agent does not know the pod".to_owned());
        };
        match workload.enrollment {
            Enrollment::Not(why) => Answer::NotEnrolled(why.to_string()),
            Enrollment::Enrolled if self.is_enrolled(&workload, self.sandboxes.inode(attachment)) => {
                Answer::Done
            }
            Enrollment::Enrolled => Answer::Failed(self.why_not(&workload)),
        }
    }

    /// Asks the API server about a pod that the snapshot does not know. `Ok` where it is to be enrolled.
    async fn ask_about(&self, pod: &PodName) -> Result<(), Answer> {
        let Some(ask) = &self.ask else {
            return Err(Answer::NotEnrolled("no manifest names the pod".to_owned()));
        };
        match ask(pod.clone()).await {
            Asked::Enrolled => Ok(()),
            Asked::NotEnrolled => {
                Err(Answer::NotEnrolled("the API server says that it is not to be enrolled".to_owned()))
            }
            Asked::NoSuchPod => Err(Answer::Failed(
                "the API server does not know it: it has been deleted, or replaced".to_owned(),
            )),
            Asked::Unreachable(error) => Err(Answer::Unknown(format!(
                "it does not know the pod yet, and cannot ask the API server: {error}"
            ))),
        }
    }

    /// Waits until the snapshot knows the pod.
    async fn known(&self, pod: &PodName) -> Arc<Workload> {
        let mut mesh = self.mesh.clone();
        loop {
            let found = find(&mesh.borrow_and_update(), &self.node, pod);
            if let Some(found) = found {
                return found;
            }
            if mesh.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until the pod is in the mesh with its new namespace, or is not to be any more.
    async fn enrolled(&self, workload: &Workload, inode: Option<Inode>) -> Answer {
        let (mut standings, mut mesh) = (self.standings.clone(), self.mesh.clone());
        loop {
            standings.mark_unchanged();
            if self.is_enrolled(workload, inode) {
                return Answer::Done;
            }
            let pod =
                mesh.borrow_and_update().on_node(&self.node).find(|pod| pod.uid == workload.uid).cloned();
            match pod.map(|pod| pod.enrollment) {
                Some(Enrollment::Enrolled) => {}
                Some(Enrollment::Not(why)) => return Answer::NotEnrolled(why.to_string()),
                None => return Answer::Failed("it has been deleted".to_owned()),
            }
            let changed = async {
                tokio::select! {
                    changed = standings.changed() => changed,
                    changed = mesh.changed() => changed,
                }
            };
            if changed.await.is_err() {
                return Answer::Failed("the agent ends".to_owned());
            }
        }
    }

    fn is_enrolled(&self, workload: &Workload, inode: Option<Inode>) -> bool {
        match self.standings.borrow().get(&workload.uid) {
            // An annotation says where the namespace is, whatever the runtime says.
            Some(Standing::Enrolled(with)) => workload.netns.is_some() || inode == Some(*with),
            Some(Standing::Not(_)) | None => false,
        }
    }

    fn why_not(&self, workload: &Workload) -> String {
        match self.standings.borrow().get(&workload.uid) {
            Some(Standing::Not(why)) => why.clone(),
            Some(Standing::Enrolled(_)) => {
                "it is enrolled with another network namespace than the runtime's; is the old sandbox still there?".to_owned()
            }
            None => "the agent has not come to it yet".to_owned(),
        }
    }
}

fn pod_name(attachment: &Attachment) -> PodName {
    let Attachment { uid, namespace, name, .. } = attachment.clone();
    PodName { namespace, name, uid }
}

/// Finds a pod of the node: by its uid; by its name where the uid says nothing: of a static pod the runtime has another than
/// the API server, and a manifest may have none.
fn find(snapshot: &Snapshot, node: &str, pod: &PodName) -> Option<Arc<Workload>> {
    let by_uid = snapshot.on_node(node).find(|known| *known.uid == *pod.uid);
    let by_name = || {
        let mut named = snapshot
            .on_node(node)
            .filter(|known| *known.namespace == *pod.namespace && *known.name == *pod.name);
        named.find(|known| !pod.uid.contains('-') || known.uid.contains('/'))
    };
    by_uid.or_else(by_name).cloned()
}
