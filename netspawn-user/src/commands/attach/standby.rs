//! A service that has handed its uplink to the running agent stands by: it is there for
//! as long as its uplink is served, and goes on in place of an agent that ends.

use std::{
    env,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use sd_notify::NotifyState;

use crate::{control::RunDir, datapath::pins::Pins};

/// Whether this process is a service, which systemd takes for failed when it ends before
/// it has said that it is ready.
pub fn is_service() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// Tells systemd that the uplinks are served, and waits until the agent has ended.
/// True when one of them is attached still, so that this process is to go on with it;
/// false when they were detached.
///
/// # Errors
/// When the lock in RUNDIR cannot be waited for.
pub fn wait(run_dir: &RunDir, pins: &Pins, uplinks: &[String]) -> Result<bool> {
    say(NotifyState::Ready);
    say(NotifyState::Status(
        "standing by: the agent is another process",
    ));
    let pulse = sd_notify::watchdog_enabled().map_or(Duration::MAX, |limit| limit / 2);
    let (ended, end) = channel();
    let run_dir = run_dir.clone();
    thread::Builder::new()
        .name("standby".to_owned())
        .spawn(move || ended.send(run_dir.wait_for_lock()))
        .context("cannot start a thread")?;
    loop {
        match end.recv_timeout(pulse) {
            Ok(result) => break result?,
            Err(RecvTimeoutError::Timeout) => say(NotifyState::Watchdog),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let attached = pins.uplinks()?;
    Ok(attached.iter().any(|uplink| uplinks.contains(&uplink.name)))
}

fn say(state: NotifyState<'_>) {
    // When systemd is gone nobody listens.
    let _ = sd_notify::notify(&[state]);
}
