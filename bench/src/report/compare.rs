//! Figures of a run against those of an earlier one.

use crate::figure::{Figure, Unit};

/// How a figure changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Of the medians: 0.1 is a tenth more than before.
    pub relative: f64,
    /// What to think of it.
    pub mark: Mark,
}

/// What to think of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Every round is better than every round before.
    Better,
    /// Rounds now are among rounds before, or neither more nor less is better.
    Within,
    /// Every round is worse than every round before.
    Worse,
}

/// The change against the same figure of an earlier run; none where it has none.
pub fn change(now: &Figure, earlier: &[Figure]) -> Option<Change> {
    let before = earlier.iter().find(|figure| figure.is_like(now))?;
    let relative = match (now.median(), before.median()) {
        (0.0, 0.0) => 0.0,
        (now, before) => now / before - 1.0,
    };
    let ((low, high), (before_low, before_high)) = (now.spread(), before.spread());
    let (less, more) = (high < before_low, low > before_high);
    let (better, worse) = match now.unit {
        Unit::Count => (false, false),
        unit if unit.less_is_better() => (less, more),
        _ => (more, less),
    };
    let mark = match (better, worse) {
        (true, _) => Mark::Better,
        (_, true) => Mark::Worse,
        _ => Mark::Within,
    };
    Some(Change { relative, mark })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(unit: Unit, rounds: &[f64]) -> Figure {
        Figure::new("arp", "x", unit, "tc", 1_u64, rounds.to_vec())
    }

    fn mark(unit: Unit, before: &[f64], now: &[f64]) -> Mark {
        change(&figure(unit, now), &[figure(unit, before)])
            .expect("the same figure")
            .mark
    }

    #[test]
    fn only_what_is_beyond_the_spread_is_marked() {
        let before = [100.0, 110.0, 120.0];
        for (now, less_is_better, more_is_better) in [
            ([121.0, 130.0, 140.0], Mark::Worse, Mark::Better),
            ([119.0, 130.0, 140.0], Mark::Within, Mark::Within),
            ([80.0, 90.0, 99.0], Mark::Better, Mark::Worse),
            ([80.0, 90.0, 101.0], Mark::Within, Mark::Within),
        ] {
            assert_eq!(mark(Unit::Nanoseconds, &before, &now), less_is_better);
            assert_eq!(mark(Unit::PerSecond, &before, &now), more_is_better);
            assert_eq!(mark(Unit::Count, &before, &now), Mark::Within);
        }
    }

    #[test]
    fn the_change_is_that_of_the_medians() {
        let before = [figure(Unit::Seconds, &[1.0, 2.0, 30.0])];
        let now = figure(Unit::Seconds, &[3.0, 3.0, 3.0]);
        assert_eq!(change(&now, &before).expect("same").relative, 0.5);
    }

    #[test]
    fn another_size_path_or_unit_is_another_figure() {
        let now = figure(Unit::Seconds, &[1.0]);
        let others = [
            Figure {
                size: 2,
                ..now.clone()
            },
            Figure {
                path: "xdp".into(),
                ..now.clone()
            },
            Figure {
                unit: Unit::Milliseconds,
                ..now.clone()
            },
        ];
        assert_eq!(change(&now, &others), None);
    }
}
