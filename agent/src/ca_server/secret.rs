//! The authority in a Secret of the API server: made where there is none, and followed.
//!
//! The Secret has the parts that cert-manager writes (`tls.crt`, `tls.key`, `ca.crt`), so that it may be cert-manager's,
//! one that somebody made by hand, or one that is made here. In the last case the root's key goes into a Secret of its
//! own, which this server needs no right to read. Whoever replaces the root has the roots that are to be trusted besides in
//! one part more (`more-roots.pem`): cert-manager writes `ca.crt` anew each time, and leaves that alone.

use std::{collections::BTreeMap, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

use super::roots;
use crate::{
    identity::ca::{InitError, IssuerPem, Lifetimes, NewAuthority},
    mesh::TrustDomain,
};

/// Where the authority is.
#[derive(Clone)]
pub struct AuthoritySecret {
    /// The client.
    pub client: Client,
    /// The namespace of the Secret, and of all else that this server keeps in the API server.
    pub namespace: String,
    /// The Secret's name.
    pub name: String,
    /// The trust domain that it is for.
    pub trust_domain: TrustDomain,
}

/// The authority as the Secret has it.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Its newest content; empty before there is any.
    pub content: watch::Receiver<Arc<IssuerPem>>,
    /// What is wrong with the Secret now; empty where nothing is.
    pub problem: watch::Receiver<String>,
}

/// Why no authority was made.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error("{0}")]
    Init(#[from] InitError),
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error(
        "there was an authority before, since {0} is there: put its Secret back, or, to have a new one that nobody trusts yet, delete {0} too"
    )]
    Before(String),
}

impl AuthoritySecret {
    /// Follows the Secret for as long as somebody reads what it says. Where there is none, and `leading` says that this
    /// process leads, it is made; not where there was one before. Must be called within a Tokio runtime.
    pub fn follow(self, leading: watch::Receiver<bool>) -> Followed {
        let (contents, content) = watch::channel(Arc::new(self.nothing()));
        let (problems, problem) = watch::channel(format!("{} was not read yet", self.named()));
        tokio::spawn(async move {
            tokio::select! {
                () = contents.closed() => {}
                () = self.run(leading, &contents, &problems) => {}
            }
        });
        Followed { content, problem }
    }

    async fn run(
        &self,
        mut leading: watch::Receiver<bool>,
        contents: &watch::Sender<Arc<IssuerPem>>,
        problems: &watch::Sender<String>,
    ) {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let mut seen = pin!(watch_object(secrets, &self.name).default_backoff());
        let mut is_missing = false;
        loop {
            tokio::select! {
                Some(found) = seen.next() => {
                    is_missing = matches!(found, Ok(None));
                    match found {
                        Ok(Some(secret)) => self.take(secret, contents, problems),
                        Ok(None) => {}
                        Err(error) => say(problems, format!("{} cannot be read: {error}", self.named())),
                    }
                }
                Ok(()) = leading.changed() => {}
                () = sleep(RETRY), if is_missing => {}
            }
            if !is_missing {
                continue;
            }
            if !contents.borrow().is_empty() {
                say(
                    problems,
                    format!(
                        "{} was deleted: what it held serves on until this process ends; put it back",
                        self.named()
                    ),
                );
            } else if *leading.borrow_and_update() {
                match timeout(MAKE_LIMIT, self.make()).await.map_err(MakeError::from).flatten() {
                    Ok(()) => is_missing = false,
                    Err(error) => {
                        say(problems, format!("{} is not there and was not made: {error}", self.named()));
                    }
                }
            } else {
                say(problems, format!("{} is not there yet: the server that leads makes it", self.named()));
            }
        }
    }

    fn take(
        &self,
        secret: Secret,
        contents: &watch::Sender<Arc<IssuerPem>>,
        problems: &watch::Sender<String>,
    ) {
        match parts(secret) {
            Ok([certificate, key, roots]) => {
                let new = IssuerPem { certificate, key: Zeroizing::new(key), roots, ..self.nothing() };
                contents.send_if_modified(|known| {
                    let other = !known.is_same(&new);
                    if other {
                        *known = Arc::new(new);
                    }
                    other
                });
                problems.send_if_modified(|problem| !std::mem::take(problem).is_empty());
            }
            Err(missing) => say(problems, format!("{} has no {}", self.named(), missing.join(" and no "))),
        }
    }

