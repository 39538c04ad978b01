use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use netspawn_ebpf::verdict::{Kind, Reason};
use serde::Serialize;

use super::{Report, rate, right};

/// Frames by what became of them, and why. All reasons are there, also those
/// never met.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Groups<T> {
    /// To the host's stack.
    pub passed: BTreeMap<&'static str, T>,
    /// Dropped.
    pub dropped: BTreeMap<&'static str, T>,
    /// Answered in place.
    pub answered: BTreeMap<&'static str, T>,
    /// Sent on.
    pub forwarded: BTreeMap<&'static str, T>,
}

impl<T> Groups<T> {
    fn new(value: impl Fn(Reason) -> T) -> Self {
        let of = |kind| {
            let reasons = Reason::ALL.iter().filter(|reason| reason.kind() == kind);
            reasons
                .map(|reason| (reason.name(), value(*reason)))
                .collect()
        };
        Groups {
            passed: of(Kind::Pass),
            dropped: of(Kind::Drop),
            answered: of(Kind::Answer),
            forwarded: of(Kind::Forward),
        }
    }

    fn each(&self) -> [(&'static str, &BTreeMap<&'static str, T>); 4] {
        [
            ("passed", &self.passed),
            ("dropped", &self.dropped),
            ("answered", &self.answered),
            ("forwarded", &self.forwarded),
        ]
    }
}

/// `counters`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CountersReport {
    /// Frames since the data plane was attached.
    #[serde(flatten)]
    pub total: Groups<u64>,
    /// Frames a second since the report before, of those that follow each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<Groups<f64>>,
}

impl CountersReport {
    /// Sorts the counts of all reasons.
    pub fn new(count: impl Fn(Reason) -> u64) -> Self {
        CountersReport {
            total: Groups::new(count),
            per_second: None,
        }
    }

    /// With frames a second.
    pub fn with_rates(self, rate: impl Fn(Reason) -> f64) -> Self {
        CountersReport {
            per_second: Some(Groups::new(rate)),
            ..self
        }
    }
}

impl Report for CountersReport {
    fn cells(&self, out: &mut dyn Write) -> io::Result<()> {
        let groups = self.total.each();
        let rows: Vec<(&str, &str, u64)> = groups
            .iter()
            .flat_map(|(name, group)| group.iter().map(|(reason, count)| (*name, *reason, *count)))
            .filter(|(_, _, count)| *count > 0)
            .collect();
        if rows.is_empty() {
            return writeln!(out, "no frames yet");
        }
        let mut counts: Vec<String> = rows.iter().map(|row| row.2.to_string()).collect();
        right(&mut counts);
        let per_second = self.per_second.as_ref().map(Groups::each);
        let mut rates: Vec<String> = match &per_second {
            None => vec![String::new(); rows.len()],
            Some(groups) => rows
                .iter()
                .map(|(name, reason, _)| {
                    let group = groups.iter().find(|group| group.0 == *name);
                    let per_second = group.and_then(|(_, group)| group.get(reason));
                    format!("{}/s", rate(per_second.copied().unwrap_or(0.0)))
                })
                .collect(),
        };
        right(&mut rates);
        for ((row, count), rate) in rows.iter().zip(counts).zip(rates) {
            writeln!(out, "{}\t{}\t{count}\t{rate}", row.0, row.1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> CountersReport {
        CountersReport::new(|reason| match reason {
            Reason::NotOwned => 1000,
            Reason::SpoofedSource => 2,
            Reason::AnsweredArp => 3,
            Reason::ForwardedIn => 4,
            _ => 0,
        })
    }

    #[test]
    fn text_shows_what_was_met() {
        assert_eq!(
            report().render(false).unwrap(),
            "\
passed     not_owned       1000
dropped    spoofed_source     2
answered   arp                3
forwarded  in                 4
"
        );
        let rated = report().with_rates(|reason| match reason {
            Reason::NotOwned => 250.0,
            Reason::AnsweredArp => 0.25,
            _ => 0.0,
        });
        assert_eq!(
            rated.render(false).unwrap(),
            "\
passed     not_owned       1000  250/s
dropped    spoofed_source     2    0/s
answered   arp                3  0.2/s
forwarded  in                 4    0/s
"
        );
        let none = CountersReport::new(|_| 0);
        assert_eq!(none.render(false).unwrap(), "no frames yet\n");
    }

    #[test]
    fn json_has_every_reason_in_its_group() {
        let printed: serde_json::Value =
            serde_json::from_str(&report().render(true).unwrap()).unwrap();
        assert_eq!(printed["passed"]["not_owned"], 1000);
        assert_eq!(printed["dropped"]["spoofed_source"], 2);
        assert_eq!(printed["answered"]["arp"], 3);
        assert_eq!(printed["answered"]["ndp"], 0);
        assert_eq!(
            printed["forwarded"],
            serde_json::json!({"in": 4, "out": 0, "local": 0})
        );
        let all: usize = ["passed", "dropped", "answered", "forwarded"]
            .iter()
            .map(|group| printed[group].as_object().unwrap().len())
            .sum();
        assert_eq!(all, Reason::ALL.len());
        assert_eq!(printed.get("per_second"), None);
    }
}
