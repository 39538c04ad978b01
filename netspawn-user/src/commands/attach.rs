//! `attach`.

mod standby;

use std::{
    borrow::Cow,
    fs, future, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    agent::{self, Agent},
    cli::{AttachArgs, Global, Mode},
    config::{AttachSettings, Config},
    control::{Request, RunDir, Turn},
    datapath::{
        attach::{UplinkError, uplink_check},
        hidden,
        object::Sizes,
        pins::Pins,
        plane::{Plane, Wanted},
    },
    metrics::{Address, Listener},
    model::{Host, Link},
    net::{
        announce::{self, Served},
        firewall,
        observe::Observer,
    },
    outcome::{Outcome, Problems},
    output,
    plan::{self, State},
    registry::{self, Inputs, Limits},
    revert::{self, Started},
    source,
};

/// Attaches uplinks, and follows machine state until told to end.
///
/// # Errors
/// When an uplink cannot be attached; then nothing is left behind, and what was
/// attached before goes on.
pub fn run(global: &Global, args: &AttachArgs) -> Result<Outcome> {
    loop {
        let (uplinks, left) = match attempt(global, args)? {
            Attempt::Ended(outcome) => return Ok(outcome),
            Attempt::Handed(uplinks, left) => (uplinks, left),
        };
        if args.once || !standby::is_service() {
            return Ok(Outcome::of(left));
        }
        for words in left {
            tracing::warn!("{words}");
        }
        let (run_dir, pins) = (RunDir::new(&global.run_dir), Pins::new(&global.bpf_dir));
        if !standby::wait(&run_dir, &pins, &uplinks)? {
            return Ok(Outcome::Done);
        }
    }
}

/// What came of it.
enum Attempt {
    /// The command has ended.
    Ended(Outcome),
    /// The running agent has taken these uplinks, and left out what the lines say.
    Handed(Vec<String>, Vec<String>),
}

fn attempt(global: &Global, args: &AttachArgs) -> Result<Attempt> {
    let config = Config::load(&global.config_dir).map_err(Problems)?;
    let settings = AttachSettings::new(args, &config.attach)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    // What changes while thousands of ports are attached is not missed, and what does
    // not is not read again.
    let observer = runtime
        .block_on(async { Observer::start() })
        .context("cannot read the host's network")?;
    let host = observer.host();
    let mut uplinks = Vec::new();
    let recorded = Pins::new(&global.bpf_dir).uplinks()?;
    for name in &settings.uplinks {
        match uplink_check(host, name) {
            Ok(link) => uplinks.push((link, settings.mode)),
            // It was attached before it became a port, and its master is served for it.
            Err(UplinkError::Port { .. }) if recorded.iter().any(|uplink| uplink.name == *name) => {
            }
            Err(error) => return Err(error.into()),
        }
    }
    let run_dir = RunDir::new(&global.run_dir);
    run_dir.check_namespace()?;
    Pins::new(&global.bpf_dir).check()?;
    if settings.dry_run {
        return dry_run(global, &config, &settings, host, &uplinks).map(Attempt::Ended);
    }
    // A terminal that goes ends nobody in the middle of an attach.
    let mut hangup = runtime.block_on(async { Hangup::heed() })?;
    let turn = run_dir.turn()?;
    if args.log_programs && matches!(turn, Turn::Agent(_)) {
        bail!(
            "the agent that runs has loaded programs that say nothing; end it (the data plane \
             goes on), and attach again with --log-programs"
        );
    }
    let revert = revert::begin(global, &settings, &uplinks, &turn)?;
    let lock = match turn {
        Turn::Mine(lock) => lock,
        Turn::Agent(client) => {
            let response = client
                .ask(&Request::Attach {
                    uplinks: settings.uplinks.clone(),
                    mode: settings.mode,
                })
                .inspect_err(|_| revert::settle(global))?;
            output::print(&format!("{}\n", response.ready.unwrap_or_default()))?;
            let mut left = metrics_left(&settings.metrics, &response.metrics);
            left.extend(response.failed);
            return Ok(Attempt::Handed(settings.uplinks, left));
        }
    };

    let fresh = !Pins::new(&global.bpf_dir).exist()?;
    let give_up = || {
        if fresh {
            run_dir.clear();
        }
        revert::settle(global);
    };
    // Before anything is changed: a place that is taken leaves all as it is.
    let listener = match &settings.metrics {
        Some(address) if !settings.once => {
            Some(Listener::bind(address).inspect_err(|_| give_up())?)
        }
        _ => None,
    };
    tell_unseen();
    tell_bypassed();
    let attached = attach(global, args, &config, &settings, host, &uplinks);
    let (mut plane, desired, mut problems) = match attached {
        Ok(attached) => attached,
        Err(error) => {
            // Its socket may be in RUNDIR.
            drop(listener);
            give_up();
            return Err(error);
        }
    };
    if settings.once {
        match once(global, &config, &settings, &mut plane, desired, host) {
            Ok(left) => problems.extend(left),
            Err(error) => problems.push(format!("{ATTACHED}: {error:#}")),
        }
        return Ok(Attempt::Ended(Outcome::of(problems)));
    }
    run_dir.claim(&settings.sources).context(ATTACHED)?;
    let agent = runtime
        .block_on(Agent::new(
            global,
            plane,
            lock,
            observer,
            config.policy,
            &settings.sources,
            listener,
        ))
        .context(ATTACHED)?;
    runtime.block_on(agent.run(|line| output::print(&format!("{line}\n")), hangup.came()))?;
    if let Some(words) = revert.and_then(Started::reverted) {
        bail!(words);
    }
    Ok(Attempt::Ended(Outcome::Done))
}

