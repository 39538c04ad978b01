//! `cargo xtask demo`: raises a lab, attaches, and shows what happens.

use std::{
    io::{self, IsTerminal as _, Write as _},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use netspawn_tests::{
    Agent, DELEGATED, HOST4, INSIDE, LAN, Lab, Mode, Ns, SystemdHost, Tcpdump, UPLINK, fetch, ping,
    ready_for, serve, unreachable, wait_ping,
};

use crate::{build, setup};

/// How long a machine of a booted system may take until it answers; duplicate address
/// detection alone takes up to two seconds.
const UP: Duration = Duration::from_secs(10);

const WEB: [&str; 3] = ["203.0.113.2", "2001:db8::2", DELEGATED];
const DB: [&str; 2] = ["203.0.113.3", "2001:db8::3"];

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// With real machines of systemd-nspawn under a booted systemd
    #[arg(long)]
    nspawn: bool,
    /// How the uplink's programs are attached
    #[arg(long, value_enum, default_value_t = Kind::Tc)]
    mode: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Traffic control
    Tc,
    /// The driver's XDP hook
    Xdp,
}

impl From<Kind> for Mode {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Tc => Mode::Tc,
            Kind::Xdp => Mode::Xdp,
        }
    }
}

/// Sets up, builds, shows, and ends in one line of verdict.
pub fn run(args: Args) -> Result<()> {
    netspawn_tests::require_root()?;
    setup::ready()?;
    build::programs(false)?;
    let start = Instant::now();
    let shown = if args.nspawn {
        nspawn(args.mode.into())
    } else {
        namespaces(args.mode.into())
    };
    match shown {
        Ok(summary) => {
            println!(
                "\ndemo: ok: {summary}, in {:.1} s",
                start.elapsed().as_secs_f32()
            );
            Ok(())
        }
        Err(error) => {
            println!("\ndemo: FAILED: {error:#}");
            bail!("the demo failed");
        }
    }
}

/// The lab of namespaces.
fn namespaces(mode: Mode) -> Result<String> {
    let lab = Lab::usual()?;
    ready_for(&lab, mode)?;
    title("The lab");
    line(
        "outside",
        "203.0.113.1, 2001:db8::1: a gateway with a Linux kernel's neighbor tables",
    );
    line(
        "host",
        &format!("{HOST4}, uplink {UPLINK}; ip_forward=0, no bridge, no route to a machine"),
    );
    let mut targets = Vec::new();
    for machine in lab.machines() {
        line(
            machine.name(),
            &format!(
                "{} behind {}",
                machine.addresses().join(", "),
                machine.port()
            ),
        );
        serve(&machine.ns, &format!("hello from {}\n", machine.name()))?;
        targets.push(Target::new(machine.name(), machine.v4()));
        targets.push(Target::new(machine.name(), machine.v6()));
    }
    targets.push(Target::new("web", INSIDE));
    title("Before");
    unreachable(&lab.net, lab.machine("web").v4())?;
    line("ping", &format!("{} does not answer", WEB[0]));
    title("Attach");
    let command = format!("attach {}", mode.attach());
    line("$", &format!("netspawn-xdp {command}"));
    let agent = Agent::start(&lab, mode.attach())?;
    line("", agent.ready());
    show(&lab.net, &lab.host, &targets)?;
    title("$ netspawn-xdp list");
    print_indented(&lab.run("list")?);
    title("Detach");
    lab.run("detach")?;
    drop(agent);
    unreachable(&lab.net, lab.machine("web").v4())?;
    line("ping", &format!("{} does not answer any more", WEB[0]));
    Ok(format!(
        "{} machines reached at {} addresses",
        lab.machines().len(),
        targets.len()
    ))
}

