//! `detach`.

use anyhow::{Context as _, Result, bail};

use crate::{
    agent,
    cli::{DetachArgs, Global},
    config::{Config, Policy},
    control::{Request, RunDir, Turn},
    datapath::{
        pins::Pins,
        plane::{Plane, Wanted},
    },
    model::Host,
    outcome::{Outcome, Problems},
    revert,
    source::{self, Source},
};

/// Takes uplinks off, all when none is named, and with the last one everything.
///
/// # Errors
/// When an uplink is named that is not attached. What cannot be taken away is
/// said, and the rest is.
#[expect(
    clippy::disallowed_methods,
    reason = "the failure is logged; it does not stop what is taken away"
)]
pub fn run(global: &Global, args: &DetachArgs) -> Result<Outcome> {
    let run_dir = RunDir::new(&global.run_dir);
    run_dir.check_namespace()?;
    let pins = Pins::new(&global.bpf_dir);
    pins.check()?;
    let others = pins.others()?;
    if !pins.exist()? && others.is_empty() && run_dir.reach()?.is_none() {
        if let Some(name) = args.uplinks.first() {
            bail!("{name} is not attached; nothing is");
        }
        match Plane::remove_guards(&global.bpf_dir)? {
            0 => tracing::info!("nothing is attached"),
            ports => {
                run_dir.clear();
                tracing::info!(
                    "the guards of {ports} ports are taken off; nothing else was attached any more"
                );
            }
        }
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
    if let Some(name) = args.uplinks.first()
        && !others.is_empty()
    {
        bail!(
            "cannot detach {name} alone: what is attached is of another version; `netspawn-xdp \
             detach` without names removes all of it, `netspawn-xdp attach {name}` replaces it"
        );
    }
    let failed = match Plane::open_to_write(&global.bpf_dir) {
        Ok(Some(mut plane)) => {
            let host = Host::dump().context("cannot read the host's network")?;
            // They decide what is left on other uplinks, not what is taken away.
            let enabled = run_dir.sources().unwrap_or_else(|error| {
                tracing::warn!("{error:#}");
                Source::DEFAULT.into()
            });
            let snapshot = source::now(&global.config_dir, &global.run_dir, &enabled, &host, false);
            let policy = match Config::load(&global.config_dir) {
                Ok(config) => config.policy,
                // No machine is left that it could be about.
                Err(_) if args.uplinks.is_empty() => Policy::default(),
                Err(problems) => bail!(Problems(problems)),
            };
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
        // What cannot be opened now is not all to be taken away for it.
        Err(error) if !args.uplinks.is_empty() => return Err(error),
        Err(error) => {
            tracing::warn!("{error:#}");
            Plane::remove_remains(&global.bpf_dir)?;
            Vec::new()
        }
    };
    if !pins.exist()? {
        run_dir.clear();
    }
    revert::settle(global);
    Ok(Outcome::of(failed))
}
