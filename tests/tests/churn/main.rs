//! Links of hundreds of machines that come, go, change name, number and namespace while
//! the agent is killed, stopped and overrun, held against a model of what has to be.
//!
//! `cargo xtask test churn` takes a minute of it, `cargo xtask churn --minutes 30 --seed 7`
//! as long as asked. The same seed makes the same changes.

mod model;
mod world;

use std::{
    env,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::world::World;

/// How long a run takes if nobody says.
const USUAL: Duration = Duration::from_secs(45);

fn number(name: &str) -> Result<Option<u64>> {
    env::var(name)
        .ok()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().with_context(|| format!("{name}={text}")))
        .transpose()
}

#[test]
fn model_holds_whatever_happens_to_links() -> Result<()> {
    let limit = number("NETSPAWN_CHURN_MINUTES")?
        .map_or(USUAL, |minutes| Duration::from_secs(60 * minutes));
    let seed = number("NETSPAWN_CHURN_SEED")?.unwrap_or(1);
    let machines = number("NETSPAWN_CHURN_MACHINES")?.unwrap_or(450);
    let mut world = World::new(machines.try_into()?, seed)?;
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < limit {
        rounds += 1;
        world
            .round()
            .with_context(|| format!("round {rounds} of seed {seed}"))?;
        if rounds % 100 == 0 {
            say(&format!(
                "{:4} s: {}",
                start.elapsed().as_secs(),
                world.words()
            ))?;
        }
    }
    let words = world
        .end()
        .with_context(|| format!("after {rounds} rounds of seed {seed}"))?;
    say(&format!("{rounds} rounds of seed {seed}: {words}"))?;
    ensure!(rounds > 5, "{rounds} rounds show nothing");
    Ok(())
}

/// Said also when the test passes, and at once.
fn say(words: &str) -> Result<()> {
    Ok(writeln!(io::stderr(), "{words}")?)
}
