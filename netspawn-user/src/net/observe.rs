//! The state of the host's network, read whole and then followed.
//!
//! Links, addresses and neighbors are followed by the kernel's events. Routes
//! are read again whenever something may have changed them, because IPv4
//! routes that go with a link or an address go without an event.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use netspawn_ebpf::wire::Mac;
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};

use super::{
    netlink::{Error, Message, Netlink, messages, receive},
    read,
};
use crate::model::{Host, Link, Neighbor, Route, Unfollowed};

/// `nl_groups` of what is followed; all have numbers below 32.
const GROUPS: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_NEIGH
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE) as u32;
/// Thousands of links may come up at once.
const RECEIVE_BUFFER: libc::c_int = 16 << 20;
/// How long events of one burst are gathered. It is part of the time in which
/// a port that has come up has no guard yet.
const SETTLE: Duration = Duration::from_millis(1);
/// How long they are at most, after a sync that took long: ports that come up wait for
/// their guard meanwhile.
const LONGEST_REST: Duration = Duration::from_millis(500);
/// Reading a large table again takes at most one part in this many of the
/// time.
const ROUTE_SHARE: u32 = 10;

/// The same for reading everything again without need.
const REFRESH_SHARE: u32 = 100;
/// MACs of peers that are then read at once.
const PEERS: usize = 1000;

impl Host {
    /// Reads the whole state once, blocking.
    pub fn dump() -> Result<Host, Error> {
        Ok(Tables::dump_with_peers(&mut Netlink::open()?)?.host())
    }
}

impl Unfollowed {
    /// Reads the tables once, blocking.
    pub fn dump() -> Result<Unfollowed, Error> {
        let mut netlink = Netlink::open()?;
        let mut proxies = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            proxies.extend(or_empty(
                netlink.dump(read::get_proxies(family), |message| read::proxy(&message)),
            )?);
        }
        let stations =
            or_empty(netlink.dump(read::get_stations(), |message| read::station(&message)))?;
        Ok(Unfollowed { proxies, stations })
    }
}

/// The kernel's tables by key, so that an event costs the same however long
/// they are.
#[derive(Default)]
struct Tables {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, IpNet)>,
    routes: Vec<Route>,
    neighbors: BTreeMap<(u32, IpAddr), Option<Mac>>,
}

impl Tables {
    fn dump(netlink: &mut Netlink) -> Result<Self, Error> {
        let mut tables = Tables {
            links: netlink
                .dump(read::get_link(0), |message| read::link(&message))?
                .into_iter()
                .map(|link| (link.ifindex, link))
                .collect(),
            addresses: netlink
                .dump(read::get_addresses(), |message| read::address(&message))?
                .into_iter()
                .collect(),
            routes: dump_routes(netlink)?,
            neighbors: BTreeMap::new(),
        };
        for family in [libc::AF_INET, libc::AF_INET6] {
            let found = or_empty(netlink.dump(read::get_neighbors(family), |message| {
                read::neighbor(&message)
            }))?;
            tables.neighbors.extend(
                found
                    .into_iter()
                    .map(|entry| ((entry.ifindex, entry.address), entry.mac)),
            );
        }
        Ok(tables)
    }

    fn dump_with_peers(netlink: &mut Netlink) -> Result<Self, Error> {
        let mut tables = Tables::dump(netlink)?;
        let all = tables.links.keys().copied().collect();
        tables.read_peers(netlink, &all)?;
        Ok(tables)
    }

    /// Takes over the MACs of peers that an earlier reading knew; the links whose
    /// peers it did not know.
    fn keep_peers(&mut self, before: &Tables) -> BTreeSet<u32> {
        let mut unknown = BTreeSet::new();
        for (ifindex, link) in &mut self.links {
            let before = before.links.get(ifindex).and_then(|link| link.peer);
            if let Some(peer) = &mut link.peer {
                peer.mac = before
                    .filter(|old| (old.ifindex, old.netnsid) == (peer.ifindex, peer.netnsid))
                    .and_then(|old| old.mac);
                if peer.mac.is_none() || peer.netnsid.is_none() {
                    unknown.insert(*ifindex);
                }
            }
        }
        unknown
    }

