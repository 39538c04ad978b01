//! From what the kernel has of a setup without this program, to machine files,
//! and to the commands that take the old setup away. Pure.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::{
    model::{Declaration, Host, Proxy, Route, SourceKind, Unfollowed},
    source::{
        Snapshot,
        kernel::{Found, Survey},
    },
};

/// How a machine that was found stands to those that are declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody declares it or an address of it.
    New,
    /// It is declared under this name, with all that was found.
    Declared(String),
    /// It is declared, but says something else.
    Differs,
    /// Another machine has one of its addresses.
    Taken {
        /// The address.
        prefix: IpNet,
        /// The machine.
        holder: String,
    },
}

/// How a machine stands to what is declared.
pub fn standing(machine: &Found, snapshot: &Snapshot) -> Standing {
    let found: BTreeSet<IpNet> = machine.addresses().collect();
    let shared = |declared: &Declaration| {
        let mut addresses = declared.addresses.iter();
        addresses.find(|prefix| found.contains(prefix)).copied()
    };
    if snapshot.unusable.contains_key(&machine.name) {
        return Standing::Differs;
    }
    let by_name = snapshot.declarations.get(&machine.name);
    let declared =
        by_name.or_else(|| (snapshot.declarations.values()).find(|one| shared(one).is_some()));
    let Some(declared) = declared else {
        return Standing::New;
    };
    let same_port = match &declared.interface {
        Some(name) => *name == machine.interface,
        None => machine.usual_port && by_name.is_some(),
    };
    let holder = declared.name.clone();
    match shared(declared) {
        _ if same_port && found.iter().all(|one| declared.addresses.contains(one)) => {
            Standing::Declared(holder)
        }
        Some(prefix) if by_name.is_none() => Standing::Taken { prefix, holder },
        _ => Standing::Differs,
    }
}

/// The declaration of a machine that was found. A port that goes by the usual
/// name is not named, so that the machine may change from a bridge (`vb-NAME`)
/// to a link of its own (`ve-NAME`).
pub fn declaration(machine: &Found) -> Declaration {
    Declaration {
        name: machine.name.clone(),
        source: SourceKind::Config,
        path: Default::default(),
        interface: (!machine.usual_port).then(|| machine.interface.clone()),
        addresses: machine.addresses().collect(),
        tenant: None,
        mac: machine.mac,
        vlan: None,
        any_mac: false,
        sources: Vec::new(),
    }
}

/// The old setup, as commands that take it away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleanup {
    /// In an order that takes no answer away before the route that it stands
    /// for.
    pub commands: Vec<String>,
    /// Settings that others on the host may need as well.
    pub shared: Vec<String>,
}

/// What of the old setup is not needed any more.
#[derive(Clone, Debug, Default)]
pub struct Replaced<'a> {
    /// Routes to what machines own.
    pub routes: Vec<&'a Route>,
    /// What machines own.
    pub prefixes: BTreeSet<IpNet>,
    /// Whether nothing else was found that may need the same settings.
    pub complete: bool,
}

/// What takes the old setup of machines away once they are served. `setting`
/// reads a value below `/proc/sys/net`.
pub fn cleanup(
    host: &Host,
    unfollowed: &Unfollowed,
    survey: &Survey,
    replaced: &Replaced<'_>,
    setting: impl Fn(&str) -> Option<String>,
) -> Cleanup {
    let name = |ifindex: u32| host.links.get(&ifindex).map(|link| link.name.as_str());
    let inside: BTreeSet<u32> = replaced
        .routes
        .iter()
        .filter_map(|route| route.ifindex)
        .collect();
    let gone = |proxy: &&Proxy| {
        let mut prefixes = replaced.prefixes.iter();
        let for_machine = prefixes.any(|prefix| prefix.contains(&proxy.address));
        let for_gateway = proxy.ifindex.is_some_and(|index| inside.contains(&index));
        for_machine || (replaced.complete && for_gateway)
    };
    let proxies: Vec<&Proxy> = unfollowed.proxies.iter().filter(gone).collect();
    let mut cleanup = Cleanup::default();
    if proxies.is_empty() && replaced.routes.is_empty() {
        return cleanup;
    }
    for proxy in &proxies {
        cleanup.commands.push(proxy_del(proxy, name));
    }
    let set = |key: &String| setting(key).is_some_and(|value| value != "0");
    if replaced.complete {
        let interfaces: BTreeSet<&str> = survey
            .uplinks
            .iter()
            .copied()
            .chain(inside)
            .chain(proxies.iter().filter_map(|proxy| proxy.ifindex))
            .filter_map(name)
            .collect();
        for (family, setting) in [("ipv4", "proxy_arp"), ("ipv6", "proxy_ndp")] {
            let places = interfaces.iter().copied().chain(["all", "default"]);
            let keys = places.map(|place| format!("{family}/conf/{place}/{setting}"));
            cleanup.commands.extend(keys.filter(set).map(off));
        }
        cleanup.shared = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
            .map(str::to_owned)
            .into_iter()
            .filter(set)
            .map(off)
            .collect();
    }
    let mut routes = replaced.routes.clone();
    // What goes by way of a machine's address before the way to that address.
    routes.sort_by_key(|route| (route.gateway.is_none(), route.destination));
    for route in routes {
        cleanup.commands.push(route_del(route, name));
    }
    cleanup
}

/// Switches a setting off: with dots, unless an interface's name has some.
pub(crate) fn off(key: String) -> String {
    set(&key, "0")
}

/// Sets a value below `/proc/sys/net`.
pub(crate) fn set(key: &str, value: &str) -> String {
    let key = match key.contains('.') {
        true => format!("net/{key}"),
        false => format!("net.{}", key.replace('/', ".")),
    };
    format!("sysctl -w {}", quoted(&format!("{key}={value}")))
}

pub(crate) fn proxy_del<'a>(proxy: &Proxy, name: impl Fn(u32) -> Option<&'a str>) -> String {
    let mut command = format!("ip neigh del proxy {}", proxy.address);
    if let Some(name) = proxy.ifindex.and_then(name) {
        command += &format!(" dev {}", quoted(name));
    }
    command
}

pub(crate) fn route_del<'a>(route: &Route, name: impl Fn(u32) -> Option<&'a str>) -> String {
    /// `IP6_RT_PRIO_USER`, the metric of an IPv6 route for which none is given.
    const USUAL6: u32 = 1024;
    let mut command = format!("ip route del {}", route.destination);
    if let Some(gateway) = route.gateway {
        // An IPv6 next hop of an IPv4 route has to be called one.
        let family = if gateway.is_ipv6() && route.destination.addr().is_ipv4() {
            "inet6 "
        } else {
            ""
        };
        command += &format!(" via {family}{gateway}");
    }
    if let Some(name) = route.ifindex.and_then(name) {
        command += &format!(" dev {}", quoted(name));
    }
    let usual = if route.destination.addr().is_ipv4() {
        0
    } else {
        USUAL6
    };
    if route.priority != usual {
        command += &format!(" metric {}", route.priority);
    }
    command
}

/// A word that the shell takes as it is.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/=@".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// What an operator does about a proxy neighbor that no route goes with.
pub fn unrouted(proxy: &Proxy, host: &Host) -> String {
    let name = |ifindex: u32| host.links.get(&ifindex).map(|link| link.name.as_str());
    format!(
        "{} has a proxy neighbor but no route to a machine; write CONFIGDIR/machines/NAME.toml \
         for it, or: {}",
        proxy.address,
        proxy_del(proxy, name)
    )
}

#[cfg(test)]
mod tests;
