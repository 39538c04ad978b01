//! Network, host and machines in one of the ways.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_ebpf::wire::Mac;
use netspawn_tests::{Cmd, LAN, Ns, Process, UPLINK, Workdir, binary};

use super::{
    links::{Veth, batch, configure, ifindexes, plug, receive_offload, set_up},
    way::Way,
};
use crate::bpf::Bare;

/// Where the machines' ends of their links are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// All in one namespace, without addresses: for receivers that end packets.
    Together,
    /// Each in a namespace of its own, with addresses and routes: for stacks that answer.
    Apart,
}

/// A network with a host and machines.
///
/// It goes with the value, with everything in it.
pub struct World {
    // Processes end before the namespaces that they are in.
    agent: Option<Process>,
    _residents: Vec<Process>,
    /// The network.
    pub net: Ns,
    /// The host.
    pub host: Ns,
    /// One namespace for all machines, or one for each.
    pub guests: Vec<Ns>,
    /// The way.
    pub way: Way,
    /// Number of machines.
    pub machines: u32,
    dir: Workdir,
    _bare: Option<[Bare; 2]>,
}

/// The address of the machine with that number.
pub fn machine4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a01_0000 + number)
}

/// As above.
pub fn machine6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 | 1 << 32 | u128::from(number))
}

/// The MAC of the machine with that number.
pub fn machine_mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    [2, 1, a, b, c, d]
}

/// The MAC of `eth0` in the host.
pub const fn uplink_mac() -> Mac {
    [2, 0, 0, 0, 0, 2]
}

