use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use netspawn_ebpf::verdict::{Kind, Reason};
use serde::Serialize;

use super::Report;

/// `counters`: frames by what became of them, and why. All reasons are there,
/// also those never met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CountersReport {
    /// To the host's stack.
    pub passed: BTreeMap<&'static str, u64>,
    /// Dropped.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Answered in place.
    pub answered: BTreeMap<&'static str, u64>,
    /// Sent on.
    pub forwarded: BTreeMap<&'static str, u64>,
}

impl CountersReport {
    /// Sorts the counts of all reasons.
    pub fn new(count: impl Fn(Reason) -> u64) -> Self {
        let mut report = CountersReport::default();
        for reason in Reason::ALL {
            let group = match reason.kind() {
                Kind::Pass => &mut report.passed,
                Kind::Drop => &mut report.dropped,
                Kind::Answer => &mut report.answered,
                Kind::Forward => &mut report.forwarded,
            };
            group.insert(reason.name(), count(*reason));
        }
        report
    }
}

impl Report for CountersReport {
    fn cells(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut any = false;
        for (name, group) in [
            ("passed", &self.passed),
            ("dropped", &self.dropped),
            ("answered", &self.answered),
            ("forwarded", &self.forwarded),
        ] {
            for (reason, count) in group.iter().filter(|(_, count)| **count > 0) {
                any = true;
                writeln!(out, "{name}\t{reason}\t{count}")?;
            }
        }
        if !any {
            writeln!(out, "no frames yet")?;
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
dropped    spoofed_source  2
answered   arp             3
forwarded  in              4
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
    }
}
