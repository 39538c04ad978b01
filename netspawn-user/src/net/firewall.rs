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
const NF_DROP: u32 = 0;
/// `NF_INET_NUMHOOKS`: the hooks of IP are numbered below it.
const INET_HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

/// A base chain that does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The hook that it is on.
    pub hook: &'static str,
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
    let chains = Netlink::open_netfilter()?.dump(
        Request::new(GET_CHAIN, 0, &[libc::AF_UNSPEC as u8, 0, 0, 0]),
        |message| Some(chain(&message)),
    )?;
    Ok(chains
        .into_iter()
        .flatten()
        .filter(|chain| matches!(chain.hook, "prerouting" | "forward" | "postrouting"))
        .filter(|chain| chain.rules > 0 || chain.drops)
        .collect())
}

fn chain(message: &Message<'_>) -> Option<Chain> {
    let family = match message.byte(0) {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let mut found = Chain {
        family,
        table: String::new(),
        name: String::new(),
        hook: "",
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
                found.hook = INET_HOOKS.get(number as usize)?;
            }
            CHAIN_POLICY => found.drops = number() == Some(NF_DROP),
            CHAIN_USE => found.rules = number().unwrap_or(0),
            _ => {}
        }
    }
    (!found.hook.is_empty()).then_some(found)
}

/// Tables of the older iptables that are loaded, whose rules cannot be read
/// without its own tool.
pub fn legacy_tables() -> Vec<String> {
    [
        "/proc/thread-self/net/ip_tables_names",
        "/proc/thread-self/net/ip6_tables_names",
    ]
    .iter()
    .zip(["iptables", "ip6tables"])
    .flat_map(|(path, tool)| {
        let names = std::fs::read_to_string(path).unwrap_or_default();
        names
            .lines()
            .map(|table| format!("{tool} -t {table}"))
            .collect::<Vec<_>>()
    })
    .collect()
}
