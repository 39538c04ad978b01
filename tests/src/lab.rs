//! Network, host and machines as namespaces.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_ebpf::abi;
use serde_json::{Value, json};

use crate::{
    cmd::{Cmd, Output},
    ns::{Ns, forget},
    workdir::Workdir,
};

/// The uplink's name in the host.
pub const UPLINK: &str = "eth0";
/// The interface of the network's gateway that faces the host.
pub const LAN: &str = "lan0";
/// The machines' own interface.
pub const HOST0: &str = "host0";

/// Address of the gateway on the uplink's network.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Address of the gateway on the uplink's network.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The host's address.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The host's address.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// An address beyond the gateway, reached over the default route only.
pub const FAR4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// An address beyond the gateway, reached over the default route only.
pub const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
/// The prefix delegated to `web`.
pub const DELEGATED: &str = "2001:db8:1::/64";
/// An address of that prefix, like any other.
pub const INSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0x12, 0x34, 0x56, 0x78);

/// A machine to be raised.
#[derive(Clone, Debug)]
pub struct Spec {
    name: String,
    addresses: Vec<String>,
    tenant: Option<String>,
    port: String,
    declared: bool,
    linked: bool,
}

impl Spec {
    /// A machine with a port `ve-NAME` and no address yet.
    pub fn new(name: &str) -> Self {
        Spec {
            name: name.to_owned(),
            addresses: Vec::new(),
            tenant: None,
            port: format!("ve-{name}"),
            declared: true,
            linked: true,
        }
    }

    /// An address, or a prefix within which the machine answers for every address.
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Its tenant.
    pub fn tenant(mut self, tenant: &str) -> Self {
        self.tenant = Some(tenant.to_owned());
        self
    }

    /// Another name for its port, which its declaration then carries.
    pub fn port(mut self, port: &str) -> Self {
        port.clone_into(&mut self.port);
        self
    }

    /// Nothing is written to the configuration.
    pub fn undeclared(mut self) -> Self {
        self.declared = false;
        self
    }

    /// Its link is made later, by [`Lab::plug`].
    pub fn unplugged(mut self) -> Self {
        self.linked = false;
        self
    }
}

/// How the outside finds delegated prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delegation {
    /// The gateway solicits each address on its link.
    OnLink,
    /// The gateway routes the prefix to the host's address.
    ViaHost,
}

/// What the lab will be like; see [`Lab::builder`].
pub struct Builder {
    machines: Vec<Spec>,
    uplink_mtu: u32,
    port_mtu: u32,
    rp_filter: u8,
    delegation: Delegation,
}

impl Builder {
    /// Adds a machine.
    pub fn machine(mut self, spec: Spec) -> Self {
        self.machines.push(spec);
        self
    }

    /// Adds the three usual machines: `web` 203.0.113.2, 2001:db8::2 and the delegated
    /// 2001:db8:1::/64; `db` 203.0.113.3, 2001:db8::3; `mail` 203.0.113.4, 2001:db8::4.
    pub fn usual_machines(self) -> Self {
        self.machine(
            Spec::new("web")
                .address("203.0.113.2")
                .address("2001:db8::2")
                .address(DELEGATED),
        )
        .machine(
            Spec::new("db")
                .address("203.0.113.3")
                .address("2001:db8::3"),
        )
        .machine(
            Spec::new("mail")
                .address("203.0.113.4")
                .address("2001:db8::4"),
        )
    }

    /// MTU of the uplink and of the gateway's end, 1,500 otherwise.
    pub fn uplink_mtu(mut self, mtu: u32) -> Self {
        self.uplink_mtu = mtu;
        self
    }

    /// MTU of ports and of the machines' ends, 1,500 otherwise.
    pub fn port_mtu(mut self, mtu: u32) -> Self {
        self.port_mtu = mtu;
        self
    }

    /// The host's rp_filter: 0 (otherwise), 1 strict, 2 loose.
    pub fn rp_filter(mut self, rp_filter: u8) -> Self {
        self.rp_filter = rp_filter;
        self
    }

    /// How the outside finds delegated prefixes; on its link otherwise.
    pub fn delegation(mut self, delegation: Delegation) -> Self {
        self.delegation = delegation;
        self
    }

    /// Raises the lab.
    pub fn build(self) -> Result<Lab> {
        Lab::raise(self, Workdir::new()?)
    }

    /// Raises the lab in a new folder of that path.
    pub fn build_at(self, path: &Path) -> Result<Lab> {
        Lab::raise(self, Workdir::at(path)?)
    }
}

