//! Findings that the kernel and the cards here cannot be made to have: made from facts,
//! and gone when these are others.

use std::process::Command;

use anyhow::{Context as _, Result};
use netspawn_tests::require_root;
use netspawn_user::{
    check::{
        Facts, Finding, Remedy,
        facts::{Chain, Firewall, Kernel, LegacyTable, Refusal, Uplink, parse_nft, saved_rules},
        judge,
    },
    model::{Link, SourceKind},
    net::{
        ethtool::Features,
        netlink::Netlink,
        read::{self, NeighborTable},
    },
    registry::{Machine, MachineState},
};
use serde_json::json;

/// The findings that are provoked here.
pub const PROVOKED: &[&str] = &[
    "bpf-feature-missing",
    "memlock-limit",
    "traffic-control-missing",
    "tcx-missing",
    "jit-off",
    "xdp-virtio",
    "filter-slot-taken",
    "lro-on",
    "legacy-rules-bypassed",
    "neighbor-table-small",
];

/// A host with an uplink and all that BPF needs.
fn host() -> Facts {
    let mut facts = Facts {
        root: true,
        kernel: Some(Kernel {
            tcx: true,
            btf: true,
            capable: true,
            jit: Some(true),
            ..Kernel::default()
        }),
        firewall: Some(Firewall::default()),
        uplinks: vec![Uplink {
            name: "eth0".to_owned(),
            ifindex: Some(2),
            driver: Some("virtio_net".to_owned()),
            has_xdp: Some(true),
            features: Some(Features::default()),
            ..Uplink::default()
        }],
        ..Facts::default()
    };
    facts.host.links.insert(
        2,
        Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            alt_names: Vec::new(),
            hardware: 1,
            kind: None,
            mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            admin_up: true,
            carrier: true,
            master: None,
            vlan: None,
            peer: None,
        },
    );
    facts
}

/// The finding of an id after a change, which is not there without it.
fn provoked(id: &str, change: impl FnOnce(&mut Facts)) -> Result<Finding> {
    let find = |facts: &Facts| {
        let mut list = judge(facts).list.into_iter();
        list.find(|finding| finding.rule.id == id)
    };
    let mut facts = host();
    assert_eq!(find(&facts), None);
    assert!(PROVOKED.contains(&id));
    change(&mut facts);
    find(&facts).with_context(|| format!("{id} is not found"))
}

fn commands(finding: Finding) -> Vec<String> {
    match finding.remedy {
        Remedy::Commands(commands) => commands,
        Remedy::Decide(text) => panic!("no commands: {text}"),
    }
}

fn is_for_a_person(finding: &Finding) -> bool {
    matches!(&finding.remedy, Remedy::Decide(text) if !text.is_empty())
}

fn refused(facts: &mut Facts, denied: bool) -> &mut Kernel {
    let kernel = facts.kernel.as_mut().unwrap();
    kernel.refusal = Some(Refusal {
        text: "Operation not permitted".to_owned(),
        denied,
    });
    kernel
}

#[test]
fn kernel_without_features_is_told() -> Result<()> {
    let finding = provoked("bpf-feature-missing", |facts| {
        refused(facts, false).missing = vec!["ring buffers", "bpf_redirect_peer"];
    })?;
    assert_eq!(
        finding.found,
        "it has no ring buffers, no bpf_redirect_peer"
    );
    assert!(is_for_a_person(&finding));

    let finding = provoked("memlock-limit", |facts| {
        refused(facts, true).memlock = Some(65536)
    })?;
    assert!(finding.found.contains("65536 bytes"), "{}", finding.found);

    let finding = provoked("traffic-control-missing", |facts| {
        let kernel = facts.kernel.as_mut().unwrap();
        kernel.traffic_control = Some(("add an ingress qdisc", "No such file".to_owned()));
    })?;
    assert_eq!(
        commands(finding),
        ["modprobe sch_ingress", "modprobe cls_bpf"]
    );

    provoked("tcx-missing", |facts| {
        facts.kernel.as_mut().unwrap().tcx = false
    })?;

    let finding = provoked("jit-off", |facts| {
        facts.kernel.as_mut().unwrap().jit = Some(false);
    })?;
    assert_eq!(commands(finding), ["sysctl -w net.core.bpf_jit_enable=1"]);
    Ok(())
}

