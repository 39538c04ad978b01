//! The data plane as commands see it: what is pinned, and the agent if one
//! runs.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

use crate::{
    agent,
    cli::Global,
    commands::{Applied, DataPlane, View},
    config::Config,
    control::{Request, RunDir, Turn},
    datapath::{
        object::Sizes,
        plane::{Plane, Wanted},
    },
    model::Host,
    outcome::Problems,
    plan::State,
    registry::Limits,
    source::Files,
};

/// The data plane that BPFDIR and RUNDIR of a command line name.
#[derive(Clone, Copy, Debug)]
pub struct Pinned<'a>(pub &'a Global);

impl DataPlane for Pinned<'_> {
    fn view(&self) -> Result<View> {
        let run_dir = RunDir::new(&self.0.run_dir);
        run_dir.check_namespace()?;
        let host = Host::dump().context("cannot read the host's network")?;
        let Some(mut plane) = Plane::open(&self.0.bpf_dir)? else {
            let sizes = Sizes::default();
            return Ok(View {
                host,
                uplinks: Vec::new(),
                held: State::default(),
                limits: Limits {
                    max_machines: sizes.machines,
                    max_addresses: sizes.addresses,
                },
                counts: BTreeMap::new(),
                traffic: BTreeMap::new(),
                drops: BTreeMap::new(),
                agent: run_dir.agent(),
            });
        };
        Ok(View {
            host,
            uplinks: plane.attached()?,
            held: plane.state().clone(),
            limits: plane.limits(),
            counts: plane.maps().counts()?,
            traffic: plane
                .maps()
                .traffic(plane.state().endpoints.keys().copied())?,
            drops: plane.maps().drops()?,
            agent: run_dir.agent(),
        })
    }

    fn apply(&self) -> Result<Applied> {
        let run_dir = RunDir::new(&self.0.run_dir);
        run_dir.check_namespace()?;
        let files = || Files::new(&self.0.config_dir, &self.0.run_dir).read();
        let (snapshot, desired) = match run_dir.turn()? {
            Turn::Agent(client) => {
                client.ask(&Request::Sync)?;
                let snapshot = files();
                let desired = self.view()?.resolve(&snapshot);
                (snapshot, desired)
            }
            Turn::Mine(_lock) => {
                let Some(mut plane) = Plane::open(&self.0.bpf_dir)? else {
                    return Ok(Applied::default());
                };
                let config = Config::load(&self.0.config_dir).map_err(Problems)?;
                let host = Host::dump().context("cannot read the host's network")?;
                let snapshot = files();
                let desired = plane.sync(&Wanted {
                    snapshot: &snapshot,
                    host: &host,
                    policy: config.policy,
                    deadline: agent::deadline(),
                })?;
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