/// A raised lab; it goes when the value is dropped.
pub struct Lab {
    /// The outside: the gateway and neighbor, a kernel of its own.
    pub net: Ns,
    /// The host, whose uplink is [`UPLINK`].
    pub host: Ns,
    machines: Vec<Machine>,
    port_mtu: u32,
    // Last: what is mounted in it goes after the namespaces.
    dir: Workdir,
}

/// A raised machine.
pub struct Machine {
    /// Where it lives.
    pub ns: Ns,
    spec: Spec,
}

impl Machine {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The host's side of its link.
    pub fn port(&self) -> &str {
        &self.spec.port
    }

    /// True if its end of the link is there.
    pub fn plugged(&self) -> bool {
        self.ns.ifindex(HOST0).is_ok()
    }

    /// What it owns, as declared.
    pub fn addresses(&self) -> &[String] {
        &self.spec.addresses
    }

    /// Its first single IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.single()
    }

    /// Its first single IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.single()
    }

    fn single<T: std::str::FromStr>(&self) -> T {
        self.spec
            .addresses
            .iter()
            .find_map(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("machine {} has no such address", self.spec.name))
    }

    /// The text of its declaration.
    pub fn declaration(&self) -> String {
        let mut text = String::new();
        if self.spec.port != format!("ve-{}", self.spec.name) {
            text += &format!("interface = \"{}\"\n", self.spec.port);
        }
        text += &format!("addresses = {:?}\n", self.spec.addresses);
        if let Some(tenant) = &self.spec.tenant {
            text += &format!("tenant = {tenant:?}\n");
        }
        text
    }
}

impl Lab {
    /// A lab with MTU 1,500, rp_filter 0 and no machines.
    pub fn builder() -> Builder {
        Builder {
            machines: Vec::new(),
            uplink_mtu: 1500,
            port_mtu: 1500,
            rp_filter: 0,
            delegation: Delegation::OnLink,
        }
    }

    /// A lab with the three usual machines.
    pub fn usual() -> Result<Self> {
        Lab::builder().usual_machines().build()
    }

