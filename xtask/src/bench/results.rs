//! Everything that was measured, and what follows from it.

use serde_json::{Value, json};

use super::{
    latency::FirstConnections,
    load::{Load, Sample},
    memory::Memory,
    rounds::Samples,
    stage::Path,
    statistics::{Interval, median},
};

/// One run of the bench.
#[derive(Default)]
pub(super) struct Results {
    pub(super) machine: String,
    pub(super) memory: Vec<Memory>,
    pub(super) first: Option<FirstConnections>,
    pub(super) rounds: Samples,
    pub(super) sustained: Samples,
    pub(super) policies: Samples,
    /// In the mesh as it is, and in a large one.
    pub(super) large: [Samples; 2],
}

/// A load over a path, beside the path that it is compared with.
#[derive(Clone, Copy)]
pub(super) struct Comparison {
    pub(super) load: Load,
    pub(super) path: Path,
    /// Medians.
    pub(super) rate: f64,
    pub(super) base_rate: f64,
    /// Of the rates.
    pub(super) ratio: Option<Interval>,
    /// Of median, 99th and 99.9th percentile, in microseconds.
    pub(super) added_micros: Option<[Interval; 3]>,
    /// Processor time for each unit of the load, in microseconds (of bulk: seconds a gigabyte): of the machine beyond the
    /// base's, and of both proxies.
    pub(super) added_cpu: f64,
    pub(super) proxy_cpu: [f64; 2],
    pub(super) errors: u64,
}

impl Results {
    /// The comparisons of some samples.
    pub(super) fn comparisons(samples: &Samples) -> Vec<Comparison> {
        let compared = samples.iter().filter_map(|((load, path), here)| {
            let base = samples.get(&(*load, path.base()?))?;
            Some(compare((*load, *path), here, base))
        });
        compared.collect()
    }

    /// What a connection across nodes costs the proxies in a large mesh, as a ratio to the same in a small one.
    pub(super) fn growth(&self) -> Vec<(Load, Interval)> {
        let [small, large] = &self.large;
        let cost = |sample: &Sample| sample.proxy_cpu.iter().sum::<f64>() / sample.amount;
        let compared =
            large.iter().filter(|((_, path), _)| *path == Path::Across).filter_map(|(key, large)| {
                let ratios: Vec<_> = large
                    .iter()
                    .zip(small.get(key)?)
                    .map(|(large, small)| cost(large) / cost(small))
                    .collect();
                Some((key.0, Interval::of_ratios(&ratios)?))
            });
        compared.collect()
    }

    /// Everything, for machines.
    pub(super) fn json(&self) -> Value {
        let memory = self.memory.iter();
        let memory: Vec<_> = memory
            .map(|it| json!({"idle_connections": it.connections, "resident_bytes": it.resident}))
            .collect();
        let first = self
            .first
            .map(|it| json!({"first_micros": it.first, "next_micros": it.next, "plain_micros": it.plain}));
        json!({
            "machine": self.machine, "memory": memory, "first_connection": first,
            "rounds": samples_json(&self.rounds), "sustained": samples_json(&self.sustained),
            "with_policies": samples_json(&self.policies),
            "small_mesh": samples_json(&self.large[0]), "large_mesh": samples_json(&self.large[1]),
        })
    }
}

fn compare((load, path): (Load, Path), here: &[Sample], base: &[Sample]) -> Comparison {
    let pairs = || here.iter().zip(base);
    let ratios: Vec<_> = pairs().map(|(here, base)| here.rate / base.rate).collect();
    let added = |at: usize| {
        let added = pairs().filter_map(|(here, base)| Some(here.micros?[at] - base.micros?[at]));
        Interval::of(&added.collect::<Vec<_>>())
    };
    let added_micros = match (added(0), added(1), added(2)) {
        (Some(p50), Some(p99), Some(p999)) => Some([p50, p99, p999]),
        _ => None,
    };
    let scale = if matches!(load, Load::Bulk(_)) { 1.0 } else { 1e6 };
    let cost = |sample: &Sample| sample.machine_cpu / sample.amount * scale;
    let proxy = |at: usize| median(here.iter().map(|sample| sample.proxy_cpu[at] / sample.amount * scale));
    Comparison {
        load,
        path,
        rate: median(here.iter().map(|sample| sample.rate)),
        base_rate: median(base.iter().map(|sample| sample.rate)),
        ratio: Interval::of_ratios(&ratios),
        added_micros,
        added_cpu: median(pairs().map(|(here, base)| cost(here) - cost(base))),
        proxy_cpu: [proxy(0), proxy(1)],
        errors: here.iter().flat_map(|sample| sample.errors.values()).sum(),
    }
}

fn samples_json(samples: &Samples) -> Vec<Value> {
    let runs = samples.iter().map(|((load, path), samples)| {
        let samples: Vec<_> = samples.iter().map(sample_json).collect();
        json!({"load": load.name(), "path": path.name(), "unit": load.units()[0], "amount_in": load.units()[1], "samples": samples})
    });
    runs.collect()
}

fn sample_json(sample: &Sample) -> Value {
    json!({"rate": sample.rate, "amount": sample.amount, "p50_p99_p999_micros": sample.micros, "errors": sample.errors,
        "machine_cpu_seconds": sample.machine_cpu, "proxy_cpu_seconds": sample.proxy_cpu,
        "rates_of_ten_seconds": sample.windows})
}
