//! The agent announces where addresses are, and says so.

use std::time::Instant;

use super::Agent;
use crate::{
    model::DisplayMac,
    net::announce::{Cause, Served},
};

impl Agent {
    /// Has what is new about where addresses are announced.
    pub(super) fn queue_announcements(&mut self) {
        let host = self.observer.host();
        let served = Served::of(self.plane.state(), Some(host));
        let count = served.addresses.len();
        let now = Instant::now();
        for (ifindex, cause) in self.announcements.update(served, now) {
            let name = host.links.get(&ifindex).map_or("?", |link| &link.name);
            let cause = match cause {
                Cause::Attached => "attached".to_owned(),
                Cause::Mac(mac) => format!("has MAC {} now", DisplayMac(mac)),
                Cause::Carrier => "has carrier again".to_owned(),
            };
            tracing::info!("{name}: {cause}; announcing {count} addresses");
        }
    }

    /// Sends what is due. One that is lost matters little: it is repeated.
    pub(super) fn send_announcements(&mut self) {
        let now = Instant::now();
        while let Some(what) = self.announcements.pop(now) {
            if let Err(error) = self.sender.send(&what) {
                tracing::debug!("cannot announce {}: {error}", what.address);
            }
        }
    }
}
