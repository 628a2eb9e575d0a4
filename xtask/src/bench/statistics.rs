//! What a few rounds say about a ratio.

/// A value, and between which two it is with a probability of 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Interval {
    /// Of ratios: the geometric mean, by Student's t of the logarithms.
    pub(super) fn of_ratios(ratios: &[f64]) -> Option<Self> {
        let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        let Self { value, low, high } = Self::of(&logs)?;
        Some(Self { value: value.exp(), low: low.exp(), high: high.exp() })
    }

    /// Of differences: the mean, by Student's t.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        let value = values.iter().sum::<f64>() / count;
        if values.len() < 2 {
            // One round says nothing of what it would be in another.
            return Some(Self { value, low: f64::NEG_INFINITY, high: f64::INFINITY });
        }
        let variance = values.iter().map(|one| (one - value).powi(2)).sum::<f64>() / (count - 1.0);
        let reach = student(values.len() - 1) * (variance / count).sqrt();
        Some(Self { value, low: value - reach, high: value + reach })
    }

    /// The ratio's interval, wider by how far plain TCP was from itself.
    pub(super) fn widened(self, control: Self) -> Self {
        let by = (control.high / control.value).max(control.value.max(1.0 / control.value));
        Self { low: self.low / by, high: self.high * by, ..self }
    }
}

/// The median.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// The 97.5th percentile of Student's t distribution.
fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 20] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    ];
    TABLE.get(freedom - 1).copied().unwrap_or(2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_lies_within_its_interval_which_narrows_with_rounds() {
        let few = Interval::of(&[1.0, 3.0]).unwrap();
        let many = Interval::of(&[1.0, 3.0, 1.0, 3.0, 1.0, 3.0]).unwrap();
        assert_eq!(few.value, 2.0);
        assert!(few.low < many.low && many.low < 2.0 && 2.0 < many.high && many.high < few.high);
        // t of one degree of freedom times the standard error, which is one.
        assert!((few.high - 14.706).abs() < 1e-9);
    }

    #[test]
    fn a_half_and_a_double_are_none_on_average() {
        let interval = Interval::of_ratios(&[0.5, 2.0]).unwrap();
        assert!((interval.value - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_round_proves_nothing() {
        let interval = Interval::of(&[1.0]).unwrap();
        assert!(interval.low.is_infinite() && interval.high.is_infinite());
        assert_eq!(Interval::of(&[]), None);
    }

    #[test]
    fn an_interval_is_widened_by_what_plain_tcp_differs_from_itself() {
        let control = Interval { value: 0.9, low: 0.85, high: 0.95 };
        let widened = Interval { value: 0.36, low: 0.35, high: 0.37 }.widened(control);
        assert!(widened.high > 0.37 / 0.9 - 1e-9 && widened.low < 0.35 * 0.9 + 1e-9);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
    }
}
