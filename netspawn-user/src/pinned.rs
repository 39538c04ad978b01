//! The data plane as commands see it: what is pinned, and the agent if one
//! runs.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

use crate::{
    agent,
    cli::Global,
    commands::{Applied, DataPlane, View, attach::settled, declarations},
    config::{Config, Policy},
    control::{Request, RunDir, Turn},
    datapath::{
        object::Sizes,
        plane::{Plane, Wanted},
    },
    model::Host,
    net::announce::{self, Served},
    outcome::Problems,
    output::AgentReport,
    plan::State,
    registry::Limits,
    source::{self, Registered, Source, machined},
};

/// The data plane that BPFDIR and RUNDIR of a command line name.
#[derive(Clone, Copy, Debug)]
pub struct Pinned<'a>(pub &'a Global);

impl DataPlane for Pinned<'_> {
    fn view(&self) -> Result<View> {
        let run_dir = RunDir::new(&self.0.run_dir);
        run_dir.check_namespace()?;
        let host = Host::dump().context("cannot read the host's network")?;
        let sources = run_dir.sources()?;
        let agent = run_dir.agent()?;
        let registered = match &agent {
            Some(agent) => agent.registered.clone(),
            None if sources.contains(&Source::Machined) => machined::now(&host),
            None => Registered::default(),
        };
        let sizes = Sizes::default();
        let mut view = View {
            host,
            uplinks: Vec::new(),
            held: State::default(),
            unguarded: BTreeMap::new(),
            limits: Limits {
                max_machines: sizes.machines,
                max_addresses: sizes.addresses,
            },
            counts: BTreeMap::new(),
            traffic: BTreeMap::new(),
            drops: BTreeMap::new(),
            troubles: agent
                .as_ref()
                .map_or_else(Vec::new, |agent| agent.troubles.clone()),
            agent: agent.map(AgentReport::from),
            sources,
            registered,
            policy: policy(self.0),
        };
        if let Some(mut plane) = Plane::open(&self.0.bpf_dir)? {
            let maps = plane.maps();
            view.counts = maps.counts()?;
            view.traffic = maps.traffic(plane.state().endpoints.keys().copied())?;
            view.drops = maps.drops()?;
            view.held = plane.state().clone();
            view.unguarded = plane.unguarded()?;
            view.unguarded
                .retain(|ifindex, _| view.host.links.contains_key(ifindex));
            view.limits = plane.limits();
            view.uplinks = plane.attached()?;
        }
        Ok(view)
    }

    fn apply(&self) -> Result<Applied> {
        let run_dir = RunDir::new(&self.0.run_dir);
        run_dir.check_namespace()?;
        let (snapshot, desired) = match run_dir.turn()? {
            Turn::Agent(client) => {
                client.ask(&Request::Sync)?;
                let view = self.view()?;
                let snapshot = declarations(self.0, &view);
                let desired = view.resolve(&snapshot);
                (snapshot, desired)
            }
            Turn::Mine(_lock) => {
                let Some(mut plane) = Plane::open_to_write(&self.0.bpf_dir)? else {
                    return Ok(Applied::default());
                };
                let config = Config::load(&self.0.config_dir).map_err(Problems)?;
                let host = Host::dump().context("cannot read the host's network")?;
                let snapshot = source::now(
                    &self.0.config_dir,
                    &self.0.run_dir,
                    &run_dir.sources()?,
                    &host,
                    true,
                );
                let sync = |host: &Host, plane: &mut Plane| {
                    plane.sync(&Wanted {
                        snapshot: &snapshot,
                        host,
                        policy: &config.policy,
                        deadline: agent::deadline(),
                    })
                };
                let desired = sync(&host, &mut plane)?;
                let (desired, host) = settled(&mut plane, desired, &host, sync)?;
                let served = Served::of(plane.state(), Some(&host));
                if let Err(error) = announce::once(plane.key(), plane.found().clone(), served) {
                    tracing::warn!("cannot announce addresses: {error}");
                }
                (snapshot, desired)
            }
        };
        Ok(Applied {
            attached: true,
            machines: desired.machines,
            problems: snapshot
                .problems
                .into_iter()
                .chain(desired.problems)
                .collect(),
        })
    }
}

/// The policy of netspawn.toml. What is wrong in the file is told by those who act on it;
/// here the default policy stands in.
fn policy(global: &Global) -> Policy {
    match Config::load(&global.config_dir) {
        Ok(config) => config.policy,
        Err(problems) => {
            for problem in problems {
                tracing::warn!("{problem}");
            }
            Policy::default()
        }
    }
}
