//! What the driver does when it is asked.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    DIGITS, TENANT, link, peer,
    protocol::{Assigned, Created, Endpoint, InterfaceName, Joined, Network, Pool},
};
use crate::{
    datapath::pins::Pins,
    fields, gone,
    model::DisplayMac,
    net::{
        netlink::Netlink,
        read,
        veth::{self, Veth},
    },
    problem::did_you_mean,
};

// Names of options of Docker's (netlabel in libnetwork).
const GENERIC: &str = "com.docker.network.generic";
const INTERNAL: &str = "com.docker.network.internal";

/// What `docker network create -o` may say: one option of ours, and those that Docker
/// sees to itself whatever the driver.
const OPTIONS: [&str; 3] = [
    TENANT,
    "com.docker.network.advertise_addr_nmsgs",
    "com.docker.network.advertise_addr_ms",
];

/// MTU where no uplink tells one.
const MTU: u32 = 1500;

/// The driver.
pub struct Driver {
    netlink: Netlink,
    bpf_dir: PathBuf,
}

impl Driver {
    /// A driver for uplinks that BPFDIR tells of.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn new(bpf_dir: &Path) -> Result<Self> {
        Ok(Driver {
            netlink: Netlink::open()?,
            bpf_dir: bpf_dir.to_owned(),
        })
    }

    /// What is answered to a request; `None` to one that is not known.
    pub fn answer(&mut self, method: &str, body: &[u8]) -> Option<Result<Value>> {
        Some(match method {
            "Plugin.Activate" => Ok(json!({ "Implements": ["NetworkDriver"] })),
            "NetworkDriver.GetCapabilities" => {
                Ok(json!({ "Scope": "local", "ConnectivityScope": "local" }))
            }
            "NetworkDriver.CreateNetwork" => asked(body).and_then(|network| {
                check(&network)?;
                Ok(json!({}))
            }),
            "NetworkDriver.CreateEndpoint" => asked(body).and_then(|asked| self.create(&asked)),
            "NetworkDriver.EndpointOperInfo" => Ok(json!({ "Value": {} })),
            "NetworkDriver.Join" => asked(body).and_then(|asked| self.join(&asked)),
            "NetworkDriver.DeleteEndpoint" => asked(body).and_then(|asked| self.delete(&asked)),
            "NetworkDriver.DeleteNetwork"
            | "NetworkDriver.Leave"
            | "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete" => Ok(json!({})),
            _ => return None,
        })
    }

    /// Makes an endpoint's link.
    fn create(&mut self, asked: &Endpoint) -> Result<Value> {
        let interface = asked.interface.as_ref().context("it has no interface")?;
        let mut gateways = Vec::new();
        for text in [&interface.address, &interface.address_v6] {
            if !text.is_empty() {
                let address: IpNet = text
                    .parse()
                    .with_context(|| format!("{text:?} is not an address with its length"))?;
                gateways.push(gateway(address).to_string());
            }
        }
        ensure!(
            !gateways.is_empty(),
            "the network has assigned no address; make it with --subnet"
        );
        let given = match interface.mac_address.as_str() {
            "" => None,
            text => Some(fields::mac(text)?),
        };
        let mac = match given {
            Some(mac) => mac,
            None => mac_of(&asked.id)?,
        };
        let (name, peer) = (link(&asked.id), peer(&asked.id));
        let veth = Veth {
            name: &name,
            alias: &format!("docker via {}", gateways.join(" ")),
            mtu: self.mtu()?,
            peer: &peer,
            mac: Some(mac),
            namespace: None,
        };
        // What an attempt that was cut short may have left.
        veth::remove(&mut self.netlink, &name)
            .and_then(|()| veth.create(&mut self.netlink))
            .with_context(|| format!("cannot make the link {name}"))?;
        answer(Created {
            interface: Assigned {
                mac_address: given.is_none().then(|| DisplayMac(mac).to_string()),
            },
        })
    }

    /// Says what Docker is to move into the container.
    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    fn join(&mut self, asked: &Endpoint) -> Result<Value> {
        let name = link(&asked.id);
        let alias = veth::alias(&mut self.netlink, &name)
            .with_context(|| format!("cannot read the link {name}; start the container again"))?;
        let gateways = alias.split(' ').filter_map(|word| word.parse().ok());
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = gateways.partition(IpAddr::is_ipv4);
        ensure!(
            !(v4.is_empty() && v6.is_empty()),
            "the alias of the link {name} names no gateway; start the container again"
        );
        let text = |of: &[IpAddr]| of.first().map_or(String::new(), IpAddr::to_string);
        answer(Joined {
            interface_name: InterfaceName {
                src_name: peer(&asked.id),
                dst_prefix: "eth",
            },
            gateway: text(&v4),
            gateway_v6: text(&v6),
            disable_gateway_service: true,
        })
    }

    fn delete(&mut self, asked: &Endpoint) -> Result<Value> {
        let name = link(&asked.id);
        veth::remove(&mut self.netlink, &name)
            .with_context(|| format!("cannot remove the link {name}"))?;
        Ok(json!({}))
    }

    /// The least of the uplinks: a container does not learn of a larger packet's fate
    /// from a link.
    fn mtu(&mut self) -> Result<u32> {
        let mut least = None;
        for uplink in Pins::new(&self.bpf_dir).uplinks()? {
            let request = read::get_link(uplink.ifindex);
            let link = gone::link(self.netlink.get(request, |message| read::link(&message)))
                .with_context(|| format!("cannot read the MTU of {}", uplink.name))?;
            least = link.map(|link| link.mtu).into_iter().chain(least).min();
        }
        Ok(least.unwrap_or(MTU))
    }
}

