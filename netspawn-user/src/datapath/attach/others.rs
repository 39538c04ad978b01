//! What others have attached to an interface that is or becomes an uplink.

use std::path::PathBuf;

use aya::programs::loaded_links;

use super::{
    Error,
    bpf::{self, Hook},
    on, tc, tcx_programs,
    uplink::{Uplinks, xdp_slots},
};
use crate::net::netlink::Netlink;

/// An XDP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// Its id and name, for messages.
    pub description: String,
    /// How `ip link set … off` calls its place: `xdpdrv`, `xdpgeneric`, `xdpoffload`.
    pub place: &'static str,
    /// Whether a link holds it, so that nothing but that link's end takes it off.
    pub linked: bool,
}

/// What hangs on an interface and is not ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// XDP programs.
    pub xdp: Vec<XdpProgram>,
    /// tcx programs on its ingress, for messages.
    pub tcx: Vec<String>,
    /// Filters on its ingress or clsact qdisc, for packets coming in.
    pub filters: usize,
    /// Whether it has an `ingress` qdisc, which has no egress side.
    pub ingress_qdisc: bool,
    /// Whether another's filter has the place that ours takes without tcx.
    pub slot_taken: bool,
}

/// Reads it. `pins` are those of our links on it, if any.
///
/// # Errors
/// When the kernel does not tell.
#[expect(
    clippy::disallowed_methods,
    reason = "one that has just gone cannot be opened, and holds nothing"
)]
pub fn others(ifindex: u32, pins: &[(Hook, PathBuf)]) -> Result<Others, Error> {
    let mut netlink = Netlink::open().map_err(on(ifindex, "read its programs"))?;
    let links: Vec<_> = pins
        .iter()
        .map(|(hook, path)| (*hook, path.as_path()))
        .collect();
    let ours: Vec<u32> = Uplinks::open()
        .map_err(on(ifindex, "read its programs"))?
        .query(ifindex, &links)?
        .iter()
        .map(|program| program.program)
        .collect();
    let others = |program: &u32| !ours.contains(program);
    // One that has just gone cannot be opened, and holds nothing.
    let linked: Vec<u32> = loaded_links()
        .filter_map(Result::ok)
        .map(|link| link.program_id())
        .collect();
    let slots = xdp_slots(&mut netlink, ifindex).map_err(on(ifindex, "read its XDP programs"))?;
    let ingress = tc::Parent::UplinkIngress(ifindex);
    let qdisc = tc::qdisc(&mut netlink, ifindex).map_err(on(ifindex, "read its ingress qdisc"))?;
    let mut filters = Vec::new();
    let mut slot_taken = false;
    if qdisc.is_some() {
        filters = tc::filters(&mut netlink, ingress).map_err(on(ifindex, "list its filters"))?;
        for parent in [ingress, tc::Parent::UplinkEgress(ifindex)] {
            let filter = tc::filter(&mut netlink, parent).map_err(on(ifindex, "read a filter"))?;
            slot_taken |= filter.is_some_and(|filter| !filter.is_ours());
        }
    }
    Ok(Others {
        xdp: slots
            .into_iter()
            .filter(|(_, program)| others(program))
            .map(|(place, program)| XdpProgram {
                description: bpf::describe_program(program),
                place,
                linked: linked.contains(&program),
            })
            .collect(),
        tcx: tcx_programs(ifindex, Hook::TcIngress)?
            .into_iter()
            .map(|attached| attached.program)
            .filter(others)
            .map(bpf::describe_program)
            .collect(),
        filters: filters
            .iter()
            .filter(|handle| **handle != tc::HANDLE_UPLINK)
            .count(),
        ingress_qdisc: qdisc.is_some_and(|qdisc| qdisc.kind == "ingress"),
        slot_taken,
    })
}
