mod makers;
mod timing;

use std::{collections::BTreeSet, fs};

use super::*;
use crate::{
    model::{Host, Peer, SourceKind},
    source::Sources,
};

fn machine(name: &str, addresses: &[&str]) -> Machine {
    Machine {
        name: name.to_owned(),
        named_by_user: false,
        origin: format!("container {name}"),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        sources: Vec::new(),
        tenant: None,
        mac: None,
        place: Place::Link(format!("veth-{name}")),
        faults: Vec::new(),
    }
}

struct Dirs(tempfile::TempDir);

impl Dirs {
    fn new() -> Self {
        Dirs(tempfile::tempdir().unwrap())
    }

    fn keep(&self, source: Source, machines: &[Machine]) {
        let said = Listed::from(machines.to_vec());
        keep(&self.0.path().join("run"), source, &said).unwrap();
    }

    fn declare(&self, name: &str, text: &str) {
        let folder = self.0.path().join("etc/machines");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{name}.toml")), text).unwrap();
    }

    fn sources(&self) -> Sources {
        let enabled = BTreeSet::from([Source::Files, Source::Docker, Source::Incus]);
        let (etc, run) = (self.0.path().join("etc"), self.0.path().join("run"));
        Sources::new(&etc, &run, enabled)
    }
}

#[test]
fn what_an_engine_said_is_declared_until_it_says_otherwise() {
    let dirs = Dirs::new();
    let mut sources = dirs.sources();
    assert!(sources.read(&Host::default()).declarations.is_empty());
    dirs.keep(Source::Docker, &[machine("web", &["203.0.113.2/32"])]);
    let snapshot = sources.read(&Host::default());
    assert_eq!(snapshot.declarations["web"].source, SourceKind::Docker);
    assert_eq!(snapshot.placed["web"], None);
    dirs.keep(Source::Docker, &[]);
    let snapshot = sources.read(&Host::default());
    assert!(snapshot.declarations.is_empty() && snapshot.placed.is_empty());
    assert!(
        !folder(&dirs.0.path().join("run"))
            .join("docker.json")
            .exists()
    );
}

#[test]
fn file_of_that_name_is_about_it() {
    let dirs = Dirs::new();
    dirs.declare("web", "addresses = [\"203.0.113.9\"]\ntenant = \"acme\"\n");
    dirs.keep(
        Source::Docker,
        &[machine("web", &["203.0.113.2/32"]), machine("bare", &[])],
    );
    let mut host = Host::default();
    host.links
        .insert(7, crate::model::Link::ethernet(7, "veth-web"));
    let snapshot = dirs.sources().read(&host);
    let web = &snapshot.declarations["web"];
    assert_eq!(web.addresses, ["203.0.113.9/32".parse().unwrap()]);
    assert_eq!(web.tenant.as_deref(), Some("acme"));
    let placed = Placed {
        ifindex: 7,
        by_name: true,
    };
    assert_eq!(snapshot.placed["web"], Some(placed));
    assert!(!snapshot.declarations.contains_key("bare"));
    assert!(snapshot.problems.is_empty());
}

#[test]
fn file_is_not_about_whom_a_user_has_called_so() {
    let dirs = Dirs::new();
    dirs.declare("a.b", "addresses = [\"203.0.113.9\"]\n");
    let mut pod = machine("a.b", &["203.0.113.2/32"]);
    pod.named_by_user = true;
    dirs.keep(Source::Docker, &[pod]);
    let snapshot = dirs.sources().read(&Host::default());
    assert!(!snapshot.placed.contains_key("a.b"));
    let pod = &snapshot.declarations["a.b.docker"];
    assert_eq!(pod.addresses, ["203.0.113.2/32".parse().unwrap()]);
}

#[test]
fn same_name_in_two_engines_is_two_machines() {
    let dirs = Dirs::new();
    dirs.keep(Source::Incus, &[machine("web", &["203.0.113.3/32"])]);
    dirs.keep(Source::Docker, &[machine("web", &["203.0.113.2/32"])]);
    let snapshot = dirs.sources().read(&Host::default());
    assert_eq!(snapshot.declarations["web"].source, SourceKind::Docker);
    assert_eq!(snapshot.declarations["web.incus"].source, SourceKind::Incus);
}

#[test]
fn fault_names_the_machine_and_takes_nothing_away() {
    let dirs = Dirs::new();
    let mut sources = dirs.sources();
    dirs.keep(Source::Docker, &[machine("web", &["203.0.113.2/32"])]);
    let before = sources.read(&Host::default());
    let mut wrong = machine("web", &[]);
    let fault = Fault::new("\"x\" is no address", "write 203.0.113.2");
    wrong.faults = vec![Wrong::new("netspawn.addresses", fault)];
    dirs.keep(Source::Docker, &[wrong]);
    let after = sources.read(&Host::default());
    assert_eq!(after.declarations, before.declarations);
    assert_eq!(
        after.problems[0].to_string(),
        "docker container web: netspawn.addresses: \"x\" is no address; write 203.0.113.2"
    );
}

#[test]
fn file_that_is_damaged_takes_nothing_away() {
    let dirs = Dirs::new();
    let mut sources = dirs.sources();
    dirs.keep(Source::Docker, &[machine("web", &["203.0.113.2/32"])]);
    let before = sources.read(&Host::default());
    fs::write(folder(&dirs.0.path().join("run")).join("docker.json"), "{").unwrap();
    let after = sources.read(&Host::default());
    assert_eq!(after.declarations, before.declarations);
    assert_eq!(after.placed, before.placed);
    assert_eq!(after.problems.len(), 1);
}

#[test]
fn port_found_by_name_follows_the_link() {
    let mut places = Places::default();
    places.set(vec![Located {
        name: "web".to_owned(),
        source: Source::Libvirt,
        origin: "libvirt domain web".to_owned(),
        named_by_user: false,
        place: Place::Link("tap0".to_owned()),
    }]);
    let mut host = Host::default();
    assert_eq!(places.ports(&host)["web"], None);
    let mut link = crate::model::Link::ethernet(9, "tap0");
    link.peer = Some(Peer {
        ifindex: 2,
        netnsid: None,
        mac: None,
    });
    host.links.insert(9, link);
    assert_eq!(places.ports(&host)["web"].unwrap().ifindex, 9);
}

#[test]
fn faults_keep_a_machine_as_it_was_and_what_is_refused_is_left_out() {
    let dirs = Dirs::new();
    let mut sources = dirs.sources();
    let fault = || Fault::new("is wrong", "mend it");
    let mut first = machine("web", &["203.0.113.2/32", "203.0.113.3/32"]);
    dirs.keep(Source::Docker, std::slice::from_ref(&first));
    sources.read(&Host::default());

    first.addresses.pop();
    first.faults = vec![Wrong::new("label", fault())];
    dirs.keep(Source::Docker, std::slice::from_ref(&first));
    let snapshot = sources.read(&Host::default());
    assert_eq!(snapshot.declarations["web"].addresses.len(), 2);

    first.faults = vec![Wrong::left_out("label", fault())];
    dirs.keep(Source::Docker, &[first]);
    let snapshot = sources.read(&Host::default());
    assert_eq!(snapshot.declarations["web"].addresses.len(), 1);
    assert_eq!(
        snapshot.problems[0].to_string(),
        "docker container web: label: is wrong; mend it"
    );
}
