//! Writes metrics as the catalogue describes them.

use std::fmt::{Error, Result};
use std::time::Duration;

use flannel_core::status::{BOUNDS, Durations};
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::catalogue::{Kind, Metric};

/// The writer of one answer.
pub(crate) struct Output<'a>(pub(crate) DescriptorEncoder<'a>);

impl Output<'_> {
    /// Writes a metric with one value.
    pub(crate) fn value(&mut self, metric: &Metric, value: impl EncodeGaugeValue) -> Result {
        self.values(metric, [([], value)])
    }

    /// Writes a metric with a value for each set of labels, which are in the order of [`Metric::labels`]. Without values it
    /// writes nothing at all, as `OpenMetrics` would have it.
    pub(crate) fn values<'a, const LABELS: usize, V: EncodeGaugeValue>(
        &mut self,
        metric: &Metric,
        values: impl IntoIterator<Item = ([&'a str; LABELS], V)>,
    ) -> Result {
        debug_assert!(matches!(metric.kind, Kind::Gauge), "{} is a gauge", metric.name);
        debug_assert_eq!(metric.labels.len(), LABELS, "labels of {}", metric.name);
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let unit = metric.unit();
        let mut encoder =
            self.0.encode_descriptor(metric.name, metric.help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in values {
            if LABELS == 0 {
                encoder.encode_gauge(&value)?;
            } else {
                encoder.encode_family(&named(metric, labels))?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// Writes a counter with one value.
    pub(crate) fn count(&mut self, metric: &Metric, value: u64) -> Result {
        self.counts(metric, [([], value)])
    }

    /// Writes a counter for each set of labels. Without values it writes nothing at all.
    pub(crate) fn counts<'a, const LABELS: usize>(
        &mut self,
        metric: &Metric,
        values: impl IntoIterator<Item = ([&'a str; LABELS], u64)>,
    ) -> Result {
        debug_assert!(matches!(metric.kind, Kind::Counter), "{} is a counter", metric.name);
        debug_assert_eq!(metric.labels.len(), LABELS, "labels of {}", metric.name);
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let unit = metric.unit();
        let mut encoder =
            self.0.encode_descriptor(metric.name, metric.help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in values {
            if LABELS == 0 {
                encoder.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
            } else {
                encoder
                    .encode_family(&named(metric, labels))?
                    .encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
            }
        }
        Ok(())
    }

    /// Writes a counter of time.
    pub(crate) fn seconds(&mut self, metric: &Metric, time: Duration) -> Result {
        debug_assert!(matches!(metric.kind, Kind::Counter), "{} is a counter", metric.name);
        let unit = metric.unit();
        self.0
            .encode_descriptor(metric.name, metric.help, unit.as_ref(), MetricType::Counter)?
            .encode_counter::<NoLabelSet, f64, f64>(&time.as_secs_f64(), None)
    }

    /// Writes a histogram of durations.
    pub(crate) fn durations(&mut self, metric: &Metric, durations: &Durations) -> Result {
        self.histogram(metric, &BOUNDS, &durations.buckets, durations.sum)
    }

    /// Writes a histogram of durations whose buckets have these upper bounds, and one more for what took longer.
    pub(crate) fn histogram(
        &mut self,
        metric: &Metric,
        bounds: &[Duration],
        counts: &[u64],
        sum: Duration,
    ) -> Result {
        debug_assert!(matches!(metric.kind, Kind::Histogram), "{} is a histogram", metric.name);
        debug_assert_eq!(bounds.len() + 1, counts.len(), "buckets of {}", metric.name);
        let bounds = bounds.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        let unit = metric.unit();
        self.0
            .encode_descriptor(metric.name, metric.help, unit.as_ref(), MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sum.as_secs_f64(), counts.iter().sum(), &buckets, None)
    }

    /// Writes facts as labels.
    pub(crate) fn info<const LABELS: usize>(&mut self, metric: &Metric, labels: [&str; LABELS]) -> Result {
        self.infos(metric, [labels])
    }

    /// Writes facts about several things as labels. Without things it writes nothing at all.
    pub(crate) fn infos<'a, const LABELS: usize>(
        &mut self,
        metric: &Metric,
        things: impl IntoIterator<Item = [&'a str; LABELS]>,
    ) -> Result {
        debug_assert!(matches!(metric.kind, Kind::Info), "{} is an info", metric.name);
        debug_assert_eq!(metric.labels.len(), LABELS, "labels of {}", metric.name);
        let mut things = things.into_iter().peekable();
        if things.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.0.encode_descriptor(metric.name, metric.help, None, MetricType::Info)?;
        things.try_for_each(|labels| encoder.encode_info(&named(metric, labels)))
    }
}

/// Labels with their names.
fn named<'a, const LABELS: usize>(
    metric: &Metric,
    values: [&'a str; LABELS],
) -> [(&'static str, &'a str); LABELS] {
    std::array::from_fn(|index| (metric.labels.get(index).copied().unwrap_or_default(), values[index]))
}

/// What a collector returns: writing to a string does not fail.
pub(crate) type Written = std::result::Result<(), Error>;
