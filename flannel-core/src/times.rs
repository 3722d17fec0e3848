//! The text forms of times: an instant is RFC 3339 in UTC with milliseconds (`2026-11-29T18:00:00.123Z`), and a duration
//! is a whole number with its unit in the name of its field (`_s`, `_ms`, `_us`). Pure.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// An instant as RFC 3339 text in UTC, with milliseconds. What is before year -9999 or after year 9999 becomes the first
/// or the last instant between.
pub fn rfc3339(time: SystemTime) -> String {
    let outside = if time < SystemTime::UNIX_EPOCH { Timestamp::MIN } else { Timestamp::MAX };
    let time = Timestamp::try_from(time).unwrap_or(outside);
    format!("{time:.3}")
}

/// Serializes an instant as [`rfc3339`] text.
pub fn instant<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// The same for an instant that may be missing, which is null.
pub fn optional_instant<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => instant(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// Serializes seconds since 1970 as [`rfc3339`] text.
pub fn unix_instant<S: Serializer>(seconds: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    // More than 2^53 seconds are beyond the last instant, too.
    let seconds = Duration::from_secs((*seconds).min(1 << 53));
    instant(&(SystemTime::UNIX_EPOCH + seconds), serializer)
}

/// The same for a value that may be missing, which is null.
pub fn optional_unix_instant<S: Serializer>(seconds: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match seconds {
        Some(seconds) => unix_instant(seconds, serializer),
        None => serializer.serialize_none(),
    }
}

/// Serializes a duration in whole seconds, for a field that ends with `_s`.
pub fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.as_secs())
}

/// Serializes a duration in whole milliseconds, for a field that ends with `_ms`.
pub fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Serializes a duration in whole microseconds, for a field that ends with `_us`.
pub fn microseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// The same for a duration that may be missing, which is null.
pub fn optional_microseconds<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => microseconds(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// A time in whole microseconds, from one to an hour: an agent keeps several of them for each of thousands of peers. It is
/// serialized as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Micros(NonZeroU32);

impl From<Duration> for Micros {
    fn from(time: Duration) -> Self {
        let us = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(us).unwrap_or(NonZeroU32::MIN))
    }
}

impl From<Micros> for Duration {
    fn from(time: Micros) -> Self {
        Self::from_micros(time.0.get().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_has_milliseconds_and_is_in_utc() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        for (time, text) in [
            (at(0), "1970-01-01T00:00:00.000Z"),
            (at(1_500), "1970-01-01T00:00:01.500Z"),
            (at(951_782_400_999), "2000-02-29T00:00:00.999Z"),
            (at(1_000) + Duration::from_nanos(999_999), "1970-01-01T00:00:01.000Z"),
            (SystemTime::UNIX_EPOCH - Duration::from_secs(1), "1969-12-31T23:59:59.000Z"),
            (SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 60), "9999-12-30T22:00:00.999Z"),
        ] {
            assert_eq!(rfc3339(time), text);
        }
    }
}
