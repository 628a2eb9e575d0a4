//! Istio's TCP metrics: connections and bytes, by who speaks to whom.
//!
//! Names and labels follow Istio's standard metrics ("TCP connection metrics"), so that its dashboards work as they are.
//! Each set of labels has some twenty texts, and four counters. They stand in one table, in which a connection looks for
//! its own once, by what its two ends are called: nothing is copied, and no text is made, for a set that is there.

use std::{
    borrow::Cow,
    hash::{BuildHasher as _, Hash},
    sync::{Arc, PoisonError, RwLock},
};

use hashbrown::{DefaultHashBuilder, HashTable};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::Counter},
};

use super::metrics::Reporter;
use crate::mesh::{Identity, Service, Workload, hostname};

/// The series of all connections that the agent has carried. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic(Arc<RwLock<Table>>);

/// Who speaks to whom, and who reports it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'a> {
    pub(super) reporter: Reporter,
    pub(super) source: Option<&'a Workload>,
    pub(super) destination: Option<&'a Workload>,
    /// What the client asked for, where it was a service.
    pub(super) service: Option<&'a Service>,
    /// Whether the identities of both were proved.
    pub(super) mutual_tls: bool,
}

/// The counters of one set of labels.
#[derive(Debug)]
pub(super) struct Series {
    /// Of the connections that came when the table was full, the reporter.
    names: Result<Names<Arc<str>, Identity>, Reporter>,
    opened: Counter,
    pub(super) closed: Counter,
    /// From destination to source: Istio counts bytes "sent" as those of the response.
    pub(super) sent: Counter,
    /// From source to destination.
    pub(super) received: Counter,
}

#[derive(Debug, Default)]
struct Table {
    hasher: DefaultHashBuilder,
    series: HashTable<Arc<Series>>,
    /// What came when the table was full.
    overflow: Vec<Arc<Series>>,
}

/// All that decides on the labels of a connection, and nothing else: borrowed (`T` is `&Arc<str>`) to look it up, owned with
/// its counters.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Names<T, I> {
    reporter: Reporter,
    source: Option<Party<T, I>>,
    destination: Option<Party<T, I>>,
    /// Namespace and name.
    service: Option<(T, T)>,
    mutual_tls: bool,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Party<T, I> {
    workload: T,
    app: T,
    version: T,
    namespace: T,
    /// None without mutual TLS.
    principal: Option<I>,
}

/// How many sets of labels there are; what comes beyond is counted under `overflow`. A thousand workloads that each speak to
/// ten others fit.
const MAX_SERIES: usize = 10_000;

impl Traffic {
    /// Counts a connection as opened and returns the counters for the rest of its life.
    pub(super) fn open(&self, ends: &Ends<'_>) -> Arc<Series> {
        let series = self.series(ends, MAX_SERIES);
        series.opened.inc();
        series
    }

    fn series(&self, ends: &Ends<'_>, max: usize) -> Arc<Series> {
        let names = ends.names();
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).find(&names);
        known.unwrap_or_else(|| self.0.write().unwrap_or_else(PoisonError::into_inner).add(&names, max))
    }

    /// Takes what there is to count. Who opens a connection waits no longer than that takes.
    fn all(&self) -> Vec<Arc<Series>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.series.iter().chain(&table.overflow).cloned().collect()
    }
}

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let all = self.all();
        let families: [(_, _, Pick); 4] = [
            ("connections_opened", "TCP connections opened.", |series| &series.opened),
            ("connections_closed", "TCP connections closed.", |series| &series.closed),
            ("sent_bytes", "Bytes sent in responses, from destination to source.", |series| &series.sent),
            ("received_bytes", "Bytes received in requests, from source to destination.", |series| {
                &series.received
            }),
        ];
        for (name, help, counter) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                counter(series).encode(family.encode_family(&series.labels())?)?;
            }
        }
        Ok(())
    }
}

/// Which counter of a series a family shows.
type Pick = fn(&Series) -> &Counter;

impl Table {
    fn find(&self, names: &Names<&Arc<str>, &Identity>) -> Option<Arc<Series>> {
        let hash = self.hasher.hash_one(names);
        self.series.find(hash, |series| series.are_of(names)).cloned()
    }

    /// Adds what [`Self::find`] did not find, unless another thread has been quicker.
    fn add(&mut self, names: &Names<&Arc<str>, &Identity>, max: usize) -> Arc<Series> {
        if let Some(known) = self.find(names) {
            return known;
        }
        if self.series.len() >= max {
            let known =
                self.overflow.iter().find(|series| series.names.as_ref().err() == Some(&names.reporter));
            return known.cloned().unwrap_or_else(|| {
                let series = Arc::new(Series::new(Err(names.reporter)));
                self.overflow.push(Arc::clone(&series));
                series
            });
        }
        let series = Arc::new(Series::new(Ok(names.kept())));
        let Self { hasher, series: table, .. } = self;
        // What is owned has the hash of what is borrowed.
        table.insert_unique(hasher.hash_one(names), Arc::clone(&series), |series| {
            series.names.as_ref().map_or(0, |names| hasher.hash_one(names))
        });
        series
    }
}

