//! `guest`.

use std::io;

use anyhow::bail;
use ipnet::IpNet;
use serde::Serialize;

use super::{DataPlane, View, told_declarations};
use crate::{
    cli::{Global, GuestArgs},
    guest::{self, End, Guest, Image, Networkd},
    model::{Declaration, Link},
    net::{netlink::Netlink, read},
    outcome::Outcome,
    output::Report,
    problem::nearest,
    source::Snapshot,
};

/// Prints the network configuration of a machine, or installs it.
///
/// # Errors
/// When no such machine is declared, or the file cannot be put into the image.
pub fn run(global: &Global, args: &GuestArgs, plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    let view = plane.view()?;
    let snapshot = told_declarations(global, &view);
    let declaration = find(&snapshot, &args.name)?;
    let resolved = view.resolve(&snapshot);
    let machine = resolved
        .machines
        .iter()
        .find(|machine| machine.name == args.name);
    for conflict in machine.iter().flat_map(|machine| &machine.conflicts) {
        tracing::warn!(
            "{} does not get {}, which belongs to {}",
            args.name,
            conflict.prefix,
            conflict.holder
        );
    }
    let port = machine.and_then(|machine| view.host.links.get(&machine.ifindex?));
    let others: Vec<IpNet> = snapshot
        .declarations
        .values()
        .filter(|other| other.name != declaration.name)
        .flat_map(|other| other.addresses.iter().copied())
        .collect();
    let guest = Guest {
        name: &declaration.name,
        addresses: &declaration.addresses,
        others: &others,
        end: end(declaration, port),
        mtu: mtu(&view, port),
    };
    let mut report = GuestReport {
        path: guest::FILE.to_owned(),
        content: guest.network_file(),
    };
    let Some(root) = &args.install else {
        report.print(global.json)?;
        return Ok(Outcome::Done);
    };
    let image = Image::open(root)?;
    let (path, changed) = image.install(&report.content)?;
    report.path = path.display().to_string();
    if changed {
        tracing::info!(
            "{} is written; the machine reads it when it starts, or by `networkctl reload`",
            report.path
        );
    } else {
        tracing::info!("{} is as it should be", report.path);
    }
    if global.json {
        report.print(true)?;
    }
    let root = root.display();
    match image.networkd() {
        Networkd::Enabled => {}
        Networkd::Disabled => tracing::warn!(
            "systemd-networkd, which reads it, is not enabled in {root}: \
             `systemctl --root={root} enable systemd-networkd`"
        ),
        Networkd::Missing => tracing::warn!(
            "systemd-networkd, which reads it, is not in {root}; have the machine run instead:\n  {}",
            guest.commands().join("\n  ")
        ),
    }
    Ok(Outcome::Done)
}

/// The declaration of a machine.
fn find<'s>(snapshot: &'s Snapshot, name: &str) -> anyhow::Result<&'s Declaration> {
    if let Some(declaration) = snapshot.declarations.get(name) {
        return Ok(declaration);
    }
    if let Some((_, path)) = snapshot.keeps(name) {
        bail!(
            "what declares machine {name} cannot be used; correct {}",
            path.display()
        );
    }
    let known: Vec<&str> = snapshot.declarations.keys().map(String::as_str).collect();
    match nearest(name, &known) {
        Some(near) => bail!("no machine {name} is declared; did you mean {near}?"),
        None => bail!("no machine {name} is declared; `netspawn-xdp list` shows those that are"),
    }
}

/// The machine's end of its link. A container's is `host0` as long as it does
/// not run: systemd-nspawn calls it so.
fn end(declaration: &Declaration, port: Option<&Link>) -> End {
    match port {
        Some(port) if port.kind.as_deref() != Some("veth") => {
            declaration.mac.map_or(End::AnyCard, End::Card)
        }
        port => {
            let name = port.and_then(other_end).filter(|name| is_plain(name));
            End::Veth(name.unwrap_or_else(|| "host0".to_owned()))
        }
    }
}

/// What the other end of a veth is called in the machine now.
#[expect(
    clippy::disallowed_methods,
    reason = "the failure is logged, and the usual name stands in"
)]
fn other_end(port: &Link) -> Option<String> {
    let peer = port.peer?;
    let netnsid = peer.netnsid?;
    let name = Netlink::open()
        .and_then(|mut netlink| read::peer_name(&mut netlink, peer.ifindex, netnsid));
    name.unwrap_or_else(|error| {
        tracing::warn!("cannot ask for the other end of {}: {error}", port.name);
        None
    })
}

/// Whether a name, which the machine chooses, means nothing but itself in a
/// file and in a shell.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The smallest MTU of the port and the uplinks.
fn mtu(view: &View, port: Option<&Link>) -> Option<u32> {
    let uplinks = view.uplinks.iter();
    let uplinks = uplinks.filter_map(|uplink| view.host.links.get(&uplink.ifindex));
    uplinks.chain(port).map(|link| link.mtu).min()
}

/// The file for the machine.
#[derive(Serialize)]
struct GuestReport {
    /// In the machine; after an installation, on the host.
    path: String,
    content: String,
}

impl Report for GuestReport {
    fn cells(&self, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(self.content.as_bytes())
    }
}
