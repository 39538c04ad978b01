//! The machines as `top` has them: what they do a second, and in which order.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
};

use ipnet::IpNet;
use netspawn_ebpf::{
    abi::{Traffic, endpoint_flag},
    verdict::{Kind, Reason},
};

use crate::{commands::watch::rate, datapath::meter::Reading, plan};

/// How many looks are remembered.
pub const HISTORY: usize = 120;

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Name,
    State,
    RxPackets,
    TxPackets,
    RxBytes,
    TxBytes,
    Drops,
}

impl Column {
    /// All, from left to right.
    pub const ALL: [Column; 7] = [
        Column::Name,
        Column::State,
        Column::RxPackets,
        Column::TxPackets,
        Column::RxBytes,
        Column::TxBytes,
        Column::Drops,
    ];

    /// The key that sorts by it.
    pub const fn key(self) -> char {
        match self {
            Column::Name => 'n',
            Column::State => 's',
            Column::RxPackets => 'r',
            Column::TxPackets => 't',
            Column::RxBytes => 'R',
            Column::TxBytes => 'T',
            Column::Drops => 'd',
        }
    }

    /// Its heading.
    pub const fn title(self) -> &'static str {
        match self {
            Column::Name => "NAME",
            Column::State => "STATE",
            Column::RxPackets => "RX/S",
            Column::TxPackets => "TX/S",
            Column::RxBytes => "RX B/S",
            Column::TxBytes => "TX B/S",
            Column::Drops => "DROP/S",
        }
    }

    /// Whether the largest comes first unless asked otherwise.
    pub const fn descends(self) -> bool {
        !matches!(self, Column::Name | Column::State)
    }
}

/// What a machine does a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub rx_packets: f64,
    pub tx_packets: f64,
    pub rx_bytes: f64,
    pub tx_bytes: f64,
    pub drops: f64,
}

/// A machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub name: String,
    pub state: &'static str,
    /// ifindex of its port, 0 without one.
    pub port: u32,
    pub tenant: String,
    pub addresses: Vec<IpNet>,
    pub traffic: Traffic,
    pub drops: u64,
    pub rates: Rates,
    /// Packets a second in and out, the last look at the end.
    pub history: VecDeque<(u32, u32)>,
    /// Place among all names.
    pub(super) rank: usize,
}

/// Frames by endpoint id and reason.
type Drops = BTreeMap<(u32, Reason), u64>;

/// All machines, and those shown in their order.
#[derive(Debug)]
pub struct Machines {
    by_id: BTreeMap<u32, Machine>,
    order: Vec<u32>,
    pub sort: Column,
    pub descending: bool,
    filter: String,
    drops: Drops,
    /// Those of the look before, and the seconds between.
    before: Option<(Drops, f64)>,
    counts: BTreeMap<Reason, (u64, f64)>,
}

impl Default for Machines {
    fn default() -> Self {
        Machines {
            by_id: BTreeMap::new(),
            order: Vec::new(),
            sort: Column::RxPackets,
            descending: true,
            filter: String::new(),
            drops: BTreeMap::new(),
            before: None,
            counts: BTreeMap::new(),
        }
    }
}

