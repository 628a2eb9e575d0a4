//! Waiting for conditions instead of sleeping.

use std::{
    fmt::Display,
    panic::Location,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long a test waits for what should take far less: generous, since some machines are emulated and nothing is
/// measured by it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a condition is looked at. Small against everything that is waited for, large against a scheduler's tick.
const INTERVAL: Duration = Duration::from_millis(5);

/// What a closure given to [`eventually`] may return: `bool`, `Option<T>` or `Result<T, E>`.
pub trait Condition {
    /// What is there once the condition holds.
    type Value;
    /// The value, or why there is none yet.
    fn check(self) -> Result<Self::Value, String>;
}

impl Condition for bool {
    type Value = ();
    fn check(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("it stayed false".to_owned()) }
    }
}

impl<T> Condition for Option<T> {
    type Value = T;
    fn check(self) -> Result<T, String> {
        self.ok_or_else(|| "it stayed None".to_owned())
    }
}

impl<T, E: Display> Condition for Result<T, E> {
    type Value = T;
    fn check(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

/// Waits until `condition` holds and returns its value.
///
/// # Panics
/// Where it does not hold within `deadline`; the message says what it was last.
#[track_caller]
pub fn eventually<C: Condition>(deadline: Duration, condition: impl FnMut() -> C) -> C::Value {
    match try_eventually(deadline, condition) {
        Ok(value) => value,
        Err(error) => panic!("{error:#} (waited for at {})", Location::caller()),
    }
}

/// As [`eventually`], with an error instead of a panic.
pub fn try_eventually<C: Condition>(
    deadline: Duration,
    mut condition: impl FnMut() -> C,
) -> Result<C::Value> {
    let start = Instant::now();
    loop {
        // The last look begins when the time is over: one that took all of it itself, or a process that was stopped in the
        // middle, says nothing of what holds now.
        let is_last = start.elapsed() >= deadline;
        match condition().check() {
            Ok(value) => return Ok(value),
            Err(last) if is_last => {
                bail!("the condition did not hold within {deadline:?}: {last}");
            }
            Err(_) => sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_the_first_success_is_returned() {
        let mut left = 3;
        let value = eventually(PATIENCE, || {
            left -= 1;
            (left == 0).then_some("done")
        });
        assert_eq!(value, "done");
    }

    #[test]
    fn a_look_that_takes_all_the_time_is_not_the_last() {
        let mut looks = 0;
        eventually(Duration::from_millis(20), || {
            looks += 1;
            sleep(Duration::from_millis(40));
            looks == 2
        });
    }

    #[test]
    fn the_last_failure_is_named_at_the_deadline() {
        let error = try_eventually(Duration::ZERO, || Err::<(), _>("refused")).unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
