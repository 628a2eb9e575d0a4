//! What is wrong with the plugin's place on the node, for people to read.

use tokio::sync::watch;

/// What is wrong with the plugin; each is empty where nothing is. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    /// What keeps it from being in the chain.
    pub chain: watch::Sender<String>,
    /// What keeps it from having credentials.
    pub credentials: watch::Sender<String>,
}

impl Problems {
    /// Returns a line for each that there is.
    pub fn notes(&self) -> Vec<String> {
        let problems = [
            ("the CNI plugin is not in the chain", &self.chain),
            ("the CNI plugin cannot ask the API server while no agent runs", &self.credentials),
        ];
        let problems = problems.map(|(what, why)| (what, why.borrow().clone()));
        let problems = problems.iter().filter(|(_, why)| !why.is_empty());
        problems.map(|(what, why)| format!("{what}: {why}")).collect()
    }
}

/// Notes what is wrong now, nothing where there is no error, and logs each cause once.
pub(super) fn note(
    problem: &watch::Sender<String>,
    error: Option<impl std::error::Error>,
    consequence: &str,
) {
    let text = error.map(|error| error.to_string()).unwrap_or_default();
    problem.send_if_modified(|known| {
        let new = *known != text;
        if new && !text.is_empty() {
            tracing::warn!(error = text, "{consequence}");
        }
        *known = text;
        new
    });
}
