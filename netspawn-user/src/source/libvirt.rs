//! Virtual machines of libvirt's QEMU driver, from the files in which libvirt itself
//! keeps what runs.
//!
//! libvirt writes `NAME.xml` when a domain starts and anew at each change of the running
//! domain, such as `virsh metadata --live` or `virsh attach-device`, by renaming a
//! complete file; it removes the file when the domain stops (`virDomainObjSave` in
//! src/conf/domain_conf.c, `qemuProcessRemoveDomainStatus` in src/qemu/qemu_process.c).
//! So machines are known without libvirt's own protocol, and while its daemon is down.
//!
//! This is the smallest engine, and the example in `docs/adding-an-engine.md`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;
use roxmltree::{Document, Node};

use super::{
    Source, Watcher,
    engine::{Engine, Listed, Machine, Place, Wrong, each_sends_for_all},
    kernel::is_private,
};
use crate::{
    fields, gone,
    problem::{Fault, did_you_mean},
};

/// The driver's `stateDir`.
const FOLDER: &str = "/run/libvirt/qemu";
/// XML namespace of what an administrator writes into a domain's metadata.
const NAMESPACE: &str = "urn:netspawn:libvirt:1";

/// The folder, while it is there.
pub struct Libvirt(Watcher);

impl Engine for Libvirt {
    const SOURCE: Source = Source::Libvirt;

    async fn open() -> Result<Self> {
        // One that is not there says `NotFound`: libvirt is not installed or was never
        // started.
        fs::metadata(FOLDER)?;
        Ok(Libvirt(Watcher::new([FOLDER.into()])?))
    }

    async fn machines(&mut self) -> Result<Listed> {
        let mut machines: Vec<Machine> = Vec::new();
        let folder = gone::list(Path::new(FOLDER))?;
        for entry in folder.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))? {
            let path = entry.path();
            if path.extension() != Some(OsStr::new("xml")) {
                continue;
            }
            // With an error all machines stay as they are until the next attempt.
            let of_file = || format!("cannot read {}", path.display());
            if let Some(text) = status(&path).with_context(of_file)? {
                machines.extend(domain(&text).with_context(of_file)?);
            }
        }
        // The folder's order is none, and what is kept is compared.
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(machines.into())
    }

    async fn changed(&mut self) -> Result<()> {
        Ok(self.0.changed().await?)
    }
}

/// The text of a status file; `None` when the domain has stopped meanwhile, or when
/// another than root may have written it: the folder belongs to the user that runs
/// QEMU, and a guest that has broken out of it must not get addresses.
fn status(path: &Path) -> io::Result<Option<String>> {
    let mut options = File::options();
    // A link is not followed, and a pipe is not waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = match options.read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Ok(foreign(path)),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Ok(foreign(path));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(Some(text))
}

fn foreign(path: &Path) -> Option<String> {
    tracing::warn!(
        "{} is left out: it is no file that root alone can write, as libvirt's are",
        path.display()
    );
    None
}

/// The machines in a status file: one for each interface of the domain that has a link
/// on the host.
fn domain(text: &str) -> Result<Vec<Machine>, roxmltree::Error> {
    let document = Document::parse(text)?;
    let root = document.root_element();
    let Some(domain) = child(root, "domain") else {
        return Ok(Vec::new());
    };
    let name = child(domain, "name").and_then(|name| name.text());
    let name = name.unwrap_or_default();
    let mut said = Said::default();
    if let Some(metadata) = child(domain, "metadata") {
        for node in children(metadata, "machine") {
            said.read(node, None);
        }
    }
    let interfaces: Vec<Node> = child(domain, "devices")
        .into_iter()
        .flat_map(|devices| devices.children())
        .filter(|node| node.has_tag_name("interface"))
        .collect();
    said.unknown(&interfaces);
    let mut machines: Vec<Machine> = Vec::new();
    for interface in &interfaces {
        // Without a link on the host, as with a card that is passed through, or not yet.
        let Some(link) = child(*interface, "target").and_then(|node| node.attribute("dev")) else {
            continue;
        };
        let mac = mac_of(*interface);
        let alias = child(*interface, "alias").and_then(|node| node.attribute("name"));
        let first = machines.is_empty();
        let mut addresses = said.addresses(mac, first);
        if addresses.is_empty() {
            addresses = filtered(*interface, &mut said.faults);
        }
        machines.push(Machine {
            name: match alias {
                Some(alias) if !first => format!("{name}.{alias}"),
                _ => name.to_owned(),
            },
            named_by_user: false,
            origin: format!("domain {name}"),
            addresses,
            sources: Vec::new(),
            tenant: said.tenant.clone(),
            mac,
            place: Place::Link(link.to_owned()),
            faults: Vec::new(),
        });
    }
    each_sends_for_all(&mut machines);
    // Of which interface something is wrong is not always known.
    for machine in &mut machines {
        machine.faults.clone_from(&said.faults);
    }
    Ok(machines)
}