impl Series {
    fn new(names: Result<Names<Arc<str>, Identity>, Reporter>) -> Self {
        Self {
            names,
            opened: Counter::default(),
            closed: Counter::default(),
            sent: Counter::default(),
            received: Counter::default(),
        }
    }

    fn are_of(&self, names: &Names<&Arc<str>, &Identity>) -> bool {
        self.names.as_ref().is_ok_and(|own| own.by_ref() == *names)
    }

    /// Returns Istio's labels. What is not known is `unknown`, as Istio has it.
    fn labels(&self) -> [(&'static str, Cow<'_, str>); 21] {
        let (reporter, names, other) = match &self.names {
            Ok(names) => (names.reporter, Some(names), "unknown"),
            Err(reporter) => (*reporter, None, "overflow"),
        };
        let or_other = |text: Option<String>| text.map_or(Cow::Borrowed(other), Cow::Owned);
        let text = |text: Option<&Arc<str>>| or_other(text.map(ToString::to_string));
        let principal = |party: Option<&Party<Arc<str>, Identity>>| {
            or_other(party.and_then(|party| party.principal.as_ref()).map(ToString::to_string))
        };
        let source = names.and_then(|names| names.source.as_ref());
        let destination = names.and_then(|names| names.destination.as_ref());
        let service = names.and_then(|names| names.service.as_ref());
        [
            ("reporter", Cow::Borrowed(reporter.as_str())),
            ("source_workload", text(source.map(|party| &party.workload))),
            ("source_canonical_service", text(source.map(|party| &party.app))),
            ("source_canonical_revision", text(source.map(|party| &party.version))),
            ("source_workload_namespace", text(source.map(|party| &party.namespace))),
            ("source_principal", principal(source)),
            ("source_app", text(source.map(|party| &party.app))),
            ("source_version", text(source.map(|party| &party.version))),
            ("destination_service", or_other(service.map(|(namespace, name)| hostname(namespace, name)))),
            ("destination_service_namespace", text(service.map(|(namespace, _)| namespace))),
            ("destination_service_name", text(service.map(|(_, name)| name))),
            ("destination_workload", text(destination.map(|party| &party.workload))),
            ("destination_canonical_service", text(destination.map(|party| &party.app))),
            ("destination_canonical_revision", text(destination.map(|party| &party.version))),
            ("destination_workload_namespace", text(destination.map(|party| &party.namespace))),
            ("destination_principal", principal(destination)),
            ("destination_app", text(destination.map(|party| &party.app))),
            ("destination_version", text(destination.map(|party| &party.version))),
            ("request_protocol", Cow::Borrowed("tcp")),
            ("response_flags", Cow::Borrowed("-")),
            (
                "connection_security_policy",
                Cow::Borrowed(match names {
                    Some(names) if names.mutual_tls => "mutual_tls",
                    Some(_) => "none",
                    None => "unknown",
                }),
            ),
        ]
    }
}

impl<'a> Ends<'a> {
    fn names(&self) -> Names<&'a Arc<str>, &'a Identity> {
        let party = |workload: &'a Workload| Party {
            workload: &workload.workload,
            app: &workload.app,
            version: &workload.version,
            namespace: &workload.namespace,
            principal: self.mutual_tls.then_some(&workload.identity),
        };
        Names {
            reporter: self.reporter,
            source: self.source.map(party),
            destination: self.destination.map(party),
            service: self.service.map(|service| (&service.namespace, &service.name)),
            mutual_tls: self.mutual_tls,
        }
    }
}

impl Names<&Arc<str>, &Identity> {
    fn kept(&self) -> Names<Arc<str>, Identity> {
        let party = |party: Party<&Arc<str>, &Identity>| Party {
            workload: Arc::clone(party.workload),
            app: Arc::clone(party.app),
            version: Arc::clone(party.version),
            namespace: Arc::clone(party.namespace),
            principal: party.principal.cloned(),
        };
        Names {
            reporter: self.reporter,
            source: self.source.map(party),
            destination: self.destination.map(party),
            service: self.service.map(|(namespace, name)| (Arc::clone(namespace), Arc::clone(name))),
            mutual_tls: self.mutual_tls,
        }
    }
}

impl Names<Arc<str>, Identity> {
    fn by_ref(&self) -> Names<&Arc<str>, &Identity> {
        Names {
            reporter: self.reporter,
            source: self.source.as_ref().map(Party::by_ref),
            destination: self.destination.as_ref().map(Party::by_ref),
            service: self.service.as_ref().map(|(namespace, name)| (namespace, name)),
            mutual_tls: self.mutual_tls,
        }
    }
}

