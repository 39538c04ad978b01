//! systemd-machined, over D-Bus: which machine has which link.
//!
//! `links` is what is made of what machined tells; `bus` is how it tells.

mod bus;
mod links;

use std::time::Duration;

use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinHandle,
    time::timeout,
};

use self::links::{Event, Kernel, Machines};
use super::Registered;
use crate::{
    model::{Host, Peer},
    net::{
        namespace,
        netlink::{Error, Netlink},
        read,
    },
};

/// How long the first answer is waited for. It comes in milliseconds, or in
/// some tens of them when machined has to be started for it.
const FIRST: Duration = Duration::from_secs(1);

/// Asks once, blocking, for [`FIRST`] at most; nothing is told when machined
/// cannot be reached or answers too late.
pub fn now(host: &Host) -> Registered {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            let mut machined = Machined::start(false);
            machined.first().await;
            machined.registered(host)
        }),
        Err(error) => {
            tracing::debug!("cannot ask systemd-machined: {error}");
            Registered::default()
        }
    }
}

/// Follows machined for as long as it lives.
#[derive(Debug)]
pub struct Machined {
    events: UnboundedReceiver<Event>,
    follower: JoinHandle<()>,
    machines: Machines,
}

impl Drop for Machined {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Machined {
    /// Starts to follow, and waits for the first answer, or until it is clear
    /// that none comes soon.
    pub async fn follow() -> Self {
        let mut machined = Machined::start(true);
        machined.first().await;
        machined
    }

    /// `aloud`: whether it is said that machined is lost and is back.
    fn start(aloud: bool) -> Self {
        let (tell, events) = unbounded_channel();
        Machined {
            events,
            follower: tokio::spawn(bus::follow(tell, aloud)),
            machines: Machines::default(),
        }
    }

    async fn first(&mut self) {
        let listed = async {
            while let Some(event) = self.events.recv().await {
                let done = matches!(event, Event::Listed | Event::Absent);
                self.machines.apply(event);
                if done {
                    break;
                }
            }
        };
        if timeout(FIRST, listed).await.is_err() {
            tracing::debug!("systemd-machined has not answered within {FIRST:?}");
        }
    }

    /// Waits until something has changed. Dropping the future loses nothing.
    pub async fn changed(&mut self) {
        loop {
            match self.events.recv().await {
                Some(event) => {
                    if self.machines.apply(event) {
                        return;
                    }
                }
                // The follower ends with the process only.
                None => std::future::pending().await,
            }
        }
    }

    /// What is known of the links that the host has.
    pub fn registered(&mut self, host: &Host) -> Registered {
        while let Ok(event) = self.events.try_recv() {
            self.machines.apply(event);
        }
        let mut kernel = Live {
            netlink: None,
            failure: None,
        };
        let mut registered = self.machines.registered(host, &mut kernel);
        if let Some(error) = kernel.failure {
            // Until it can be asked, machines keep the ports that the maps have for them.
            tracing::warn!("cannot look for the ports of machines: {error}");
            registered.told = false;
        }
        registered
    }
}

/// The kernel, asked over a socket that is opened when it is needed.
struct Live {
    netlink: Option<Netlink>,
    /// What it did not answer.
    failure: Option<Error>,
}

impl Live {
    #[expect(
        clippy::disallowed_methods,
        reason = "the failure is logged or kept, and machines keep their ports"
    )]
    fn ask<T>(
        &mut self,
        question: impl FnOnce(&mut Netlink) -> Result<Option<T>, Error>,
    ) -> Option<T> {
        let answer = match &mut self.netlink {
            Some(netlink) => question(netlink),
            None => Netlink::open().and_then(|netlink| question(self.netlink.insert(netlink))),
        };
        answer.unwrap_or_else(|error| {
            self.failure = Some(error);
            None
        })
    }
}

impl Kernel for Live {
    fn namespace_id(&mut self, pid: u32) -> Option<i32> {
        self.ask(|netlink| namespace::id_of_process(netlink, pid))
    }

    fn peer_name(&mut self, peer: Peer) -> Option<String> {
        let netnsid = peer.netnsid?;
        self.ask(|netlink| read::peer_name(netlink, peer.ifindex, netnsid))
    }
}
