//! What every engine has to show, with whatever its clients are.

use std::{fs::File, io::Write as _, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{SystemdHost, ping, release_named, unreachable, wait_ping, wait_until};
use serde_json::Value;

/// Until what an engine has done is followed, and the machine itself is ready.
pub const SOON: Duration = Duration::from_secs(30);
/// How many machines there are at once.
const MANY: u8 = 10;

/// A machine to be started.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    pub v4: String,
    pub v6: String,
}

impl Wanted {
    /// The machine of that number, from 0 to 99.
    pub fn number(number: u8) -> Self {
        Wanted {
            name: format!("m{number}"),
            v4: format!("203.0.113.{}", 100 + number),
            v6: format!("2001:db8::{:x}", 0x100 + u16::from(number)),
        }
    }

    fn addresses(&self) -> Result<[IpAddr; 2]> {
        Ok([self.v4.parse()?, self.v6.parse()?])
    }

    /// Waits until it answers the outside, by both families.
    pub fn answers(&self, system: &SystemdHost) -> Result<()> {
        for address in self.addresses()? {
            wait_ping(&system.net, address, SOON)
                .with_context(|| format!("{self:?}\n{}", report(system)))?;
        }
        Ok(())
    }

    /// That it answers the outside at the first ping.
    pub fn still_answers(&self, system: &SystemdHost) -> Result<()> {
        for address in self.addresses()? {
            ping(&system.net, address).with_context(|| format!("{self:?}\n{}", report(system)))?;
        }
        Ok(())
    }

    /// Waits until nobody answers for it.
    pub fn is_silent(&self, system: &SystemdHost) -> Result<()> {
        for address in self.addresses()? {
            let silent = wait_until(SOON, || unreachable(&system.net, address).is_ok());
            ensure!(silent, "{address} is answered for\n{}", report(system));
        }
        Ok(())
    }
}

/// An engine in a box in which the agent runs as its service.
pub trait Engine {
    /// The source's name, and as a rule that of the record.
    const NAME: &'static str;

    fn system(&self) -> &SystemdHost;
    /// Starts machines with the engine's own client, all at once where it can.
    fn start(&self, machines: &[Wanted]) -> Result<()>;
    /// Stops them, and removes what stopping leaves of them.
    fn stop(&self, machines: &[Wanted]) -> Result<()>;
    /// Restarts the engine's daemon; machines run on, where the engine lets them.
    fn restart(&self) -> Result<()>;
    /// The engine's version.
    fn version(&self) -> Result<String>;
    /// The record's name, where it is another.
    fn recorded_as(&self) -> &'static str {
        Self::NAME
    }
    /// Whether there is a daemon to restart.
    const HAS_DAEMON: bool = true;
    /// Whether machines survive [`Engine::restart`].
    const SURVIVES: bool = true;
    /// Whether the agent stopped at a start stands for events lost; not where
    /// starting waits for the agent.
    const LOSES_EVENTS: bool = true;
}

