//! Which machines `list` is asked for: by name, or by who owns an address.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::{model::Host, output::ListRow, problem::nearest};

/// Something that a machine is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An address, or a prefix.
    Prefix(String, IpNet),
    /// A name.
    Name(String),
}

impl Wanted {
    /// What looks like an address or a prefix is one.
    pub fn new(text: &str) -> Self {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        match address.or_else(|_| text.parse::<IpNet>()) {
            Ok(prefix) => Wanted::Prefix(text.to_owned(), prefix.trunc()),
            Err(_) => Wanted::Name(text.to_owned()),
        }
    }
}

/// The machines asked for, and what is not one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Names of machines.
    pub names: BTreeSet<String>,
    /// In words, what was asked for in vain.
    pub unknown: Vec<String>,
}

/// Chooses among the machines.
pub fn choose(wanted: &[Wanted], rows: &[ListRow], host: &Host) -> Chosen {
    let mut chosen = Chosen::default();
    for wanted in wanted {
        let names: Vec<&str> = match wanted {
            Wanted::Name(name) => rows
                .iter()
                .filter(|row| row.name == *name)
                .map(|row| &*row.name)
                .collect(),
            Wanted::Prefix(_, prefix) => owners(prefix, rows),
        };
        if names.is_empty() {
            chosen.unknown.push(nobody(wanted, rows, host));
        }
        chosen.names.extend(names.into_iter().map(str::to_owned));
    }
    chosen
}

/// Who has something within a prefix; else whose prefix is the longest around it.
fn owners<'r>(wanted: &IpNet, rows: &'r [ListRow]) -> Vec<&'r str> {
    let with = |fits: &dyn Fn(&IpNet) -> bool| -> Vec<&'r str> {
        rows.iter()
            .filter(|row| row.addresses.iter().any(fits))
            .map(|row| &*row.name)
            .collect()
    };
    let within = with(&|own| wanted.contains(own));
    if !within.is_empty() {
        return within;
    }
    let around = rows.iter().flat_map(|row| &row.addresses);
    let longest = around
        .filter(|own| own.contains(wanted))
        .max_by_key(|own| own.prefix_len());
    longest.map_or_else(Vec::new, |longest| with(&|own| own == longest))
}

fn nobody(wanted: &Wanted, rows: &[ListRow], host: &Host) -> String {
    match wanted {
        Wanted::Name(name) => {
            let known: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
            match nearest(name, &known) {
                Some(near) => format!("there is no machine {name}; did you mean {near}?"),
                None => format!("there is no machine {name}; `netspawn-xdp list` shows all"),
            }
        }
        Wanted::Prefix(text, prefix) => {
            let mut own = host.addresses.iter();
            if let Some((ifindex, _)) = own.find(|(_, own)| prefix.contains(&own.addr())) {
                let name = host.links.get(ifindex).map_or("?", |link| &link.name);
                return format!("{text} is no machine's, but the host's own, on {name}");
            }
            let mut routes = host.routes.iter();
            if routes.any(|route| route.gateway.is_some_and(|at| prefix.contains(&at))) {
                return format!("{text} is no machine's, but a gateway's of the host");
            }
            format!(
                "no machine owns {text}; `netspawn-xdp add NAME --interface IF --address {text}` \
                 gives it to one"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Link, registry::MachineState};

    fn row(name: &str, addresses: &[&str]) -> ListRow {
        ListRow {
            name: name.to_owned(),
            source: Some("config"),
            interface: None,
            ifindex: None,
            mac: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            tenant: None,
            state: MachineState::Up,
            rx_packets: None,
            rx_bytes: None,
            tx_packets: None,
            tx_bytes: None,
            drops: Default::default(),
            conflicts: Vec::new(),
            closed: None,
            mismatches: Vec::new(),
            per_second: None,
        }
    }

    #[test]
    fn machines_are_found_by_name_address_and_prefix() {
        let rows = [
            row("web", &["203.0.113.2/32", "2001:db8:1::/64"]),
            row("db", &["203.0.113.3/32", "2001:db8:1::5/128"]),
        ];
        let mut host = Host::default();
        host.links.insert(2, Link::ethernet(2, "eth0"));
        host.addresses.push((2, "203.0.113.10/24".parse().unwrap()));
        let asked = |text: &str| {
            let chosen = choose(&[Wanted::new(text)], &rows, &host);
            let names: Vec<String> = chosen.names.into_iter().collect();
            (names.join(" "), chosen.unknown.join("\n"))
        };
        for (text, names) in [
            ("web", "web"),
            ("203.0.113.2", "web"),
            ("203.0.113.2/32", "web"),
            ("2001:db8:1::9", "web"),
            ("2001:db8:1::5", "db"),
            ("203.0.113.0/24", "db web"),
            ("2001:db8:1:0:8000::/65", "web"),
        ] {
            assert_eq!(asked(text), (names.to_owned(), String::new()), "{text}");
        }
        for (text, unknown) in [
            ("wbe", "there is no machine wbe; did you mean web?"),
            (
                "xyzzy",
                "there is no machine xyzzy; `netspawn-xdp list` shows all",
            ),
            (
                "203.0.113.10",
                "203.0.113.10 is no machine's, but the host's own, on eth0",
            ),
            (
                "203.0.113.77",
                "no machine owns 203.0.113.77; `netspawn-xdp add NAME --interface IF --address \
                 203.0.113.77` gives it to one",
            ),
        ] {
            assert_eq!(asked(text), (String::new(), unknown.to_owned()), "{text}");
        }
    }
}
