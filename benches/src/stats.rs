//! Medians and their spread.

use std::fmt;

/// A sample of figures.
#[derive(Debug, Clone, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// An empty one.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a figure.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle one, of two the mean; `NaN` of none.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The one that `percent` of all don't exceed; `NaN` of none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let sorted = self.sorted();
        let rank = (percent * sorted.len()).div_ceil(100);
        sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// The smallest; `NaN` of none.
    pub fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    /// The largest; `NaN` of none.
    pub fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    /// Each figure over the one of the same round in another sample.
    pub fn ratios_to(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        Self(figures.into_iter().collect())
    }
}

impl fmt::Display for Sample {
    /// `median (min..max, n)`, with as many decimals as the format asks for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = f.precision().unwrap_or(2);
        if self.is_empty() {
            return f.write_str("-");
        }
        write!(f, "{:.p$} ({:.p$}..{:.p$}, n={})", self.median(), self.min(), self.max(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let sample: Sample = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!(format!("{sample:.1}"), "2.0 (1.0..3.0, n=3)");
        let other: Sample = [1.0, 2.0, 4.0].into_iter().collect();
        assert_eq!(format!("{:.2}", sample.ratios_to(&other)), "0.50 (0.50..3.00, n=3)");
        assert!((Sample::from_iter([1.0, 2.0]).median() - 1.5).abs() < 1e-9);
        assert_eq!(Sample::default().to_string(), "-");
        let hundred: Sample = (1..=100).map(f64::from).collect();
        assert_eq!([0, 50, 99, 100].map(|p| hundred.percentile(p).to_string()), ["1", "50", "99", "100"]);
        assert!(Sample::new().percentile(99).is_nan());
    }
}
