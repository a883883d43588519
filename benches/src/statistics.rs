//! From the samples of some rounds to a figure with its spread.

use serde_json::{Value, json};

/// Samples of one quantity, in its unit, one for each round.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The lower and the upper quartile.
    pub fn quartiles(&self) -> (f64, f64) {
        (self.quantile(0.25), self.quantile(0.75))
    }

    /// Linear between the two samples around it; NaN where there is no sample.
    fn quantile(&self, fraction: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let at = fraction * last as f64;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }

    /// Round by round: what drifts from one round to the next is in both samples of a round.
    pub fn paired(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(&a, &b)| combine(a, b)).collect())
    }

    pub fn ratio(&self, native: &Self) -> Self {
        self.paired(native, |a, b| a / b)
    }

    pub fn difference(&self, native: &Self) -> Self {
        self.paired(native, |a, b| a - b)
    }

    pub fn json(&self) -> Value {
        let (low, high) = self.quartiles();
        json!({ "median": self.median(), "lower_quartile": low, "upper_quartile": high, "samples": self.0 })
    }
}

impl Extend<f64> for Samples {
    fn extend<T: IntoIterator<Item = f64>>(&mut self, samples: T) {
        self.0.extend(samples);
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(samples: T) -> Self {
        Self(samples.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let samples: Samples = [4.0, 1.0, 3.0, 2.0].into_iter().collect();
        assert_eq!(samples.median(), 2.5);
        assert_eq!(samples.quartiles(), (1.75, 3.25));
        let one: Samples = [7.0].into_iter().collect();
        assert_eq!((one.median(), one.quartiles()), (7.0, (7.0, 7.0)));
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn a_drift_that_both_sides_share_does_not_show_in_a_ratio() {
        let native: Samples = [1.0, 2.0, 4.0].into_iter().collect();
        let launched: Samples = [1.5, 3.0, 6.0].into_iter().collect();
        let ratio = launched.ratio(&native);
        assert_eq!((ratio.median(), ratio.quartiles()), (1.5, (1.5, 1.5)));
    }
}
