//! Moments as people and machines read them: RFC 3339 in UTC, whole seconds, and how far away they are.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A moment, written as RFC 3339 in UTC with whole seconds.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct At(pub SystemTime);

impl At {
    /// Returns the seconds from `now` until then; negative where it has passed.
    pub fn seconds_from(self, now: SystemTime) -> f64 {
        match self.0.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(passed) => -passed.duration().as_secs_f64(),
        }
    }

    /// Returns how far away it is, in its two largest units: `in 11h 59m`, `3days 4h ago`.
    pub fn relative_to(self, now: SystemTime) -> String {
        match self.0.duration_since(now) {
            Ok(left) => format!("in {}", span(left)),
            Err(passed) => format!("{} ago", span(passed.duration())),
        }
    }
}

/// A duration in its two largest units, whole seconds.
pub fn span(duration: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Years beyond 9999 have no such form, and some authorities date certificates so far.
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        f.pad(&humantime::format_rfc3339_seconds(self.0.min(last)).to_string())
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: &str = "2026-01-01T12:00:00Z";

    fn noon() -> SystemTime {
        humantime::parse_rfc3339(NOON).unwrap()
    }

    #[test]
    fn is_as_far_away_as_it_says() {
        let check = |then: SystemTime, text: &str| assert_eq!(At(then).relative_to(noon()), text);
        check(noon() + Duration::from_secs(43_199), "in 11h 59m");
        check(noon() - Duration::from_secs(90), "1m 30s ago");
        check(noon(), "in 0s");
        assert_eq!(At(noon() - Duration::from_secs(90)).seconds_from(noon()), -90.0);
    }

    #[test]
    fn is_read_as_it_was_written() {
        let text = serde_json::to_string(&At(noon())).unwrap();
        assert_eq!(text, format!("{NOON:?}"));
        assert_eq!(serde_json::from_str::<At>(&text).unwrap(), At(noon()));
    }

    #[test]
    fn a_year_without_a_form_does_no_harm() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(400_000_000_000);
        assert_eq!(At(far).to_string(), "9999-12-31T23:59:59Z");
    }
}
