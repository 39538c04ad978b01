//! From what Incus has of its instances to machines.
//!
//! Who can set up an instance outside of restricted projects can become the host's
//! root, so that what an instance's configuration says is the administrator's word. In a
//! project with `restricted=true` it is not: there machines get addresses out of what
//! the project's own configuration allows, which only the administrator can set, and
//! the project's tenant. A guest can only read its own `user.` keys, through /dev/incus.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    fields,
    problem::Fault,
    source::{
        engine::{Machine, Place, Wrong, each_sends_for_all},
        kernel::is_private,
    },
};

/// Key of an instance, of its network devices and of projects.
const ADDRESSES: &str = "user.netspawn.addresses";
/// Key of an instance and of projects.
const TENANT: &str = "user.netspawn.tenant";
/// The project that is always there, whose name instances go without.
const DEFAULT: &str = "default";
/// Code of the state of an instance that does not run.
const STOPPED: u32 = 102;

type Config = BTreeMap<String, String>;

/// An instance, as far as it matters, with what it has through profiles.
#[derive(Debug, Deserialize)]
pub struct Instance {
    name: String,
    /// LXD before 4.0 has no projects in lists.
    #[serde(default = "default_project")]
    project: String,
    #[serde(rename = "type")]
    kind: String,
    status_code: u32,
    location: String,
    expanded_config: Config,
    expanded_devices: BTreeMap<String, Config>,
}

fn default_project() -> String {
    DEFAULT.to_owned()
}

impl Instance {
    /// Whether it is of that member of the cluster, or of a server that is in none.
    pub fn is_of(&self, member: Option<&str>) -> bool {
        member.is_none_or(|member| self.location == member)
    }
}

/// A project, as far as it matters.
#[derive(Debug, Deserialize)]
pub struct Project {
    name: String,
    config: Config,
}

/// The machines that these instances are.
pub fn machines(instances: &[Instance], projects: &[Project]) -> Vec<Machine> {
    let projects: BTreeMap<&str, &Config> = projects
        .iter()
        .map(|project| (project.name.as_str(), &project.config))
        .collect();
    let nothing = Config::new();
    let mut running: Vec<&Instance> = instances
        .iter()
        .filter(|instance| instance.status_code != STOPPED)
        .collect();
    // Those of the default project come first where names are the same.
    running.sort_by_key(|instance| {
        let project = instance.project.as_str();
        (project != DEFAULT, project, instance.name.as_str())
    });
    let mut machines = Vec::new();
    for instance in running {
        // One that was made since projects were listed is looked at again at once.
        let Some(project) = projects
            .get(instance.project.as_str())
            .copied()
            .or_else(|| (instance.project == DEFAULT).then_some(&nothing))
        else {
            continue;
        };
        machines.extend(of_instance(instance, project));
    }
    machines
}

#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read as one is none; the kernel is not asked"
)]
fn of_instance(instance: &Instance, project: &Config) -> Vec<Machine> {
    let restricted = project.get("restricted").map(String::as_str) == Some("true");
    let mut faults = Vec::new();
    let tenant = tenant(instance, project, restricted, &mut faults);
    let mut name = instance.name.clone();
    let mut origin = format!("{} {}", instance.kind, instance.name);
    if instance.project != DEFAULT {
        name += &format!(".{}", instance.project);
        origin += &format!(" of project {}", instance.project);
    }
    let mut machines: Vec<Machine> = Vec::new();
    for (nic, device) in &instance.expanded_devices {
        let volatile = |key: &str| {
            instance
                .expanded_config
                .get(&format!("volatile.{nic}.{key}"))
        };
        // Without a link on the host, as with macvlan, or not yet.
        let (Some("nic"), Some(link)) = (
            device.get("type").map(String::as_str),
            volatile("host_name"),
        ) else {
            continue;
        };
        let first = machines.is_empty();
        let mut machine = Machine {
            name: match first {
                true => name.clone(),
                false => format!("{name}.{nic}"),
            },
            named_by_user: restricted,
            origin: origin.clone(),
            addresses: Vec::new(),
            sources: Vec::new(),
            tenant: tenant.clone(),
            // A container's is read from its end of the link.
            mac: device
                .get("hwaddr")
                .or_else(|| volatile("hwaddr"))
                .filter(|_| instance.kind != "container")
                .and_then(|mac| fields::mac(mac).ok()),
            place: Place::Link(link.clone()),
            faults: faults.clone(),
        };
        let own = instance.expanded_config.get(ADDRESSES);
        machine.addresses = addresses(device, own.filter(|_| first), &mut machine.faults);
        if restricted {
            confine(&mut machine, nic, link, &instance.project, project);
        }
        machines.push(machine);
    }
    each_sends_for_all(&mut machines);
    machines
}

