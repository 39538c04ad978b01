use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use console::style;
use ipnet::IpNet;
use serde::Serialize;

use super::{Report, align, cell, cut, rate, right, width};
use crate::{
    mismatch::Mismatch,
    registry::{Conflict, MachineState},
};

/// One machine, in the form of `list --json`: `null` is the unknown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListRow {
    /// Name.
    pub name: String,
    /// Source of its declaration; `null` when it is no longer declared.
    pub source: Option<&'static str>,
    /// Its port, or the one declared while there is none.
    pub interface: Option<String>,
    /// ifindex of the port.
    pub ifindex: Option<u32>,
    /// Link-layer address of the machine's end, lower case.
    pub mac: Option<String>,
    /// Prefixes declared, always with a length.
    pub addresses: Vec<IpNet>,
    /// Tenant.
    pub tenant: Option<String>,
    /// State.
    pub state: MachineState,
    /// Packets to the machine.
    pub rx_packets: Option<u64>,
    /// Bytes to the machine.
    pub rx_bytes: Option<u64>,
    /// Packets from the machine.
    pub tx_packets: Option<u64>,
    /// Bytes from the machine.
    pub tx_bytes: Option<u64>,
    /// Frames dropped, by reason; those never met are left out.
    pub drops: BTreeMap<&'static str, u64>,
    /// Prefixes that it declares and others hold.
    pub conflicts: Vec<Conflict>,
    /// Why nothing of it leaves its port; `null` where that is not closed.
    pub closed: Option<String>,
    /// Where what is in place differs from what is declared.
    pub mismatches: Vec<Mismatch>,
    /// Traffic a second since the report before, of those that follow each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<Rates>,
}

/// Traffic a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Packets to the machine.
    pub rx_packets: f64,
    /// Bytes to the machine.
    pub rx_bytes: f64,
    /// Packets from the machine.
    pub tx_packets: f64,
    /// Bytes from the machine.
    pub tx_bytes: f64,
    /// Frames dropped.
    pub drops: f64,
}

/// All machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct ListReport(pub Vec<ListRow>);

/// What of a machine finds room in a line.
#[derive(Clone, Copy)]
struct Layout {
    /// Addresses.
    addresses: usize,
    mac: bool,
    tenant: bool,
    interface: bool,
    /// Totals, beside what there is a second.
    totals: bool,
}

impl Layout {
    const FULL: Layout = Layout {
        addresses: usize::MAX,
        mac: true,
        tenant: true,
        interface: true,
        totals: true,
    };

    /// From the fullest to the barest.
    fn all() -> impl Iterator<Item = Layout> {
        let mut layout = Layout::FULL;
        let steps: [fn(&mut Layout); 8] = [
            |_| {},
            |layout| layout.addresses = 3,
            |layout| layout.mac = false,
            |layout| layout.addresses = 2,
            |layout| layout.addresses = 1,
            |layout| layout.tenant = false,
            |layout| layout.totals = false,
            |layout| layout.interface = false,
        ];
        steps.into_iter().map(move |step| {
            step(&mut layout);
            layout
        })
    }
}

/// What a column shows of a row.
type Number<'a> = &'a dyn Fn(&ListRow) -> String;

impl ListReport {
    fn table(&self, layout: Layout, out: &mut dyn Write) -> io::Result<()> {
        let rated = self.0.iter().any(|row| row.per_second.is_some());
        let mut columns: Vec<Vec<String>> = Vec::new();
        let mut column = |show: bool, name: &str, cell: &dyn Fn(&ListRow) -> String| {
            if show {
                let cells = self.0.iter().map(cell);
                columns.push([name.to_owned()].into_iter().chain(cells).collect());
            }
            columns.len()
        };
        column(true, "NAME", &|row| row.name.clone());
        column(true, "STATE", &|row| {
            // A sign beside the colour, which not everybody sees.
            let sign = if row.mismatches.is_empty() { "" } else { "!" };
            let text = style(format!("{}{sign}", row.state.name()));
            match row.state {
                _ if !row.mismatches.is_empty() => text.red(),
                MachineState::Up => text.green(),
                MachineState::Waiting | MachineState::Down => text.yellow(),
                MachineState::Conflict => text.red(),
            }
            .to_string()
        });
        column(layout.interface, "INTERFACE", &|row| {
            let name = cell(row.interface.as_ref());
            match row.closed {
                Some(_) => format!("{name} (closed)"),
                None => name,
            }
        });
        column(layout.mac, "MAC", &|row| cell(row.mac.as_ref()));
        column(true, "ADDRESSES", &|row| {
            let shown = row.addresses.iter().take(layout.addresses);
            let mut shown: Vec<String> = shown.map(IpNet::to_string).collect();
            if row.addresses.len() > shown.len() {
                shown.push(format!("+{}", row.addresses.len() - shown.len()));
            }
            shown.join(" ")
        });
        column(layout.tenant, "TENANT", &|row| cell(row.tenant.as_ref()));
        let drops = |row: &ListRow| row.drops.values().sum::<u64>().to_string();
        let numbers: [(bool, &str, Number<'_>); 6] = [
            (layout.totals || !rated, "RX", &|row| cell(row.rx_packets)),
            (layout.totals || !rated, "TX", &|row| cell(row.tx_packets)),
            (layout.totals || !rated, "DROPS", &drops),
            (rated, "RX/S", &|row| {
                cell(row.per_second.map(|r| rate(r.rx_packets)))
            }),
            (rated, "TX/S", &|row| {
                cell(row.per_second.map(|r| rate(r.tx_packets)))
            }),
            (rated, "DROPS/S", &|row| {
                cell(row.per_second.map(|r| rate(r.drops)))
            }),
        ];
        let mut words = 0;
        for (at, (show, name, cell)) in numbers.into_iter().enumerate() {
            let count = column(show, name, cell);
            if at == 0 {
                words = count - usize::from(show);
            }
        }
        for column in &mut columns[words..] {
            right(column);
        }
        for line in 0..=self.0.len() {
            let cells: Vec<&str> = columns.iter().map(|column| &*column[line]).collect();
            writeln!(out, "{}", cells.join("\t"))?;
        }
        Ok(())
    }
}

impl Report for ListReport {
    fn cells(&self, out: &mut dyn Write) -> io::Result<()> {
        self.table(Layout::FULL, out)
    }

