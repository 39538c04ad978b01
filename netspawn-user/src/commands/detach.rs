//! `detach`.

use anyhow::{Context as _, Result, bail};

use crate::{
    agent,
    cli::{DetachArgs, Global},
    config::Config,
    control::{Request, RunDir, Turn},
    datapath::{
        pins::Pins,
        plane::{Plane, Wanted},
    },
    model::Host,
    outcome::Outcome,
    revert, source,
};

/// Takes uplinks off, all when none is named, and with the last one everything.
///
/// # Errors
/// When an uplink is named that is not attached. What cannot be taken away is
/// said, and the rest is.
pub fn run(global: &Global, args: &DetachArgs) -> Result<Outcome> {
    let run_dir = RunDir::new(&global.run_dir);
    run_dir.check_namespace()?;
    let pins = Pins::new(&global.bpf_dir);
    pins.check()?;
    if !pins.exist() && run_dir.connect().is_err() {
        if let Some(name) = args.uplinks.first() {
            bail!("{name} is not attached; nothing is");
        }
        tracing::info!("nothing is attached");
        revert::settle(global);
        return Ok(Outcome::Done);
    }
    let _lock = match run_dir.turn()? {
        Turn::Mine(lock) => lock,
        Turn::Agent(client) => {
            let response = client.ask(&Request::Detach {
                uplinks: args.uplinks.clone(),
            })?;
            revert::settle(global);
            return Ok(Outcome::of(response.failed));
        }
    };
    let failed = match Plane::open(&global.bpf_dir) {
        Ok(Some(mut plane)) => {
            let host = Host::dump().context("cannot read the host's network")?;
            let enabled = run_dir.sources();
            let snapshot = source::now(&global.config_dir, &global.run_dir, &enabled, &host, false);
            let policy = Config::load(&global.config_dir)
                .map(|config| config.policy)
                .unwrap_or_default();
            plane.detach(
                &args.uplinks,
                &Wanted {
                    snapshot: &snapshot,
                    host: &host,
                    policy: &policy,
                    deadline: agent::deadline(),
                },
            )?
        }
        Ok(None) => Vec::new(),
        Err(error) => {
            tracing::warn!("{error:#}");
            Plane::remove_remains(&global.bpf_dir)?;
            Vec::new()
        }
    };
    if !pins.exist() {
        run_dir.clear();
    }
    revert::settle(global);
    Ok(Outcome::of(failed))
}