    fn raise(plan: Builder, dir: Workdir) -> Result<Self> {
        for folder in ["etc/machines", "run/machines"] {
            dir.folder(folder)?;
        }
        dir.bpffs("bpf")?;
        let net = Ns::new("net")?;
        let host = Ns::new("host")?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "0".to_owned()),
            ("net/ipv6/conf/all/forwarding", "0".to_owned()),
            ("net/ipv4/conf/all/rp_filter", plan.rp_filter.to_string()),
            (
                "net/ipv4/conf/default/rp_filter",
                plan.rp_filter.to_string(),
            ),
        ] {
            host.set_sysctl(key, &value)?;
        }
        let mtu = plan.uplink_mtu;
        host.run(&format!(
            "ip link add {UPLINK} mtu {mtu} type veth peer name {LAN} mtu {mtu} netns {}",
            net.path().display()
        ))?;
        outside(&net)?;
        batch(
            &host,
            &[
                format!("link set {UPLINK} up"),
                format!("addr add {HOST4}/24 dev {UPLINK}"),
                format!("addr add {HOST6}/64 dev {UPLINK}"),
                format!("route add default via {GATEWAY4}"),
                format!("route add default via {GATEWAY6}"),
            ],
        )?;
        let delegated = match plan.delegation {
            Delegation::OnLink => format!("dev {LAN}"),
            Delegation::ViaHost => format!("via {HOST6} dev {LAN}"),
        };
        net.run(&format!("ip -6 route add {DELEGATED} {delegated}"))?;
        net.settled(LAN)?;
        host.settled(UPLINK)?;
        let mut lab = Lab {
            net,
            host,
            machines: Vec::new(),
            port_mtu: plan.port_mtu,
            dir,
        };
        for spec in plan.machines {
            lab.add(spec)?;
        }
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            ensure!(
                lab.host.sysctl(key)? == "0",
                "{key} of the host is not 0: the lab would prove nothing"
            );
        }
        Ok(lab)
    }

    /// Raises one more machine: namespace, link and declaration, as its spec says.
    pub fn add(&mut self, spec: Spec) -> Result<&Machine> {
        ensure!(
            spec.port.len() <= 15,
            "`{}` is too long for an interface name",
            spec.port
        );
        let machine = Machine {
            ns: Ns::new(&spec.name)?,
            spec,
        };
        if machine.spec.declared {
            self.declare(machine.name(), &machine.declaration())?;
        }
        if machine.spec.linked {
            self.plug(&machine)?;
        }
        self.machines.push(machine);
        Ok(&self.machines[self.machines.len() - 1])
    }

    /// Makes the veth between the host and a machine, with the machine's addresses,
    /// both ends up and working.
    ///
    /// The machine's side is ready before the host's comes up, as with a container
    /// manager that configures the guest first.
    pub fn plug(&self, machine: &Machine) -> Result<()> {
        let mtu = self.port_mtu;
        self.host.run(&format!(
            "ip link add {} mtu {mtu} type veth peer name {HOST0} mtu {mtu} netns {}",
            machine.port(),
            machine.ns.path().display()
        ))?;
        let mut lines = vec![format!("link set {HOST0} up")];
        let (mut source4, mut source6) = (None, None);
        for address in machine.addresses() {
            match address.parse::<IpAddr>() {
                Ok(ip) => {
                    // Until the link is up, an address that waits for DAD is no source.
                    let (source, rest) = match ip {
                        IpAddr::V4(_) => (&mut source4, "/32"),
                        IpAddr::V6(_) => (&mut source6, "/128 nodad"),
                    };
                    lines.push(format!("addr add {ip}{rest} dev {HOST0}"));
                    source.get_or_insert(ip);
                }
                // A local route makes every address of the prefix the machine's own.
                Err(_) => lines.push(format!("route replace local {address} dev lo")),
            }
        }
        let from = |source: Option<IpAddr>| source.map_or(String::new(), |ip| format!(" src {ip}"));
        lines.push(format!(
            "route add default via 169.254.1.1 dev {HOST0} onlink{}",
            from(source4)
        ));
        lines.push(format!(
            "route add default via fe80::1 dev {HOST0}{}",
            from(source6)
        ));
        batch(&machine.ns, &lines)?;
        for family in ["ipv4", "ipv6"] {
            // Servers listen at single addresses of a prefix that is routed to lo.
            machine
                .ns
                .set_sysctl(&format!("net/{family}/ip_nonlocal_bind"), "1")?;
        }
        self.host
            .run(&format!("ip link set {} up", machine.port()))?;
        machine.ns.settled(HOST0)?;
        self.host.settled(machine.port())
    }

    /// Takes a machine's link away, as stopping the machine would.
    pub fn unplug(&self, machine: &Machine) -> Result<()> {
        self.host
            .run(&format!("ip link del {}", machine.port()))
            .map(drop)
    }

    /// Writes `CONFIGDIR/machines/NAME.toml`.
    pub fn declare(&self, name: &str, text: &str) -> Result<()> {
        // A whole file at once, as an operator's tool would: a watcher never sees half of it.
        let folder = self.config_dir().join("machines");
        let draft = folder.join(format!(".{name}"));
        fs::write(&draft, text)?;
        fs::rename(draft, folder.join(format!("{name}.toml")))
            .with_context(|| format!("cannot declare {name}"))
    }

    /// Removes `CONFIGDIR/machines/NAME.toml`.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        fs::remove_file(self.config_dir().join(format!("machines/{name}.toml")))
            .with_context(|| format!("cannot withdraw {name}"))
    }

    /// The machines, in the order they were added.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The machine of that name; panics if the lab has none.
    pub fn machine(&self, name: &str) -> &Machine {
        self.machines
            .iter()
            .find(|machine| machine.name() == name)
            .unwrap_or_else(|| panic!("the lab has no machine {name}"))
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `--config-dir` of the host.
    pub fn config_dir(&self) -> PathBuf {
        self.dir().join("etc")
    }

    /// `--run-dir` of the host.
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// The host's bpf file system.
    pub fn bpffs(&self) -> PathBuf {
        self.dir().join("bpf")
    }

    /// `--bpf-dir` of the host: a folder of the bpf file system that does not exist yet.
    pub fn bpf_dir(&self) -> PathBuf {
        self.bpffs().join("netspawn")
    }

    /// The directory in BPFDIR of the programs' ABI.
    pub fn pins(&self) -> PathBuf {
        self.bpf_dir().join(format!("v{}", abi::VERSION))
    }

    /// The options that lead `netspawn-xdp` to the lab's folders.
    pub fn options(&self) -> Vec<String> {
        [
            ("--config-dir", self.config_dir()),
            ("--run-dir", self.run_dir()),
            ("--bpf-dir", self.bpf_dir()),
        ]
        .into_iter()
        .flat_map(|(option, path)| [option.to_owned(), path.display().to_string()])
        .collect()
    }

    /// `netspawn-xdp` in the host with the lab's folders and these arguments.
    pub fn xdp<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Cmd> {
        Ok(self
            .host
            .cmd(binary()?)
            .args(self.options())
            .args(args)
            .limit(Duration::from_secs(60)))
    }

    /// Runs `netspawn-xdp` with words split at white space; a failure is an error.
    pub fn run(&self, words: &str) -> Result<String> {
        self.xdp(words.split_whitespace())?.text()
    }

    /// Runs `netspawn-xdp` with words split at white space, whatever comes of it.
    pub fn output(&self, words: &str) -> Result<Output> {
        self.xdp(words.split_whitespace())?.output()
    }

    /// Runs `netspawn-xdp --json` and reads what it prints.
    pub fn json(&self, words: &str) -> Result<Value> {
        let text = self.run(&format!("--json {words}"))?;
        serde_json::from_str(&text).with_context(|| format!("`{words} --json` printed {text}"))
    }

    /// Makes the lab outlive the process; [`Lab::open`] finds it again.
    pub fn keep(mut self) -> Result<()> {
        let spaces = self.dir.folder("ns")?;
        self.net.keep(&spaces.join("net"))?;
        self.host.keep(&spaces.join("host"))?;
        for machine in &self.machines {
            machine
                .ns
                .keep(&spaces.join(format!("m-{}", machine.name())))?;
        }
        let machines: Vec<_> = self
            .machines
            .iter()
            .map(|machine| {
                json!({
                    "name": machine.name(),
                    "port": machine.port(),
                    "addresses": machine.addresses(),
                    "tenant": machine.spec.tenant,
                })
            })
            .collect();
        let state = json!({"port_mtu": self.port_mtu, "machines": machines});
        fs::write(self.dir().join("lab.json"), format!("{state:#}\n"))?;
        self.dir.keep(true);
        Ok(())
    }

    /// A lab that [`Lab::keep`] left at that path; dropping the value leaves it again.
    pub fn open(path: &Path) -> Result<Self> {
        let file = path.join("lab.json");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("no lab is up: there is no {}", file.display()))?;
        let state: Value = serde_json::from_str(&text)?;
        let spaces = path.join("ns");
        let mut machines = Vec::new();
        for entry in state["machines"].as_array().into_iter().flatten() {
            let word = |key: &str| entry[key].as_str().map(str::to_owned);
            let name = word("name").context("lab.json names a machine without a name")?;
            let addresses = entry["addresses"].as_array().into_iter().flatten();
            let spec = Spec {
                addresses: addresses
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
                tenant: word("tenant"),
                port: word("port").context("lab.json names a machine without a port")?,
                ..Spec::new(&name)
            };
            machines.push(Machine {
                ns: Ns::open(&name, &spaces.join(format!("m-{name}")))?,
                spec,
            });
        }
        Ok(Lab {
            net: Ns::open("net", &spaces.join("net"))?,
            host: Ns::open("host", &spaces.join("host"))?,
            machines,
            port_mtu: state["port_mtu"]
                .as_u64()
                .unwrap_or(1500)
                .try_into()
                .context("port_mtu")?,
            dir: Workdir::open(path),
        })
    }

    /// Takes a kept lab down.
    pub fn remove(mut self) -> Result<()> {
        let spaces = self.dir().join("ns");
        for entry in fs::read_dir(&spaces)? {
            forget(&entry?.path())?;
        }
        self.dir.keep(false);
        Ok(())
    }
}

