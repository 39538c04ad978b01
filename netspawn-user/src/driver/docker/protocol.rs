//! Messages of the protocol, as far as they matter here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A network that is to be made.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    /// By names of Docker's. What the command line gave is one of them.
    pub options: Option<BTreeMap<String, Value>>,
    #[serde(rename = "IPv4Data")]
    pub v4: Option<Vec<Pool>>,
    #[serde(rename = "IPv6Data")]
    pub v6: Option<Vec<Pool>>,
}

/// A subnet.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Pool {
    pub pool: String,
    /// With the pool's prefix length, or empty.
    pub gateway: String,
}

/// A request about an endpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Endpoint {
    #[serde(rename = "EndpointID")]
    pub id: String,
    pub interface: Option<Interface>,
}

/// What an endpoint has been assigned; empty where nothing has.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Interface {
    /// With its subnet's prefix length.
    pub address: String,
    #[serde(rename = "AddressIPv6")]
    pub address_v6: String,
    pub mac_address: String,
}

/// What a driver adds to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    pub interface: Assigned,
}

/// Nothing that has been assigned may be given again.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Assigned {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
}

/// What Docker moves into the container, and how it sets that up.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    pub interface_name: InterfaceName,
    pub gateway: String,
    #[serde(rename = "GatewayIPv6")]
    pub gateway_v6: String,
    /// Without it, a container that has no default route by IPv4 gets a bridge of
    /// Docker's as well.
    pub disable_gateway_service: bool,
}

/// A link's name on the host, and what it is called after in the container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    pub src_name: String,
    pub dst_prefix: &'static str,
}