/// The instance's tenant, else its project's; in a restricted project the project's.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read as one is none; the kernel is not asked"
)]
fn tenant(
    instance: &Instance,
    project: &Config,
    restricted: bool,
    faults: &mut Vec<Wrong>,
) -> Option<String> {
    let own = instance.expanded_config.get(TENANT);
    let of_project = project.get(TENANT);
    let tenant = if restricted {
        if own.is_some() && own != of_project {
            let fault = Fault::new(
                format!("project {} is restricted", instance.project),
                format!(
                    "set the tenant of all of it: incus project set {} {TENANT}=TENANT",
                    instance.project
                ),
            );
            faults.push(Wrong::left_out(TENANT, fault));
        }
        of_project
    } else {
        own.or(of_project)
    };
    let checked = fields::tenant(tenant?);
    checked
        .map_err(|fault| faults.push(Wrong::new(TENANT, fault)))
        .ok()
}

/// What a network device's configuration gives its machine. Keys of ours replace Incus'
/// own.
fn addresses(device: &Config, of_instance: Option<&String>, faults: &mut Vec<Wrong>) -> Vec<IpNet> {
    if let Some(list) = device.get(ADDRESSES).or(of_instance) {
        return prefixes(ADDRESSES, list, faults);
    }
    let keys: &[&str] = match device.get("nictype").map(String::as_str) {
        Some("routed") => &["ipv4.address", "ipv6.address", "ipv4.routes", "ipv6.routes"],
        Some("p2p") => &["ipv4.routes", "ipv6.routes"],
        // Served by its bridge.
        _ => &[],
    };
    // Incus answers for all of them in the parent's network. Without one, private
    // addresses are as a rule behind NAT.
    let announced = device.contains_key("parent");
    let mut addresses = Vec::new();
    for key in keys {
        let list = device.get(*key).map_or("", String::as_str);
        for prefix in prefixes(key, list, faults) {
            if (announced || !is_private(&prefix)) && !addresses.contains(&prefix) {
                addresses.push(prefix);
            }
        }
    }
    addresses
}

/// A list with commas or blanks between.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read as one is none; the kernel is not asked"
)]
fn prefixes(key: &str, list: &str, faults: &mut Vec<Wrong>) -> Vec<IpNet> {
    list.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|text| !matches!(*text, "" | "none"))
        .filter_map(|text| {
            fields::prefix(text)
                .map_err(|fault| faults.push(Wrong::new(key, fault)))
                .ok()
        })
        .collect()
}

