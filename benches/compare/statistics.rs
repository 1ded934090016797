//! What a handful of samples says: the median, the 95th percentile, and how far they lie apart.

use serde::Serialize;

/// Measured values in rising order.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Samples(Vec<f64>);

/// Which number stands for all samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Statistic {
    Median,
    Percentile95,
}

impl Samples {
    pub(crate) fn of(&self, statistic: Statistic) -> f64 {
        match statistic {
            Statistic::Median => self.median(),
            Statistic::Percentile95 => self.quantile(0.95),
        }
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    pub(crate) fn max(&self) -> f64 {
        self.quantile(1.0)
    }

    pub(crate) fn map(&self, change: impl Fn(f64) -> f64) -> Self {
        self.0.iter().copied().map(change).collect()
    }

    /// Between two samples it is taken from the line that joins them.
    fn quantile(&self, share: f64) -> f64 {
        let position = share * (self.0.len() - 1) as f64;
        let (below, above) = (position.floor(), position.ceil());
        let (low, high) = (self.0[below as usize], self.0[above as usize]);
        low + (high - low) * (position - below)
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Samples(values)
    }
}
