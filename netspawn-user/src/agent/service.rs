//! What the agent tells systemd of itself.

use std::future;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The service that the agent is, if systemd has started it as one: what is told
/// to nobody is told in vain, and does no harm.
#[derive(Debug)]
pub(super) struct Service {
    exists: bool,
    watchdog: Option<Interval>,
    status: String,
}

impl Service {
    /// As the environment says (`NOTIFY_SOCKET`, `WATCHDOG_USEC`). Within a tokio
    /// runtime that has timers.
    pub(super) fn new() -> Self {
        let watchdog = sd_notify::watchdog_enabled().map(|limit| {
            let mut watchdog = interval(limit / 2);
            watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
            watchdog
        });
        Service {
            exists: std::env::var_os("NOTIFY_SOCKET").is_some(),
            watchdog,
            status: String::new(),
        }
    }

    /// Whether there is one.
    pub(super) fn exists(&self) -> bool {
        self.exists
    }

    /// Waits until the watchdog is to be told, by the loop itself, that the loop
    /// turns.
    pub(super) async fn watched(&mut self) {
        match &mut self.watchdog {
            Some(watchdog) => {
                watchdog.tick().await;
            }
            None => future::pending().await,
        }
    }

    /// The loop turns.
    pub(super) fn alive(&self) {
        say(NotifyState::Watchdog);
    }

    /// It has started.
    pub(super) fn ready(&self) {
        say(NotifyState::Ready);
    }

    /// What `systemctl status` shows.
    pub(super) fn status(&mut self, status: &str) {
        if status != self.status {
            say(NotifyState::Status(status));
            status.clone_into(&mut self.status);
        }
    }

    /// It ends.
    pub(super) fn stopping(&self) {
        say(NotifyState::Stopping);
    }
}

fn say(state: NotifyState<'_>) {
    // Without systemd nobody listens.
    let _ = sd_notify::notify(&[state]);
}
