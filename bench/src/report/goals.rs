//! What must be reached, and whether it is.

use std::fmt;

use serde::Serialize;

use super::words;
use crate::figure::{Figure, Unit, median};

/// Something that must be reached: a figure, or its ratio to another one, in bounds.
#[derive(Clone, Debug)]
pub struct Goal {
    /// In words.
    pub what: String,
    figure: Which,
    against: Against,
    bound: Bound,
}

/// What a bound is a multiple of.
#[derive(Clone, Copy, Debug)]
enum Against {
    /// Nothing: the bound is a value in the figure's unit.
    One(Unit),
    /// The round beside it of another figure.
    Figure(Which),
}

/// Names a figure.
#[derive(Clone, Copy, Debug)]
struct Which {
    scenario: &'static str,
    metric: &'static str,
    path: &'static str,
    /// Any size, the largest that there is, where it is none.
    size: Option<u64>,
}

/// What a value must keep to.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
    Below(f64),
}

impl Bound {
    /// Whether a value keeps to so many times the bound. Without a division, so that
    /// nothing against nothing is decided as well.
    fn holds(self, value: f64, times: f64) -> bool {
        match self {
            Bound::AtMost(bound) => value <= bound * times,
            Bound::AtLeast(bound) => value >= bound * times,
            Bound::Below(bound) => value < bound * times,
        }
    }

    const fn parts(self) -> (&'static str, f64) {
        match self {
            Bound::AtMost(bound) => ("≤", bound),
            Bound::AtLeast(bound) => ("≥", bound),
            Bound::Below(bound) => ("<", bound),
        }
    }
}

/// Whether a goal is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In more than half of the rounds.
    Reached,
    /// Not in more than half of them.
    Missed,
    /// The run has no such figures.
    NotMeasured,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Reached => "reached",
            State::Missed => "missed",
            State::NotMeasured => "not measured",
        })
    }
}

/// A goal with what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What must be reached.
    pub what: String,
    /// The bound, in words.
    pub bound: String,
    /// The median of the rounds, in words; a dash without any.
    pub found: String,
    /// Rounds that reached it.
    pub reached_in: usize,
    /// Rounds.
    pub rounds: usize,
    /// Whether it is reached.
    pub state: State,
}

impl Which {
    fn is(&self, figure: &Figure) -> bool {
        figure.scenario == self.scenario
            && figure.metric == self.metric
            && figure.path == self.path
            && self.size.is_none_or(|size| size == figure.size)
    }

    fn find(self, figures: &[Figure]) -> Option<&Figure> {
        figures
            .iter()
            .filter(|figure| self.is(figure))
            .max_by_key(|figure| figure.size)
    }
}

impl Goal {
    fn judge(&self, figures: &[Figure]) -> Verdict {
        let figure = self.figure.find(figures);
        // Pairs of a value and what it is held against.
        let rounds: Vec<(f64, f64)> = match (figure, self.against) {
            (None, _) => Vec::new(),
            (Some(figure), Against::One(_)) => {
                figure.rounds.iter().map(|value| (*value, 1.0)).collect()
            }
            (Some(figure), Against::Figure(other)) => {
                let others = other.find(figures).map(|other| &other.rounds[..]);
                let rounds = figure.rounds.iter().zip(others.unwrap_or_default());
                rounds.map(|(one, other)| (*one, *other)).collect()
            }
        };
        let rounds: Vec<_> = rounds
            .into_iter()
            .filter(|(value, times)| !value.is_nan() && !times.is_nan())
            .collect();
        let reached_in = rounds
            .iter()
            .filter(|(value, times)| self.bound.holds(*value, *times))
            .count();
        let state = match rounds.len() {
            0 => State::NotMeasured,
            all if reached_in * 2 > all => State::Reached,
            _ => State::Missed,
        };
        let found = median(
            &rounds
                .iter()
                .map(|(one, times)| one / times)
                .collect::<Vec<_>>(),
        );
        let (sign, bound) = self.bound.parts();
        let (bound, found) = match self.against {
            Against::One(unit) => (words::value(unit, bound), words::value(unit, found)),
            Against::Figure(other) => (
                format!("{bound} × {}", self.name(other)),
                words::number(found),
            ),
        };
        Verdict {
            what: self.what.clone(),
            bound: format!("{sign} {bound}"),
            found,
            reached_in,
            rounds: rounds.len(),
            state,
        }
    }