/// What the metadata says:
///
/// ```xml
/// <machine xmlns="urn:netspawn:libvirt:1" tenant="acme">
///   <address>203.0.113.9</address>
///   <interface mac="52:54:00:00:00:02"><address>203.0.113.10</address></interface>
/// </machine>
/// ```
///
/// Addresses beside interfaces are those of the first one that has a link.
#[derive(Default)]
struct Said {
    tenant: Option<String>,
    addresses: Vec<(Option<Mac>, IpNet)>,
    faults: Vec<Wrong>,
}

impl Said {
    fn read(&mut self, node: Node, of: Option<Mac>) {
        if let (None, Some(tenant)) = (of, node.attribute("tenant")) {
            match fields::tenant(tenant) {
                Ok(tenant) => self.tenant = Some(tenant),
                Err(fault) => self.wrong("machine tenant", fault),
            }
        }
        for inner in node.children().filter(Node::is_element) {
            match inner.tag_name().name() {
                "address" => match fields::prefix(inner.text().unwrap_or_default().trim()) {
                    Ok(prefix) => self.addresses.push((of, prefix)),
                    Err(fault) => self.wrong("address", fault),
                },
                "interface" if of.is_none() => {
                    match fields::mac(inner.attribute("mac").unwrap_or_default()) {
                        Ok(mac) => self.read(inner, Some(mac)),
                        Err(fault) => self.wrong("interface mac", fault),
                    }
                }
                other => self.wrong(
                    other,
                    Fault::new(
                        format!("<{other}> is not known here"),
                        did_you_mean(other, &["address", "interface"]),
                    ),
                ),
            }
        }
    }

    fn wrong(&mut self, element: &str, fault: Fault) {
        self.faults.push(Wrong::new(&in_metadata(element), fault));
    }

    /// Addresses of interfaces that the domain does not have.
    fn unknown(&mut self, interfaces: &[Node]) {
        let macs: Vec<Mac> = interfaces.iter().filter_map(|node| mac_of(*node)).collect();
        for (mac, prefix) in &self.addresses {
            if mac.is_some_and(|mac| !macs.contains(&mac)) {
                self.faults.push(Wrong::left_out(
                    &in_metadata("interface mac"),
                    Fault::new(
                        format!("the domain has no interface for {prefix}"),
                        "write the MAC address that `virsh domiflist` shows",
                    ),
                ));
            }
        }
    }

    fn addresses(&self, mac: Option<Mac>, first: bool) -> Vec<IpNet> {
        let mine = |of: &Option<Mac>| of.map_or(first, |of| Some(of) == mac);
        let mine = self.addresses.iter().filter(|(of, _)| mine(of));
        mine.map(|(_, prefix)| *prefix).collect()
    }
}

fn in_metadata(element: &str) -> String {
    format!("metadata {{{NAMESPACE}}}{element}")
}

/// What the interface's filter lets the machine send from, as `clean-traffic` has it.
/// Only of a tap that is in no bridge, and not of private addresses: those of others are
/// as a rule served by a bridge, or behind NAT.
fn filtered(interface: Node, faults: &mut Vec<Wrong>) -> Vec<IpNet> {
    let mut addresses = Vec::new();
    let filter = match interface.attribute("type") {
        Some("ethernet") => child(interface, "filterref"),
        _ => None,
    };
    for parameter in filter.into_iter().flat_map(|filter| filter.children()) {
        let Some(name @ ("IP" | "IPV6")) = parameter.attribute("name") else {
            continue;
        };
        match fields::prefix(parameter.attribute("value").unwrap_or_default()) {
            Ok(prefix) if is_private(&prefix) => {}
            Ok(prefix) => addresses.push(prefix),
            Err(fault) => faults.push(Wrong::new(&format!("filterref {name}"), fault)),
        }
    }
    addresses
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn mac_of(interface: Node) -> Option<Mac> {
    fields::mac(child(interface, "mac")?.attribute("address")?).ok()
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|node| node.has_tag_name(name))
}