/// A machine is started, answers, is stopped and answers no more; then the same of ten
/// at once, with the agent killed, the daemon restarted and events lost between.
pub fn shows<E: Engine>(engine: &E) -> Result<()> {
    let system = engine.system();
    let one = [Wanted::number(90)];
    engine.start(&one)?;
    one[0].answers(system)?;
    engine.stop(&one)?;
    one[0].is_silent(system)?;

    let mut ten: Vec<Wanted> = (0..MANY).map(Wanted::number).collect();
    engine.start(&ten)?;
    all_answer(system, &ten)?;
    ensure!(up(system)? == ten.len(), "{}", report(system));

    kill_agent(system)?;
    for machine in &ten {
        machine.still_answers(system)?;
    }
    let restarted = wait_until(SOON, || agent(system).is_ok());
    ensure!(restarted, "the agent is not restarted\n{}", report(system));
    for machine in &ten {
        machine.still_answers(system)?;
    }
    ensure!(up(system)? == ten.len(), "{}", report(system));

    engine.restart()?;
    if E::SURVIVES {
        for machine in &ten {
            machine.still_answers(system)?;
        }
    } else {
        engine.stop(&ten)?;
        engine.start(&ten)?;
        all_answer(system, &ten)?;
    }

    if E::LOSES_EVENTS {
        let pid = agent(system)?;
        system.shell(&format!("kill -STOP {pid}"))?;
        let gone: Vec<Wanted> = ten.drain(..3).collect();
        let come: Vec<Wanted> = (MANY..MANY + 2).map(Wanted::number).collect();
        let changed = engine.stop(&gone).and_then(|()| engine.start(&come));
        system.shell(&format!("kill -CONT {pid}"))?;
        changed?;
        ten.extend(come);
        all_answer(system, &ten)?;
        for machine in &gone {
            machine.is_silent(system)?;
        }
    }
    engine.stop(&ten)?;
    for machine in &ten {
        machine.is_silent(system)?;
    }
    ensure!(up(system)? == 0, "{}", report(system));
    let mut shown = "start, stop, 10 at once, agent killed".to_owned();
    if E::HAS_DAEMON {
        shown += ", daemon restarted";
    }
    if E::LOSES_EVENTS {
        shown += ", events lost";
    }
    record(engine.recorded_as(), &engine.version()?, &shown)
}

/// Waits until all answer the outside.
pub fn all_answer(system: &SystemdHost, machines: &[Wanted]) -> Result<()> {
    machines
        .iter()
        .try_for_each(|machine| machine.answers(system))
}

/// What `list` says of a machine; null where it names none.
pub fn machine(system: &SystemdHost, name: &str) -> Result<Value> {
    let found = list(system)?
        .into_iter()
        .find(|machine| machine["name"] == name);
    Ok(found.unwrap_or_default())
}

/// Waits until a machine is as wanted.
pub fn becomes(system: &SystemdHost, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let there = wait_until(SOON, || {
        machine(system, name).is_ok_and(|found| wanted(&found))
    });
    ensure!(there, "{name}\n{}", report(system));
    Ok(())
}

/// Waits until the agent has said that.
pub fn says(system: &SystemdHost, words: &str) -> Result<()> {
    let said = wait_until(SOON, || {
        system.words().is_ok_and(|text| text.contains(words))
    });
    ensure!(said, "not said: {words}\n{}", report(system));
    Ok(())
}

fn list(system: &SystemdHost) -> Result<Vec<Value>> {
    let text = system.xdp("--json list")?.success()?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// How many machines are up.
pub fn up(system: &SystemdHost) -> Result<usize> {
    let list = list(system)?;
    Ok(list
        .iter()
        .filter(|machine| machine["state"] == "up")
        .count())
}

/// Process id of the agent, as the box has it.
pub fn agent(system: &SystemdHost) -> Result<u64> {
    let text = system.xdp("--json status")?.success()?;
    let status: Value = serde_json::from_str(&text)?;
    status["agent"]["pid"].as_u64().context("no agent runs")
}

/// Kills the agent; systemd starts it again.
pub fn kill_agent(system: &SystemdHost) -> Result<()> {
    let pid = agent(system)?;
    system.shell(&format!("kill -KILL {pid}")).map(drop)
}

/// What there is to know when something fails.
pub fn report(system: &SystemdHost) -> String {
    let list = system.xdp("list").map(|output| format!("{output:?}"));
    let words = system.run("journalctl --unit=netspawn-xdp@eth0 --no-pager --output=cat -n 40");
    format!(
        "{}\n{}",
        list.unwrap_or_default(),
        words.unwrap_or_default()
    )
}

/// Records what has been shown, for the table in `docs/engines.md`.
pub fn record(engine: &str, version: &str, shown: &str) -> Result<()> {
    let Some(path) = std::env::var_os("NETSPAWN_ENGINES") else {
        return Ok(());
    };
    let mut file = File::options().create(true).append(true).open(path)?;
    let of = release_named().map_or_else(String::new, |release| format!(" of {release}"));
    writeln!(file, "{engine}{of}\t{version}\t{shown}").map_err(Into::into)
}