#[test]
fn limit_of_locked_memory_is_not_blamed_without_the_capability() {
    let mut facts = host();
    let kernel = refused(&mut facts, true);
    (kernel.memlock, kernel.capable) = (Some(65536), false);
    let ids: Vec<&str> = judge(&facts).list.iter().map(|one| one.rule.id).collect();
    assert!(
        ids.contains(&"bpf-refused") && !ids.contains(&"memlock-limit"),
        "{ids:?}"
    );
}

#[test]
fn cards_that_this_machine_lacks_are_told_of() -> Result<()> {
    let finding = provoked("xdp-virtio", |facts| facts.uplinks[0].xdp = true)?;
    assert!(is_for_a_person(&finding));

    let finding = provoked("lro-on", |facts| {
        let features = facts.uplinks[0].features.as_mut().unwrap();
        features.active.insert("rx-lro".to_owned());
    })?;
    assert_eq!(commands(finding), ["ethtool -K eth0 lro off"]);

    for qdisc in [true, false] {
        let finding = provoked("filter-slot-taken", |facts| {
            facts.kernel.as_mut().unwrap().tcx = false;
            let others = &mut facts.uplinks[0].others;
            (others.ingress_qdisc, others.slot_taken) = (qdisc, !qdisc);
        })?;
        assert!(is_for_a_person(&finding));
    }
    Ok(())
}

/// Not by changing it: the kernel has one for all namespaces.
#[test]
fn room_for_neighbors_is_compared_with_the_machines() -> Result<()> {
    let with = |machines: u32, overflows| {
        move |facts: &mut Facts| {
            let room = 1024;
            let table = NeighborTable { room, overflows };
            facts.neighbor_tables = [(libc::AF_INET, table), (libc::AF_INET6, table)].into();
            facts.desired.machines = (0..machines)
                .map(|number| Machine {
                    name: format!("m{number}"),
                    source: SourceKind::Nspawn,
                    endpoint: Some(number),
                    interface: None,
                    ifindex: Some(number + 10),
                    mac: None,
                    addresses: vec!["2001:db8::1/128".parse().expect("a prefix")],
                    tenant: None,
                    state: MachineState::Up,
                    conflicts: Vec::new(),
                    closed: None,
                })
                .collect();
        }
    };
    assert!(provoked("neighbor-table-small", with(768, 5)).is_err());
    let finding = provoked("neighbor-table-small", with(769, 0))?;
    assert_eq!(
        finding.found,
        "769 machines with IPv6, and room for 1024 neighbors"
    );
    let finding = provoked("neighbor-table-small", with(1100, 7))?;
    assert!(
        finding.found.ends_with(", full 7 times since boot"),
        "{finding:?}"
    );
    assert_eq!(
        commands(finding),
        [
            "sysctl -w net.ipv6.neigh.default.gc_thresh3=4096",
            "sysctl -w net.ipv6.neigh.default.gc_thresh2=2048"
        ]
    );
    Ok(())
}

