//! The uplinks in question, their drivers, and what others have attached to them.

use std::path::PathBuf;

use super::configured_mode;
use crate::{
    cli::Mode,
    commands::View,
    config::Config,
    datapath::{
        attach::{
            UplinkError,
            bpf::Hook,
            others::{Others, others},
            outermost, uplink_check,
        },
        pins::{Pins, Uplink as Recorded},
        plane::LINKS,
    },
    model::{Host, Link},
    net::ethtool::{Ethtool, Features, driver},
};

/// An uplink that is attached, or might be.
#[derive(Clone, Debug, Default)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its ifindex, where it exists.
    pub ifindex: Option<u32>,
    /// Why it cannot be attached.
    pub unfit: Option<UplinkError>,
    /// Whether it is attached.
    pub attached: bool,
    /// Whether it has, or would get, an XDP program.
    pub xdp: bool,
    /// Its driver's name, where it has one.
    pub driver: Option<String>,
    /// Its offloads, where the kernel tells.
    pub features: Option<Features>,
    /// Whether its driver has native XDP, where the kernel tells.
    pub has_xdp: Option<bool>,
    /// What others have attached.
    pub others: Others,
}

/// The one named; else those attached; else those of netspawn.toml; else those
/// of the default routes.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
pub fn find(
    view: &View,
    config: &Config,
    recorded: &[Recorded],
    named: Option<&str>,
) -> Vec<Uplink> {
    let names: Vec<String> = match named {
        Some(name) => vec![name.to_owned()],
        None => {
            let mut names: Vec<String> = recorded
                .iter()
                .filter(|uplink| uplink.master.is_none())
                .map(|uplink| uplink.name.clone())
                .collect();
            if names.is_empty() {
                names.clone_from(&config.attach.uplinks);
            }
            if names.is_empty() {
                names = by_default_route(&view.host);
            }
            names
        }
    };
    let mut ethtool = Ethtool::open().ok();
    let mut uplinks = Vec::new();
    for name in names {
        // A port whose master has the programs is served by it.
        let master = view
            .host
            .link(&name)
            .map(|link| outermost(&view.host, link));
        let is_served = |master: &&Link| {
            let mut attached = view.uplinks.iter();
            attached.any(|uplink| uplink.ifindex == master.ifindex)
        };
        let link = match (uplink_check(&view.host, &name), master.filter(is_served)) {
            (Err(UplinkError::Port { .. }), Some(master)) => Ok(master),
            (link, _) => link,
        };
        uplinks.push(match link {
            Ok(link) => read(link, view, config, ethtool.as_mut()),
            Err(error) => Uplink {
                ifindex: view.host.link(&name).map(|link| link.ifindex),
                unfit: Some(error),
                name,
                ..Uplink::default()
            },
        });
    }
    uplinks
}

#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn read(link: &Link, view: &View, config: &Config, ethtool: Option<&mut Ethtool>) -> Uplink {
    let attached = view.uplinks.iter().find(|up| up.ifindex == link.ifindex);
    let mut uplink = Uplink {
        name: link.name.clone(),
        ifindex: Some(link.ifindex),
        attached: attached.is_some(),
        xdp: match attached {
            Some(attached) => attached.mode == "xdp",
            None => configured_mode(config) == Mode::Xdp,
        },
        driver: driver(&link.name).ok(),
        ..Uplink::default()
    };
    if let Some(ethtool) = ethtool {
        uplink.features = ethtool.features(link.ifindex).ok();
        uplink.has_xdp = ethtool.has_xdp(link.ifindex);
    }
    uplink
}

/// Interfaces of the default routes of the lowest metric of each family.
fn by_default_route(host: &Host) -> Vec<String> {
    let mut names = Vec::new();
    for v4 in [true, false] {
        let best = host
            .routes
            .iter()
            .filter(|route| route.destination.prefix_len() == 0 && !route.refused)
            .filter(|route| route.destination.addr().is_ipv4() == v4)
            .min_by_key(|route| route.priority);
        let name = best
            .and_then(|route| host.links.get(&route.ifindex?))
            .map(|link| link.name.clone());
        names.extend(name.filter(|name| !names.contains(name)));
    }
    names
}

/// Reads what others have attached, which needs root.
pub fn read_others(uplinks: &mut [Uplink], pins: &Pins) {
    for uplink in uplinks {
        let Some(ifindex) = uplink.ifindex else {
            continue;
        };
        let folder = pins.uplink(&uplink.name);
        let links: Vec<(Hook, PathBuf)> = LINKS
            .iter()
            .map(|(hook, file)| (*hook, folder.join(file)))
            .collect();
        match others(ifindex, &links) {
            Ok(found) => uplink.others = found,
            Err(error) => tracing::debug!("{error}"),
        }
    }
}
