//! The agent announces where addresses are, and says so.

use std::time::Instant;

use super::Agent;
use crate::{
    event::{Event, Kind},
    model::DisplayMac,
    net::announce::{Cause, Served},
};

impl Agent {
    /// Has what is new about where addresses are announced.
    pub(super) fn queue_announcements(&mut self) {
        let host = self.observer.host();
        let served = Served::of(self.plane.state(), Some(host));
        for round in self.announcements.update(served, Instant::now()) {
            let name = host.links.get(&round.uplink).map_or("?", |link| &link.name);
            let count = round.count;
            let cause = match round.cause {
                Cause::Attached => "attached",
                Cause::Mac(_) => "mac",
                Cause::Carrier => "carrier",
                Cause::Address => "address",
            };
            let why = match round.cause {
                Cause::Attached => "attached".to_owned(),
                Cause::Mac(mac) => format!("has MAC {} now", DisplayMac(mac)),
                Cause::Carrier => "has carrier again".to_owned(),
                Cause::Address => "new addresses".to_owned(),
            };
            // Machines come and go, and each is told of already.
            if round.cause == Cause::Address {
                tracing::debug!(interface = name, "{name}: {why}; announcing {count}");
            } else {
                tracing::info!(
                    interface = name,
                    "{name}: {why}; announcing {count} addresses"
                );
            }
            self.monitors.tell(|| Event {
                interface: Some(name.to_owned()),
                cause: Some(cause.into()),
                count: Some(count as u64),
                ..Event::new(Kind::Announce)
            });
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
