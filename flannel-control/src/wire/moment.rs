//! A point in time.

use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A point in time by the wall clock: RFC 3339 text, or seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub SystemTime);

impl Default for Moment {
    fn default() -> Self {
        Self(SystemTime::UNIX_EPOCH)
    }
}

impl Moment {
    /// How long ago it was at `now`; nothing if it is still to come.
    pub fn age(self, now: SystemTime) -> Duration {
        now.duration_since(self.0).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl Visitor<'_> for Reader {
    type Value = Moment;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time as RFC 3339 text or in seconds since 1970")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Moment, E> {
        text.parse::<Timestamp>().map(|time| Moment(time.into())).map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Moment, E> {
        let since = Duration::try_from_secs_f64(seconds).map_err(E::custom)?;
        SystemTime::UNIX_EPOCH.checked_add(since).map(Moment).ok_or_else(|| E::custom("too far away"))
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<Moment, E> {
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        time.map(Moment).ok_or_else(|| E::custom("too far away"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let want = Moment(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500));
        for text in ["1.5", r#""1970-01-01T00:00:01.500Z""#] {
            assert_eq!(serde_json::from_str::<Moment>(text).unwrap(), want);
        }
        assert_eq!(want.age(want.0 + Duration::from_secs(2)), Duration::from_secs(2));
        for text in ["-1", "1e300", r#""yesterday""#, "true"] {
            assert!(serde_json::from_str::<Moment>(text).is_err(), "{text}");
        }
    }
}
