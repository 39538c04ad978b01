//! What a benchmark found: figures by scenario, path and size, round by round.

use serde::{Deserialize, Serialize};

/// What a figure counts, always in the unit of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Events in a second, or in a second of CPU time, as the metric says.
    PerSecond,
    /// Bits in a second.
    BitsPerSecond,
    /// Bytes.
    Bytes,
    /// A number of things.
    Count,
}

impl Unit {
    /// Whether a smaller value is the better one.
    pub const fn less_is_better(self) -> bool {
        !matches!(self, Unit::PerSecond | Unit::BitsPerSecond | Unit::Count)
    }
}

/// One metric of one path at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The scenario, as on the command line.
    pub scenario: String,
    /// What was measured, in words: `CPU per packet`.
    pub metric: String,
    /// Unit of the values.
    pub unit: Unit,
    /// The way packets took: `bridge`, `routed`, `tc`.
    pub path: String,
    /// Machines, or addresses where the scenario says so.
    pub size: u64,
    /// A value for each round, in the order of the rounds. Round `n` of every path ran
    /// next to round `n` of the others, so that ratios are taken round by round.
    pub rounds: Vec<f64>,
}

impl Figure {
    /// A figure with its rounds.
    pub fn new(
        scenario: &str,
        metric: &str,
        unit: Unit,
        path: &str,
        size: impl Into<u64>,
        rounds: Vec<f64>,
    ) -> Self {
        Figure {
            scenario: scenario.into(),
            metric: metric.into(),
            unit,
            path: path.into(),
            size: size.into(),
            rounds,
        }
    }

    /// The value that half of the rounds stay below; not a number without rounds.
    pub fn median(&self) -> f64 {
        median(&self.rounds)
    }

    /// The smallest and the largest value.
    pub fn spread(&self) -> (f64, f64) {
        self.rounds
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(*value), high.max(*value))
            })
    }

    /// Median of this figure's rounds over the other's, each against the round beside
    /// it; not a number without a round that both have.
    pub fn ratio(&self, other: &Figure) -> f64 {
        let ratios: Vec<_> = self
            .rounds
            .iter()
            .zip(&other.rounds)
            .map(|(one, other)| one / other)
            .collect();
        median(&ratios)
    }
}

/// The middle value, the mean of the two middle ones; not a number if there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => values[middle],
        (_, middle) => f64::midpoint(values[middle - 1], values[middle]),
    }
}