impl Machines {
    /// Takes over what was read `seconds` after the look before; whether other
    /// machines are there than before.
    pub fn update(&mut self, reading: Reading, seconds: Option<f64>) -> bool {
        let mut dropped: BTreeMap<u32, u64> = BTreeMap::new();
        for ((id, _), count) in &reading.drops {
            *dropped.entry(*id).or_default() += count;
        }
        let known = self.by_id.len();
        self.by_id.retain(|id, machine| {
            let entry = reading.endpoints.get(id);
            entry.is_some_and(|entry| is_named(&entry.name, &machine.name))
        });
        let mut changed = self.by_id.len() != known;
        for (id, entry) in &reading.endpoints {
            let machine = self.by_id.entry(*id).or_insert_with(|| {
                changed = true;
                Machine {
                    name: plan::text(&entry.name),
                    ..Machine::default()
                }
            });
            machine.state = match entry.forward {
                forward if forward.flags & endpoint_flag::UP != 0 => "up",
                forward if forward.ifindex == 0 => "waiting",
                _ => "down",
            };
            machine.port = entry.forward.ifindex;
            let traffic = reading.traffic.get(id).copied().unwrap_or_default();
            let drops = dropped.get(id).copied().unwrap_or(0);
            // One that is new has no rate yet.
            if let Some(seconds) = seconds.filter(|_| !machine.history.is_empty()) {
                let per_second = |before, now| rate(Some(before), now, seconds);
                let before = machine.traffic;
                machine.rates = Rates {
                    rx_packets: per_second(before.rx_packets, traffic.rx_packets),
                    tx_packets: per_second(before.tx_packets, traffic.tx_packets),
                    rx_bytes: per_second(before.rx_bytes, traffic.rx_bytes),
                    tx_bytes: per_second(before.tx_bytes, traffic.tx_bytes),
                    drops: per_second(machine.drops, drops),
                };
            }
            (machine.traffic, machine.drops) = (traffic, drops);
            let whole = |packets: f64| packets.round() as u32;
            let point = (
                whole(machine.rates.rx_packets),
                whole(machine.rates.tx_packets),
            );
            if machine.history.len() == HISTORY {
                machine.history.pop_front();
            }
            machine.history.push_back(point);
        }
        if changed {
            let mut names: Vec<(&str, u32)> = Vec::with_capacity(self.by_id.len());
            names.extend(self.by_id.iter().map(|(id, machine)| (&*machine.name, *id)));
            names.sort_unstable();
            let ids: Vec<u32> = names.into_iter().map(|(_, id)| id).collect();
            for (rank, id) in ids.into_iter().enumerate() {
                if let Some(machine) = self.by_id.get_mut(&id) {
                    machine.rank = rank;
                }
            }
        }
        for (reason, count) in &reading.counts {
            let before = self.counts.get(reason).map(|(count, _)| *count);
            let per_second = seconds.map_or(0.0, |seconds| rate(before, *count, seconds));
            self.counts.insert(*reason, (*count, per_second));
        }
        let before = std::mem::replace(&mut self.drops, reading.drops);
        self.before = seconds.map(|seconds| (before, seconds));
        self.arrange();
        changed
    }

    /// Takes over what seldom changes.
    pub fn describe(&mut self, state: &plan::State) {
        for machine in self.by_id.values_mut() {
            machine.addresses.clear();
        }
        for (prefix, owner) in &state.addresses {
            if let Some(machine) = self.by_id.get_mut(owner) {
                machine.addresses.push(*prefix);
            }
        }
        for (id, entry) in &state.endpoints {
            if let Some(machine) = self.by_id.get_mut(id) {
                machine.tenant = plan::text(&entry.tenant);
            }
        }
        self.arrange();
    }

    /// Sorts by a column; by the one that it is sorted by already, the other way
    /// round.
    pub fn sort_by(&mut self, column: Column) {
        self.descending = if self.sort == column {
            !self.descending
        } else {
            column.descends()
        };
        self.sort = column;
        self.arrange();
    }

    /// Shows those alone in whose name, tenant, state or addresses there is `text`, or
    /// whose prefix has it as an address.
    pub fn filter(&mut self, text: &str) {
        text.clone_into(&mut self.filter);
        self.arrange();
    }