fn asked<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).context("the request is not what it should be")
}

fn answer(answer: impl serde::Serialize) -> Result<Value> {
    Ok(serde_json::to_value(answer)?)
}

/// Refuses a network that would not be what it says.
fn check(network: &Network) -> Result<()> {
    let options = network.options.iter().flatten();
    for (key, value) in options {
        match (key.as_str(), value) {
            (GENERIC, Value::Object(options)) => options
                .iter()
                .try_for_each(|(key, value)| check_option(key, value))?,
            (INTERNAL, Value::Bool(true)) => bail!(
                "a {} network cannot be --internal: its containers are reached from outside; make \
                 an internal network with another driver",
                super::DRIVER
            ),
            _ => {}
        }
    }
    let pools = || network.v4.iter().chain(&network.v6).flatten();
    ensure!(
        pools().next().is_some(),
        "it has no subnet; give it --subnet"
    );
    pools().try_for_each(check_pool)
}

fn check_option(key: &str, value: &Value) -> Result<()> {
    if !OPTIONS.contains(&key) {
        bail!(
            "{key:?} is not an option of this driver; {}",
            did_you_mean(key, &OPTIONS)
        );
    }
    if key != TENANT {
        return Ok(());
    }
    let text = value.as_str().unwrap_or_default();
    fields::tenant(text).map_err(|fault| anyhow!("{TENANT}: {fault}"))?;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn check_pool(pool: &Pool) -> Result<()> {
    let subnet = fields::prefix(&pool.pool).map_err(|fault| anyhow!("--subnet: {fault}"))?;
    let first = first(subnet);
    let given: Option<IpNet> = pool.gateway.parse().ok();
    ensure!(
        given.is_none_or(|given| given.addr() == first),
        "--gateway {}: containers reach the network by this host, which has no address of its own \
         in {subnet}; write --gateway {first}, the first address, which stands for it",
        pool.gateway.split('/').next().unwrap_or_default()
    );
    Ok(())
}

/// What stands for the host in a container's routes: the first address of its subnet,
/// which Docker keeps free for that; the next one for a container that has it.
fn gateway(address: IpNet) -> IpAddr {
    let first = first(address.trunc());
    if first == address.addr() {
        return next(first);
    }
    first
}

/// The first address after a subnet's own; its own where it has one or two.
fn first(subnet: IpNet) -> IpAddr {
    match subnet.max_prefix_len() - subnet.prefix_len() {
        0 | 1 => subnet.network(),
        _ => next(subnet.network()),
    }
}

fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => u32::from(address).wrapping_add(1).to_be_bytes().into(),
        IpAddr::V6(address) => u128::from(address).wrapping_add(1).to_be_bytes().into(),
    }
}

