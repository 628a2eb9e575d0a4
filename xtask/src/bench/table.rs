//! The results for people.

use super::{
    load::Load,
    results::{Comparison, Results},
    rounds::Samples,
    stage::Path,
    targets::verdicts,
};
use crate::report::{Report, row};

/// Prints everything.
pub(super) fn print(results: &Results) {
    let report = Report::new();
    for path in Path::ALL.into_iter().filter(|path| path.base().is_some()) {
        let comparisons = Results::comparisons(&results.rounds);
        rates(&report, path.name(), comparisons.into_iter().filter(|it| it.path == path));
    }
    rates(&report, "sustained, across nodes", Results::comparisons(&results.sustained));
    windows(&report, &results.sustained);
    rates(&report, "across nodes, with 1,000 policies", Results::comparisons(&results.policies));
    for (title, samples) in ["", ", among 100,000 pods and 10,000 policies"].iter().zip(&results.large) {
        rates(&report, &format!("across nodes{title}"), Results::comparisons(samples));
    }
    if !results.memory.is_empty() {
        report.heading("memory of each proxy");
        for memory in &results.memory {
            let [a, b] = memory.resident.map(|bytes| bytes as f64 / 1e6);
            report.line(&format!("{:>6} idle connections: {a:.1} MB, {b:.1} MB", memory.connections));
        }
    }
    if let Some(first) = results.first {
        report.heading("connect and one round trip");
        report.line(&format!(
            "the first to a peer {:.0} µs, the next {:.0} µs, plain {:.0} µs",
            first.first, first.next, first.plain
        ));
    }
    let mut rows = vec![row(["FIGURE", "OURS", "WANTED", ""])];
    for verdict in verdicts(results) {
        rows.push([verdict.what, verdict.ours, verdict.wanted, verdict.outcome.name().to_owned()]);
    }
    report.heading("the figures to reach");
    report.table(&rows);
}

fn rates(report: &Report, title: &str, comparisons: impl IntoIterator<Item = Comparison>) {
    let mut comparisons = comparisons.into_iter().peekable();
    if comparisons.peek().is_none() {
        return;
    }
    report.heading(title);
    let head =
        ["LOAD", "PLAIN", "HERE", "RATIO (95 %)", "ADDED p50 p99 p99.9", "CPU: MACHINE, PROXIES", "ERRORS"];
    let mut rows = vec![row(head)];
    for it in comparisons {
        let ratio =
            it.ratio.map(|ratio| format!("{:.2} ({:.2} to {:.2})", ratio.value, ratio.low, ratio.high));
        let added = it.added_micros.map(|added| {
            let [p50, p99, p999] = added.map(|added| format!("{:+.0}", added.value));
            format!("{p50} {p99} {p999} µs")
        });
        let unit = if matches!(it.load, Load::Bulk(_)) { "s/GB" } else { "µs" };
        let digits = if matches!(it.load, Load::Bulk(_)) { 2 } else { 0 };
        let [a, b] = it.proxy_cpu;
        rows.push([
            it.load.name(),
            rate(it.base_rate),
            rate(it.rate),
            ratio.unwrap_or_default(),
            added.unwrap_or_default(),
            format!("{:+.digits$}, {a:.digits$} + {b:.digits$} {unit}", it.added_cpu),
            it.errors.to_string(),
        ]);
    }
    report.table(&rows);
}

/// Whether a rate falls as time goes on.
fn windows(report: &Report, sustained: &Samples) {
    for ((load, path), samples) in sustained {
        for sample in samples {
            let rates: Vec<_> = sample.windows.iter().map(|it| rate(*it)).collect();
            report.line(&format!("{}, {}, each 10 s: {}", load.name(), path.name(), rates.join(" ")));
        }
    }
}

fn rate(rate: f64) -> String {
    match rate {
        1e9.. => format!("{:.2} G/s", rate / 1e9),
        1e6.. => format!("{:.2} M/s", rate / 1e6),
        1e3.. => format!("{:.1} k/s", rate / 1e3),
        _ => format!("{rate:.0} /s"),
    }
}
