//! `cargo xtask bench`.

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use netspawn_bench::{cost, start};

/// Benchmarks of netspawn-xdp.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Nanoseconds of one frame in each program, at 1, 1,000 and 100,000 addresses
    Prog {
        /// Frames in one round
        #[arg(long, default_value_t = cost::Options::default().repeat)]
        repeat: u32,
        /// Rounds, of which the median counts
        #[arg(long, default_value_t = cost::Options::default().rounds)]
        rounds: usize,
        /// Prefixes of each family beside the addresses, 100,000 at most
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
        prefixes: u32,
    },
    /// Forwarding
    Forward {
        which: String,
        machines: u32,
        rounds: usize,
    },
    /// Milliseconds from a machine's start to its first answer, and from its end to its last
    Start {
        /// Machines, one after another
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        starts: u32,
    },
}

fn main() -> Result<()> {
    match Cli::parse().scenario {
        Scenario::Prog {
            repeat,
            rounds,
            prefixes,
        } => {
            ensure!(repeat > 0 && rounds > 0, "at least one frame and one round");
            let table = cost::measure(&cost::Options {
                repeat,
                rounds,
                prefixes,
                ..cost::Options::default()
            })?;
            println!("{table}");
        }
        Scenario::Forward {
            which,
            machines,
            rounds,
        } => {
            let run = netspawn_bench::run::Run::new(machines, rounds);
            use netspawn_bench::scenarios::forward;
            let figures = match which.as_str() {
                "in" => forward::inwards(&run)?,
                "out" => forward::outwards(&run)?,
                _ => forward::local(&run)?,
            };
            for f in figures {
                println!(
                    "{:14} {:20} {:6} {:8.1} {:?}",
                    f.scenario,
                    f.path,
                    f.size,
                    f.median(),
                    f.rounds
                );
            }
        }
        Scenario::Start { starts } => println!("{}", start::measure(starts)?),
    }
    Ok(())
}