/// What is said before an error that does not undo what is attached.
const ATTACHED: &str = "what is attached stays attached, but not all is done";

/// What is done for uplinks that have been attached when nobody follows. Returns what is wrong
/// with the machines.
fn once(
    global: &Global,
    config: &Config,
    settings: &AttachSettings,
    plane: &mut Plane,
    desired: registry::Desired,
    host: &Host,
) -> Result<Vec<String>> {
    RunDir::new(&global.run_dir).claim(&settings.sources)?;
    let (desired, host) = settled(plane, desired, host, |host, plane| {
        let snapshot = source::now(
            &global.config_dir,
            &global.run_dir,
            &settings.sources,
            host,
            true,
        );
        plane.sync(&Wanted {
            snapshot: &snapshot,
            host,
            policy: &config.policy,
            deadline: agent::deadline(),
        })
    })?;
    let line = agent::ready_line(plane, &desired, &host)?;
    output::print(&format!("{line}\n"))?;
    let served = Served::of(plane.state(), Some(&host));
    announce::once(plane.key(), plane.found().clone(), served)
        .context("cannot announce addresses")?;
    Ok(desired.problems.iter().map(ToString::to_string).collect())
}

/// How long a link may take to come up that was set up at one end.
const CARRIER: Duration = Duration::from_secs(2);

/// Waits for the carrier of ports that were set up, which a machine needs to be served, and
/// syncs again: nobody follows afterwards. Links whose other end is down stay without.
///
/// # Errors
/// When the host's network cannot be read, and those of `sync`.
pub fn settled<'a>(
    plane: &mut Plane,
    desired: registry::Desired,
    host: &'a Host,
    sync: impl FnOnce(&Host, &mut Plane) -> Result<registry::Desired>,
) -> Result<(registry::Desired, Cow<'a, Host>)> {
    let raised = plane.take_newly_raised();
    if raised.is_empty() {
        return Ok((desired, Cow::Borrowed(host)));
    }
    let start = Instant::now();
    let host = loop {
        let host = Host::dump().context("cannot read the host's network")?;
        let mut links = raised.iter().filter_map(|ifindex| host.links.get(ifindex));
        if links.all(|link| link.carrier) || start.elapsed() > CARRIER {
            break host;
        }
        thread::sleep(Duration::from_millis(10));
    };
    Ok((sync(&host, plane)?, Cow::Owned(host)))
}

/// The terminal's end.
struct Hangup(Option<Signal>);

impl Hangup {
    /// From now on it ends the process no more, unless nobody would have been told, as
    /// under nohup(1).
    #[expect(
        clippy::disallowed_methods,
        reason = "the failure is logged; rules are only reported"
    )]
    fn heed() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
        let ignored = status
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok())
            .is_some_and(|mask| mask & 1 << (libc::SIGHUP - 1) != 0);
        Ok(Hangup(if ignored {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        }))
    }

    async fn came(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => future::pending().await,
        }
    }
}

fn attach(
    global: &Global,
    args: &AttachArgs,
    config: &Config,
    settings: &AttachSettings,
    host: &Host,
    uplinks: &[(&Link, Mode)],
) -> Result<(Plane, registry::Desired, Vec<String>)> {
    let sizes = sizes(global, args, config, settings)?;
    let snapshot = source::now(
        &global.config_dir,
        &global.run_dir,
        &settings.sources,
        host,
        true,
    );
    let mut plane = Plane::load(&global.bpf_dir, sizes, args.log_programs)?;
    let desired = plane.attach(
        uplinks,
        &Wanted {
            snapshot: &snapshot,
            host,
            policy: &config.policy,
            deadline: agent::deadline(),
        },
    )?;
    let faults = snapshot.problems.iter().map(ToString::to_string).collect();
    Ok((plane, desired, faults))
}

