//! Durations, counted by their size: what a status has of things that happen too often to be told one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// The upper bounds of the buckets of a [`Histogram`], inclusive. One further bucket has what took longer. They reach from
/// one netlink request to an outage, all by a factor of 2 or 5.
pub const BOUNDS: [Duration; 15] = [
    Duration::from_micros(10),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(50),
    Duration::from_secs(100),
];

/// Counts durations. A clone counts into the same buckets, and counting never waits. Two handles are equal if they are
/// clones of each other, whatever they counted.
#[derive(Debug, Clone, Default)]
pub struct Histogram(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

/// What a [`Histogram`] has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Durations {
    /// How many there were in each bucket, in the order of [`BOUNDS`], and above the last of these.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// All of them together.
    pub sum: Duration,
}

impl Durations {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < took);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Reads what was counted so far. Counting goes on during the read.
    pub fn read(&self) -> Durations {
        Durations {
            buckets: std::array::from_fn(|index| self.0.buckets[index].load(Ordering::Relaxed)),
            sum: Duration::from_nanos(self.0.nanoseconds.load(Ordering::Relaxed)),
        }
    }
}

impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Histogram {}

impl Serialize for Histogram {
    /// Serialises how many there were, and their sum in microseconds.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let read = self.read();
        let mut fields = serializer.serialize_struct("Histogram", 2)?;
        fields.serialize_field("count", &read.count())?;
        fields.serialize_field("sum_us", &u64::try_from(read.sum.as_micros()).unwrap_or(u64::MAX))?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::default();
        let counted = histogram.clone();
        for took in [Duration::ZERO, BOUNDS[0], BOUNDS[0] + Duration::from_nanos(1), Duration::from_hours(1)]
        {
            counted.observe(took);
        }
        let read = histogram.read();
        assert_eq!((read.buckets[0], read.buckets[1], read.buckets[BOUNDS.len()]), (2, 1, 1));
        assert_eq!((read.count(), read.sum.as_secs()), (4, 3600));
        assert!(histogram == counted && histogram != Histogram::default());
    }

    #[test]
    fn the_text_form_is_count_and_sum() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1500));
        assert_eq!(serde_json::to_string(&histogram).unwrap(), r#"{"count":1,"sum_us":1500000}"#);
    }
}