    /// What [`Machines::filter`] was called with last.
    pub fn filtered_by(&self) -> &str {
        &self.filter
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "what cannot be shown is left out of the screen, until the next time"
    )]
    fn arrange(&mut self) {
        let filter = self.filter.to_lowercase();
        let address = filter.parse::<std::net::IpAddr>().ok();
        let fits = |machine: &Machine| {
            filter.is_empty()
                || machine.name.to_lowercase().contains(&filter)
                || machine.tenant.to_lowercase().contains(&filter)
                || machine.state == filter
                || machine.addresses.iter().any(|own| match &address {
                    Some(address) => own.contains(address),
                    None => own.to_string().contains(&filter),
                })
        };
        let value = |machine: &Machine| match self.sort {
            Column::Name => 0.0,
            Column::State => match machine.state {
                "up" => 2.0,
                "down" => 1.0,
                _ => 0.0,
            },
            Column::RxPackets => machine.rates.rx_packets,
            Column::TxPackets => machine.rates.tx_packets,
            Column::RxBytes => machine.rates.rx_bytes,
            Column::TxBytes => machine.rates.tx_bytes,
            Column::Drops => machine.rates.drops,
        };
        let mut keyed: Vec<(f64, usize, u32)> = self
            .by_id
            .iter()
            .filter(|(_, machine)| fits(machine))
            .map(|(id, machine)| (value(machine), machine.rank, *id))
            .collect();
        keyed.sort_unstable_by(|a, b| {
            let by_value = match self.descending {
                true => b.0.total_cmp(&a.0),
                false => a.0.total_cmp(&b.0),
            };
            let by_name = a.1.cmp(&b.1);
            // Among equals names always ascend, unless they are what is sorted by.
            match (self.sort, self.descending) {
                (Column::Name, true) => by_name.reverse(),
                _ => by_value.then(by_name),
            }
        });
        self.order.clear();
        self.order.extend(keyed.into_iter().map(|(_, _, id)| id));
    }

    /// How many there are, and how many of them are up.
    pub fn count(&self) -> (usize, usize) {
        let up = self.by_id.values().filter(|machine| machine.state == "up");
        (self.by_id.len(), up.count())
    }

    /// How many are shown.
    pub fn shown(&self) -> usize {
        self.order.len()
    }

    /// The machines at these places, by id.
    pub fn rows(&self, from: usize, count: usize) -> impl Iterator<Item = (u32, &Machine)> {
        let ids = self.order.iter().skip(from).take(count);
        ids.filter_map(|id| Some((*id, self.by_id.get(id)?)))
    }

    /// Where a machine is among those shown.
    pub fn place(&self, id: u32) -> Option<usize> {
        self.order.iter().position(|other| *other == id)
    }

    /// Why frames of a machine were dropped: how many, and how many a second; those
    /// that go on first.
    pub fn reasons(&self, id: u32) -> Vec<(Reason, u64, f64)> {
        let Some(last) = Reason::ALL.last() else {
            return Vec::new();
        };
        let all = self.drops.range((id, Reason::ALL[0])..=(id, *last));
        let mut reasons: Vec<_> = all
            .filter(|(_, count)| **count > 0)
            .map(|(key, count)| {
                let per_second = self.before.as_ref().map_or(0.0, |(before, seconds)| {
                    rate(
                        Some(before.get(key).copied().unwrap_or(0)),
                        *count,
                        *seconds,
                    )
                });
                (key.1, *count, per_second)
            })
            .collect();
        let order = |a: &(Reason, u64, f64), b: &(Reason, u64, f64)| -> Ordering {
            b.2.total_cmp(&a.2).then(b.1.cmp(&a.1))
        };
        reasons.sort_by(order);
        reasons
    }

    /// Frames a second of all machines for one reason.
    pub fn per_second(&self, reason: Reason) -> f64 {
        self.counts.get(&reason).map_or(0.0, |(_, rate)| *rate)
    }

    /// Frames a second of one kind.
    pub fn per_second_of(&self, kind: Kind) -> f64 {
        let reasons = Reason::ALL.iter().filter(|reason| reason.kind() == kind);
        reasons.map(|reason| self.per_second(*reason)).sum()
    }
}

