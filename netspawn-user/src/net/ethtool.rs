//! What an interface's driver can do and does, over generic netlink and ioctl
//! (linux/ethtool_netlink.h, linux/netdev.h, linux/ethtool.h).

use std::{collections::BTreeSet, io, os::unix::net::UnixDatagram};

use super::netlink::{Error, Netlink, Request, attrs, read_text};

/// `ETHTOOL_GDRVINFO`.
const GET_DRIVER: u32 = 3;
/// Where `ethtool_drvinfo` has the driver's name, after the command.
const DRIVER: std::ops::Range<usize> = 4..36;
/// Bytes of `ethtool_drvinfo`.
const DRVINFO: usize = 196;

/// Bytes of `genlmsghdr`: command, version, reserved (2).
const GENLMSGHDR: usize = 4;
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`.
const CONTROL: (u16, u8) = (16, 3);
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `ETHTOOL_MSG_FEATURES_GET`.
const GET_FEATURES: u8 = 11;
/// `ETHTOOL_A_FEATURES_HEADER`, and within it `ETHTOOL_A_HEADER_DEV_INDEX`.
const HEADER: (u16, u16) = (1, 1);
/// `ETHTOOL_A_FEATURES_HW`, `_WANTED`, `_ACTIVE`.
const FEATURES: [u16; 3] = [2, 3, 4];
/// `ETHTOOL_A_BITSET_BITS`, `ETHTOOL_A_BITSET_BIT_NAME`, `ETHTOOL_A_BITSET_BIT_VALUE`.
const BITS: u16 = 3;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
/// `ETHTOOL_A_BITSET_NOMASK`: the bits listed are those that are set.
const NO_MASK: u16 = 1;

/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES`.
const GET_DEVICE: u8 = 1;
const DEVICE_INDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_BASIC`: native XDP.
const XDP_BASIC: u64 = 1;

/// The offloads of an interface, by their names in the kernel
/// (`netdev_features_strings`), such as `rx-gro`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Those that can be switched.
    pub switchable: BTreeSet<String>,
    /// Those asked for.
    pub wanted: BTreeSet<String>,
    /// Those that are on.
    pub active: BTreeSet<String>,
}

impl Features {
    /// Whether it could be on and was switched off.
    pub fn is_switched_off(&self, name: &str) -> bool {
        self.switchable.contains(name) && !self.wanted.contains(name) && !self.active.contains(name)
    }
}

/// Asks drivers of this thread's network namespace.
pub struct Ethtool {
    netlink: Netlink,
}

impl Ethtool {
    /// Opens what is needed.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        Ok(Ethtool {
            netlink: Netlink::open_generic()?,
        })
    }

    fn family(&mut self, name: &str) -> Result<u16, Error> {
        let (kind, command) = CONTROL;
        let request = Request::new(kind, 0, &[command, 1, 0, 0]).text(FAMILY_NAME, name);
        self.netlink.get(request, |message| {
            let (_, id) = message
                .attrs(GENLMSGHDR)
                .find(|(kind, _)| *kind == FAMILY_ID)?;
            Some(u16::from_ne_bytes(*id.first_chunk()?))
        })
    }

    /// The offloads of an interface.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel does not tell (before 5.6).
    pub fn features(&mut self, ifindex: u32) -> Result<Features, Error> {
        let family = self.family("ethtool")?;
        let (header, index) = HEADER;
        let request = Request::new(family, 0, &[GET_FEATURES, 1, 0, 0])
            .nest(header, |inner| inner.u32(index, ifindex));
        self.netlink.get(request, |message| {
            let [switchable, wanted, active] = FEATURES.map(|wanted| {
                let mut parts = message.attrs(GENLMSGHDR);
                parts
                    .find(|(kind, _)| *kind == wanted)
                    .map(|(_, value)| set_bits(value))
                    .unwrap_or_default()
            });
            Some(Features {
                switchable,
                wanted,
                active,
            })
        })
    }

    /// Whether the driver has native XDP; `None` where the kernel does not say
    /// (before Linux 6.3).
    #[expect(
        clippy::disallowed_methods,
        reason = "a feature that is not told is unknown, and `check` says so"
    )]
    pub fn has_xdp(&mut self, ifindex: u32) -> Option<bool> {
        let family = self.family("netdev").ok()?;
        let request = Request::new(family, 0, &[GET_DEVICE, 1, 0, 0]).u32(DEVICE_INDEX, ifindex);
        self.netlink
            .get(request, |message| {
                let (_, value) = message
                    .attrs(GENLMSGHDR)
                    .find(|(kind, _)| *kind == XDP_FEATURES)?;
                Some(u64::from_ne_bytes(*value.first_chunk()?) & XDP_BASIC != 0)
            })
            .ok()
    }
}

/// Names of the bits that are set in a bitset.
fn set_bits(bitset: &[u8]) -> BTreeSet<String> {
    let whole = attrs(bitset).any(|(kind, _)| kind == NO_MASK);
    let mut names = BTreeSet::new();
    for (_, bit) in attrs(bitset)
        .filter(|(kind, _)| *kind == BITS)
        .flat_map(|(_, bits)| attrs(bits))
    {
        let set = whole || attrs(bit).any(|(kind, _)| kind == BIT_VALUE);
        let name = attrs(bit).find(|(kind, _)| *kind == BIT_NAME);
        if let Some((_, name)) = name.filter(|_| set) {
            names.insert(read_text(name));
        }
    }
    names
}

/// Name of an interface's driver.
///
/// # Errors
/// When there is no such interface, or its driver has no name.
pub fn driver(interface: &str) -> io::Result<String> {
    let socket = UnixDatagram::unbound()?;
    let mut answer = [0u8; DRVINFO];
    answer[..4].copy_from_slice(&GET_DRIVER.to_ne_bytes());
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(interface.bytes())
    {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_data = answer.as_mut_ptr().cast();
    super::multicast::ioctl(&socket, libc::SIOCETHTOOL, &mut ifreq)?;
    Ok(read_text(&answer[DRIVER]))
}