/// The MAC of `lan0` in the network.
pub const fn lan_mac() -> Mac {
    [2, 0, 0, 0, 0, 1]
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn numbers(machines: u32) -> impl Iterator<Item = u32> + Clone {
    0..machines
}

/// How long an agent may take with all of the machines.
const READY: Duration = Duration::from_secs(120);

impl World {
    /// Makes it, ready for packets.
    pub fn new(way: Way, machines: u32, guests: Guests) -> Result<Self> {
        let mut world = World::unattached(way, machines, guests)?;
        if way.is_ours() {
            world.attach()?;
        }
        Ok(world)
    }

    /// Makes it; where the way is ours, everything but the agent.
    pub fn unattached(way: Way, machines: u32, guests: Guests) -> Result<Self> {
        ensure!(
            machines <= way.most(),
            "{} takes {} machines at most",
            way.name(),
            way.most()
        );
        let dir = Workdir::new()?;
        for folder in ["etc/machines", "run/machines"] {
            dir.folder(folder)?;
        }
        dir.bpffs("bpf")?;
        let spaces = match guests {
            Guests::Together => 1,
            Guests::Apart => machines,
        };
        let mut world = World {
            agent: None,
            net: Ns::new("net")?,
            host: Ns::new("host")?,
            guests: (0..spaces)
                .map(|number| Ns::new(&format!("guest {number}")))
                .collect::<Result<_>>()?,
            way,
            machines,
            dir,
            _bare: None,
            _residents: Vec::new(),
        };
        world.join_network()?;
        world.plug(guests, 0..machines)?;
        match way {
            Way::Link | Way::Macvlan => {}
            Way::Bridge => world.bridge()?,
            Way::Routed | Way::RoutedDefault | Way::Ndppd => world.route()?,
            Way::Bare => world.redirect()?,
            Way::Tc | Way::Xdp => world.declare()?,
        }
        if way == Way::Xdp {
            // What XDP sends wants NAPI at the other end, which GRO gives it. XDP_TX wants
            // an XDP program there as well (`XdpReceiver`).
            receive_offload(&world.net, &[LAN.to_owned()])?;
            if guests == Guests::Together {
                receive_offload(&world.guests[0], &world.ends())?;
            }
            // Whether a machine takes XDP frames is asked in its namespace, which is found
            // by who lives there.
            for ns in &world.guests {
                world
                    ._residents
                    .push(ns.cmd("sleep").args(["infinity"]).start()?);
            }
        }
        Ok(world)
    }

    /// Names of the machines' ends.
    pub fn ends(&self) -> Vec<String> {
        numbers(self.machines).map(|n| format!("g{n}")).collect()
    }

    /// Names of the ports in the host.
    pub fn ports(&self) -> Vec<String> {
        numbers(self.machines).map(|n| format!("p{n}")).collect()
    }

    /// The MAC that a frame from the network to a machine goes to.
    pub fn mac_from_network(&self, number: u32) -> Mac {
        match self.way {
            Way::Bridge | Way::Macvlan => machine_mac(number),
            _ => uplink_mac(),
        }
    }

    /// The MAC that a frame of a machine to the network goes to.
    pub fn mac_to_network(&self) -> Mac {
        match self.way {
            Way::Bridge | Way::Macvlan => lan_mac(),
            _ => PORT_MAC,
        }
    }

    /// A path for something to be pinned at.
    pub fn pin(&self, name: &str) -> PathBuf {
        self.dir.path().join("bpf").join(name)
    }

    /// Path of a file of this world's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `netspawn-xdp` in the host, with the world's own folders.
    pub fn xdp<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Cmd> {
        let dir = self.dir.path();
        Ok(self
            .host
            .cmd(binary()?)
            .args(["--config-dir".as_ref(), dir.join("etc").as_os_str()])
            .args(["--run-dir".as_ref(), dir.join("run").as_os_str()])
            .args(["--bpf-dir".as_ref(), dir.join("bpf/netspawn").as_os_str()])
            .args(args))
    }

    /// Starts the agent and waits until it is ready.
    pub fn attach(&mut self) -> Result<()> {
        let mode = self.way.name();
        let args = ["attach", UPLINK, "--mode", mode, "--source", "files"];
        let mut agent = self.xdp(args)?.start()?;
        let ready = agent.wait_line(READY, |line| line.starts_with("ready:"))?;
        let wanted = format!("ready: {} machine", self.machines);
        ensure!(
            ready.starts_with(&wanted),
            "`{ready}` instead of `{wanted}…`"
        );
        self.agent = Some(agent);
        Ok(())
    }

    /// The running agent's process id.
    pub fn agent(&self) -> Option<u32> {
        self.agent.as_ref().map(Process::id)
    }

    fn join_network(&self) -> Result<()> {
        let (net, host) = (&self.net, &self.host);
        for ns in [net, host] {
            for key in ["all", "default"] {
                ns.set_sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
            }
        }
        host.run(&format!(
            "ip link add {UPLINK} address {} txqueuelen 1000 type veth \
             peer name {LAN} address {} netns {}",
            text(uplink_mac()),
            text(lan_mac()),
            net.path().display()
        ))?;
        batch(
            net,
            "ip",
            [
                format!("link set {LAN} up"),
                format!("addr add 10.0.0.1/8 dev {LAN}"),
                format!("addr add 2001:db8::1/64 dev {LAN} nodad"),
            ],
        )?;
        batch(
            host,
            "ip",
            [
                format!("link set {UPLINK} up"),
                format!("addr add 10.0.0.2/8 dev {UPLINK}"),
                format!("addr add 2001:db8::2/64 dev {UPLINK} nodad"),
                "route add default via 10.0.0.1".into(),
                "route add default via 2001:db8::1".into(),
                format!(
                    "neigh replace 10.0.0.1 lladdr {} dev {UPLINK} nud permanent",
                    text(lan_mac())
                ),
                format!(
                    "neigh replace 2001:db8::1 lladdr {} dev {UPLINK} nud permanent",
                    text(lan_mac())
                ),
            ],
        )?;
        // The generator sends with XDP, which wants its peer's NAPI.
        receive_offload(host, &[UPLINK.to_owned()])
    }

    /// Ends so many machines, those with the highest numbers, all at once: the kernel
    /// removes their namespaces, and the links with them, some time later. Each must
    /// have a namespace of its own.
    pub fn stop(&mut self, count: usize) {
        self.guests.truncate(self.guests.len() - count);
    }

    /// Makes machines that were stopped anew.
    pub fn restart(&mut self) -> Result<()> {
        let first = self.guests.len() as u32;
        for number in first..self.machines {
            self.guests.push(Ns::new(&format!("guest {number}"))?);
        }
        self.plug(Guests::Apart, first..self.machines)
    }

    fn plug(&self, guests: Guests, numbers: Range<u32>) -> Result<()> {
        if self.way == Way::Link {
            return Ok(());
        }
        let space = |number: u32| match guests {
            Guests::Together => &self.guests[0],
            Guests::Apart => &self.guests[number as usize],
        };
        if matches!(self.way, Way::Bare | Way::Tc | Way::Xdp) {
            // The host needs no IPv6 on the ports. With it each new port would cost as
            // much as there are ports: the kernel keeps their routes to fe80::/64 and
            // ff00::/8 in one list each.
            let key = "net/ipv6/conf/default/disable_ipv6";
            self.host.set_sysctl(key, "1")?;
        }
        if self.way == Way::Macvlan {
            let links = numbers.clone().map(|n| {
                format!(
                    "link add link {UPLINK} name g{n} address {} netns {} type macvlan mode bridge",
                    text(machine_mac(n)),
                    space(n).path().display()
                )
            });
            batch(&self.host, "ip", links)?;
        } else {
            let links: Vec<_> = numbers
                .clone()
                .map(|n| Veth {
                    port: (format!("p{n}"), PORT_MAC),
                    end: (format!("g{n}"), machine_mac(n)),
                    machine: space(n),
                })
                .collect();
            plug(&self.host, &links)?;
        }
        match guests {
            Guests::Together => {
                let ns = &self.guests[0];
                // They would each claim the same link-local address or ask for routers.
                ns.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
                ns.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
                set_up(ns, &self.ends())?;
            }
            Guests::Apart => {
                for number in numbers.clone() {
                    self.configure(number, space(number))?;
                }
            }
        }
        if self.way != Way::Macvlan {
            let ports: Vec<_> = numbers.map(|n| format!("p{n}")).collect();
            set_up(&self.host, &ports)?;
        }
        Ok(())
    }

    /// What a machine does with its end of the link.
    fn configure(&self, number: u32, ns: &Ns) -> Result<()> {
        let (v4, v6) = (machine4(number).into(), machine6(number).into());
        let (lengths, gateways) = match self.way {
            Way::Bridge | Way::Macvlan => ([8, 64], &[][..]),
            _ => ([32, 128], &GATEWAYS[..]),
        };
        let addresses = [(v4, lengths[0]), (v6, lengths[1])];
        configure(ns, &format!("g{number}"), &addresses, gateways)
    }

    fn bridge(&self) -> Result<()> {
        // Where br_netfilter is built in, bridged packets would go through the firewall's
        // hooks, as they do not on a host as distributions ship it.
        for family in ["ip", "ip6", "arp"] {
            let key = format!("net/bridge/bridge-nf-call-{family}tables");
            if Path::new("/proc/sys").join(&key).exists() {
                self.host.set_sysctl(&key, "0")?;
            }
        }
        batch(
            &self.host,
            "ip",
            [
                "link add br0 type bridge stp_state 0 mcast_snooping 0".into(),
                format!("addr flush dev {UPLINK}"),
                format!("link set {UPLINK} master br0"),
                "link set br0 up".into(),
                "addr add 10.0.0.2/8 dev br0".into(),
                "addr add 2001:db8::2/64 dev br0 nodad".into(),
            ]
            .into_iter()
            .chain(
                self.ports()
                    .into_iter()
                    .map(|port| format!("link set {port} master br0")),
            ),
        )?;
        let stations = numbers(self.machines).map(|n| {
            format!(
                "fdb replace {} dev p{n} master static",
                text(machine_mac(n))
            )
        });
        let lan = format!("fdb replace {} dev {UPLINK} master static", text(lan_mac()));
        batch(&self.host, "bridge", stations.chain([lan]))
    }

    /// The way that hosts without a bridge do it: forwarding, a route and a permanent
    /// neighbor for each machine, and answers by proxy.
    fn route(&self) -> Result<()> {
        let host = &self.host;
        for key in [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/all/proxy_arp",
            "net/ipv6/conf/all/forwarding",
            "net/ipv6/conf/all/proxy_ndp",
        ] {
            host.set_sysctl(key, "1")?;
        }
        host.set_sysctl(&format!("net/ipv6/conf/{UPLINK}/proxy_ndp"), "1")?;
        if self.way == Way::Routed {
            for family in ["ipv4", "ipv6"] {
                host.set_sysctl(&format!("net/{family}/neigh/{UPLINK}/proxy_delay"), "0")?;
            }
        }
        let machines = numbers(self.machines).flat_map(|n| {
            let mac = text(machine_mac(n));
            let (v4, v6) = (machine4(n), machine6(n));
            [
                format!("route add {v4}/32 dev p{n}"),
                format!("route add {v6}/128 dev p{n}"),
                format!("neigh replace {v4} lladdr {mac} dev p{n} nud permanent"),
                format!("neigh replace {v6} lladdr {mac} dev p{n} nud permanent"),
                // What the documented gateway is to machines.
                format!("addr add fe80::1/64 dev p{n} nodad"),
            ]
        });
        batch(host, "ip", machines)?;
        if self.way != Way::Ndppd {
            let proxied = numbers(self.machines)
                .map(|n| format!("neigh add proxy {} dev {UPLINK}", machine6(n)));
            batch(host, "ip", proxied)?;
        }
        Ok(())
    }

    fn redirect(&mut self) -> Result<()> {
        let ports = ifindexes(&self.host, &self.ports())?.into_iter();
        let destinations: Vec<_> = numbers(self.machines)
            .map(|n| machine4(n).octets())
            .zip(ports)
            .collect();
        let inwards = Bare::new(&destinations)?;
        let outwards = Bare::out(self.host.ifindex(UPLINK)?)?;
        let (pin_in, pin_out) = (self.pin("bare_in"), self.pin("bare_out"));
        inwards.pin(&pin_in)?;
        outwards.pin(&pin_out)?;
        let ports = self.ports().into_iter();
        batch(
            &self.host,
            "tc",
            ports
                .map(|port| format!("qdisc add dev {port} ingress_block 8 clsact"))
                .chain([
                    format!(
                        "filter add block 8 protocol all bpf da object-pinned {}",
                        pin_out.display()
                    ),
                    format!("qdisc add dev {UPLINK} clsact"),
                    format!(
                        "filter add dev {UPLINK} ingress bpf da object-pinned {}",
                        pin_in.display()
                    ),
                ]),
        )?;
        self._bare = Some([inwards, outwards]);
        Ok(())
    }

    fn declare(&self) -> Result<()> {
        let dir = self.file("etc/machines");
        for number in numbers(self.machines) {
            declare(&dir, number)?;
        }
        Ok(())
    }
}

/// Writes the declaration of a machine.
pub fn declare(dir: &Path, number: u32) -> Result<()> {
    let path = dir.join(format!("m{number}.toml"));
    let text = format!(
        "interface = \"p{number}\"\naddresses = [\"{}\", \"{}\"]\n",
        machine4(number),
        machine6(number)
    );
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// All ports have the same one: each is on a link of its own.
const PORT_MAC: Mac = [2, 2, 0, 0, 0, 1];

/// The documented gateways.
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];
