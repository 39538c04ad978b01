//! What can be measured, a file each.

mod answers;
pub mod arp;
pub mod broadcast;
pub mod fill;
pub mod forward;
pub mod ndp;
pub mod nspawn;
pub mod prog;
pub mod scale;
pub mod start;
pub mod tcp;

use std::time::Duration;

use anyhow::Result;
use clap::{ValueEnum, builder::PossibleValue};

use crate::{figure::Figure, run::Run};

/// Something to measure.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name on the command line and in figures.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    /// What the sizes of its figures count.
    pub size: &'static str,
    /// How long it usually takes with the default options, for the time left.
    pub usual: Duration,
    /// Measures.
    pub run: fn(&Run) -> Result<Vec<Figure>>,
}

/// All of them, in the order in which they run.
pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "arp",
        about: "Answers to ARP requests: how many, how much CPU, how late",
        size: "addresses",
        usual: Duration::from_secs(250),
        run: arp::run,
    },
    Scenario {
        name: "ndp",
        about: "Answers to neighbor solicitations: how many, how much CPU, how late",
        size: "addresses",
        usual: Duration::from_secs(540),
        run: ndp::run,
    },
    Scenario {
        name: "forward-in",
        about: "CPU per packet from the network to random machines",
        size: "machines",
        usual: Duration::from_secs(510),
        run: forward::inwards,
    },
    Scenario {
        name: "forward-out",
        about: "CPU per packet from machines to the network",
        size: "machines",
        usual: Duration::from_secs(420),
        run: forward::outwards,
    },
    Scenario {
        name: "local",
        about: "CPU per packet from machine to machine",
        size: "machines",
        usual: Duration::from_secs(360),
        run: forward::local,
    },
    Scenario {
        name: "tcp",
        about: "Bulk TCP, one and four flows, in both directions",
        size: "machines",
        usual: Duration::from_secs(110),
        run: tcp::run,
    },
    Scenario {
        name: "broadcast",
        about: "CPU per ARP broadcast with many machines on the host",
        size: "machines",
        usual: Duration::from_secs(60),
        run: broadcast::run,
    },
    Scenario {
        name: "start",
        about: "Time from a link's coming up to its machine's first answer",
        size: "machines",
        usual: Duration::from_secs(140),
        run: start::run,
    },
    Scenario {
        name: "nspawn",
        about: "A machine's start and end in a booted systemd host, by its parts",
        size: "machines",
        usual: Duration::from_secs(60),
        run: nspawn::run,
    },
    Scenario {
        name: "fill",
        about: "Time to fill the maps with 100,000 addresses",
        size: "addresses",
        usual: Duration::from_secs(20),
        run: fill::run,
    },
    Scenario {
        name: "scale",
        about: "Attach, detach and memory with thousands of machines, and who waits meanwhile",
        size: "machines",
        usual: Duration::from_secs(600),
        run: scale::run,
    },
    Scenario {
        name: "prog",
        about: "Time of one frame in each program, by itself",
        size: "addresses",
        usual: Duration::from_secs(75),
        run: prog::run,
    },
];

/// The scenario of that name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

impl ValueEnum for Scenario {
    fn value_variants<'a>() -> &'a [Self] {
        SCENARIOS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name).help(self.about))
    }
}
