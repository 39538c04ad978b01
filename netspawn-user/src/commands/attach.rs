//! `attach`.

mod standby;

use anyhow::{Context as _, Result};

use crate::{
    agent::{self, Agent},
    cli::{AttachArgs, Global, Mode},
    config::{AttachSettings, Config},
    control::{Request, RunDir, Turn},
    datapath::{
        attach::{UplinkError, uplink_check},
        object::Sizes,
        pins::Pins,
        plane::{Plane, Wanted},
    },
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
    source,
};

/// Attaches uplinks, and follows machine state until told to end.
///
/// # Errors
/// When an uplink cannot be attached; then nothing is left behind, and what was
/// attached before goes on.
pub fn run(global: &Global, args: &AttachArgs) -> Result<Outcome> {
    loop {
        let uplinks = match attempt(global, args)? {
            Attempt::Ended(outcome) => return Ok(outcome),
            Attempt::Handed(uplinks) => uplinks,
        };
        let stays = !args.once && standby::is_service();
        let (run_dir, pins) = (RunDir::new(&global.run_dir), Pins::new(&global.bpf_dir));
        if !stays || !standby::wait(&run_dir, &pins, &uplinks)? {
            return Ok(Outcome::Done);
        }
    }
}

/// What came of it.
enum Attempt {
    /// The command has ended.
    Ended(Outcome),
    /// The running agent has taken these uplinks.
    Handed(Vec<String>),
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
    let recorded = Pins::new(&global.bpf_dir).uplinks();
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
    Pins::new(&global.bpf_dir).check_namespace()?;
    if settings.dry_run {
        return dry_run(global, &config, &settings, host, &uplinks).map(Attempt::Ended);
    }
    let lock = match run_dir.turn()? {
        Turn::Mine(lock) => lock,
        Turn::Agent(client) => {
            let response = client.ask(&Request::Attach {
                uplinks: settings.uplinks.clone(),
                mode: settings.mode,
            })?;
            output::print(&format!("{}\n", response.ready.unwrap_or_default()))?;
            return Ok(Attempt::Handed(settings.uplinks));
        }
    };

    tell_bypassed();
    let fresh = !Pins::new(&global.bpf_dir).exist();
    let result = attach(global, args, &config, &settings, host, &uplinks);
    if result.is_err() && fresh {
        run_dir.clear();
    }
    let (mut plane, desired, problems) = result?;
    if settings.once {
        let line = agent::ready_line(&mut plane, &desired, host)?;
        output::print(&format!("{line}\n"))?;
        let served = Served::of(plane.state(), Some(host));
        announce::once(plane.found().clone(), served).context("cannot announce addresses")?;
        return Ok(Attempt::Ended(Outcome::of(problems)));
    }
    runtime.block_on(async {
        Agent::new(global, plane, observer, config.policy, &settings.sources)
            .await?
            .run(|line| output::print(&format!("{line}\n")))
            .await
    })?;
    drop(lock);
    Ok(Attempt::Ended(Outcome::Done))
}

fn attach(
    global: &Global,
    args: &AttachArgs,
    config: &Config,
    settings: &AttachSettings,
    host: &Host,
    uplinks: &[(&Link, Mode)],
) -> Result<(Plane, registry::Desired, Vec<String>)> {
    let sizes = sizes(global, args, config, settings);
    let snapshot = source::now(&global.config_dir, &global.run_dir, &settings.sources, host);
    let mut plane = Plane::load(&global.bpf_dir, sizes)?;
    let desired = plane.attach(
        uplinks,
        &Wanted {
            snapshot: &snapshot,
            host,
            policy: config.policy,
            deadline: agent::deadline(),
        },
    )?;
    RunDir::new(&global.run_dir).claim(&settings.sources)?;
    let problems: Vec<_> = snapshot.problems.iter().chain(&desired.problems).collect();
    if settings.once {
        let lines = problems.iter().map(ToString::to_string).collect();
        return Ok((plane, desired, lines));
    }
    Ok((plane, desired, Vec::new()))
}

/// Says which rules of the host will not see machines' traffic: whoever wrote
/// them may count on it.
fn tell_bypassed() {
    // Without nf_tables there are no rules to tell of.
    for chain in firewall::bypassed().unwrap_or_default() {
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
fn sizes(global: &Global, args: &AttachArgs, config: &Config, settings: &AttachSettings) -> Sizes {
    let mut sizes = Sizes {
        machines: settings.max_machines,
        addresses: settings.max_addresses,
    };
    if let Some(pinned) = Sizes::pinned(&Pins::new(&global.bpf_dir).maps()) {
        if args.max_machines.or(config.attach.max_machines).is_none() {
            sizes.machines = pinned.machines;
        }
        if args.max_addresses.or(config.attach.max_addresses).is_none() {
            sizes.addresses = pinned.addresses;
        }
    }
    sizes
}

/// Prints what would be done.
fn dry_run(
    global: &Global,
    config: &Config,
    settings: &AttachSettings,
    host: &Host,
    uplinks: &[(&Link, Mode)],
) -> Result<Outcome> {
    let snapshot = source::now(&global.config_dir, &global.run_dir, &settings.sources, host);
    let mut plane = Plane::open(&global.bpf_dir)?;
    let attached = match &mut plane {
        Some(plane) => plane.attached()?,
        None => Vec::new(),
    };
    let nothing = State::default();
    let held = plane.as_ref().map_or(&nothing, Plane::state);
    let mut ifindexes: std::collections::BTreeSet<u32> =
        attached.iter().map(|uplink| uplink.ifindex).collect();
    let mut text = String::new();
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
        policy: config.policy,
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