/// Takes from a machine of a restricted project what its users can write and may not
/// have.
fn confine(machine: &mut Machine, nic: &str, link: &str, name: &str, project: &Config) {
    // A mistake of theirs must not keep what the project has lost.
    for wrong in &mut machine.faults {
        wrong.left_out = true;
    }
    let mut faults = Vec::new();
    let list = project.get(ADDRESSES).map_or("", String::as_str);
    let allowed = prefixes(&format!("project {name} {ADDRESSES}"), list, &mut faults);
    machine.addresses.retain(|prefix| {
        let may = allowed.iter().any(|allowed| allowed.contains(prefix));
        if !may {
            let fault = Fault::new(
                format!(
                    "{prefix} is not among the addresses of project {name}, which is restricted"
                ),
                format!("allow it: incus project set {name} {ADDRESSES}=PREFIX,PREFIX"),
            );
            faults.push(Wrong::left_out("addresses", fault));
        }
        may
    });
    // They can name any link here, but do not know the random names of others'.
    if !is_random(link) {
        machine.place = Place::Link(String::new());
        let fault = Fault::new(
            format!("{link} is no name that Incus has made up, and project {name} is restricted"),
            "remove `host_name` from the device, and start the instance again",
        );
        let field = format!("volatile.{nic}.host_name");
        faults.push(Wrong::left_out(&field, fault));
    }
    machine.faults.append(&mut faults);
}