/// A link-layer address made from an endpoint's id, which is random.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn mac_of(endpoint: &str) -> Result<Mac> {
    let digits = endpoint
        .get(..DIGITS)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .with_context(|| format!("{endpoint:?} is not an endpoint's id"))?;
    let [_, _, mac @ ..] = digits.to_be_bytes();
    // Of one station, locally administered.
    Ok([mac[0] & !1 | 2, mac[1], mac[2], mac[3], mac[4], mac[5]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(network: Value) -> String {
        let network = serde_json::from_value(network).unwrap();
        check(&network).unwrap_err().to_string()
    }

    #[test]
    fn network_that_would_not_be_what_it_says_is_refused() {
        let pool = json!([{ "Pool": "203.0.113.128/25", "Gateway": "203.0.113.129/25" }]);
        let fine = json!({
            "Options": { GENERIC: { TENANT: "acme", OPTIONS[1]: "0" }, INTERNAL: false },
            "IPv4Data": pool,
            "IPv6Data": [{ "Pool": "2001:db8:5::/64", "Gateway": "2001:db8:5::1/64" }],
        });
        check(&serde_json::from_value(fine).unwrap()).unwrap();
        for (network, words) in [
            (
                json!({ "Options": { INTERNAL: true }, "IPv4Data": pool }),
                "--internal",
            ),
            (
                json!({ "Options": { GENERIC: { "netspawn.tennant": "a" } }, "IPv4Data": pool }),
                "did you mean `netspawn.tenant`?",
            ),
            (
                json!({ "Options": { GENERIC: { TENANT: "" } }, "IPv4Data": pool }),
                "an empty tenant",
            ),
            (json!({ "IPv4Data": [] }), "give it --subnet"),
            (
                json!({ "IPv4Data": [{ "Pool": "127.0.0.0/24" }] }),
                "loopback",
            ),
            (
                json!({ "IPv4Data": [{ "Pool": "203.0.113.0/24", "Gateway": "203.0.113.9/24" }] }),
                "write --gateway 203.0.113.1,",
            ),
        ] {
            let refusal = refused(network);
            assert!(refusal.contains(words), "{refusal}");
        }
    }

    #[test]
    fn gateway_is_never_the_container_itself() {
        for (address, wanted) in [
            ("203.0.113.130/25", "203.0.113.129"),
            ("203.0.113.129/25", "203.0.113.130"),
            ("203.0.113.1/31", "203.0.113.0"),
            ("203.0.113.0/31", "203.0.113.1"),
            ("255.255.255.255/32", "0.0.0.0"),
            ("2001:db8:5::2/64", "2001:db8:5::1"),
        ] {
            assert_eq!(gateway(address.parse().unwrap()).to_string(), wanted);
        }
    }

    #[test]
    fn mac_is_of_one_station() {
        let mac = mac_of(&"ff".repeat(32)).unwrap();
        assert_eq!(mac, [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert!(mac_of("x").is_err() && mac_of("").is_err());
    }

    #[test]
    fn unknown_requests_are_told_apart() {
        let mut driver = Driver::new(Path::new("/nonexistent")).unwrap();
        assert!(
            driver
                .answer("NetworkDriver.AllocateNetwork", b"{}")
                .is_none()
        );
        assert!(
            driver
                .answer("NetworkDriver.Join", b"nonsense")
                .unwrap()
                .is_err()
        );
    }

    proptest::proptest! {
        #[test]
        fn any_request_is_read_without_panic(
            network in crate::mangled::json(serde_json::json!({
                "NetworkID": "n",
                "Options": {GENERIC: {TENANT: "acme"}, INTERNAL: false},
                "IPv4Data": [{"AddressSpace": "a", "Pool": "203.0.113.0/24", "Gateway": "203.0.113.1/24"}],
                "IPv6Data": [{"AddressSpace": "a", "Pool": "2001:db8::/64", "Gateway": ""}],
            })),
            endpoint in crate::mangled::json(serde_json::json!({
                "NetworkID": "n",
                "EndpointID": "0123456789abcdef",
                "Interface": {
                    "Address": "203.0.113.9/24",
                    "AddressIPv6": "2001:db8::9/64",
                    "MacAddress": "02:42:00:00:00:01",
                },
            })),
        ) {
            if let Ok(network) = asked::<Network>(network.to_string().as_bytes()) {
                let _ = check(&network);
            }
            if let Ok(endpoint) = asked::<Endpoint>(endpoint.to_string().as_bytes()) {
                let _ = mac_of(&endpoint.id);
                let interface = endpoint.interface.unwrap_or_default();
                for address in [interface.address, interface.address_v6] {
                    if let Ok(address) = address.parse() {
                        proptest::prop_assert_ne!(gateway(address), address.addr());
                    }
                }
            }
        }
    }
}