impl Party<Arc<str>, Identity> {
    fn by_ref(&self) -> Party<&Arc<str>, &Identity> {
        Party {
            workload: &self.workload,
            app: &self.app,
            version: &self.version,
            namespace: &self.namespace,
            principal: self.principal.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;
    use crate::mesh::fixtures::{pod, service};

    fn ends<'a>(source: &'a Workload, destination: &'a Workload) -> Ends<'a> {
        let (source, destination) = (Some(source), Some(destination));
        Ends { reporter: Reporter::Source, source, destination, service: None, mutual_tls: true }
    }

    fn text(traffic: &Traffic) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(traffic.clone()));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn connections_of_the_same_labels_share_their_counters_whichever_pods_they_are_of() {
        let traffic = Traffic::default();
        let (web, api) = (pod("web", &[]), pod("api", &[]));
        let another = Workload { uid: "another".into(), name: "web-2".into(), ..web.clone() };
        let first = traffic.open(&ends(&web, &api));
        assert!(Arc::ptr_eq(&first, &traffic.open(&ends(&another, &api))));
        assert_eq!(first.opened.get(), 2);
    }

    #[test]
    fn whatever_differs_in_the_labels_has_counters_of_its_own() {
        let traffic = Traffic::default();
        let (web, api, service) = (pod("web", &[]), pod("api", &[]), service("10.96.0.1", &[]));
        let newer = Workload { version: "2".into(), ..api.clone() };
        let all = ends(&web, &api);
        for other in [
            Ends { reporter: Reporter::Destination, ..all },
            Ends { source: None, ..all },
            Ends { destination: Some(&newer), ..all },
            Ends { service: Some(&service), ..all },
            Ends { mutual_tls: false, ..all },
        ] {
            assert!(!Arc::ptr_eq(&traffic.open(&all), &traffic.open(&other)), "{other:?}");
        }
        let plain = Ends { mutual_tls: false, ..all };
        let account = Identity::new("cluster.local".parse().unwrap(), "shop", "account").unwrap();
        let renamed = Workload { identity: account, ..web.clone() };
        let unproved = Ends { source: Some(&renamed), ..plain };
        assert!(
            Arc::ptr_eq(&traffic.open(&plain), &traffic.open(&unproved)),
            "no label tells who it claims to be"
        );
    }

    #[test]
    fn what_is_known_is_found_again_when_the_table_has_grown() {
        let traffic = Traffic::default();
        let pods: Vec<_> = (0..500).map(|number| pod(&format!("pod-{number}"), &[])).collect();
        for _ in 0..2 {
            for pod in &pods {
                traffic.open(&ends(pod, pod));
            }
        }
        assert!(traffic.all().iter().all(|series| series.opened.get() == 2));
    }

    #[test]
    fn the_labels_are_istios() {
        let traffic = Traffic::default();
        let (web, service) = (pod("web", &[]), service("10.96.0.1", &[]));
        let ends = Ends { source: None, service: Some(&service), ..ends(&web, &web) };
        traffic.open(&ends).sent.inc_by(7);
        let text = text(&traffic);
        let labels = "{reporter=\"source\",source_workload=\"unknown\",source_canonical_service=\"unknown\",\
            source_canonical_revision=\"unknown\",source_workload_namespace=\"unknown\",source_principal=\"unknown\",\
            source_app=\"unknown\",source_version=\"unknown\",\
            destination_service=\"web.shop.svc.cluster.local\",destination_service_namespace=\"shop\",\
            destination_service_name=\"web\",destination_workload=\"web\",destination_canonical_service=\"web\",\
            destination_canonical_revision=\"latest\",destination_workload_namespace=\"shop\",\
            destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\",destination_app=\"web\",\
            destination_version=\"latest\",request_protocol=\"tcp\",response_flags=\"-\",\
            connection_security_policy=\"mutual_tls\"}";
        for (family, value) in
            [("connections_opened", 1), ("connections_closed", 0), ("sent_bytes", 7), ("received_bytes", 0)]
        {
            let line = format!("{family}_total{labels} {value}");
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_comes_beyond_the_bound_is_counted_together() {
        let traffic = Traffic::default();
        let pods = ["a", "b", "c", "d"].map(|name| pod(name, &[]));
        let series = pods.each_ref().map(|pod| traffic.series(&ends(pod, pod), 2));
        assert!(Arc::ptr_eq(&series[2], &series[3]));
        assert!(
            Arc::ptr_eq(&series[0], &traffic.series(&ends(&pods[0], &pods[0]), 2)),
            "what is known stays"
        );
        let text = text(&traffic);
        assert_eq!(
            text.lines().filter(|line| line.starts_with("connections_opened_total")).count(),
            3,
            "{text}"
        );
        assert!(text.contains("connection_security_policy=\"unknown\""), "{text}");
        assert!(text.contains("source_principal=\"overflow\""), "{text}");
    }
}
