//! Many links at once.

use std::{
    ffi::CString,
    fmt::Write as _,
    net::{IpAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use netspawn_ebpf::wire::Mac;
use netspawn_tests::Ns;
use netspawn_user::{
    datapath::attach::block,
    net::{
        netlink::{Netlink, Request, ip_bytes},
        read::ifinfomsg,
    },
};

/// `linux/rtnetlink.h`.
const RTNH_F_ONLINK: u32 = 4;
/// `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;

/// Both ends of a veth link.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    /// Name and MAC of the end in the host.
    pub port: (String, Mac),
    /// Those of the end in a machine.
    pub end: (String, Mac),
    /// The machine's namespace.
    pub machine: &'a Ns,
}

/// Makes links out of a namespace, over one socket: thousands of them, for each of which
/// a process or a look-up of its name would cost more than the link.
pub fn plug(host: &Ns, links: &[Veth<'_>]) -> Result<()> {
    host.enter(|| {
        let mut netlink = Netlink::open()?;
        for link in links {
            let header = ifinfomsg(0, 0, 0);
            let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            let named = |request: Request, (name, mac): &(String, Mac)| {
                request
                    .text(libc::IFLA_IFNAME, name)
                    .attr(libc::IFLA_ADDRESS, mac)
            };
            let request = named(Request::new(libc::RTM_NEWLINK, flags, &header), &link.port);
            let request = request.nest(libc::IFLA_LINKINFO, |info| {
                let info = info.text(libc::IFLA_INFO_KIND, "veth");
                info.nest(libc::IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |peer| {
                        let fd = link.machine.as_fd().as_raw_fd().cast_unsigned();
                        named(peer.fixed(&header), &link.end).u32(libc::IFLA_NET_NS_FD, fd)
                    })
                })
            });
            netlink
                .apply(request)
                .with_context(|| format!("cannot make {}", link.port.0))?;
        }
        Ok(())
    })
}

/// Sets links of a namespace up.
pub fn set_up(ns: &Ns, names: &[String]) -> Result<()> {
    ns.enter(|| {
        let mut netlink = Netlink::open()?;
        for name in names {
            link_up(&mut netlink, name)?;
        }
        Ok(())
    })
}

fn link_up(netlink: &mut Netlink, name: &str) -> Result<()> {
    let up = libc::IFF_UP as u32;
    let request = Request::new(libc::RTM_NEWLINK, 0, &ifinfomsg(0, up, up));
    netlink
        .apply(request.text(libc::IFLA_IFNAME, name))
        .with_context(|| format!("cannot set {name} up"))
}

/// Sets a link of a namespace up, with addresses and default routes by gateways that
/// are on the link.
pub fn configure(
    ns: &Ns,
    name: &str,
    addresses: &[(IpAddr, u8)],
    gateways: &[IpAddr],
) -> Result<()> {
    ns.enter(|| {
        let mut netlink = Netlink::open()?;
        link_up(&mut netlink, name)?;
        let ifindex = ifindex(name)?;
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        for (address, length) in addresses {
            // ifaddrmsg: family, prefix length, flags, scope, ifindex (4).
            let mut header = [family(address), *length, 0, 0, 0, 0, 0, 0];
            header[4..].copy_from_slice(&ifindex.to_ne_bytes());
            let bytes = ip_bytes(*address);
            let request = Request::new(libc::RTM_NEWADDR, flags, &header)
                .attr(libc::IFA_LOCAL, &bytes)
                .attr(libc::IFA_ADDRESS, &bytes)
                .u32(libc::IFA_FLAGS, libc::IFA_F_NODAD);
            netlink
                .apply(request)
                .with_context(|| format!("cannot give {name} the address {address}"))?;
        }
        for gateway in gateways {
            // rtmsg: family, both prefix lengths, TOS, table, protocol, scope, type,
            // flags (4).
            let mut header = [0; 12];
            header[0] = family(gateway);
            header[4..8].copy_from_slice(&[
                libc::RT_TABLE_MAIN,
                libc::RTPROT_BOOT,
                libc::RT_SCOPE_UNIVERSE,
                libc::RTN_UNICAST,
            ]);
            header[8..].copy_from_slice(&(RTNH_F_ONLINK).to_ne_bytes());
            let request = Request::new(libc::RTM_NEWROUTE, flags, &header)
                .attr(libc::RTA_GATEWAY, &ip_bytes(*gateway))
                .u32(libc::RTA_OIF, ifindex);
            netlink
                .apply(request)
                .with_context(|| format!("{name}: cannot add a route by {gateway}"))?;
        }
        Ok(())
    })
}

