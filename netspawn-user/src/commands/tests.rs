use std::cell::Cell;

use anyhow::bail;
use clap::Parser;

use super::*;
use crate::{
    cli::{AddArgs, Cli, Command, RemoveArgs},
    model::Link,
    outcome::Outcome,
    registry::MachineState,
    source::machine_path,
};

/// A data plane in memory.
struct Fake {
    view: View,
    fail: Cell<bool>,
}

impl DataPlane for Fake {
    fn view(&self) -> anyhow::Result<View> {
        Ok(self.view.clone())
    }

    fn apply(&self) -> anyhow::Result<Applied> {
        if self.fail.get() {
            bail!("no permission");
        }
        Ok(Applied {
            attached: true,
            ..Applied::default()
        })
    }
}

fn fake() -> Fake {
    let mut host = Host::default();
    for (ifindex, name) in [(2, "eth0"), (7, "ve-web")] {
        host.links.insert(ifindex, Link::ethernet(ifindex, name));
    }
    Fake {
        view: View {
            host,
            uplinks: vec![UplinkView {
                name: "eth0".to_owned(),
                gone: false,
                missing: Vec::new(),
                ifindex: 2,
                mode: "tc".to_owned(),
                programs: vec!["uplink_ingress".to_owned()],
            }],
            held: State::default(),
            unguarded: BTreeMap::new(),
            limits: Limits {
                max_machines: 4,
                max_addresses: 4,
            },
            counts: BTreeMap::new(),
            traffic: BTreeMap::new(),
            drops: BTreeMap::new(),
            agent: None,
            troubles: Vec::new(),
            sources: [Source::Files].into(),
            registered: Registered::default(),
            policy: Policy::default(),
        },
        fail: Cell::new(false),
    }
}

struct Dirs {
    root: tempfile::TempDir,
    global: Global,
}

fn dirs() -> Dirs {
    let root = tempfile::tempdir().unwrap();
    let mut cli = Cli::parse_from(["netspawn-xdp", "list"]);
    cli.global.config_dir = root.path().join("etc");
    cli.global.run_dir = root.path().join("run");
    Dirs {
        root,
        global: cli.global,
    }
}

fn web() -> AddArgs {
    let line = "netspawn-xdp add web --interface ve-web --address 203.0.113.2";
    let Command::Add(args) = Cli::parse_from(line.split(' ')).command else {
        panic!("not add");
    };
    args
}

#[test]
fn machine_waits_until_the_maps_serve_it() {
    let dirs = dirs();
    let mut plane = fake();
    add::run(&dirs.global, &web(), &plane).unwrap();
    let snapshot = declarations(&dirs.global, &plane.view);
    let compared = |plane: &Fake| compared(&dirs.global, plane).unwrap();
    let row = |plane: &Fake| list::report(&compared(plane)).0.remove(0);
    assert_eq!(row(&plane).state, MachineState::Waiting);
    assert_eq!(row(&plane).rx_packets, None);
    assert_eq!(status::report(compared(&plane)).machines.waiting, 1);

    plane.view.held = plane.view.resolve(&snapshot).state;
    let traffic = Traffic {
        rx_packets: 1,
        ..Traffic::default()
    };
    plane.view.traffic.insert(0, traffic);
    plane.view.drops.insert((0, Reason::Vlan), 5);
    plane.view.drops.insert((1, Reason::Vlan), 6);
    let up = row(&plane);
    assert_eq!(up.state, MachineState::Up);
    assert_eq!((up.rx_packets, up.tx_packets), (Some(1), Some(0)));
    assert_eq!(up.drops, BTreeMap::from([("vlan", 5)]));
    let status = status::report(compared(&plane));
    assert_eq!((status.machines.up, status.prefixes), (1, 1));

    plane.view.uplinks.clear();
    assert_eq!(row(&plane).state, MachineState::Waiting);
}

#[test]
fn add_that_cannot_be_applied_changes_nothing() {
    let dirs = dirs();
    let plane = fake();
    let path = machine_path(&dirs.global.run_dir, "web");
    plane.fail.set(true);
    let error = add::run(&dirs.global, &web(), &plane).unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "machine web is not added: no permission"
    );
    assert!(!path.exists());

    plane.fail.set(false);
    add::run(&dirs.global, &web(), &plane).unwrap();
    let before = std::fs::read(&path).unwrap();
    plane.fail.set(true);
    let mut other = web();
    other.tenant = Some("acme".to_owned());
    add::run(&dirs.global, &other, &plane).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn remove_says_what_declares_it_still() {
    let dirs = dirs();
    let mut plane = fake();
    let args = RemoveArgs {
        name: "web".to_owned(),
    };
    add::run(&dirs.global, &web(), &plane).unwrap();
    assert_eq!(
        remove::run(&dirs.global, &args, &plane).unwrap(),
        Outcome::Done
    );
    assert!(remove::run(&dirs.global, &args, &plane).is_err());

    // Served still, because that one was cut short.
    add::run(&dirs.global, &web(), &plane).unwrap();
    let snapshot = declarations(&dirs.global, &plane.view);
    plane.view.held = plane.view.resolve(&snapshot).state;
    plane.fail.set(true);
    remove::run(&dirs.global, &args, &plane).unwrap_err();
    plane.fail.set(false);
    assert_eq!(
        remove::run(&dirs.global, &args, &plane).unwrap(),
        Outcome::Done
    );
    plane.view.held = State::default();

    add::run(&dirs.global, &web(), &plane).unwrap();
    std::fs::create_dir_all(dirs.root.path().join("etc/machines")).unwrap();
    std::fs::copy(
        machine_path(&dirs.global.run_dir, "web"),
        machine_path(&dirs.global.config_dir, "web"),
    )
    .unwrap();
    assert!(matches!(
        remove::run(&dirs.global, &args, &plane).unwrap(),
        Outcome::Partly(_)
    ));
}
