use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use ipnet::IpNet;
use serde::Serialize;

use super::{Report, cell};
use crate::registry::{Conflict, MachineState};

/// How many addresses of a machine a line shows.
const SHOWN: usize = 3;

/// One machine, in the form of `list --json`: `null` is the unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListRow {
    /// Name.
    pub name: String,
    /// Source of its declaration.
    pub source: &'static str,
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
}

/// All machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ListReport(pub Vec<ListRow>);

impl Report for ListReport {
    fn cells(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "NAME\tSTATE\tINTERFACE\tMAC\tADDRESSES\tTENANT\tRX\tTX\tDROPS"
        )?;
        for row in &self.0 {
            let mut addresses: Vec<String> = row
                .addresses
                .iter()
                .take(SHOWN)
                .map(IpNet::to_string)
                .collect();
            if row.addresses.len() > SHOWN {
                addresses.push(format!("+{}", row.addresses.len() - SHOWN));
            }
            writeln!(
                out,
                "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
                row.name,
                row.state.name(),
                cell(row.interface.as_ref()),
                cell(row.mac.as_ref()),
                addresses.join(" "),
                cell(row.tenant.as_ref()),
                cell(row.rx_packets),
                cell(row.tx_packets),
                row.drops.values().sum::<u64>(),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> ListReport {
        let web = ListRow {
            name: "web".to_owned(),
            source: "run",
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
        };
        let idle = ListRow {
            name: "a-long-name".to_owned(),
            source: "config",
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
        };
        ListReport(vec![web, idle])
    }

    #[test]
    fn table_is_aligned() {
        assert_eq!(
            rows().render(false).unwrap(),
            "\
NAME         STATE     INTERFACE  MAC                ADDRESSES                               TENANT  RX  TX  DROPS
web          conflict  ve-web     02:00:00:00:00:0a  203.0.113.2/32 2001:db8:1::/64          acme    10  9   3
a-long-name  waiting   -          -                  10.0.0.1/32 10.0.0.2/32 10.0.0.3/32 +2  -       -   -   0
"
        );
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
                "conflicts": [{"prefix": "203.0.113.2/32", "holder": "db"}],
            },
            {
                "name": "a-long-name", "source": "config", "interface": null, "ifindex": null,
                "mac": null,
                "addresses": ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "10.0.0.4/32", "10.0.0.5/32"],
                "tenant": null, "state": "waiting",
                "rx_packets": null, "rx_bytes": null, "tx_packets": null, "tx_bytes": null,
                "drops": {}, "conflicts": [],
            },
        ]);
        let printed: serde_json::Value =
            serde_json::from_str(&rows().render(true).unwrap()).unwrap();
        assert_eq!(printed, expected);
        assert_eq!(ListReport::default().render(true).unwrap(), "[]\n");
    }
}