/// Gives the gateway its addresses.
pub(crate) fn outside(net: &Ns) -> Result<()> {
    batch(
        net,
        &[
            format!("link set {LAN} up"),
            format!("addr add {GATEWAY4}/24 dev {LAN}"),
            format!("addr add {GATEWAY6}/64 dev {LAN}"),
            format!("addr add {FAR4}/32 dev lo"),
            format!("addr add {FAR6}/128 dev lo"),
        ],
    )
}

fn batch(ns: &Ns, lines: &[String]) -> Result<()> {
    ns.cmd("ip")
        .args(["-batch", "-"])
        .input(lines.join("\n") + "\n")
        .text()
        .with_context(|| format!("the lab's commands were\n{}", lines.join("\n")))
        .map(drop)
}

/// The `netspawn-xdp` under test: `$NETSPAWN_XDP`, else the debug build of this workspace.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("NETSPAWN_XDP") {
        Some(path) => PathBuf::from(path),
        None => {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .context("the crate lies below the workspace")?;
            std::env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| workspace.join("target"), |dir| workspace.join(dir))
                .join("debug/netspawn-xdp")
        }
    };
    ensure!(
        path.is_file(),
        "there is no {}: run `cargo xtask test`, which builds it, or name the program in NETSPAWN_XDP",
        path.display()
    );
    Ok(path)
}