/// Whether the zero-padded field of a map has that name.
fn is_named(field: &[u8], name: &str) -> bool {
    field
        .strip_prefix(name.as_bytes())
        .is_some_and(|rest| rest.first().is_none_or(|b| *b == 0))
}

#[cfg(test)]
mod tests {
    use netspawn_ebpf::abi::EndpointEntry;

    use super::*;

    fn entry(name: &str, up: bool) -> EndpointEntry {
        // SAFETY: numbers and byte arrays.
        let mut entry: EndpointEntry = unsafe { std::mem::zeroed() };
        entry.name[..name.len()].copy_from_slice(name.as_bytes());
        entry.forward.ifindex = 7;
        entry.forward.flags = if up { endpoint_flag::UP } else { 0 };
        entry
    }

    fn reading(packets: [u64; 3]) -> Reading {
        let mut reading = Reading::default();
        for (id, (name, packets)) in ["web", "db", "mail"].into_iter().zip(packets).enumerate() {
            let id = id as u32;
            reading.endpoints.insert(id, entry(name, name != "mail"));
            let traffic = Traffic {
                rx_packets: packets,
                ..Traffic::default()
            };
            reading.traffic.insert(id, traffic);
        }
        reading.drops.insert((1, Reason::Vlan), packets[1]);
        reading
    }

    fn names(machines: &Machines) -> Vec<&str> {
        machines
            .rows(0, 9)
            .map(|(_, machine)| &*machine.name)
            .collect()
    }

    #[test]
    fn busiest_is_first_and_equals_go_by_name() {
        let mut machines = Machines::default();
        assert!(machines.update(reading([0, 0, 0]), None));
        assert_eq!(names(&machines), ["db", "mail", "web"]);
        assert!(!machines.update(reading([10, 30, 0]), Some(2.0)));
        assert_eq!(names(&machines), ["db", "web", "mail"]);
        let (_, first) = machines.rows(0, 1).next().unwrap();
        assert!((first.rates.rx_packets - 15.0).abs() < 1e-9);
        assert_eq!(machines.reasons(1), [(Reason::Vlan, 30, 15.0)]);
        machines.sort_by(Column::RxPackets);
        assert_eq!(names(&machines), ["mail", "web", "db"]);
        machines.sort_by(Column::Name);
        assert_eq!(names(&machines), ["db", "mail", "web"]);
        machines.sort_by(Column::Name);
        assert_eq!(names(&machines), ["web", "mail", "db"]);
        machines.sort_by(Column::State);
        assert_eq!(names(&machines), ["mail", "db", "web"]);
        assert_eq!(machines.count(), (3, 2));
    }

    #[test]
    fn filter_takes_names_states_and_addresses() {
        let mut machines = Machines::default();
        machines.update(reading([3, 2, 1]), None);
        let mut state = plan::State::default();
        state.addresses.insert("203.0.113.2/32".parse().unwrap(), 0);
        state
            .addresses
            .insert("2001:db8:1::/64".parse().unwrap(), 1);
        machines.describe(&state);
        for (text, found) in [
            ("WE", vec!["web"]),
            ("down", vec!["mail"]),
            ("203.0", vec!["web"]),
            ("2001:db8:1::77", vec!["db"]),
            ("xyzzy", vec![]),
        ] {
            machines.filter(text);
            assert_eq!(names(&machines), found, "{text}");
        }
    }

    #[test]
    fn another_machine_under_an_id_begins_anew() {
        let mut machines = Machines::default();
        machines.update(reading([50, 0, 0]), None);
        let mut other = reading([1, 0, 0]);
        other.endpoints.insert(0, entry("we", true));
        assert!(machines.update(other, Some(1.0)));
        let (_, machine) = machines.rows(machines.place(0).unwrap(), 1).next().unwrap();
        assert_eq!((&*machine.name, machine.history.len()), ("we", 1));
        assert_eq!(machine.rates, Rates::default());
    }
}
