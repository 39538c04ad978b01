//! Which of the host's firewall chains machines' traffic does not pass, because
//! it is redirected before them.

use super::netlink::{Error, Message, Netlink, Request, attrs, read_text};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` (linux/netfilter/nfnetlink.h,
/// nf_tables.h).
const GET_CHAIN: u16 = 10 << 8 | 4;
/// Bytes of `nfgenmsg`.
const NFGENMSG: usize = 4;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_USE: u16 = 6;
const HOOK_NUMBER: u16 = 1;
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const NF_DROP: u32 = 0;
/// The hooks of IP, and that of interfaces in the family `inet` (`NF_INET_INGRESS`).
const INET_HOOKS: [&str; 6] = [
    "prerouting",
    "input",
    "forward",
    "output",
    "postrouting",
    "ingress",
];
/// `NF_NETDEV_INGRESS`, `NF_NETDEV_EGRESS`.
const NETDEV_HOOKS: [&str; 2] = ["ingress", "egress"];

/// A base chain that does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `ip`, `ip6`, `inet` or `netdev`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The hook that it is on.
    pub hook: &'static str,
    /// The interfaces that it is for, on hooks of interfaces.
    pub devices: Vec<String>,
    /// Rules in it.
    pub rules: u32,
    /// Whether it drops what no rule decides.
    pub drops: bool,
}

/// Chains on hooks that only packets through the host's stack pass: those for
/// forwarded packets, and for all that come in or go out. Packets between a
/// machine and the host itself pass `input` and `output` as ever.
///
/// # Errors
/// When the kernel does not tell, as without CAP_NET_ADMIN or nf_tables.
pub fn bypassed() -> Result<Vec<Chain>, Error> {
    let chains = chains()?.into_iter();
    Ok(chains
        .filter(|chain| matches!(chain.hook, "prerouting" | "forward" | "postrouting"))
        .filter(|chain| chain.rules > 0 || chain.drops)
        .collect())
}

/// All base chains of IP and of interfaces.
///
/// # Errors
/// When the kernel does not tell, as without CAP_NET_ADMIN or nf_tables.
pub fn chains() -> Result<Vec<Chain>, Error> {
    let chains = Netlink::open_netfilter()?.dump(
        Request::new(GET_CHAIN, 0, &[libc::AF_UNSPEC as u8, 0, 0, 0]),
        |message| Some(chain(&message)),
    )?;
    Ok(chains.into_iter().flatten().collect())
}

fn chain(message: &Message<'_>) -> Option<Chain> {
    let family = match message.byte(0) {
        1 => "inet",
        2 => "ip",
        5 => "netdev",
        10 => "ip6",
        _ => return None,
    };
    let mut found = Chain {
        family,
        table: String::new(),
        name: String::new(),
        hook: "",
        devices: Vec::new(),
        rules: 0,
        drops: false,
    };
    for (kind, value) in message.attrs(NFGENMSG) {
        let number = || value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        match kind {
            CHAIN_TABLE => found.table = read_text(value),
            CHAIN_NAME => found.name = read_text(value),
            CHAIN_HOOK => {
                let (_, number) = attrs(value).find(|(kind, _)| *kind == HOOK_NUMBER)?;
                let number = u32::from_be_bytes(*number.first_chunk()?);
                found.hook = match family {
                    "netdev" => NETDEV_HOOKS.get(number as usize)?,
                    _ => INET_HOOKS.get(number as usize)?,
                };
                found.devices = devices(value);
            }
            CHAIN_POLICY => found.drops = number() == Some(NF_DROP),
            CHAIN_USE => found.rules = number().unwrap_or(0),
            _ => {}
        }
    }
    (!found.hook.is_empty()).then_some(found)
}

/// The interfaces that a hook is for.
fn devices(hook: &[u8]) -> Vec<String> {
    let list = attrs(hook).find(|(kind, _)| *kind == HOOK_DEVICES);
    match list {
        Some((_, list)) => attrs(list).map(|(_, name)| read_text(name)).collect(),
        None => attrs(hook)
            .filter(|(kind, _)| *kind == HOOK_DEVICE)
            .map(|(_, name)| read_text(name))
            .collect(),
    }
}

/// Tables of the older iptables that are loaded, whose rules cannot be read
/// without its own tool.
#[expect(
    clippy::disallowed_methods,
    reason = "without iptables in the kernel there is no such file, and rules are only reported"
)]
pub fn legacy_tables() -> Vec<String> {
    [
        "/proc/thread-self/net/ip_tables_names",
        "/proc/thread-self/net/ip6_tables_names",
    ]
    .iter()
    .zip(["iptables", "ip6tables"])
    .flat_map(|(path, tool)| {
        // Without iptables in the kernel there is no such file.
        let names = std::fs::read_to_string(path).unwrap_or_default();
        names
            .lines()
            .map(|table| format!("{tool} -t {table}"))
            .collect::<Vec<_>>()
    })
    .collect()
}
