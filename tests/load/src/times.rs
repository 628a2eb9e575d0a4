//! How long things took.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Times of one or of several threads in nanoseconds, to three digits.
pub(crate) struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, LONGEST, 3)?))
    }

    pub(crate) fn note(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add(&mut self, others: &Self) -> Result<()> {
        Ok(self.0.add(&others.0)?)
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The percentiles that are looked at, in microseconds.
    pub(crate) fn percentiles(&self) -> Value {
        let micros =
            |percentile| Duration::from_nanos(self.0.value_at_percentile(percentile)).as_secs_f64() * 1e6;
        json!({"p50": micros(50.0), "p99": micros(99.0), "p999": micros(99.9), "max": micros(100.0)})
    }
}

/// A minute: what takes longer is counted as that.
const LONGEST: u64 = 60_000_000_000;