/// Interface numbers of links of a namespace.
pub fn ifindexes(ns: &Ns, names: &[String]) -> Result<Vec<u32>> {
    ns.enter(|| names.iter().map(|name| ifindex(name)).collect())
}

fn ifindex(name: &str) -> Result<u32> {
    let text = CString::new(name)?;
    // SAFETY: the call reads the string, which outlives it.
    match unsafe { libc::if_nametoindex(text.as_ptr()) } {
        0 => Err(std::io::Error::last_os_error()).context(format!("no interface {name}")),
        ifindex => Ok(ifindex),
    }
}

const fn family(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// Runs lines through one process of `ip`, `tc` or `bridge` in batch mode.
pub fn batch(ns: &Ns, program: &str, lines: impl IntoIterator<Item = String>) -> Result<()> {
    let mut input = String::new();
    for line in lines {
        writeln!(input, "{line}")?;
    }
    if input.is_empty() {
        return Ok(());
    }
    ns.cmd(program)
        .args(["-batch", "-"])
        .input(input)
        .limit(std::time::Duration::from_secs(300))
        .text()
        .with_context(|| format!("{program} -batch in {}", ns.name()))?;
    Ok(())
}

/// Switches generic receive offload on, which makes a veth take frames that XDP sends
/// (`veth_xdp_xmit` wants its peer's NAPI).
pub fn receive_offload(ns: &Ns, interfaces: &[String]) -> Result<()> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_SGRO: u32 = 0x2c;
    ns.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").context("no socket for ethtool")?;
        for interface in interfaces {
            let mut value = Value {
                command: ETHTOOL_SGRO,
                data: 1,
            };
            // SAFETY: `ifreq` is plain bytes; the kernel reads and writes the value that
            // it points at, which outlives the call.
            let result = unsafe {
                let mut request: libc::ifreq = std::mem::zeroed();
                for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
                    *to = from as libc::c_char;
                }
                request.ifr_ifru.ifru_data = (&raw mut value).cast();
                libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request)
            };
            if result < 0 {
                return Err(std::io::Error::last_os_error())
                    .with_context(|| format!("cannot switch on GRO of {interface}"));
            }
        }
        Ok(())
    })
}

/// Joins ports to blocks as an agent does. Nothing is in the blocks.
pub fn join_block(ns: &Ns, names: &[String]) -> Result<()> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    qdiscs(ns, names, |ifindex, header| {
        Request::new(libc::RTM_NEWQDISC, flags, header)
            .text(TCA_KIND, "ingress")
            .u32(TCA_INGRESS_BLOCK, block(ifindex))
    })
}

/// Deletes the qdiscs of [`join_block`].
pub fn leave_block(ns: &Ns, names: &[String]) -> Result<()> {
    qdiscs(ns, names, |_, header| {
        Request::new(libc::RTM_DELQDISC, 0, header).text(TCA_KIND, "ingress")
    })
}

fn qdiscs(ns: &Ns, names: &[String], request: impl Fn(u32, &[u8]) -> Request + Sync) -> Result<()> {
    ns.enter(|| {
        let mut netlink = Netlink::open()?;
        for name in names {
            // tcmsg: family, padding (3), ifindex, handle, parent, info.
            let mut header = [0; 20];
            let ifindex = ifindex(name)?;
            header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
            header[8..12].copy_from_slice(&0xffff_0000_u32.to_ne_bytes());
            header[12..16].copy_from_slice(&0xffff_fff1_u32.to_ne_bytes());
            netlink
                .apply(request(ifindex, &header))
                .with_context(|| format!("cannot change the qdisc of {name}"))?;
        }
        Ok(())
    })
}

// `linux/rtnetlink.h`.
const TCA_KIND: u16 = 1;
const TCA_INGRESS_BLOCK: u16 = 13;
