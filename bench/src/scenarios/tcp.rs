//! Bulk TCP between the network and one of ten machines: iperf3, one flow and four, both
//! directions.
//!
//! Client and server have a core each, the sender always the first, so that what is
//! compared is bits per second of the same two cores. Everything between the two sockets
//! runs on them as well.

use std::{fs, thread::available_parallelism, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{LAN, Ns, Process};

use crate::{
    figure::{Figure, Unit},
    lab::{Foremost, Guests, Way, World, machine4},
    run::Run,
};

const NAME: &str = "tcp";
const WAYS: [Way; 5] = [Way::Bridge, Way::Macvlan, Way::Routed, Way::Tc, Way::Xdp];
const MACHINES: u32 = 10;
/// Of one transfer.
const SECONDS: u32 = 1;
const READY: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(20);

/// A transfer.
struct Transfer {
    flows: u32,
    inwards: bool,
}

const TRANSFERS: [Transfer; 4] = [
    Transfer {
        flows: 1,
        inwards: true,
    },
    Transfer {
        flows: 1,
        inwards: false,
    },
    Transfer {
        flows: 4,
        inwards: true,
    },
    Transfer {
        flows: 4,
        inwards: false,
    },
];

impl Transfer {
    /// Its name in figures; in is from the network to the machine.
    fn name(&self) -> String {
        let plural = if self.flows == 1 { "" } else { "s" };
        let direction = if self.inwards { "in" } else { "out" };
        format!("{} flow{plural}, {direction}", self.flows)
    }
}

/// Bits per second of each transfer in each way, and the CPU time of both cores.
///
/// # Errors
/// When a world cannot be made, or no connection.
pub fn run(run: &Run) -> Result<Vec<Figure>> {
    let machines = run.sizes(&[MACHINES])[0];
    let _first = Foremost::new()?;
    let mut subjects = Vec::new();
    for way in WAYS {
        run.step(&format!("tcp: {machines} machines, {}", way.name()))?;
        let world = World::new(way, machines, Guests::Apart)?;
        know_machine(&world)?;
        subjects.push(Subject {
            server: serve(&world.guests[0])?,
            world,
            speed: vec![Vec::new(); TRANSFERS.len()],
            cost: vec![Vec::new(); TRANSFERS.len()],
        });
    }
    for round in 1..=run.rounds {
        for (number, transfer) in TRANSFERS.iter().enumerate() {
            let name = transfer.name();
            for subject in &mut subjects {
                let way = subject.world.way.name();
                run.step(&format!("tcp: round {round}, {name}, {way}"))?;
                let (speed, cost) = subject
                    .transfer(transfer)
                    .with_context(|| format!("{name}, {way}"))?;
                subject.speed[number].push(speed);
                subject.cost[number].push(cost);
            }
        }
    }
    let mut figures = Vec::new();
    for subject in subjects {
        let figure = |metric: &str, unit, rounds| {
            Figure::new(
                NAME,
                metric,
                unit,
                subject.world.way.name(),
                machines,
                rounds,
            )
        };
        for (number, transfer) in TRANSFERS.iter().enumerate() {
            let name = transfer.name();
            let speed = subject.speed[number].clone();
            figures.push(figure(&name, Unit::BitsPerSecond, speed));
            let cost = subject.cost[number].clone();
            let name = format!("{name}, CPU per gigabyte");
            figures.push(figure(&name, Unit::Seconds, cost));
        }
    }
    Ok(figures)
}

/// A world with a server in its first machine, and what was found in each round.
struct Subject {
    // Ends before the world does.
    server: Process,
    world: World,
    speed: Vec<Vec<f64>>,
    cost: Vec<Vec<f64>>,
}

impl Subject {
    /// Bits per second, and seconds of CPU time per gigabyte.
    fn transfer(&mut self, transfer: &Transfer) -> Result<(f64, f64)> {
        ensure!(self.server.running(), "the server has ended");
        let mut client = self
            .world
            .net
            .cmd("iperf3")
            .args(["--json", "--client", &machine4(0).to_string()])
            .args(["--time", &SECONDS.to_string()])
            .args(["--parallel", &transfer.flows.to_string()])
            .limit(LIMIT);
        if available_parallelism()?.get() > 1 {
            // The client's core, and the server's.
            let cores = if transfer.inwards { "0,1" } else { "1,0" };
            client = client.args(["--affinity", cores]);
        }
        if !transfer.inwards {
            client = client.arg("--reverse");
        }
        let before = softirq_threads()?;
        let text = client.text()?;
        let softirq = softirq_threads()? - before;
        let report: serde_json::Value = serde_json::from_str(&text)?;
        let number = |path: &str| {
            report
                .pointer(path)
                .and_then(serde_json::Value::as_f64)
                .with_context(|| format!("iperf3 says nothing of {path}:\n{text}"))
        };
        let bytes = number("/end/sum_received/bytes")?;
        ensure!(bytes > 0.0, "nothing was received");
        let ours = number("/end/cpu_utilization_percent/host_total")?;
        let theirs = number("/end/cpu_utilization_percent/remote_total")?;
        let seconds = number("/end/sum_received/seconds")?;
        let busy = (ours + theirs) / 100.0 * seconds + softirq;
        Ok((
            number("/end/sum_received/bits_per_second")?,
            busy / (bytes / 1e9),
        ))
    }
}

/// Has the network know the machine's MAC: answers by `XDP_TX` would want an XDP program
/// on the network's end, which would take segmentation offload from the uplink.
fn know_machine(world: &World) -> Result<()> {
    let mac = world.mac_from_network(0).map(|byte| format!("{byte:02x}"));
    world.net.run(&format!(
        "ip neigh replace {} lladdr {} dev {LAN} nud permanent",
        machine4(0),
        mac.join(":")
    ))?;
    Ok(())
}

fn serve(ns: &Ns) -> Result<Process> {
    let mut server = ns
        .cmd("iperf3")
        .args(["--server", "--forceflush"])
        .start()?;
    server.wait_line(READY, |line| line.contains("listening"))?;
    Ok(server)
}

/// Seconds that the cores' threads for software interrupts have run. Most of such work is
/// done in the context of the process that sends, and counts as that process's.
fn softirq_threads() -> Result<f64> {
    let mut nanoseconds = 0.0;
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
        if read("comm").starts_with("ksoftirqd/") {
            let run = read("schedstat");
            let run = run.split_whitespace().next().unwrap_or_default();
            nanoseconds += run.parse::<f64>().context("no time in schedstat")?;
        }
    }
    Ok(nanoseconds / 1e9)
}
