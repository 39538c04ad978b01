//! From what Incus has of its instances to machines.
//!
//! Who can set up an instance outside of restricted projects can become the host's
//! root, so that what an instance's configuration says is the administrator's word. In a
//! project with `restricted=true` it is not: there machines get addresses out of what
//! the project's own configuration allows, which only the administrator can set, and
//! the project's tenant. A guest can only read its own `user.` keys, through /dev/incus.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    fields,
    problem::Fault,
    source::{
        engine::{Machine, Named, Place, Wrong, each_sends_for_all},
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

impl Project {
    fn is_restricted(&self) -> bool {
        is_restricted(&self.config)
    }
}

fn is_restricted(project: &Config) -> bool {
    // Everything that Incus reads as true: `IsTrue` in shared/util/boolean.go.
    let value = project.get("restricted").map(|value| value.to_lowercase());
    matches!(value.as_deref(), Some("true" | "1" | "yes" | "on"))
}

/// Whether there are projects whose users are nobody on the host.
pub fn are_restricted(projects: &[Project]) -> bool {
    projects.iter().any(Project::is_restricted)
}

/// The links that are of instances in restricted projects, or would be if these ran.
///
/// A device's configuration has the name before the link is made, and what Incus notes of
/// running ones (`volatile`) only after it: an instance that starts is listed as stopped
/// until then.
pub fn named_by_users(instances: &[Instance], projects: &[Project]) -> BTreeMap<String, Named> {
    let trusted: BTreeSet<&str> = projects
        .iter()
        .filter(|project| !project.is_restricted())
        .map(|project| project.name.as_str())
        // LXD before projects, or one that lists none.
        .chain(projects.is_empty().then_some(DEFAULT))
        .collect();
    let mut links = BTreeMap::new();
    // Of a project that is not listed nothing is known.
    let theirs = instances
        .iter()
        .filter(|instance| !trusted.contains(instance.project.as_str()));
    for instance in theirs {
        let config = &instance.expanded_config;
        let mut name = |link: &str, made: bool| {
            if !link.is_empty() {
                let named = links.entry(link.to_owned()).or_insert_with(|| Named {
                    origin: origin(instance),
                    made,
                });
                if made && !named.made {
                    *named = Named {
                        origin: origin(instance),
                        made,
                    };
                }
            }
        };
        for (key, value) in config {
            let Some(key) = key.strip_prefix("volatile.") else {
                continue;
            };
            if key.ends_with(".host_name") {
                name(value, instance.status_code != STOPPED);
            } else if key.ends_with(".hwaddr") {
                by_mac(value).for_each(|link| name(&link, false));
            }
        }
        for device in instance.expanded_devices.values() {
            if let Some(link) = device.get("host_name") {
                name(link, false);
            }
            if let Some(mac) = device.get("hwaddr") {
                by_mac(mac).for_each(|link| name(&link, false));
            }
        }
    }
    links
}

/// What a link is called with `instances.nic.host_name=mac`.
fn by_mac(mac: &str) -> impl Iterator<Item = String> {
    let digits = mac.to_lowercase().replace(':', "");
    ["inc", "lxd"]
        .into_iter()
        .map(move |kind| format!("{kind}{digits}"))
}

/// What an instance is called in messages.
fn origin(instance: &Instance) -> String {
    match instance.project.as_str() {
        DEFAULT => format!("{} {}", instance.kind, instance.name),
        project => format!("{} {} of project {project}", instance.kind, instance.name),
    }
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
    reason = "this parses text or bytes; no system call can fail here"
)]
fn of_instance(instance: &Instance, project: &Config) -> Vec<Machine> {
    let restricted = is_restricted(project);
    let mut faults = Vec::new();
    let tenant = tenant(instance, project, restricted, &mut faults);
    let mut name = instance.name.clone();
    let origin = origin(instance);
    if instance.project != DEFAULT {
        name += &format!(".{}", instance.project);
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
    reason = "this parses text or bytes; no system call can fail here"
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
    reason = "this parses text or bytes; no system call can fail here"
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
    use proptest::{prop_assert, proptest};
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
    fn links_that_users_may_have_named_are_known_before_they_are_made() {
        let nic = json!({ "eth0": {
            "type": "nic", "nictype": "p2p", "host_name": "ve-web", "hwaddr": "10:66:6A:00:00:0a",
        } });
        let projects = [
            project("p", json!({ "restricted": "true" })),
            project("open", json!({})),
        ];
        let of = |name: &str, project: &str, status: u32, config: Value, devices: &Value| {
            let mut instance = instance(name, project, json!({}), devices.clone());
            instance.expanded_config = serde_json::from_value(config).unwrap();
            instance.status_code = status;
            instance
        };
        let noted = |link: &str| json!({ "volatile.eth0.host_name": link });
        let named = |instances: &[Instance]| -> Vec<(String, bool)> {
            let links = named_by_users(instances, &projects);
            let links = links.into_iter();
            links.map(|(link, named)| (link, named.made)).collect()
        };
        let by_mac = [
            ("inc10666a00000a".to_owned(), false),
            ("lxd10666a00000a".to_owned(), false),
        ];
        let link = |name: &str, made: bool| (name.to_owned(), made);
        // Asked for; noted while it starts; made.
        for (config, status, made) in [
            (json!({}), STOPPED, false),
            (noted("ve-web"), STOPPED, false),
            (noted("ve-web"), 103, true),
        ] {
            let links = named(&[of("a", "p", status, config, &nic)]);
            assert_eq!(links[..2], by_mac);
            assert_eq!(links[2..], [link("ve-web", made)]);
        }
        // A made-up name is a user's, too; one that another asks for is whose it is.
        let random = [
            of("a", "p", 103, noted("veth0123abcd"), &json!({})),
            of(
                "b",
                "p",
                STOPPED,
                json!({}),
                &json!({ "eth0": { "host_name": "veth0123abcd" } }),
            ),
        ];
        assert_eq!(named(&random), [link("veth0123abcd", true)]);
        assert_eq!(
            named_by_users(&random, &projects)["veth0123abcd"].origin,
            "container a of project p"
        );
        // Those outside are root; a project that is not listed may be anything.
        assert_eq!(named(&[of("a", "open", 103, noted("ve-web"), &nic)]), []);
        assert_eq!(
            named(&[of("a", "new", 103, noted("x"), &json!({}))]),
            [link("x", true)]
        );
        // Before there were projects.
        let all = named_by_users(&[of("a", DEFAULT, 103, noted("x"), &json!({}))], &[]);
        assert_eq!(all, BTreeMap::new());
    }

    #[test]
    fn project_is_restricted_by_whatever_incus_reads_as_true() {
        for value in ["true", "True", "1", "yes", "on", "ON"] {
            let restricted = project("p", json!({ "restricted": value }));
            assert!(are_restricted(std::slice::from_ref(&restricted)), "{value}");
            let own = json!({ TENANT: "acme" });
            let machines = machines(&[instance("a", "p", own, routed())], &[restricted]);
            assert!(machines[0].addresses.is_empty(), "{value}");
            assert!(machines[0].named_by_user && machines[0].tenant.is_none());
        }
        for value in ["false", "0", "no", "off", ""] {
            assert!(!are_restricted(&[project(
                "p",
                json!({ "restricted": value })
            )]));
        }
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

    proptest! {
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
                let (instances, projects) = ([instance], [project]);
                let machines = machines(&instances, &projects);
                let links = named_by_users(&instances, &projects);
                // Whatever is served for a user has a link that is known as one.
                for machine in machines.iter().filter(|machine| machine.named_by_user) {
                    if let Place::Link(link) = &machine.place {
                        prop_assert!(link.is_empty() || links[link].made);
                    }
                }
            }
        }
    }
}
