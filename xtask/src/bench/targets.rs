//! The figures that are to be reached, and whether they are.
//!
//! A ratio passes on its interval of 95 %, widened by what plain TCP differs from itself, where that interval says
//! anything at all; a time or a size passes by its value.

use super::{
    load::Load,
    results::{Comparison, Results},
    stage::Path,
    statistics::Interval,
};

/// A figure beside what it is to be.
pub(super) struct Verdict {
    pub(super) what: String,
    pub(super) ours: String,
    pub(super) wanted: String,
    pub(super) outcome: Outcome,
}

/// Whether a figure is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Reached,
    Short,
    /// The rounds differ too much from each other to tell.
    Unclear,
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Short => "short",
            Self::Unclear => "unclear",
        }
    }

    fn of(holds: bool) -> Self {
        if holds { Self::Reached } else { Self::Short }
    }

    fn of_ratio(interval: Interval, wanted: f64) -> Self {
        if interval.low >= wanted || interval.high >= wanted && interval.high <= interval.value * WIDEST {
            Self::Reached
        } else if interval.high < wanted {
            Self::Short
        } else {
            Self::Unclear
        }
    }

    /// As [`Self::of_ratio`], of what is to be no more than `most`.
    fn of_growth(Interval { value, low, high }: Interval, most: f64) -> Self {
        Self::of_ratio(Interval { value: 1.0 / value, low: 1.0 / high, high: 1.0 / low }, 1.0 / most)
    }
}

/// What can be said from what was measured.
pub(super) fn verdicts(results: &Results) -> Vec<Verdict> {
    let rounds = Results::comparisons(&results.rounds);
    let mut verdicts = Vec::new();
    for comparison in &rounds {
        let control = rounds.iter().find(|it| it.load == comparison.load && it.path == Path::Control);
        let control = control.and_then(|it| it.ratio);
        verdicts.extend(ratio(comparison, control, wanted_ratio(comparison)));
        if comparison.path == Path::Across {
            verdicts.extend(times(comparison));
        }
    }
    for comparison in &Results::comparisons(&results.sustained) {
        verdicts.extend(
            ratio(comparison, None, wanted_ratio(comparison))
                .map(|verdict| Verdict { what: format!("sustained: {}", verdict.what), ..verdict }),
        );
    }
    verdicts.extend(results.growth().into_iter().map(|(load, ratio)| growth(load, ratio)));
    verdicts.extend(memory(results));
    verdicts
}

fn wanted_ratio(comparison: &Comparison) -> Option<f64> {
    match (comparison.path, comparison.load) {
        (Path::Across, Load::Bulk(_)) => Some(0.38),
        (Path::Across, Load::Churn(..)) => Some(0.36),
        (Path::Near, Load::Bulk(_)) => Some(0.5),
        (Path::Native, _) => Some(0.9),
        // No difference that plain against plain does not show.
        (Path::Outward, _) => Some(1.0),
        _ => None,
    }
}

fn ratio(comparison: &Comparison, control: Option<Interval>, wanted: Option<f64>) -> Option<Verdict> {
    let (wanted, measured) = (wanted?, comparison.ratio?);
    let interval = control.map_or(measured, |control| measured.widened(control));
    let errors = match comparison.errors {
        0 => String::new(),
        errors => format!(", {errors} errors"),
    };
    Some(Verdict {
        what: format!("{}, {}", comparison.path.name(), comparison.load.name()),
        ours: format!("{:.2} ({:.2} to {:.2}){errors}", measured.value, interval.low, interval.high),
        wanted: format!("≥ {wanted:.2}"),
        outcome: match comparison.errors {
            0 => Outcome::of_ratio(interval, wanted),
            _ => Outcome::Short,
        },
    })
}

fn times(comparison: &Comparison) -> Vec<Verdict> {
    let what = |what: &str| format!("{}, {}: {what}", comparison.path.name(), comparison.load.name());
    let at_most = |what: String, ours: f64, most: f64| Verdict {
        what,
        ours: format!("{ours:.0} µs"),
        wanted: format!("≤ {most:.0} µs"),
        outcome: Outcome::of(ours <= most),
    };
    match (comparison.load, comparison.added_micros) {
        (Load::PingPong(1), Some([p50, p99, _])) => {
            vec![at_most(what("added p50"), p50.value, 25.0), at_most(what("added p99"), p99.value, 55.0)]
        }
        (Load::PingPong(16), _) => {
            vec![at_most(what("the machine's CPU added a round trip"), comparison.added_cpu, 26.0)]
        }
        _ => Vec::new(),
    }
}

/// A large mesh must not make a connection dearer.
fn growth(load: Load, ratio: Interval) -> Verdict {
    Verdict {
        what: format!("{}: CPU of the proxies among 100,000 pods and 10,000 policies", load.name()),
        ours: format!("× {:.2} ({:.2} to {:.2})", ratio.value, ratio.low, ratio.high),
        wanted: format!("≤ × {GROWTH:.2}"),
        outcome: Outcome::of_growth(ratio, GROWTH),
    }
}

fn memory(results: &Results) -> Vec<Verdict> {
    let Some(idle) = results.memory.first() else { return Vec::new() };
    let most = |bytes: [u64; 2]| bytes[0].max(bytes[1]) as f64;
    let megabytes = most(idle.resident) / 1e6;
    let mut verdicts = vec![Verdict {
        what: "memory, idle".to_owned(),
        ours: format!("{megabytes:.1} MB"),
        wanted: "≤ 12 MB".to_owned(),
        outcome: Outcome::of(megabytes <= 12.0),
    }];
    for loaded in results.memory.iter().skip(1) {
        let more = [0, 1].map(|at: usize| loaded.resident[at].saturating_sub(idle.resident[at]));
        let each = most(more) / loaded.connections as f64 / 1e3;
        verdicts.push(Verdict {
            what: format!("memory of each of {} idle connections, a side", loaded.connections),
            ours: format!("{each:.1} kB"),
            wanted: "≤ 5 kB".to_owned(),
            outcome: Outcome::of(each <= 5.0),
        });
    }
    verdicts
}

/// What a connection may cost in a large mesh, of what it costs in a small one.
const GROWTH: f64 = 1.05;
/// How far above its value an interval may reach and still decide.
const WIDEST: f64 = 1.2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_reached_within_its_interval_and_unclear_where_that_is_wide() {
        let outcome = |value, low, high| Outcome::of_ratio(Interval { value, low, high }, 0.38);
        assert_eq!(outcome(0.40, 0.39, 0.41), Outcome::Reached);
        assert_eq!(outcome(0.37, 0.35, 0.39), Outcome::Reached);
        assert_eq!(outcome(0.30, 0.29, 0.31), Outcome::Short);
        assert_eq!(outcome(0.20, 0.01, 9.00), Outcome::Unclear);
        assert_eq!(outcome(0.60, 0.39, 9.00), Outcome::Reached);
        assert_eq!(outcome(0.37, f64::NEG_INFINITY, f64::INFINITY), Outcome::Unclear);
    }

    #[test]
    fn a_growth_is_within_bounds_by_its_interval_too() {
        let outcome = |value, low, high| Outcome::of_growth(Interval { value, low, high }, 1.05);
        assert_eq!(outcome(1.01, 0.99, 1.03), Outcome::Reached);
        assert_eq!(outcome(1.06, 1.04, 1.08), Outcome::Reached);
        assert_eq!(outcome(1.10, 1.08, 1.12), Outcome::Short);
        assert_eq!(outcome(1.50, 0.90, 2.50), Outcome::Unclear);
    }
}
