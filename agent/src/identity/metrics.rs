//! The metrics of certificates: how long each is good for, and whether the files that they come from can be read.
//!
//! They are computed when somebody asks, so that they are true also where nothing happened since the last answer.
//! Their number has a bound: two series an identity that the node has pods of ([`SvidStore`]), a third while its
//! renewal fails, [`MAX_AUTHORITIES`] for roots and as many for intermediates, and two a followed file.

use std::{
    fmt::Error,
    time::{Instant, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::{
    At, CertificateFacts, SvidStatus, SvidStore, follow,
    inventory::{facts, intermediates},
};

/// The metrics of the certificates of a node.
#[derive(Debug)]
pub struct CertificateMetrics {
    store: SvidStore,
    start: Instant,
}

impl CertificateMetrics {
    /// Registers the metrics of a store and its authority.
    pub fn register(registry: &mut Registry, store: SvidStore) {
        registry.register_collector(Box::new(Self { store, start: Instant::now() }));
    }

    fn identities(&self, encoder: &mut DescriptorEncoder<'_>, held: &[SvidStatus]) -> Result<(), Error> {
        let now = SystemTime::now();
        let left = |status: &SvidStatus| {
            let not_after = status.svid.as_ref()?.not_after();
            Some((of(status), At(not_after).seconds_from(now)))
        };
        gauges(
            encoder,
            "culvert_certificate_expiry_seconds",
            "Seconds until the identity's certificate expires; negative after",
            held.iter().filter_map(left),
        )?;
        let margin = |status: &SvidStatus| {
            let not_after = status.svid.as_ref()?.not_after();
            Some((of(status), At(not_after).seconds_from(status.renew_at?)))
        };
        gauges(
            encoder,
            "culvert_certificate_renewal_margin_seconds",
            "Seconds of validity that are left when the identity's certificate is renewed on time",
            held.iter().filter_map(margin),
        )?;
        let failing = held.iter().filter(|status| status.failures > 0);
        gauges(
            encoder,
            "culvert_certificate_failures",
            "Attempts to get a certificate that failed since the last success; absent while all is well",
            failing.map(|status| (of(status), f64::from(status.failures))),
        )
    }

    fn authorities(&self, encoder: &mut DescriptorEncoder<'_>, held: &[SvidStatus]) -> Result<(), Error> {
        let now = SystemTime::now();
        let mut roots = facts(self.store.trust().borrow().certificates());
        roots.sort_by_key(|root| root.not_after);
        roots.dedup();
        let series = |role: &'static str, all: Vec<CertificateFacts>| {
            all.into_iter().take(MAX_AUTHORITIES).map(move |authority| {
                let left = authority.not_after.seconds_from(now);
                let fingerprint = authority.short_fingerprint().to_owned();
                let CertificateFacts { subject, .. } = authority;
                (vec![("role", role.to_owned()), ("subject", subject), ("fingerprint", fingerprint)], left)
            })
        };
        gauges(
            encoder,
            "culvert_ca_certificate_expiry_seconds",
            "Seconds until the certificate of a trusted root, or of an intermediate in use, expires; negative after",
            series("root", roots).chain(series("intermediate", intermediates(held))),
        )
    }

    fn files(encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut files: Vec<(Labels, u64, bool)> = Vec::new();
        for state in follow::followed() {
            let paths: Vec<_> = state.paths.iter().map(|path| path.display().to_string()).collect();
            let labels = vec![("file", paths.join(",")), ("what", state.what.to_owned())];
            // Two that follow one file are one series.
            match files.iter_mut().find(|(known, ..)| *known == labels) {
                Some((_, failures, refused)) => {
                    *failures += state.failures;
                    *refused |= state.error.is_some();
                }
                None => files.push((labels, state.failures, state.error.is_some())),
            }
        }
        let mut metric = encoder.encode_descriptor(
            "culvert_file_reload_failures",
            "How often the new content of a file that is followed could not be used",
            None,
            MetricType::Counter,
        )?;
        for (labels, failures, _) in &files {
            ConstCounter::new(*failures).encode(metric.encode_family(labels)?)?;
        }
        gauges(
            encoder,
            "culvert_file_refused",
            "1 while the newest content of a file cannot be used, and what was there before is in force",
            files.into_iter().map(|(labels, _, refused)| (labels, f64::from(u8::from(refused)))),
        )
    }
}

impl Collector for CertificateMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let held = self.store.snapshot();
        self.identities(&mut encoder, &held)?;
        self.authorities(&mut encoder, &held)?;
        let since = self.store.last_success().unwrap_or(self.start);
        let metric = encoder.encode_descriptor(
            "culvert_certificate_last_success_seconds",
            "Seconds since the authority last signed a certificate, or since the start where it never did",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(since.elapsed().as_secs_f64()).encode(metric)?;
        Self::files(&mut encoder)
    }
}

/// The roots that are shown, and as many intermediates: those that expire first. A mesh has some two of each.
const MAX_AUTHORITIES: usize = 64;

/// Names and values.
type Labels = Vec<(&'static str, String)>;

fn of(status: &SvidStatus) -> Labels {
    vec![("identity", status.identity.to_string())]
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (Labels, f64)>,
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
