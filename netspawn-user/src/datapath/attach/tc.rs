//! Ingress and clsact qdiscs, filter blocks and the one filter that is ours, over netlink.

use std::{
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::net::netlink::{Error, Message, Netlink, Request, attrs, read_text, read_u32};

/// The first of the ports' blocks; any numbers that are unlikely to be another's.
const FIRST_BLOCK: u32 = 0x6e73_7800;
/// The kernel looks through all ports of a block for each one that leaves: in one block,
/// a port of 10,000 took 61 µs more to delete, in one of 64 it takes 15.
const BLOCKS: u32 = 64;
/// Priority of the filter: before everything else.
pub const PRIORITY: u16 = 1;
/// Handle of the filter. Without a handle a replacement would be an addition.
pub const HANDLE: u32 = 0x6e73;
/// Handle of an uplink's filters, where the kernel has no tcx.
pub const HANDLE_UPLINK: u32 = 0x6e74;
/// Name of the filter, as `tc filter show` prints it.
pub const NAME: &str = "netspawn-xdp";
/// Name of the filter where the qdisc has been made for it.
const NAME_OWN_QDISC: &str = "netspawn-xdp:qdisc";

/// Bytes of `tcmsg`: family, padding (3), ifindex, handle, parent, info.
const TCMSG: usize = 20;
const TCMSG_HANDLE: usize = 8;
const TCMSG_PARENT: usize = 12;
const TCMSG_INFO: usize = 16;
const INGRESS: &str = "ingress";
const CLSACT: &str = "clsact";
/// `TC_H_CLSACT`, the place of both.
const QDISC_PLACE: u32 = 0xffff_fff1;
/// The handle they always have.
const QDISC_HANDLE: u32 = 0xffff_0000;
/// The sides of a clsact qdisc, of which an ingress qdisc has the first.
const SIDE_INGRESS: u32 = 0xffff_fff2;
const SIDE_EGRESS: u32 = 0xffff_fff3;
/// `TCM_IFINDEX_MAGIC_BLOCK`: the parent is a block, not a qdisc.
const MAGIC_BLOCK: u32 = 0xffff_ffff;
/// `ETH_P_ALL`, as a filter's `info` has it: in network order.
const PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_INGRESS_BLOCK: u16 = 13;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// The block of a port.
pub const fn block(ifindex: u32) -> u32 {
    FIRST_BLOCK + ifindex % BLOCKS
}

/// All blocks that ports may have.
pub fn blocks() -> Range<u32> {
    FIRST_BLOCK..FIRST_BLOCK + BLOCKS
}

/// Where a filter of ours hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// A block of ports.
    Block(u32),
    /// Packets coming in on a port that has another's qdisc.
    Port(u32),
    /// Packets coming in on an uplink.
    UplinkIngress(u32),
    /// Packets going out of an uplink.
    UplinkEgress(u32),
}

impl Parent {
    /// An uplink's filter is never taken for a port's.
    const fn handle(self) -> u32 {
        match self {
            Parent::Block(_) | Parent::Port(_) => HANDLE,
            Parent::UplinkIngress(_) | Parent::UplinkEgress(_) => HANDLE_UPLINK,
        }
    }

    fn header(self, handle: u32, info: u32) -> [u8; TCMSG] {
        match self {
            Parent::Block(block) => tcmsg(MAGIC_BLOCK, handle, block, info),
            Parent::Port(ifindex) | Parent::UplinkIngress(ifindex) => {
                tcmsg(ifindex, handle, SIDE_INGRESS, info)
            }
            Parent::UplinkEgress(ifindex) => tcmsg(ifindex, handle, SIDE_EGRESS, info),
        }
    }
}

fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut header = [0; TCMSG];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    header[TCMSG_HANDLE..TCMSG_PARENT].copy_from_slice(&handle.to_ne_bytes());
    header[TCMSG_PARENT..TCMSG_INFO].copy_from_slice(&parent.to_ne_bytes());
    header[TCMSG_INFO..].copy_from_slice(&info.to_ne_bytes());
    header
}

/// `info` of our filter.
const fn info() -> u32 {
    (PRIORITY as u32) << 16 | PROTOCOL as u32
}

/// An ingress or clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// The interface.
    pub ifindex: u32,
    /// `ingress` or `clsact`.
    pub kind: String,
    /// The block of its ingress filters, when that is shared.
    pub block: Option<u32>,
}

impl Qdisc {
    /// Whether it joins its port to our block.
    pub fn is_ours(&self) -> bool {
        self.kind == INGRESS && self.block == Some(block(self.ifindex))
    }
}

fn read_qdisc(message: &Message<'_>) -> Option<Qdisc> {
    if message.field(TCMSG_PARENT) != QDISC_PLACE {
        return None;
    }
    let mut qdisc = Qdisc {
        ifindex: message.field(4),
        kind: String::new(),
        block: None,
    };
    for (kind, value) in message.attrs(TCMSG) {
        match kind {
            TCA_KIND => qdisc.kind = read_text(value),
            // Zero is the number of a block that is not shared.
            TCA_INGRESS_BLOCK => qdisc.block = Some(read_u32(value)).filter(|block| *block != 0),
            _ => {}
        }
    }
    Some(qdisc)
}

/// Joins a port to its block. Fails with `EEXIST` where there is an ingress or clsact
/// qdisc, whoever made it.
///
/// An ingress qdisc takes a third of the memory and half of the time of a clsact one,
/// which has a block and a tcx entry for outgoing packets as well.
pub fn join_block(netlink: &mut Netlink, ifindex: u32) -> Result<(), Error> {
    netlink.apply(add(ifindex, INGRESS).u32(TCA_INGRESS_BLOCK, block(ifindex)))
}