    /// Another figure, by what is different about it.
    fn name(&self, other: Which) -> String {
        match other.size {
            Some(size) if other.size != self.figure.size => {
                format!("{} at {}", other.path, words::size(size))
            }
            _ => other.path.to_owned(),
        }
    }
}

/// Everything that must be reached, with what these figures say about it.
pub fn judge(figures: &[Figure]) -> Vec<Verdict> {
    goals().iter().map(|goal| goal.judge(figures)).collect()
}

const fn which(
    scenario: &'static str,
    metric: &'static str,
    path: &'static str,
    size: u64,
) -> Which {
    Which {
        scenario,
        metric,
        path,
        size: Some(size),
    }
}

fn ratio(what: impl Into<String>, bound: Bound, figure: Which, other: Which) -> Goal {
    Goal {
        what: what.into(),
        figure,
        against: Against::Figure(other),
        bound,
    }
}

fn value(what: impl Into<String>, bound: Bound, unit: Unit, figure: Which) -> Goal {
    Goal {
        what: what.into(),
        figure,
        against: Against::One(unit),
        bound,
    }
}

/// All of them.
pub fn goals() -> Vec<Goal> {
    use Bound::{AtLeast, AtMost, Below};
    const ANSWERS: &str = "answers per CPU-second";
    const PACKET: &str = "CPU per packet";
    const MANY: u64 = 10_000;
    let mut goals = Vec::new();

    for path in ["tc", "xdp"] {
        goals.push(ratio(
            format!("NS answers per CPU-second, 100,000 addresses, {path}"),
            AtLeast(500.0),
            which("ndp", ANSWERS, path, 100_000),
            which("ndp", ANSWERS, "routed", 80_000),
        ));
    }
    for size in [1, MANY] {
        goals.push(ratio(
            format!("ARP answers per CPU-second, {}, xdp", addresses(size)),
            AtLeast(3.0),
            which("arp", ANSWERS, "xdp", size),
            which("arp", ANSWERS, "routed", size),
        ));
    }
    goals.push(value(
        "ARP median latency, 10,000 addresses, xdp",
        AtMost(10.0),
        Unit::Microseconds,
        which("arp", "median latency", "xdp", MANY),
    ));

    for (scenario, words, bound, other) in [
        ("forward-in", "network to machine", 0.55, "bridge"),
        ("forward-in", "network to machine", 0.60, "routed"),
        ("forward-out", "machine to network", 0.80, "bridge"),
    ] {
        for size in [1, 100, 1000] {
            goals.push(ratio(
                format!("CPU per packet, {words}, {}, tc", machines(size)),
                AtMost(bound),
                which(scenario, PACKET, "tc", size),
                which(scenario, PACKET, other, size),
            ));
        }
    }
    for metric in ["1 flow, in", "1 flow, out", "4 flows, in", "4 flows, out"] {
        let any = |path| Which {
            size: None,
            ..which("tcp", metric, path, 0)
        };
        goals.push(ratio(
            format!("TCP throughput, {metric}, tc"),
            AtLeast(0.95),
            any("tc"),
            any("bridge"),
        ));
    }

    for (scenario, words) in [("arp", "ARP"), ("ndp", "NS")] {
        for path in ["tc", "xdp"] {
            // How much dearer an answer is: the numbers are answers for the same cost.
            goals.push(ratio(
                format!("{words} answers per CPU-second, 1 against 10,000 addresses, {path}"),
                AtMost(1.3),
                which(scenario, ANSWERS, path, 1),
                which(scenario, ANSWERS, path, MANY),
            ));
        }
    }
    goals.push(ratio(
        "CPU per packet, network to machine, 10,000 against 1 machine, xdp",
        AtMost(1.3),
        which("forward-in", PACKET, "xdp", MANY),
        which("forward-in", PACKET, "xdp", 1),
    ));
    goals.push(ratio(
        "CPU per packet, network to machine, 10,000 machines, tc",
        AtMost(1.1),
        which("forward-in", PACKET, "tc", MANY),
        which("forward-in", PACKET, "bare redirect_peer", MANY),
    ));
    goals.push(ratio(
        "CPU per ARP broadcast, 1,000 machines, the bridge against tc",
        AtLeast(90.0),
        which("broadcast", "CPU per broadcast", "bridge", 1000),
        which("broadcast", "CPU per broadcast", "tc", 1000),
    ));

    let scale = |metric| which("scale", metric, "ours", MANY);
    goals.push(value(
        "attach of 10,000 machines",
        AtMost(6.0),
        Unit::Seconds,
        scale("attach"),
    ));
    for metric in [
        "longest RTNL stall at attach",
        "longest RTNL stall at detach",
    ] {
        goals.push(value(
            format!("{metric}, 10,000 machines"),
            Below(50.0),
            Unit::Milliseconds,
            scale(metric),
        ));
    }
    let stop = "longest RTNL stall at mass stop";
    goals.push(ratio(
        format!("{stop}, 10,000 machines"),
        AtMost(1.0),
        scale(stop),
        which("scale", stop, "without us", MANY),
    ));
    goals.push(value(
        "memory per machine, 10,000 machines",
        AtMost(4096.0),
        Unit::Bytes,
        scale("memory per machine"),
    ));
    goals.push(value(
        "pings unanswered, 10,000 machines",
        AtMost(0.0),
        Unit::Count,
        scale("pings unanswered"),
    ));
    goals.push(value(
        "100,000 addresses filled",
        Below(50.0),
        Unit::Milliseconds,
        which("fill", "time to fill", "ours", 100_000),
    ));
    for (metric, bound) in [
        ("carrier to entry in the map", 10.0),
        ("terminate to last answer", 100.0),
    ] {
        goals.push(value(
            format!("nspawn machine, {metric}"),
            AtMost(bound),
            Unit::Milliseconds,
            which("nspawn", metric, "tc", 1),
        ));
    }
    goals
}