/// Whether it is a link's name of the kind that Incus makes up: `RandomDevName` in
/// internal/server/network/network_utils.go.
fn is_random(link: &str) -> bool {
    ["veth", "tap"]
        .iter()
        .filter_map(|kind| link.strip_prefix(kind))
        .any(|rest| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn instance(name: &str, project: &str, config: Value, devices: Value) -> Instance {
        let mut all = json!({
            "volatile.eth0.host_name": "veth0123abcd",
            "volatile.eth0.hwaddr": "10:66:6a:00:00:01",
            "volatile.eth1.host_name": "veth0123abce",
        });
        let all_of = all.as_object_mut().unwrap();
        all_of.extend(config.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "name": name, "project": project, "type": "container", "status_code": 103,
            "location": "none", "expanded_config": all, "expanded_devices": devices,
        }))
        .unwrap()
    }

    fn project(name: &str, config: Value) -> Project {
        serde_json::from_value(json!({ "name": name, "config": config })).unwrap()
    }

    fn addresses(machine: &Machine) -> Vec<String> {
        machine.addresses.iter().map(IpNet::to_string).collect()
    }

    fn routed() -> Value {
        json!({
            "eth0": {
                "type": "nic", "nictype": "routed", "parent": "eth0",
                "ipv4.address": "203.0.113.9,10.0.0.9", "ipv6.address": "none",
                "ipv6.routes": "2001:db8:1::/64",
            },
            "root": { "type": "disk" },
        })
    }

    #[test]
    fn routed_and_p2p_have_what_incus_gives_them() {
        let p2p = json!({
            "eth0": { "type": "nic", "nictype": "p2p", "ipv4.routes": "203.0.113.8/31,10.0.0.9" },
            "eth1": { "type": "nic", "network": "incusbr0", "ipv4.address": "203.0.113.7" },
            "eth2": { "type": "nic", "nictype": "macvlan" },
        });
        let machines = machines(
            &[
                instance("web", "default", json!({}), routed()),
                instance("db", "default", json!({}), p2p),
            ],
            &[],
        );
        let names: Vec<&str> = machines
            .iter()
            .map(|machine| machine.name.as_str())
            .collect();
        assert_eq!(names, ["db", "db.eth1", "web"]);
        assert_eq!(addresses(&machines[0]), ["203.0.113.8/31"]);
        assert!(machines[1].addresses.is_empty());
        assert_eq!(machines[1].sources, machines[0].addresses);
        assert_eq!(
            addresses(&machines[2]),
            ["203.0.113.9/32", "10.0.0.9/32", "2001:db8:1::/64"]
        );
        assert_eq!(machines[2].place, Place::Link("veth0123abcd".to_owned()));
        assert!(machines.iter().all(|machine| machine.faults.is_empty()));
    }

    #[test]
    fn keys_of_ours_replace_and_tenants_come_from_the_instance_first() {
        let devices = json!({
            "eth0": { "type": "nic", "network": "incusbr0" },
            "eth1": { "type": "nic", "network": "b", "user.netspawn.addresses": "203.0.113.4" },
        });
        let config = json!({ ADDRESSES: "203.0.113.2, 2001:db8::2", TENANT: "acme" });
        let projects = [project("p", json!({ TENANT: "p" }))];
        let both = [
            instance("web", "p", config, devices.clone()),
            instance("x", "p", json!({}), devices),
        ];
        let machines = machines(&both, &projects);
        assert_eq!(machines[0].name, "web.p");
        assert_eq!(
            addresses(&machines[0]),
            ["203.0.113.2/32", "2001:db8::2/128"]
        );
        assert_eq!(machines[1].name, "web.p.eth1");
        assert_eq!(addresses(&machines[1]), ["203.0.113.4/32"]);
        let tenants: Vec<_> = machines.iter().map(|m| m.tenant.as_deref()).collect();
        assert_eq!(tenants, [Some("acme"), Some("acme"), Some("p"), Some("p")]);
    }

    #[test]
    fn restricted_projects_have_what_the_project_allows() {
        let config = json!({ "restricted": "true", ADDRESSES: "203.0.113.0/28", TENANT: "p" });
        let projects = [project("p", config)];
        let own = json!({ TENANT: "acme", "volatile.eth0.host_name": "ve-victim" });
        let both = [
            instance("a", "p", json!({}), routed()),
            instance("b", "p", own, routed()),
        ];
        let machines = machines(&both, &projects);
        for machine in &machines {
            assert_eq!(addresses(machine), ["203.0.113.9/32"]);
            assert_eq!(machine.tenant.as_deref(), Some("p"));
            assert!(machine.faults.iter().all(|wrong| wrong.left_out));
        }
        assert_eq!(machines[0].place, Place::Link("veth0123abcd".to_owned()));
        assert_eq!(machines[1].place, Place::Link(String::new()));
        let fields: Vec<&str> = machines[1]
            .faults
            .iter()
            .map(|w| w.field.as_str())
            .collect();
        let expected = [TENANT, "addresses", "addresses", "volatile.eth0.host_name"];
        assert_eq!(fields, expected);
    }

    #[test]
    fn what_does_not_run_is_elsewhere_or_is_wrong() {
        let mut stopped = instance("web", "default", json!({}), routed());
        stopped.status_code = STOPPED;
        assert!(machines(&[stopped], &[]).is_empty());
        let there = instance("web", "default", json!({}), routed());
        assert!(there.is_of(None) && there.is_of(Some("none")) && !there.is_of(Some("b")));
        let config = json!({ ADDRESSES: "203.0.113.300", TENANT: "" });
        let wrong = machines(&[instance("web", "default", config, routed())], &[]);
        let fields: Vec<&str> = wrong[0].faults.iter().map(|w| w.field.as_str()).collect();
        assert_eq!(fields, [TENANT, ADDRESSES]);
    }

    proptest::proptest! {
        #[test]
        fn anything_is_read_without_panic(
            instance in crate::mangled::json(json!({
                "name": "web", "project": "acme", "type": "container", "status_code": 103,
                "location": "none",
                "expanded_config": {
                    "user.netspawn.addresses": "203.0.113.17",
                    "user.netspawn.tenant": "acme",
                    "volatile.eth0.host_name": "veth0123abcd",
                    "volatile.eth0.hwaddr": "10:66:6a:00:00:01",
                },
                "expanded_devices": routed(),
            })),
            project in crate::mangled::json(json!({
                "name": "acme",
                "config": {
                    "restricted": "true",
                    "user.netspawn.addresses": "203.0.113.16/28,2001:db8:1::/64",
                },
            })),
        ) {
            if let (Ok(instance), Ok(project)) =
                (serde_json::from_value(instance), serde_json::from_value(project))
            {
                let _ = machines(&[instance], &[project]);
            }
        }
    }
}