    /// Reads the MACs of the peers of these links.
    ///
    /// # Errors
    /// When the kernel does not tell. To who may not look they are what they were.
    fn read_peers(
        &mut self,
        netlink: &mut Netlink,
        ifindexes: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        for ifindex in ifindexes {
            let Some(peer) = self.links.get(ifindex).and_then(|link| link.peer) else {
                continue;
            };
            let mac = match peer.netnsid {
                Some(netnsid) => match read::peer_mac(netlink, peer.ifindex, netnsid) {
                    Ok(mac) => mac,
                    Err(error) if matches!(error.errno(), Some(libc::EPERM | libc::EACCES)) => {
                        tracing::debug!("cannot read the MAC behind link {ifindex}: {error}");
                        continue;
                    }
                    Err(error) => return Err(error),
                },
                None => self.links.get(&peer.ifindex).map(|link| link.mac),
            };
            if let Some(peer) = self
                .links
                .get_mut(ifindex)
                .and_then(|link| link.peer.as_mut())
            {
                peer.mac = mac;
            }
        }
        Ok(())
    }

    fn host(&self) -> Host {
        Host {
            links: self.links.clone(),
            addresses: self.address_list(),
            routes: self.routes.clone(),
            neighbors: self.neighbor_list(),
        }
    }

    fn address_list(&self) -> Vec<(u32, IpNet)> {
        self.addresses.iter().copied().collect()
    }

    fn neighbor_list(&self) -> Vec<Neighbor> {
        self.neighbors
            .iter()
            .map(|(&(ifindex, address), &mac)| Neighbor {
                ifindex,
                address,
                mac,
            })
            .collect()
    }
}

/// The main tables of both families.
fn dump_routes(netlink: &mut Netlink) -> Result<Vec<Route>, Error> {
    let mut routes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = read::get_routes(family);
        routes.extend(or_empty(
            netlink.dump(request, |message| read::route(&message)),
        )?);
    }
    Ok(routes)
}