fn machines(count: u64) -> String {
    let word = if count == 1 { "machine" } else { "machines" };
    format!("{} {word}", words::size(count))
}

fn addresses(count: u64) -> String {
    let word = if count == 1 { "address" } else { "addresses" };
    format!("{} {word}", words::size(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(which: Which, rounds: &[f64]) -> Figure {
        Figure::new(
            which.scenario,
            which.metric,
            Unit::Nanoseconds,
            which.path,
            which.size.unwrap_or(1),
            rounds.to_vec(),
        )
    }

    const OURS: Which = which("forward-in", "CPU per packet", "tc", 100);
    const BRIDGE: Which = which("forward-in", "CPU per packet", "bridge", 100);

    fn verdict(bound: Bound, ours: &[f64], bridge: &[f64]) -> Verdict {
        ratio("x", bound, OURS, BRIDGE).judge(&[figure(OURS, ours), figure(BRIDGE, bridge)])
    }

    #[test]
    fn a_ratio_is_held_to_its_bound_round_by_round() {
        // In the second round everything was ten times as slow.
        let found = verdict(
            Bound::AtMost(0.55),
            &[50.0, 540.0, 60.0],
            &[100.0, 1000.0, 100.0],
        );
        assert_eq!((found.reached_in, found.rounds), (2, 3));
        assert_eq!(found.state, State::Reached);
        assert_eq!(found.found, "0.540");
        assert_eq!(found.bound, "≤ 0.55 × bridge");
    }

    #[test]
    fn half_of_the_rounds_are_not_enough() {
        let found = verdict(Bound::AtMost(0.5), &[4.0, 4.0, 6.0, 6.0], &[10.0; 4]);
        assert_eq!((found.reached_in, found.rounds), (2, 4));
        assert_eq!(found.state, State::Missed);
    }

    #[test]
    fn bounds_are_met_at_their_edge_only_where_they_say_so() {
        for (bound, value, holds) in [
            (Bound::AtMost(2.0), 2.0, true),
            (Bound::AtMost(2.0), 2.1, false),
            (Bound::AtLeast(2.0), 2.0, true),
            (Bound::AtLeast(2.0), 1.9, false),
            (Bound::Below(2.0), 2.0, false),
            (Bound::Below(2.0), 1.9, true),
        ] {
            assert_eq!(bound.holds(value, 1.0), holds, "{bound:?} {value}");
        }
    }

    #[test]
    fn nothing_against_nothing_is_no_more() {
        let found = verdict(Bound::AtMost(1.0), &[0.0; 3], &[0.0; 3]);
        assert_eq!(found.state, State::Reached);
    }

    #[test]
    fn a_goal_without_its_figures_is_not_reached() {
        let goal = ratio("x", Bound::AtMost(0.55), OURS, BRIDGE);
        for figures in [
            vec![],
            vec![figure(OURS, &[1.0])],
            vec![figure(BRIDGE, &[1.0])],
            vec![figure(OURS, &[f64::NAN]), figure(BRIDGE, &[1.0])],
            vec![figure(OURS, &[]), figure(BRIDGE, &[])],
        ] {
            let found = goal.judge(&figures);
            assert_eq!(found.state, State::NotMeasured);
            assert_eq!(found.found, "–");
        }
        assert!(
            judge(&[])
                .iter()
                .all(|verdict| verdict.state == State::NotMeasured)
        );
    }

    #[test]
    fn sizes_may_differ_between_the_two() {
        let one = which("ndp", "answers per CPU-second", "tc", 100_000);
        let other = which("ndp", "answers per CPU-second", "routed", 80_000);
        let found = judge(&[figure(one, &[6e6]), figure(other, &[1e4])]);
        let found = found.iter().find(|v| v.state == State::Reached);
        let found = found.expect("600 times");
        assert_eq!(found.bound, "≥ 500 × routed at 80,000");
        assert_eq!(found.found, "600");
    }

    #[test]
    fn a_goal_without_a_size_takes_the_largest() {
        let any = |path| Which {
            size: None,
            ..which("tcp", "1 flow, in", path, 0)
        };
        let at = |path, size, value| figure(which("tcp", "1 flow, in", path, size), &[value]);
        let found = ratio("x", Bound::AtLeast(0.95), any("tc"), any("bridge")).judge(&[
            at("tc", 1, 1.0),
            at("tc", 10, 9.6),
            at("bridge", 10, 10.0),
            at("bridge", 1, 100.0),
        ]);
        assert_eq!(found.found, "0.960");
        assert_eq!(found.state, State::Reached);
    }

    #[test]
    fn goals_name_scenarios_that_there_are() {
        for goal in goals() {
            let scenario = goal.figure.scenario;
            assert!(crate::scenarios::find(scenario).is_some(), "{scenario}");
        }
    }

    #[test]
    fn every_goal_can_be_missed_and_reached() {
        for goal in goals() {
            let (_, bound) = goal.bound.parts();
            let states = [0.0, bound / 2.0, bound * 2.0 + 1.0].map(|value| {
                let mut figures = vec![figure(goal.figure, &[value])];
                if let Against::Figure(other) = goal.against {
                    figures.push(figure(other, &[1.0]));
                }
                goal.judge(&figures).state
            });
            assert!(states.contains(&State::Reached), "{}", goal.what);
            assert!(states.contains(&State::Missed), "{}", goal.what);
        }
    }
}
