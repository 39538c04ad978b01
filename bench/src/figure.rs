//! What a benchmark found: figures by scenario, path and size, round by round.

use serde::{Deserialize, Deserializer, Serialize};

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
    /// A number of things, of which neither more nor less is better by itself.
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
    /// next to round `n` of the others, so that ratios are taken round by round. A round
    /// without a value is not a number here, and null in JSON.
    #[serde(deserialize_with = "rounds")]
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

    /// The smallest and the largest value; not numbers without rounds.
    pub fn spread(&self) -> (f64, f64) {
        self.rounds
            .iter()
            .fold((f64::NAN, f64::NAN), |(low, high), value| {
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

    /// Whether it is the same metric of the same path at the same size.
    pub fn is_like(&self, other: &Figure) -> bool {
        fn key(figure: &Figure) -> (&str, &str, &str, u64, Unit) {
            let Figure {
                scenario,
                metric,
                path,
                size,
                unit,
                ..
            } = figure;
            (scenario, metric, path, *size, *unit)
        }
        key(self) == key(other)
    }
}

/// The middle value, the mean of the two middle ones; not a number if there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut values: Vec<_> = values.iter().copied().filter(|v| !v.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => values[middle],
        (_, middle) => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// JSON has no word for what is not a number: it is written as null.
fn rounds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Option<f64>>::deserialize(deserializer)?;
    Ok(values
        .into_iter()
        .map(|value| value.unwrap_or(f64::NAN))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(rounds: &[f64]) -> Figure {
        Figure::new("arp", "time", Unit::Seconds, "tc", 1_u64, rounds.to_vec())
    }

    #[test]
    fn median_of_an_even_number_is_between() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn rounds_without_a_value_do_not_count() {
        let figure = figure(&[f64::NAN, 2.0, 5.0, 3.0]);
        assert_eq!(figure.median(), 3.0);
        assert_eq!(figure.spread(), (2.0, 5.0));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // A machine that becomes ten times slower meanwhile changes no ratio.
        let ours = figure(&[1.0, 10.0, 2.0]);
        let theirs = figure(&[2.0, 20.0, 4.0, 1000.0]);
        assert_eq!(ours.ratio(&theirs), 0.5);
    }

    #[test]
    fn json_keeps_rounds_without_a_value() {
        let text = serde_json::to_string(&figure(&[1.5, f64::NAN])).expect("plain data");
        assert!(text.ends_with(r#""rounds":[1.5,null]}"#), "{text}");
        let back: Figure = serde_json::from_str(&text).expect("what was written");
        assert_eq!(back.rounds[0], 1.5);
        assert!(back.rounds[1].is_nan());
    }
}