    /// Makes an authority. Of several processes that do so one succeeds, and the others read what it made.
    async fn make(&self) -> Result<(), MakeError> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        if maps.get_opt(roots::NAME).await?.is_some_and(|map| roots::of(&map).is_some()) {
            return Err(MakeError::Before(format!("ConfigMap {}/{}", self.namespace, roots::NAME)));
        }
        let new = NewAuthority::make(&self.trust_domain, Lifetimes::default())?;
        let root = new.root.into_bytes();
        // The root's key first: without it the root could sign nothing any more.
        let key_name = format!("{}-root-key", self.name);
        let parts = [("root.key", new.root_key.to_vec()), ("root.pem", root.clone())];
        if !self.create(&key_name, "Opaque", parts).await? {
            return Err(MakeError::Before(format!("Secret {}/{key_name}", self.namespace)));
        }
        let parts = [
            (IssuerPem::CERTIFICATE, new.intermediate.into_bytes()),
            (IssuerPem::KEY, new.intermediate_key.to_vec()),
            (IssuerPem::ROOTS, root),
        ];
        if self.create(&self.name, "kubernetes.io/tls", parts).await? {
            tracing::info!(secret = %self.named(), root_key = key_name, "made a new authority: take the root's key away to a safe place");
        } else {
            tracing::warn!(secret = %self.named(), root_key = key_name, "somebody else made the authority meanwhile: the root's key is of no use, delete it");
        }
        Ok(())
    }

    /// Creates a Secret. Returns whether there was none.
    async fn create<const N: usize>(
        &self,
        name: &str,
        kind: &str,
        parts: [(&str, Vec<u8>); N],
    ) -> Result<bool, MakeError> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())])),
                ..ObjectMeta::default()
            },
            type_: Some(kind.to_owned()),
            data: Some(parts.into_iter().map(|(name, part)| (name.to_owned(), ByteString(part))).collect()),
            ..Secret::default()
        };
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        match secrets.create(&PostParams::default(), &secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn named(&self) -> String {
        format!("Secret {}/{}", self.namespace, self.name)
    }

    fn nothing(&self) -> IssuerPem {
        IssuerPem {
            name: PathBuf::from(self.named()),
            certificate: Vec::new(),
            key: Zeroizing::default(),
            roots: Vec::new(),
            trust_domain: Some(self.trust_domain.clone()),
        }
    }
}

/// Takes certificate, key and roots out of a Secret; the names of those that are not in it where one is missing.
fn parts(secret: Secret) -> Result<[Vec<u8>; 3], Vec<&'static str>> {
    let mut data = secret.data.unwrap_or_default();
    let mut part = |name| data.remove(name).map(|part| part.0).filter(|part| !part.is_empty()).ok_or(name);
    let more = part(IssuerPem::MORE_ROOTS);
    match [IssuerPem::CERTIFICATE, IssuerPem::KEY, IssuerPem::ROOTS].map(&mut part) {
        [Ok(certificate), Ok(key), Ok(mut roots)] => {
            // A line begins with the next certificate whether or not the last one has an end.
            roots.push(b'\n');
            roots.extend(more.unwrap_or_default());
            Ok([certificate, key, roots])
        }
        parts => Err(parts.into_iter().filter_map(Result::err).collect()),
    }
}

/// Says what is wrong, in the log where it is new.
fn say(problems: &watch::Sender<String>, problem: String) {
    problems.send_if_modified(|known| {
        let is_new = *known != problem;
        if is_new {
            tracing::warn!("{problem}");
            *known = problem;
        }
        is_new
    });
}

/// By what people find what this server made.
pub(super) const LABEL: (&str, &str) = ("app.kubernetes.io/name", "culvert-ca");
/// How often it is tried again to make the authority.
const RETRY: Duration = Duration::from_secs(5);
/// How long making it may take.
const MAKE_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::TrustBundle;

    fn secret(parts: &[(&str, &str)]) -> Secret {
        let parts =
            parts.iter().map(|(name, part)| ((*name).to_owned(), ByteString(part.as_bytes().to_vec())));
        Secret { data: Some(parts.collect()), ..Secret::default() }
    }

    fn root() -> String {
        NewAuthority::make(&"cluster.local".parse().unwrap(), Lifetimes::default()).unwrap().root
    }

    #[test]
    fn the_roots_of_a_part_of_their_own_are_trusted_beside_the_issuers() {
        let (ours, other) = (root(), root());
        // As whoever adds roots may have it: the issuer's once more, and no end of the last line.
        let (ca, more) = (ours.trim_end(), format!("{other}{ours}"));
        let parts = parts(secret(&[
            ("tls.crt", "certificate"),
            ("tls.key", "key"),
            ("ca.crt", ca),
            ("more-roots.pem", more.trim_end()),
        ]));
        let bundle = TrustBundle::from_pem(&parts.unwrap()[2]).unwrap();
        let expected =
            [ours, other].map(|pem| TrustBundle::from_pem(pem.as_bytes()).unwrap().certificates()[0].clone());
        assert_eq!(bundle.certificates(), expected);
    }

    #[test]
    fn what_a_secret_lacks_is_named_and_further_roots_are_no_substitute() {
        let root = root();
        let found = parts(secret(&[("tls.crt", "certificate"), ("tls.key", ""), ("more-roots.pem", &root)]));
        assert_eq!(found, Err(vec!["tls.key", "ca.crt"]));
    }
}