/// Real machines.
fn nspawn(mode: Mode) -> Result<String> {
    title("The lab");
    wait("booting a systemd host in a box");
    let system = SystemdHost::boot()?;
    system.ready_for(mode)?;
    line(
        "outside",
        "203.0.113.1, 2001:db8::1: a gateway with a Linux kernel's neighbor tables",
    );
    line(
        "host",
        &format!("{HOST4}, uplink {UPLINK}; a booted systemd with machined and networkd"),
    );
    for (name, addresses) in [("web", &WEB[..]), ("db", &DB[..])] {
        system.declare(name, addresses)?;
        system.start_machine(name, addresses)?;
        line(
            name,
            &format!("{}, a systemd-nspawn machine", addresses.join(", ")),
        );
    }
    title("Before");
    unreachable(&system.net, WEB[0].parse::<IpAddr>()?)?;
    line("ping", &format!("{} does not answer", WEB[0]));
    title("Attach");
    line("$", &format!("netspawn-xdp attach {}", mode.attach()));
    system.attach(mode.attach())?;
    let words = system.words()?;
    let ready = words.lines().find(|line| line.starts_with("ready:"));
    line("", ready.unwrap_or("ready, as systemd was told"));
    let mut targets = Vec::new();
    for (name, address) in [
        ("web", WEB[0]),
        ("web", WEB[1]),
        ("db", DB[0]),
        ("db", DB[1]),
    ] {
        let address: IpAddr = address.parse()?;
        wait_ping(&system.net, address, UP)?;
        targets.push(Target::new(name, address));
    }
    targets.push(Target::new("web", INSIDE));
    show(&system.net, &system.host, &targets)?;
    title("$ netspawn-xdp list");
    print_indented(&system.xdp("list")?.success()?);
    title("Detach");
    system.xdp("detach")?.success()?;
    unreachable(&system.net, WEB[0].parse::<IpAddr>()?)?;
    line("ping", &format!("{} does not answer any more", WEB[0]));
    wait("powering the host off");
    drop(system);
    Ok(format!(
        "2 nspawn machines reached at {} addresses",
        targets.len()
    ))
}

struct Target {
    machine: String,
    address: IpAddr,
}

impl Target {
    fn new(machine: &str, address: impl Into<IpAddr>) -> Self {
        Target {
            machine: machine.to_owned(),
            address: address.into(),
        }
    }

    fn place(&self) -> String {
        if self.address == IpAddr::V6(INSIDE) {
            format!("{}, inside {DELEGATED}", self.machine)
        } else {
            self.machine.clone()
        }
    }
}

/// What the outside sees and gets.
fn show(net: &Ns, host: &Ns, targets: &[Target]) -> Result<()> {
    title(&format!(
        "What the gateway asks and hears ({UPLINK} of the host is {})",
        mac(host)?
    ));
    net.run("ip neigh flush all")?;
    let mut dump = Tcpdump::start(
        net,
        LAN,
        200,
        "arp or (icmp6 and (ip6[40] = 135 or ip6[40] = 136))",
    )?;
    for target in targets {
        ping(net, target.address)?;
    }
    let mut answers = Vec::new();
    for target in targets {
        let address = target.address.to_string();
        for wanted in questions_and_answers(&address) {
            let seen = dump.wait(Duration::from_secs(3), |line| line.contains(&wanted));
            answers.push(seen.with_context(|| format!("the wire showed no `{wanted}`"))?);
        }
    }
    dump.stop()?;
    for answer in &answers {
        println!("  {}", shorten(answer));
    }
    title("Reached from outside");
    for target in targets {
        let answer = net.run(&format!("ping -n -c 3 -i 0.05 -W 1 {}", target.address))?;
        let time = answer
            .lines()
            .find_map(|line| line.split("min/avg/max/mdev = ").nth(1))
            .and_then(|times| times.split('/').nth(1))
            .context("ping printed no times")?;
        line(
            "ping",
            &format!("{:<26} {time} ms  {}", target.address, target.place()),
        );
    }
    for target in targets {
        let page = fetch(net, target.address)?;
        let wanted = format!("hello from {}", target.machine);
        ensure!(
            page.trim() == wanted,
            "{} served `{}` instead of `{wanted}`",
            target.address,
            page.trim()
        );
        let url = match target.address {
            IpAddr::V4(address) => format!("http://{address}/"),
            IpAddr::V6(address) => format!("http://[{address}]/"),
        };
        line("fetch", &format!("{url:<36} {}", page.trim()));
    }
    Ok(())
}

fn questions_and_answers(address: &str) -> [String; 2] {
    if address.contains(':') {
        [format!("who has {address},"), format!("tgt is {address},")]
    } else {
        [
            format!("Request who-has {address} "),
            format!("Reply {address} is-at"),
        ]
    }
}

/// tcpdump's line without what says nothing here.
fn shorten(line: &str) -> String {
    line.split(", length")
        .next()
        .unwrap_or(line)
        .trim_start_matches("ARP, ")
        .replace("ICMP6, ", "")
}

fn mac(host: &Ns) -> Result<String> {
    Ok(host
        .mac(UPLINK)?
        .map(|byte| format!("{byte:02x}"))
        .join(":"))
}

fn title(text: &str) {
    if io::stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

fn line(label: &str, text: &str) {
    println!("  {label:<8} {text}");
    // Seen at once also through a pipe.
    let _ = io::stdout().flush();
}

fn wait(what: &str) {
    line("…", what);
}

fn print_indented(text: &str) {
    for line in text.lines() {
        println!("  {line}");
    }
}
