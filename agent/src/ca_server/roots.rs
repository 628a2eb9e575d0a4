//! The roots of the mesh in a ConfigMap, where every pod may read them: what agents mount, so that they know whom to
//! trust before they ask anybody.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher::watch_object},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::secret::LABEL;
use crate::identity::{Trust, ca::certificate_pem};

/// Keeps the ConfigMap as `trust` is, while `leading`: whoever deletes it or changes the roots in it meets them again.
/// Never returns.
pub async fn publish(
    client: Client,
    namespace: String,
    mut trust: Trust,
    mut leading: watch::Receiver<bool>,
) {
    let maps = Api::<ConfigMap>::namespaced(client, &namespace);
    let mut seen = pin!(watch_object(maps.clone(), NAME).default_backoff());
    // What the ConfigMap holds, where that is known.
    let mut held: Option<Option<String>> = None;
    let mut failing = false;
    loop {
        tokio::select! {
            Some(found) = seen.next() => match found {
                Ok(map) => held = Some(map.as_ref().and_then(of)),
                Err(error) => tracing::debug!(%error, "the ConfigMap of the roots cannot be watched"),
            },
            Ok(()) = trust.changed() => {}
            Ok(()) = leading.changed() => {}
            () = sleep(RETRY), if failing => {}
        }
        let leads = *leading.borrow_and_update();
        let roots = trust.borrow_and_update().clone();
        let wanted: String = roots.certificates().iter().map(|root| certificate_pem(root)).collect();
        if !leads || held.is_none() || held.as_ref().and_then(Option::as_ref) == Some(&wanted) {
            failing = false;
            continue;
        }
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": NAME, "labels": { (LABEL.0): LABEL.1 } },
            "data": { (KEY): wanted },
        });
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(map);
        let applying = maps.patch(NAME, &params, &patch);
        let outcome = match timeout(LIMIT, applying).await {
            Ok(outcome) => outcome.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        };
        match outcome {
            Ok(()) => {
                tracing::info!(namespace, name = NAME, "the ConfigMap of the roots was written");
                (held, failing) = (Some(Some(wanted)), false);
            }
            Err(error) => {
                if !failing {
                    tracing::error!(namespace, name = NAME, %error, "the ConfigMap of the roots cannot be written: agents do not hear of changes");
                }
                failing = true;
            }
        }
        // Two that both want to be right do not keep the API server busy.
        sleep(PACE).await;
    }
}

/// Returns the roots in a ConfigMap, if there are any.
pub(super) fn of(map: &ConfigMap) -> Option<String> {
    map.data.as_ref()?.get(KEY).filter(|roots| !roots.trim().is_empty()).cloned()
}

/// The ConfigMap's name.
pub(super) const NAME: &str = "culvert-ca-root";
/// Where in it the roots are.
const KEY: &str = "root.pem";
/// Who owns that field (server-side apply).
const MANAGER: &str = "culvert-ca";
/// How often it is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long writing may take.
const LIMIT: Duration = Duration::from_secs(5);
/// The shortest time between two writes.
const PACE: Duration = Duration::from_secs(1);