/// Elements of the metadata's namespace.
fn children<'a>(node: Node<'a, 'a>, name: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    node.children()
        .filter(move |node| node.has_tag_name((NAMESPACE, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERFACES: &str = "<interface type='ethernet'><mac address='52:54:00:00:00:01'/>
        <target dev='tap-a'/><alias name='net0'/></interface>
        <interface type='bridge'><mac address='52:54:00:00:00:02'/>
        <target dev='vnet1'/><alias name='net1'/></interface>
        <interface type='hostdev'><mac address='52:54:00:00:00:03'/></interface>";

    fn machines(metadata: &str, interfaces: &str) -> Vec<Machine> {
        domain(&format!(
            "<!-- written by libvirt --><domstatus state='running' pid='7'><domain type='qemu'>
             <name>web</name><metadata>{metadata}</metadata><devices>{interfaces}</devices>
             </domain></domstatus>"
        ))
        .unwrap()
    }

    fn addresses(machine: &Machine) -> Vec<String> {
        machine.addresses.iter().map(IpNet::to_string).collect()
    }

    #[test]
    fn addresses_are_of_the_first_interface_or_of_the_one_named() {
        let metadata = "<other xmlns='urn:x'/><n:machine xmlns:n='urn:netspawn:libvirt:1'
            tenant='acme'><n:address> 203.0.113.9 </n:address><n:address>2001:db8:1::/64</n:address>
            <n:interface mac='52:54:00:00:00:02'><n:address>203.0.113.10</n:address></n:interface>
            </n:machine>";
        let machines = machines(metadata, INTERFACES);
        assert_eq!(machines.len(), 2, "{machines:?}");
        assert_eq!(machines[0].name, "web");
        assert_eq!(
            addresses(&machines[0]),
            ["203.0.113.9/32", "2001:db8:1::/64"]
        );
        assert_eq!(machines[0].place, Place::Link("tap-a".to_owned()));
        assert_eq!(machines[0].mac, Some([0x52, 0x54, 0, 0, 0, 1]));
        assert_eq!(machines[1].name, "web.net1");
        assert_eq!(addresses(&machines[1]), ["203.0.113.10/32"]);
        for machine in &machines {
            assert_eq!(machine.tenant.as_deref(), Some("acme"));
            assert!(machine.faults.is_empty(), "{machine:?}");
        }
    }

    #[test]
    fn filters_count_where_nothing_else_serves_the_tap() {
        let of = |kind: &str| {
            let filter = "<filterref filter='clean-traffic'><parameter name='IP' \
                          value='203.0.113.9'/><parameter name='IP' value='10.0.0.9'/><parameter \
                          name='IPV6' value='2001:db8::9'/><parameter name='MAC' \
                          value='x'/></filterref>";
            let interface =
                format!("<interface type='{kind}'><target dev='tap-a'/>{filter}</interface>");
            addresses(&machines("", &interface)[0])
        };
        assert_eq!(of("ethernet"), ["203.0.113.9/32", "2001:db8::9/128"]);
        assert!(of("network").is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (inner, field, message) in [
            ("<address>203.0.113.300</address>", "address", "neither"),
            ("<adress>203.0.113.3</adress>", "adress", "not known"),
            ("<interface mac='x'/>", "interface mac", "not a MAC"),
            (
                "<interface mac='52:54:00:00:00:09'><address>203.0.113.3</address></interface>",
                "interface mac",
                "no interface for 203.0.113.3",
            ),
        ] {
            let metadata = format!("<machine xmlns='{NAMESPACE}'>{inner}</machine>");
            let machines = machines(&metadata, INTERFACES);
            let wrong = &machines[0].faults[0];
            assert_eq!(
                wrong.field,
                format!("metadata {{urn:netspawn:libvirt:1}}{field}")
            );
            assert!(wrong.message.contains(message), "{wrong:?}");
        }
        let empty = format!("<machine xmlns='{NAMESPACE}' tenant=''/>");
        assert_eq!(machines(&empty, INTERFACES)[0].faults.len(), 1);
    }

    #[test]
    fn files_of_others_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.xml");
        assert_eq!(status(&path).unwrap(), None);
        fs::write(&path, "text").unwrap();
        let mode = |mode| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(&path, permissions).unwrap();
        };
        mode(0o600);
        let root = nix::unistd::getuid().is_root();
        assert_eq!(status(&path).unwrap().is_some(), root);
        mode(0o620);
        assert_eq!(status(&path).unwrap(), None);
        let link = folder.path().join("link.xml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        mode(0o600);
        assert_eq!(status(&link).unwrap(), None);
    }

    fn whole() -> String {
        format!(
            "<domstatus state='running'><domain><name>web&amp;</name><metadata>
             <machine xmlns='urn:netspawn:libvirt:1' tenant='acme'><address>203.0.113.9</address>
             <interface mac='52:54:00:00:00:02'><address>::1</address></interface></machine>
             </metadata><devices>{INTERFACES}<interface type='ethernet'><target dev='tap-b'/>
             <filterref filter='clean-traffic'><parameter name='IP' value='203.0.113.7'/>
             </filterref></interface></devices></domain></domstatus>"
        )
    }

    proptest::proptest! {
        #[test]
        fn anything_is_read_without_panic(text in crate::mangled::text(&whole())) {
            proptest::prop_assert_eq!(domain(&whole()).unwrap().len(), 3);
            let _ = domain(&text);
        }
    }
}