    fn screen(&self, columns: usize) -> anyhow::Result<String> {
        let mut text = String::new();
        for layout in Layout::all() {
            text = align(|out| self.table(layout, out))?;
            if width(&text) <= columns {
                return Ok(text);
            }
        }
        Ok(cut(&text, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> ListReport {
        let web = ListRow {
            name: "web".to_owned(),
            source: Some("run"),
            interface: Some("ve-web".to_owned()),
            ifindex: Some(7),
            mac: Some("02:00:00:00:00:0a".to_owned()),
            addresses: ["203.0.113.2/32", "2001:db8:1::/64"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            tenant: Some("acme".to_owned()),
            state: MachineState::Conflict,
            rx_packets: Some(10),
            rx_bytes: Some(980),
            tx_packets: Some(9),
            tx_bytes: Some(882),
            drops: BTreeMap::from([("spoofed_source", 2), ("vlan", 1)]),
            conflicts: vec![Conflict {
                prefix: "203.0.113.2/32".parse().unwrap(),
                holder: "db".to_owned(),
            }],
            closed: None,
            mismatches: Vec::new(),
            per_second: None,
        };
        let idle = ListRow {
            name: "a-long-name".to_owned(),
            source: Some("config"),
            interface: None,
            ifindex: None,
            mac: None,
            addresses: (1..=5)
                .map(|n| format!("10.0.0.{n}/32").parse().unwrap())
                .collect(),
            tenant: None,
            state: MachineState::Waiting,
            rx_packets: None,
            rx_bytes: None,
            tx_packets: None,
            tx_bytes: None,
            drops: BTreeMap::new(),
            conflicts: Vec::new(),
            closed: None,
            mismatches: Vec::new(),
            per_second: None,
        };
        ListReport(vec![web, idle])
    }

    #[test]
    fn table_is_aligned() {
        assert_eq!(
            rows().render(false).unwrap(),
            "\
NAME         STATE     INTERFACE  MAC                ADDRESSES                                                    TENANT  RX  TX  DROPS
web          conflict  ve-web     02:00:00:00:00:0a  203.0.113.2/32 2001:db8:1::/64                               acme    10   9      3
a-long-name  waiting   -          -                  10.0.0.1/32 10.0.0.2/32 10.0.0.3/32 10.0.0.4/32 10.0.0.5/32  -        -   -      0
"
        );
    }

    #[test]
    fn narrow_terminal_gets_less_and_no_line_wraps() {
        assert_eq!(
            rows().screen(80).unwrap(),
            "\
NAME         STATE     INTERFACE  ADDRESSES          TENANT  RX  TX  DROPS
web          conflict  ve-web     203.0.113.2/32 +1  acme    10   9      3
a-long-name  waiting   -          10.0.0.1/32 +4     -        -   -      0
"
        );
        for columns in [200, 120, 100, 80, 60, 40, 20] {
            let text = rows().screen(columns).unwrap();
            assert!(width(&text) <= columns, "{columns}: {text}");
            assert!(text.contains("web"), "{text}");
        }
    }

    #[test]
    fn rates_are_beside_totals_where_there_is_room() {
        let mut rows = rows();
        rows.0[0].per_second = Some(Rates {
            rx_packets: 1234.5,
            drops: 0.5,
            ..Rates::default()
        });
        assert_eq!(
            rows.screen(80).unwrap(),
            "\
NAME         STATE     INTERFACE  ADDRESSES          RX/S  TX/S  DROPS/S
web          conflict  ve-web     203.0.113.2/32 +1  1234     0      0.5
a-long-name  waiting   -          10.0.0.1/32 +4        -     -        -
"
        );
        assert!(rows.screen(100).unwrap().contains(" DROPS  RX/S"));
    }

    #[test]
    fn json_has_the_fields_of_the_contract() {
        let expected = serde_json::json!([
            {
                "name": "web", "source": "run", "interface": "ve-web", "ifindex": 7,
                "mac": "02:00:00:00:00:0a",
                "addresses": ["203.0.113.2/32", "2001:db8:1::/64"],
                "tenant": "acme", "state": "conflict",
                "rx_packets": 10, "rx_bytes": 980, "tx_packets": 9, "tx_bytes": 882,
                "drops": {"spoofed_source": 2, "vlan": 1},
                "conflicts": [{"prefix": "203.0.113.2/32", "holder": "db"}], "closed": null,
                "mismatches": [],
            },
            {
                "name": "a-long-name", "source": "config", "interface": null, "ifindex": null,
                "mac": null,
                "addresses": ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "10.0.0.4/32", "10.0.0.5/32"],
                "tenant": null, "state": "waiting",
                "rx_packets": null, "rx_bytes": null, "tx_packets": null, "tx_bytes": null,
                "drops": {}, "conflicts": [], "closed": null, "mismatches": [],
            },
        ]);
        let printed: serde_json::Value =
            serde_json::from_str(&rows().render(true).unwrap()).unwrap();
        assert_eq!(printed, expected);
        assert_eq!(ListReport::default().render(true).unwrap(), "[]\n");
    }
}