/// Takes a port out of its block.
pub fn leave_block(netlink: &mut Netlink, ifindex: u32) -> Result<(), Error> {
    delete(netlink, ifindex, INGRESS)
}

/// Adds a clsact qdisc. Fails with `EEXIST` where there is an ingress or clsact qdisc,
/// whoever made it.
pub fn add_clsact(netlink: &mut Netlink, ifindex: u32) -> Result<(), Error> {
    netlink.apply(add(ifindex, CLSACT))
}

/// Deletes an interface's clsact qdisc.
pub fn delete_clsact(netlink: &mut Netlink, ifindex: u32) -> Result<(), Error> {
    delete(netlink, ifindex, CLSACT)
}

fn add(ifindex: u32, kind: &str) -> Request {
    Request::new(
        libc::RTM_NEWQDISC,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        &tcmsg(ifindex, QDISC_HANDLE, QDISC_PLACE, 0),
    )
    .text(TCA_KIND, kind)
}

fn delete(netlink: &mut Netlink, ifindex: u32, kind: &str) -> Result<(), Error> {
    let header = tcmsg(ifindex, QDISC_HANDLE, QDISC_PLACE, 0);
    netlink.apply(Request::new(libc::RTM_DELQDISC, 0, &header).text(TCA_KIND, kind))
}

/// The ingress or clsact qdisc of an interface.
pub fn qdisc(netlink: &mut Netlink, ifindex: u32) -> Result<Option<Qdisc>, Error> {
    // The answer is a notification, of which the asker has a copy only by echo.
    let header = tcmsg(ifindex, 0, QDISC_PLACE, 0);
    let request = Request::new(libc::RTM_GETQDISC, libc::NLM_F_ECHO, &header);
    match netlink.get(request, |message| read_qdisc(&message)) {
        Ok(qdisc) => Ok(Some(qdisc)),
        // What there is instead is not of this kind.
        Err(Error::Malformed) => Ok(None),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The ingress and clsact qdiscs of all interfaces.
pub fn qdiscs(netlink: &mut Netlink) -> Result<Vec<Qdisc>, Error> {
    netlink.dump(
        Request::new(libc::RTM_GETQDISC, 0, &tcmsg(0, 0, 0, 0)),
        |message| read_qdisc(&message),
    )
}

/// A filter on the place that ours has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Id of the program it runs.
    pub program: u32,
    name: String,
}

impl Filter {
    /// Whether it is ours, and not another's on the same place.
    pub fn is_ours(&self) -> bool {
        self.name == NAME || self.name == NAME_OWN_QDISC
    }

    /// Whether its qdisc has been made for it.
    pub fn made_qdisc(&self) -> bool {
        self.name == NAME_OWN_QDISC
    }
}

fn read_filter(message: &Message<'_>) -> Option<Filter> {
    let mut filter = Filter {
        program: 0,
        name: String::new(),
    };
    for (kind, value) in message.attrs(TCMSG) {
        match kind {
            TCA_KIND if read_text(value) != "bpf" => return None,
            TCA_OPTIONS => {
                for (kind, value) in attrs(value) {
                    match kind {
                        TCA_BPF_NAME => filter.name = read_text(value),
                        TCA_BPF_ID => filter.program = read_u32(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(filter)
}

/// The bpf filter on our priority and handle.
pub fn filter(netlink: &mut Netlink, parent: Parent) -> Result<Option<Filter>, Error> {
    let request = Request::new(
        libc::RTM_GETTFILTER,
        0,
        &parent.header(parent.handle(), info()),
    )
    .text(TCA_KIND, "bpf")
    .u32(TCA_CHAIN, 0);
    match netlink.get(request, |message| read_filter(&message)) {
        Ok(filter) => Ok(Some(filter)),
        // No such filter, no such block, or a filter of another kind there.
        Err(Error::Malformed) => Ok(None),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Adds our filter where it is not, and otherwise replaces its program in one
/// step. `made_qdisc` is remembered in the filter's name.
pub fn set_filter(
    netlink: &mut Netlink,
    parent: Parent,
    program: BorrowedFd<'_>,
    made_qdisc: bool,
) -> Result<(), Error> {
    let name = if made_qdisc { NAME_OWN_QDISC } else { NAME };
    netlink.apply(
        Request::new(
            libc::RTM_NEWTFILTER,
            libc::NLM_F_CREATE,
            &parent.header(parent.handle(), info()),
        )
        .text(TCA_KIND, "bpf")
        .u32(TCA_CHAIN, 0)
        .nest(TCA_OPTIONS, |options| {
            options
                .u32(TCA_BPF_FD, program.as_raw_fd().cast_unsigned())
                .text(TCA_BPF_NAME, name)
                .u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
        }),
    )
}

/// Deletes our filter.
pub fn delete_filter(netlink: &mut Netlink, parent: Parent) -> Result<(), Error> {
    netlink.apply(
        Request::new(
            libc::RTM_DELTFILTER,
            0,
            &parent.header(parent.handle(), info()),
        )
        .text(TCA_KIND, "bpf")
        .u32(TCA_CHAIN, 0),
    )
}

/// The handles of all filters that hang there, in the order in which they run.
pub fn filters(netlink: &mut Netlink, parent: Parent) -> Result<Vec<u32>, Error> {
    let request = Request::new(libc::RTM_GETTFILTER, 0, &parent.header(0, 0));
    netlink.dump(request, |message| {
        // Each priority also has an entry of its own, with no handle.
        Some(message.field(TCMSG_HANDLE)).filter(|handle| *handle != 0)
    })
}