/// What is said when a running agent does not serve metrics where it was asked to.
fn metrics_left(asked: &Option<Address>, served: &Option<Address>) -> Vec<String> {
    match asked {
        Some(asked) if served.as_ref() != Some(asked) => {
            let serves = match served {
                Some(address) => format!("serves them at {address}"),
                None => "serves none".to_owned(),
            };
            vec![format!(
                "--metrics {asked} is not applied: the agent that runs {serves}; end it (SIGTERM), \
                 and attach again with the option"
            )]
        }
        _ => Vec::new(),
    }
}

/// Says where the guard of ports cannot see all that a machine says.
fn tell_unseen() {
    if let Some(why) = &hidden::found().why {
        tracing::warn!(
            "the guard of ports is incomplete: it cannot see where a machine leaves a checksum to be \
             completed, by which the source of a packet can be changed behind it ({why}); \
             see `netspawn-xdp check`"
        );
    }
}

/// Says which rules of the host will not see machines' traffic: whoever wrote
/// them may count on it.
#[expect(
    clippy::disallowed_methods,
    reason = "the failure is logged; rules are only reported"
)]
fn tell_bypassed() {
    let chains = firewall::bypassed().unwrap_or_else(|error| {
        // Without nf_tables there are no rules to tell of.
        tracing::debug!("cannot list the host's rules: {error}");
        Vec::new()
    });
    for chain in chains {
        tracing::warn!(
            "traffic of machines does not pass nftables chain {} {} {} (hook {}, {} rules{})",
            chain.family,
            chain.table,
            chain.name,
            chain.hook,
            chain.rules,
            if chain.drops { ", policy drop" } else { "" },
        );
    }
    for table in firewall::legacy_tables() {
        tracing::warn!("traffic of machines does not pass the rules of `{table}`");
    }
}

/// Those asked for; else those of the maps that are there; else the defaults.
fn sizes(
    global: &Global,
    args: &AttachArgs,
    config: &Config,
    settings: &AttachSettings,
) -> Result<Sizes> {
    let mut sizes = Sizes {
        machines: settings.max_machines,
        addresses: settings.max_addresses,
    };
    let pins = Pins::new(&global.bpf_dir);
    let mut pinned = Sizes::pinned(&pins.maps())?;
    if pinned.is_none() {
        for other in pins.others()? {
            pinned = pinned.or(Sizes::of_other(&other.maps())?);
        }
    }
    if let Some(pinned) = pinned {
        if args.max_machines.or(config.attach.max_machines).is_none() {
            sizes.machines = pinned.machines;
        }
        if args.max_addresses.or(config.attach.max_addresses).is_none() {
            sizes.addresses = pinned.addresses;
        }
    }
    Ok(sizes)
}

/// Prints what would be done.
fn dry_run(
    global: &Global,
    config: &Config,
    settings: &AttachSettings,
    host: &Host,
    uplinks: &[(&Link, Mode)],
) -> Result<Outcome> {
    let snapshot = source::now(
        &global.config_dir,
        &global.run_dir,
        &settings.sources,
        host,
        false,
    );
    let pins = Pins::new(&global.bpf_dir);
    let replaces = !pins.exist()? && !pins.others()?.is_empty();
    let mut plane = match replaces {
        true => None,
        false => Plane::open(&global.bpf_dir)?,
    };
    let attached = match &mut plane {
        Some(plane) => plane.attached()?,
        None => Vec::new(),
    };
    let nothing = State::default();
    let held = plane.as_ref().map_or(&nothing, Plane::state);
    let mut ifindexes: std::collections::BTreeSet<u32> =
        attached.iter().map(|uplink| uplink.ifindex).collect();
    let mut text = String::new();
    if replaces {
        text += "replace the data plane of another version, on all its uplinks\n";
    }
    for (link, mode) in uplinks {
        let done = if ifindexes.insert(link.ifindex) {
            "attach"
        } else {
            "replace the programs on"
        };
        let hooks = match mode {
            Mode::Xdp => "xdp, tc ingress, tc egress",
            _ => "tc ingress, tc egress",
        };
        text += &format!("{done} {}: {hooks}\n", link.name);
    }
    let desired = registry::resolve(&Inputs {
        snapshot: &snapshot,
        host,
        uplinks: &ifindexes,
        xdp_ports: &Default::default(),
        policy: &config.policy,
        held,
        limits: Limits {
            max_machines: settings.max_machines,
            max_addresses: settings.max_addresses,
        },
        deadline: agent::deadline(),
    });
    for ifindex in desired.state.ports.keys() {
        if !held.ports.contains_key(ifindex)
            && let Some(link) = host.links.get(ifindex)
        {
            text += &format!("guard {}: tc ingress\n", link.name);
        }
    }
    let names = plan::Names::new(held, &desired.state, host);
    for op in plan::plan(held, &desired.state) {
        text += &format!("{}\n", op.describe(&names));
    }
    output::print(&text)?;
    let problems = snapshot.problems.iter().chain(&desired.problems);
    Ok(Outcome::of(problems.map(ToString::to_string).collect()))
}
