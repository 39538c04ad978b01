//! Whose a link is, by records as engines' answers make them.

use serde_json::{Value, json};

use super::*;
use crate::{
    model::Link,
    plan::State,
    registry::{self, Desired, Inputs, Limits, MachineState},
};

fn host(links: &[(u32, &str)]) -> Host {
    let mut host = Host::default();
    for (ifindex, name) in links {
        let mut link = Link::ethernet(*ifindex, name);
        link.kind = Some("veth".to_owned());
        link.peer = Some(Peer {
            ifindex: 2,
            netnsid: Some(0),
            mac: Some([2, 0, 0, 0, 0, 9]),
        });
        host.links.insert(*ifindex, link);
    }
    host
}

fn resolve(snapshot: &crate::source::Snapshot, host: &Host) -> Desired {
    registry::resolve(&Inputs {
        snapshot,
        host,
        uplinks: &BTreeSet::new(),
        xdp_ports: &BTreeSet::new(),
        policy: &crate::config::Policy::default(),
        held: &State::default(),
        limits: Limits {
            max_machines: 8,
            max_addresses: 8,
        },
        deadline: 0,
    })
}

impl Dirs {
    /// Writes an engine's record as it is.
    fn write(&self, source: Source, record: &Value) {
        let folder = folder(&self.0.path().join("run"));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{}.json", source.name()));
        fs::write(file, record.to_string()).unwrap();
    }

    fn all(&self) -> Sources {
        let enabled = Source::DEFAULT.into_iter().filter(|source| {
            // What of these is on the machine that runs the test is not asked for.
            !matches!(source, Source::Nspawn | Source::Machined)
        });
        let (etc, run) = (self.0.path().join("etc"), self.0.path().join("run"));
        Sources::new(&etc, &run, enabled)
    }

    /// The port that `web` has, which a file declares.
    fn port_of_web(&self, file: &str, host: &Host) -> (Option<u32>, Vec<String>) {
        self.declare("web", file);
        let snapshot = self.all().read(host);
        let desired = resolve(&snapshot, host);
        let web = desired.machines.iter().find(|m| m.name == "web").unwrap();
        assert_eq!(web.ifindex.is_none(), web.state == MachineState::Waiting);
        let problems = snapshot.problems.iter().chain(&desired.problems);
        (web.ifindex, problems.map(ToString::to_string).collect())
    }
}

const DEFAULT: &str = "addresses = [\"203.0.113.9\"]\n";
const GIVEN: &str = "addresses = [\"203.0.113.9\"]\ninterface = \"ve-web\"\n";

/// What Incus is asked and says, as `Incus::machines` keeps it.
fn incus(restricted: bool, status: u32, config: Value, device: Value) -> Value {
    let said = crate::source::incus::read(
        &json!([{
            "name": "u1", "project": "acme", "type": "container", "status_code": status,
            "location": "none", "expanded_config": config,
            "expanded_devices": { "eth0": device },
        }]),
        &json!([
            { "name": "default", "config": {} },
            { "name": "acme", "config": { "restricted": restricted.to_string() } },
        ]),
    );
    serde_json::to_value(said).unwrap()
}

#[test]
fn link_that_a_user_of_incus_names_is_not_that_of_a_file() {
    let nic = json!({ "type": "nic", "nictype": "p2p", "host_name": "ve-web" });
    let noted = json!({ "volatile.eth0.host_name": "ve-web" });
    let links = host(&[(7, "ve-web")]);
    for file in [DEFAULT, GIVEN] {
        // While it starts, runs, and after its owner has taken the name out again.
        for (status, config, device) in [
            (102, json!({}), &nic),
            (102, noted.clone(), &nic),
            (103, noted.clone(), &nic),
            (
                103,
                noted.clone(),
                &json!({ "type": "nic", "nictype": "p2p" }),
            ),
        ] {
            let dirs = Dirs::new();
            dirs.write(Source::Incus, &incus(true, status, config, device.clone()));
            let (port, problems) = dirs.port_of_web(file, &links);
            assert_eq!(port, None, "{file} {status}");
            // Whoever does not ask says what is known.
            let made = status == 103;
            let known = |text: &String| {
                text.contains("container u1 of project acme, whose users may") || !made
            };
            assert!(problems.iter().any(known), "{problems:?}");
        }
        // Whoever may set up instances outside of restricted projects is root, whose
        // machine has its link all the same.
        let dirs = Dirs::new();
        let record = incus(false, 103, noted.clone(), nic.clone());
        dirs.write(Source::Incus, &record);
        let (port, _) = dirs.port_of_web(file, &links);
        assert_eq!(port, (file == GIVEN).then_some(7), "{file}");
    }
}

