//! Results of plugins: what is read of others', and what is printed.

use std::net::IpAddr;

use ipnet::IpNet;
use netspawn_ebpf::wire::Mac;
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, Error as _},
};
use serde_json::{Value, json};

use super::{
    error::{Error, code},
    version::Version,
};
use crate::{model::DisplayMac, net::interface};

/// What a plugin that gives addresses says, or one before in a chain, in any version
/// that is spoken here.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Previous {
    /// Links that were made.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Name servers.
    #[serde(default)]
    pub dns: Dns,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its link-layer address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU; told since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace that it is in, empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

impl Interface {
    /// A link with these settings.
    pub fn new(name: &str, mac: Mac, mtu: u32, sandbox: &str) -> Self {
        Interface {
            name: name.to_owned(),
            mac: DisplayMac(mac).to_string(),
            mtu: Some(mtu),
            sandbox: sandbox.to_owned(),
        }
    }
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// `4` or `6`; told before 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The link that has it, an index among the result's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with the length of its prefix.
    pub address: String,
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: String,
    /// Next hop; without one the gateway of an address of that family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU; this and what follows is told since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Segment size that TCP tells the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// `RT_SCOPE_*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// The route to all addresses of a gateway's family.
    pub fn default(gateway: IpAddr) -> Self {
        Route {
            dst: match gateway {
                IpAddr::V4(_) => "0.0.0.0/0",
                IpAddr::V6(_) => "::/0",
            }
            .to_owned(),
            gw: Some(gateway),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    /// As it is given to the kernel, its gateway settled.
    ///
    /// # Errors
    /// When the destination is none.
    pub fn settled(&self, gateway: impl Fn(IpAddr) -> IpAddr) -> Result<interface::Route, Error> {
        const RT_SCOPE_LINK: u8 = 253;
        let destination = cidr(&self.dst)?.trunc();
        let is_direct = self.scope.is_some_and(|scope| scope >= RT_SCOPE_LINK);
        Ok(interface::Route {
            destination,
            gateway: self
                .gw
                .or_else(|| (!is_direct).then(|| gateway(destination.addr()))),
            mtu: self.mtu,
            advmss: self.advmss,
            priority: self.priority,
            table: self.table,
            scope: self.scope,
        })
    }
}

/// Name servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Their addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The domain of short names.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains that short names are looked for in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// What is printed of a container that is connected.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Success {
    /// The version that it is told in.
    pub cni_version: Version,
    /// Links: the host's end, then the container's.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<Ip>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Dns,
}

impl Success {
    /// The result in the shape of its version.
    pub fn shaped(mut self) -> Value {
        if self.cni_version < Version::V1_1_0 {
            for interface in &mut self.interfaces {
                interface.mtu = None;
            }
            for route in &mut self.routes {
                *route = Route {
                    dst: route.dst.clone(),
                    gw: route.gw,
                    ..Route::default([0; 4].into())
                };
            }
        }
        for ip in &mut self.ips {
            let family = if ip.address.contains(':') { "6" } else { "4" };
            ip.version = (self.cni_version < Version::V1_0_0).then(|| family.to_owned());
        }
        json!(self)
    }
}

/// A plugin's result.
///
/// # Errors
/// When it has another shape.
pub fn read(whose: &str, value: &Value) -> Result<Previous, Error> {
    decode(value).map_err(|error| {
        Error::new(
            code::DECODE,
            format!("{whose} is not understood: {error}"),
            "",
        )
    })
}

/// What an object says; members that are null, as runtimes and plugins in Go write them, say
/// nothing.
///
/// # Errors
/// When it is no object, or has another shape.
pub fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, serde_json::Error> {
    let Value::Object(_) = value else {
        return Err(serde_json::Error::custom("expected an object"));
    };
    T::deserialize(without_nulls(value))
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), without_nulls(value)))
            .collect(),
        Value::Array(values) => values.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// An address with the length of its prefix, host bits kept; without a length it is
/// one address.
///
/// # Errors
/// When it is none.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn cidr(text: &str) -> Result<IpNet, Error> {
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(one).ok_or_else(|| {
        Error::new(
            code::DECODE,
            format!("{text:?} is not an address with the length of its prefix"),
            "expected for example 203.0.113.2/24",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn success(version: Version) -> Value {
        Success {
            cni_version: version,
            interfaces: vec![
                Interface::new("cni0", [2, 0, 0, 0, 0, 1], 1400, ""),
                Interface::new("eth0", [2, 0, 0, 0, 0, 2], 1400, "/run/netns/a"),
            ],
            ips: vec![Ip {
                version: None,
                interface: Some(1),
                address: "2001:db8::2/128".to_owned(),
                gateway: Some("fe80::1".parse().unwrap()),
            }],
            routes: vec![Route {
                mtu: Some(1300),
                priority: Some(5),
                ..Route::default("fe80::1".parse().unwrap())
            }],
            dns: Dns::default(),
        }
        .shaped()
    }

    #[test]
    fn result_has_the_shape_of_its_version() {
        for version in Version::ALL {
            let mut interfaces = json!([
                {"name": "cni0", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
            ]);
            let mut ip =
                json!({"interface": 1, "address": "2001:db8::2/128", "gateway": "fe80::1"});
            let mut route = json!({"dst": "::/0", "gw": "fe80::1"});
            if version < Version::V1_0_0 {
                ip["version"] = json!("6");
            }
            if version >= Version::V1_1_0 {
                interfaces[0]["mtu"] = json!(1400);
                interfaces[1]["mtu"] = json!(1400);
                route["mtu"] = json!(1300);
                route["priority"] = json!(5);
            }
            let expected = json!({
                "cniVersion": version.name(),
                "interfaces": interfaces,
                "ips": [ip],
                "routes": [route],
                "dns": {},
            });
            assert_eq!(success(version), expected);
        }
    }

    #[test]
    fn routes_go_by_their_own_gateway_else_that_of_their_family() {
        let gateway = |family: IpAddr| match family {
            IpAddr::V4(_) => "192.0.2.1".parse().unwrap(),
            IpAddr::V6(_) => "fe80::1".parse().unwrap(),
        };
        let settled = |text: &str| {
            let route: Route = serde_json::from_str(text).unwrap();
            route.settled(gateway).map(|route| route.gateway)
        };
        let gateway_of = |text| settled(text).unwrap().map(|gateway| gateway.to_string());
        assert_eq!(
            gateway_of(r#"{"dst": "0.0.0.0/0"}"#).as_deref(),
            Some("192.0.2.1")
        );
        assert_eq!(gateway_of(r#"{"dst": "::/0"}"#).as_deref(), Some("fe80::1"));
        let own = r#"{"dst": "198.51.100.0/24", "gw": "192.0.2.9"}"#;
        assert_eq!(gateway_of(own).as_deref(), Some("192.0.2.9"));
        assert_eq!(gateway_of(r#"{"dst": "192.0.2.0/24", "scope": 253}"#), None);
        assert_eq!(settled(r#"{"dst": "all"}"#).unwrap_err().code, code::DECODE);
    }
}
