//! How the watches are: what readiness, the notes and the metrics say of them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{super::Kind, KINDS};
use crate::apiserver::{Traffic, Watch};

/// How the watches are. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    kinds: Arc<Mutex<BTreeMap<Kind, State>>>,
    traffic: Traffic,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Whether all objects have been listed once.
    listed: bool,
    /// Whether the API server does not know the kind.
    absent: bool,
    error: Option<(Instant, String)>,
    errors: u64,
    /// Lists that began; each but the first after a gap.
    lists: u64,
}

impl Health {
    pub(super) fn new(traffic: Traffic) -> Self {
        let kinds = KINDS.iter().map(|kind| (*kind, State::default())).collect();
        Self { kinds: Arc::new(Mutex::new(kinds)), traffic }
    }

    /// Returns what has been listed, or why there is no first snapshot yet.
    ///
    /// # Errors
    /// With the kinds whose first list is missing, and why.
    pub fn check_listed(&self) -> Result<String, String> {
        let kinds = self.kinds().clone();
        let missing = kinds.iter().filter(|(_, state)| !state.listed);
        let missing: Vec<_> = missing.map(|(kind, state)| Missing(*kind, state).to_string()).collect();
        if !missing.is_empty() {
            return Err(format!("waiting for the first list of {}", missing.join(", ")));
        }
        let absent = kinds.iter().filter(|(_, state)| state.absent).map(|(kind, _)| kind.as_str());
        match absent.collect::<Vec<_>>().as_slice() {
            [] => Ok(format!("{} kinds are listed", kinds.len())),
            absent => Ok(format!("the API server does not know {} (yet)", absent.join(", "))),
        }
    }

    /// Returns what is wrong with the watches while everything that they said stays in force.
    pub fn notes(&self) -> Vec<String> {
        let kinds = self.kinds().clone();
        kinds.iter().filter_map(|(kind, state)| lost(*kind, state, &self.watch(*kind))).collect()
    }

    pub(super) fn begun(&self, kind: Kind) {
        self.update(kind, |state| {
            state.lists += 1;
            state.absent = false;
        });
    }

    pub(super) fn done(&self, kind: Kind) {
        let known = self.update(kind, |state| {
            state.error = None;
            std::mem::replace(&mut state.listed, true)
        });
        match known {
            false => tracing::info!(kind = kind.as_str(), "listed"),
            true => tracing::info!(kind = kind.as_str(), "listed anew"),
        }
    }

    pub(super) fn absent(&self, kind: Kind) {
        let known = self.update(kind, |state| {
            (state.listed, state.error) = (true, None);
            std::mem::replace(&mut state.absent, true)
        });
        if !known {
            tracing::info!(
                kind = kind.as_str(),
                "the API server does not know the kind: there is none until it does"
            );
        }
    }

    pub(super) fn failed(&self, kind: Kind, error: &str) {
        let known = self.update(kind, |state| {
            state.errors += 1;
            let known = state.error.as_ref().is_some_and(|(_, known)| *known == error);
            state.error = Some((Instant::now(), error.to_owned()));
            known
        });
        // Once for each cause: until it is over it stands in the readiness detail.
        match known {
            false => tracing::warn!(
                kind = kind.as_str(),
                error,
                "the watch of the API server failed; it is tried again"
            ),
            true => tracing::debug!(kind = kind.as_str(), error, "the watch of the API server still fails"),
        }
    }

    fn update<T>(&self, kind: Kind, change: impl FnOnce(&mut State) -> T) -> T {
        change(self.kinds().entry(kind).or_default())
    }

    fn watch(&self, kind: Kind) -> Watch {
        self.traffic.watch(kind.resource().1)
    }

    fn kinds(&self) -> MutexGuard<'_, BTreeMap<Kind, State>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says since when a watch is lost, if it is.
fn lost(kind: Kind, state: &State, watch: &Watch) -> Option<String> {
    // The API server ends every watch after some minutes, and a new one follows at once.
    let since = watch.closed.filter(|closed| watch.open == 0 && closed.elapsed() >= GAP)?;
    if !state.listed || state.absent {
        return None;
    }
    let error = state.error.as_ref().map_or("no answer", |(_, error)| error);
    let (kind, since) = (kind.as_str(), since.elapsed().as_secs());
    Some(format!(
        "API server: the watch of {kind} is lost since {since} s ({error}); what it said before stays in force"
    ))
}

struct Missing<'a>(Kind, &'a State);

impl fmt::Display for Missing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(kind, state) = self;
        match &state.error {
            Some((_, error)) => write!(f, "{} ({error})", kind.as_str()),
            None => f.write_str(kind.as_str()),
        }
    }
}

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kinds = self.kinds().clone();
        let kinds: Vec<_> = kinds.into_iter().map(|(kind, state)| (kind, state, self.watch(kind))).collect();
        let gauges: [(_, _, Read<i64>); 3] = [
            ("culvert_kube_watch_connected", "Whether the watch of a kind is open", |_, watch| {
                (watch.open > 0).into()
            }),
            ("culvert_kube_watch_listed", "Whether a kind has been listed as a whole", |state, _| {
                state.listed.into()
            }),
            (
                "culvert_kube_watch_idle_seconds",
                "How long ago the API server last said anything of a kind, bookmarks included; -1 for never",
                |_, watch| watch.heard.map_or(-1, |heard| seconds(heard.elapsed())),
            ),
        ];
        for (name, help, value) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (kind, state, watch) in &kinds {
                let gauge = ConstGauge::new(value(state, watch));
                gauge.encode(family.encode_family(&[("kind", kind.as_str())])?)?;
            }
        }
        let counters: [(_, _, Read<u64>); 3] = [
            ("culvert_kube_watch_errors", "Errors of the watch of a kind", |state, _| state.errors),
            ("culvert_kube_watch_restarts", "Lists of a kind after the first", |state, _| {
                state.lists.saturating_sub(1)
            }),
            ("culvert_kube_received_bytes", "What the API server sent of a kind", |_, watch| watch.bytes),
        ];
        for (name, help, value) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (kind, state, watch) in &kinds {
                let counter = ConstCounter::new(value(state, watch));
                counter.encode(family.encode_family(&[("kind", kind.as_str())])?)?;
            }
        }
        Ok(())
    }
}

/// Reads a value of a watch.
type Read<T> = fn(&State, &Watch) -> T;

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// How long a watch may be closed before people are told.
const GAP: Duration = Duration::from_secs(3);