#[test]
fn record_of_users_whose_engine_does_not_answer_leaves_links_alone() {
    // As it was written at first, with and without a link of that name, and as it is.
    let machine = |faults: Value| {
        json!([{ "name": "u1.acme", "named_by_user": true, "origin": "container u1",
                 "addresses": [], "place": { "link": "" }, "faults": faults }])
    };
    let refused = json!([{ "field": "volatile.eth0.host_name", "remedy": "", "left_out": true,
                           "message": "ve-web is no name that Incus has made up" }]);
    for record in [
        machine(json!([])),
        machine(refused),
        json!({ "machines": [], "users": { "any": true } }),
    ] {
        for file in [DEFAULT, GIVEN] {
            let dirs = Dirs::new();
            dirs.write(Source::Incus, &record);
            let (port, _) = dirs.port_of_web(file, &host(&[(7, "ve-web")]));
            assert_eq!(port, None, "{record}");
        }
    }
    // One that says nothing can be read from says anything.
    let dirs = Dirs::new();
    dirs.write(Source::Incus, &json!("x"));
    let (port, _) = dirs.port_of_web(DEFAULT, &host(&[(7, "ve-web")]));
    assert_eq!(port, None);
}

#[test]
fn links_of_docker_libvirt_and_cni_are_not_those_of_files_by_default() {
    let links = host(&[(7, "ve-web")]);
    let machine = |name: &str, by_user: bool| {
        json!({
            "name": name, "named_by_user": by_user, "origin": format!("machine {name}"),
            "addresses": [], "place": { "link": "ve-web" },
        })
    };
    for source in [Source::Docker, Source::Libvirt] {
        let dirs = Dirs::new();
        dirs.write(source, &json!({ "machines": [machine("other", false)] }));
        let (port, problems) = dirs.port_of_web(DEFAULT, &links);
        assert_eq!(port, None, "{}", source.name());
        assert!(problems[0].contains("it is that of machine other"));
        // Root names it.
        let (port, _) = dirs.port_of_web(GIVEN, &links);
        assert_eq!(port, Some(7), "{}", source.name());
        // The file is about the engine's machine.
        dirs.write(source, &json!({ "machines": [machine("web", false)] }));
        let (port, _) = dirs.port_of_web(DEFAULT, &links);
        assert_eq!(port, Some(7), "{}", source.name());
    }

    // A pod, which users of the cluster name, by the file that the plugin writes.
    let dirs = Dirs::new();
    let folder = dirs.0.path().join("run/cni");
    fs::create_dir_all(&folder).unwrap();
    let attachment = json!({
        "network": "public", "container": "c1", "ifname": "eth0", "netns": null, "args": "",
        "path": "", "port": { "ifindex": 7, "name": "ve-web", "own": false }, "ipam": null,
        "machine": machine("ns.pod", true),
    });
    fs::write(folder.join("c1-eth0.json"), attachment.to_string()).unwrap();
    for file in [DEFAULT, GIVEN] {
        let (port, problems) = dirs.port_of_web(file, &links);
        assert_eq!(port, None);
        assert!(problems[0].contains("whose users"), "{problems:?}");
    }
}

#[test]
fn users_names_count_when_the_engine_is_not_among_the_sources() {
    let dirs = Dirs::new();
    let nic = json!({ "type": "nic", "nictype": "p2p", "host_name": "ve-web" });
    dirs.write(Source::Incus, &incus(true, 103, json!({}), nic));
    dirs.declare("web", GIVEN);
    let links = host(&[(7, "ve-web")]);
    let (etc, run) = (dirs.0.path().join("etc"), dirs.0.path().join("run"));
    let mut sources = Sources::new(&etc, &run, [Source::Files]);
    let desired = resolve(&sources.read(&links), &links);
    assert_eq!(desired.machines[0].ifindex, None);
}