#[test]
fn room_for_neighbors_is_read_as_iproute2_does() -> Result<()> {
    let tables = Netlink::open()?.dump(read::get_neighbor_tables(), |message| {
        read::neighbor_table(&message)
    })?;
    for (family, name) in [
        (libc::AF_INET, "arp_cache"),
        (libc::AF_INET6, "ndisc_cache"),
    ] {
        let (_, table) = tables
            .iter()
            .find(|(of, _)| *of == family)
            .context("no table")?;
        let output = Command::new("ip")
            .args(["-s", "ntable", "show", "name", name])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let mut words = text.split_whitespace();
        words.find(|word| *word == "thresh3");
        assert_eq!(
            words.next(),
            Some(table.room.to_string().as_str()),
            "{text}"
        );
        words.find(|word| *word == "table_fulls");
        let fulls: u64 = words.next().unwrap_or("0").parse()?;
        println!("{name}: {table:?}, iproute2 says {fulls}");
        // It may have been full once more meanwhile.
        assert!(table.overflows <= fulls, "{text}");
    }
    Ok(())
}

#[test]
fn older_iptables_are_told_of() -> Result<()> {
    const SAVED: &str = "# Generated\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n\
        :DOCKER - [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n\
        -A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -j ACCEPT\n\
        -A FORWARD -p tcp --dport 25 -j DROP\nCOMMIT\n";
    assert_eq!(saved_rules(SAVED), 1);
    let with = |rules| {
        move |facts: &mut Facts| {
            facts.firewall.as_mut().unwrap().legacy = vec![
                LegacyTable {
                    name: "iptables -t nat".to_owned(),
                    rules: Some(4),
                },
                LegacyTable {
                    name: "iptables -t filter".to_owned(),
                    rules,
                },
            ];
        }
    };
    let finding = provoked("legacy-rules-bypassed", with(Some(1)))?;
    assert_eq!(finding.found, "iptables -t filter (1 rules)");
    provoked("legacy-rules-bypassed", with(None))?;
    assert!(provoked("legacy-rules-bypassed", with(Some(0))).is_err());
    Ok(())
}

#[test]
fn rules_of_nftables_are_read() {
    let firewall = parse_nft(&json!({"nftables": [
        {"metainfo": {"json_schema_version": 1}},
        {"table": {"family": "inet", "name": "f"}},
        {"chain": {"family": "inet", "table": "f", "name": "fwd", "type": "filter",
                   "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "f", "name": "sub"}},
        {"rule": {"family": "inet", "table": "f", "chain": "fwd", "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}},
                       "right": {"prefix": {"addr": "203.0.113.0", "len": 24}}}},
            {"reject": null}]}},
        {"rule": {"family": "inet", "table": "f", "chain": "fwd", "expr": [
            {"jump": {"target": "DOCKER-USER"}}]}},
    ]}));
    assert_eq!(
        firewall.chains,
        [Chain {
            family: "inet".to_owned(),
            table: "f".to_owned(),
            name: "fwd".to_owned(),
            kind: "filter".to_owned(),
            hook: "forward".to_owned(),
            devices: Vec::new(),
            drops: true,
            rules: 1,
            refuses: true,
        }]
    );
    assert!(firewall.words.contains(&"203.0.113.0/24".to_owned()));
}

#[test]
fn link_that_holds_a_program_is_for_a_person() -> Result<()> {
    use netspawn_user::datapath::attach::others::XdpProgram;

    let mut facts = host();
    facts.uplinks[0].others.xdp = vec![XdpProgram {
        description: "program 7 \"theirs\"".to_owned(),
        place: "xdpdrv",
        linked: true,
    }];
    let list = judge(&facts).list;
    let mut found = list.iter().filter(|one| one.rule.id == "xdp-before-ours");
    assert!(is_for_a_person(found.next().context("not found")?));
    Ok(())
}

#[test]
fn only_address_of_the_host_is_never_deleted_by_a_command() -> Result<()> {
    use netspawn_tests::Lab;

    require_root()?;
    let lab = Lab::builder().build()?;
    lab.declare("new", "addresses = [\"203.0.113.10\"]\n")?;
    let output = lab.output("check eth0 --json")?;
    let found = crate::stage::judged(&output.stdout, output.code())?;
    let finding = crate::stage::finding(&found, "address-on-host").context("not found")?;
    assert!(finding["fix"].is_null(), "{finding:#}");
    Ok(())
}