/// A namespace has no main table before its first route, and a kernel may be
/// without a family.
fn or_empty<T>(result: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match result {
        Err(error)
            if matches!(
                error.errno(),
                Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
            ) =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// What has changed since the last report.
#[derive(Default)]
struct Changes {
    /// Links that are not in `Host` as they are in the tables.
    links: BTreeSet<u32>,
    /// Links whose peer's MAC is to be read.
    peers: BTreeSet<u32>,
    addresses: bool,
    neighbors: bool,
    /// Routes are to be read.
    routes: bool,
    /// The tables are to be read, and of the peers' MACs the next ones.
    tables: bool,
    /// Everything is to be read.
    all: bool,
}

impl Changes {
    /// Whether there is more than routes to read.
    fn urgent(&self) -> bool {
        self.all
            || self.tables
            || self.addresses
            || self.neighbors
            || !self.links.is_empty()
            || !self.peers.is_empty()
    }
}

/// Links that were deleted, or left the namespace. One that was made meanwhile may have the
/// number of one of them, and everything else: then [`Host`] shows no difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Their ifindexes.
    pub links: BTreeSet<u32>,
    /// Events were lost: it may be any link.
    pub any: bool,
}

impl Gone {
    /// Whether nothing is gone.
    pub fn is_empty(&self) -> bool {
        !self.any && self.links.is_empty()
    }
}

/// Follows the network namespace of the thread that started it.
pub struct Observer {
    netlink: Netlink,
    events: AsyncFd<Socket>,
    buffer: Vec<u8>,
    tables: Tables,
    host: Host,
    changes: Changes,
    gone: Gone,
    /// When gathering of the present burst ends.
    settle: Option<Instant>,
    /// Not before this does it end.
    settle_after: Instant,
    /// Not before this are routes read again.
    routes_after: Instant,
    /// `host` differs from what was last reported.
    unreported: bool,
    /// Not before this are the tables read again without need.
    refresh_after: Instant,
    /// The first link whose peer's MAC is read then.
    next_peer: u32,
    overruns: u64,
    noticed: Instant,
}

impl Observer {
    /// Reads the whole state and starts to follow it. Must run within a tokio
    /// runtime that has I/O and time.
    pub fn start() -> Result<Self, Error> {
        Self::start_with_buffer(RECEIVE_BUFFER)
    }

    /// As [`Observer::start`], with a buffer of that many bytes for events.
    #[doc(hidden)]
    pub fn start_with_buffer(bytes: libc::c_int) -> Result<Self, Error> {
        // Events first: what changes during the dump is seen twice, not never.
        let events = subscribe(bytes)?;
        let mut netlink = Netlink::open()?;
        let tables = Tables::dump_with_peers(&mut netlink)?;
        Ok(Self {
            host: tables.host(),
            netlink,
            events,
            buffer: vec![0; 64 * 1024],
            tables,
            changes: Changes::default(),
            gone: Gone::default(),
            settle: None,
            settle_after: Instant::now(),
            routes_after: Instant::now(),
            unreported: false,
            refresh_after: Instant::now(),
            next_peer: 0,
            overruns: 0,
            noticed: Instant::now(),
        })
    }

    /// The state as last read.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What is gone since this was last asked: whatever is remembered by the number of
    /// such a link is to be forgotten.
    pub fn take_gone(&mut self) -> Gone {
        std::mem::take(&mut self.gone)
    }

    /// How often the kernel had more events than its buffer held, so that
    /// everything was read anew.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    /// When the first event of the last burst was read.
    pub fn noticed(&self) -> std::time::Instant {
        self.noticed.into_std()
    }

    /// Has the next `changed` read the tables anew, and the MACs of a thousand peers,
    /// others each time: a machine that changes its MAC while up causes no event here.
    /// Does nothing where that would take more than one part in a hundred of the time:
    /// for each link, and for each peer, the kernel looks through the ids of all
    /// namespaces.
    pub fn refresh(&mut self) {
        self.changes.tables |= self.refresh_after <= Instant::now();
    }

    /// Has events gathered for so long before the next `changed` reports them: of many
    /// that come one after the other, each would cost the reader as much as all of them.
    pub fn rest(&mut self, time: Duration) {
        self.settle_after = Instant::now() + time.min(LONGEST_REST);
    }

    /// Reads everything anew, at once. Blocks.
    ///
    /// # Errors
    /// When the kernel does not tell; the next `changed` tries again.
    pub fn reread(&mut self) -> Result<&Host, Error> {
        self.noticed = Instant::now();
        self.changes.all = true;
        self.drain()?;
        self.take_over()?;
        self.unreported = false;
        Ok(&self.host)
    }

    /// Takes over the events there are, at once. Blocks.
    ///
    /// # Errors
    /// When the kernel does not tell; the next `changed` tries again.
    pub fn catch_up(&mut self) -> Result<&Host, Error> {
        self.drain()?;
        if self.due().is_some() {
            self.take_over()?;
        }
        self.unreported = false;
        Ok(&self.host)
    }

    /// Waits until the state differs from what was last returned, and returns
    /// it. Dropping the future loses nothing. After an error the next call
    /// starts again from a full reading.
    pub async fn changed(&mut self) -> Result<&Host, Error> {
        loop {
            self.drain()?;
            if self.unreported {
                self.unreported = false;
                return Ok(&self.host);
            }
            match self.due() {
                Some(due) if due <= Instant::now() => self.take_over()?,
                Some(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    // The rest of a burst waits in the socket's buffer.
                    ready = self.events.readable(), if !self.changes.urgent() => {
                        ready?.clear_ready();
                    }
                },
                None => self.events.readable().await?.clear_ready(),
            }
        }
    }

    /// When the changes gathered so far are to be taken over.
    fn due(&mut self) -> Option<Instant> {
        if !self.changes.urgent() && !self.changes.routes {
            return None;
        }
        let settle = *self.settle.get_or_insert_with(|| {
            self.noticed = Instant::now();
            self.settle_after.max(self.noticed + SETTLE)
        });
        Some(if self.changes.urgent() {
            settle
        } else {
            settle.max(self.routes_after)
        })
    }

    /// Reads the events there are into the tables.
    fn drain(&mut self) -> Result<(), Error> {
        loop {
            let received = receive(self.events.get_ref(), &mut self.buffer, libc::MSG_DONTWAIT);
            match received {
                Ok(length) => {
                    let buffer = std::mem::take(&mut self.buffer);
                    for message in messages(&buffer[..length]) {
                        self.event(&message);
                    }
                    self.buffer = buffer;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Events were lost; those still queued are older than a dump.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.overruns += 1;
                    self.changes.all = true;
                    self.gone.any = true;
                }
                Err(_) => {
                    self.changes.all = true;
                    self.gone.any = true;
                    self.events = subscribe(RECEIVE_BUFFER)?;
                }
            }
        }
    }

    fn event(&mut self, message: &Message<'_>) {
        match message.kind {
            libc::RTM_NEWLINK => {
                if let Some(link) = read::link(message) {
                    self.new_link(link);
                }
            }
            libc::RTM_DELLINK => {
                if let Some(link) = read::link(message) {
                    self.gone(link.ifindex);
                }
            }
            libc::RTM_NEWADDR => {
                if let Some(address) = read::address(message) {
                    self.changes.addresses |= self.tables.addresses.insert(address);
                }
            }
            libc::RTM_DELADDR => {
                if let Some(address) = read::address(message) {
                    self.changes.addresses |= self.tables.addresses.remove(&address);
                    self.changes.routes = true;
                }
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                self.changes.routes |= read::concerns_routes(message);
            }
            libc::RTM_NEWNEIGH => {
                if let Some(entry) = read::neighbor(message) {
                    let key = (entry.ifindex, entry.address);
                    let before = self.tables.neighbors.insert(key, entry.mac);
                    self.changes.neighbors |= before != Some(entry.mac);
                }
            }
            libc::RTM_DELNEIGH => {
                if let Some(entry) = read::neighbor(message) {
                    let key = (entry.ifindex, entry.address);
                    self.changes.neighbors |= self.tables.neighbors.remove(&key).is_some();
                }
            }
            _ => {}
        }
    }

    fn new_link(&mut self, mut link: Link) {
        let ifindex = link.ifindex;
        let before = self.tables.links.get(&ifindex);
        if let Some(peer) = &mut link.peer {
            // The MAC stays known until it has been read again.
            peer.mac = before
                .and_then(|link| link.peer)
                .filter(|old| (old.ifindex, old.netnsid) == (peer.ifindex, peer.netnsid))
                .and_then(|old| old.mac);
            self.changes.peers.insert(ifindex);
            if peer.netnsid.is_none() {
                self.changes.peers.insert(peer.ifindex);
            }
        }
        if before != Some(&link) {
            if before.is_none_or(|old| (old.admin_up, old.carrier) != (link.admin_up, link.carrier))
            {
                self.changes.routes = true;
            }
            self.tables.links.insert(ifindex, link);
            self.changes.links.insert(ifindex);
        }
    }

    fn gone(&mut self, ifindex: u32) {
        self.gone.links.insert(ifindex);
        self.changes.links.insert(ifindex);
        if self.tables.links.remove(&ifindex).is_none() {
            return;
        }
        self.changes.routes = true;
        let addresses = self.tables.addresses.len();
        self.tables.addresses.retain(|(of, _)| *of != ifindex);
        self.changes.addresses |= self.tables.addresses.len() != addresses;
        let neighbors = self.tables.neighbors.len();
        self.tables.neighbors.retain(|(of, _), _| *of != ifindex);
        self.changes.neighbors |= self.tables.neighbors.len() != neighbors;
    }

    /// Brings `host` up to date with the tables.
    fn take_over(&mut self) -> Result<(), Error> {
        self.settle = None;
        if self.changes.all || self.changes.tables {
            let started = Instant::now();
            let mut tables = Tables::dump(&mut self.netlink).inspect_err(|_| {
                // The socket may be what is broken.
                if let Ok(netlink) = Netlink::open() {
                    self.netlink = netlink;
                }
            })?;
            let peers = if self.changes.all {
                tables.links.keys().copied().collect()
            } else {
                let mut peers = tables.keep_peers(&self.tables);
                peers.extend(&self.changes.peers);
                let rest = tables.links.range(self.next_peer..);
                peers.extend(rest.map(|(ifindex, _)| ifindex).take(PEERS));
                let after = tables.links.range(self.next_peer..).nth(PEERS);
                self.next_peer = after.map_or(0, |(ifindex, _)| *ifindex);
                peers
            };
            tables.read_peers(&mut self.netlink, &peers)?;
            self.tables = tables;
            self.changes = Changes::default();
            self.refresh_after = Instant::now() + started.elapsed() * REFRESH_SHARE;
            let host = self.tables.host();
            self.unreported |= self.host != host || !self.gone.is_empty();
            self.host = host;
            return Ok(());
        }
        if self.changes.routes && self.routes_after <= Instant::now() {
            let started = Instant::now();
            match dump_routes(&mut self.netlink) {
                Ok(routes) => self.tables.routes = routes,
                Err(error) => {
                    self.changes.all = true;
                    return Err(error);
                }
            }
            self.routes_after = Instant::now() + started.elapsed() * ROUTE_SHARE;
            self.changes.routes = false;
            if self.host.routes != self.tables.routes {
                self.host.routes.clone_from(&self.tables.routes);
                self.unreported = true;
            }
        }
        let later = Changes {
            routes: self.changes.routes,
            ..Changes::default()
        };
        let changes = std::mem::replace(&mut self.changes, later);
        self.unreported |= !self.gone.is_empty();
        if let Err(error) = self.tables.read_peers(&mut self.netlink, &changes.peers) {
            self.changes.all = true;
            return Err(error);
        }
        for ifindex in changes.links.union(&changes.peers) {
            let now = self.tables.links.get(ifindex);
            if self.host.links.get(ifindex) != now {
                self.unreported = true;
                match now {
                    Some(link) => self.host.links.insert(*ifindex, link.clone()),
                    None => self.host.links.remove(ifindex),
                };
            }
        }
        if changes.addresses {
            self.host.addresses = self.tables.address_list();
            self.unreported = true;
        }
        if changes.neighbors {
            self.host.neighbors = self.tables.neighbor_list();
            self.unreported = true;
        }
        Ok(())
    }
}

/// A socket that receives the kernel's events from now on.
fn subscribe(buffer: libc::c_int) -> Result<AsyncFd<Socket>, Error> {
    use std::os::fd::AsRawFd;

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    // SAFETY: the value and its length are those of a live `c_int`.
    let forced = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const buffer).cast(),
            size_of_val(&buffer) as libc::socklen_t,
        )
    };
    if forced != 0 {
        // Without CAP_NET_ADMIN the buffer is smaller, and overruns more often.
        socket.set_rx_buf_sz(buffer)?;
    }
    socket.bind(&SocketAddr::new(0, GROUPS))?;
    // SAFETY: the socket owns its descriptor, always the same one, and nothing
    // here closes or replaces it while it is registered.
    let events = unsafe { AsyncFd::register(socket) };
    Ok(events.map_err(io::Error::from)?)
}
