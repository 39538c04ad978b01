use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::problem::Fault;

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// Nowhere.
    Off,
    /// At an address and port of the host.
    Tcp(SocketAddr),
    /// At a socket in the file system.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if text == "off" {
            return Ok(Address::Off);
        }
        let example = "write ADDR:PORT, such as 127.0.0.1:9469 or [::1]:9469, or unix:/PATH";
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') && !path.ends_with('/') {
                true => Ok(Address::Unix(path.into())),
                false => Err(Fault::new(
                    format!("{path:?} is not an absolute path of a socket"),
                    "write unix:/PATH, such as unix:/run/netspawn/metrics.sock",
                )),
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => Err(Fault::new("port 0 is none", example)),
            Ok(address) => Ok(Address::Tcp(address)),
            Err(_) => Err(Fault::new(
                format!("{text:?} is not where metrics can be served"),
                example,
            )),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

impl fmt::Display for Address {
    /// As on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Off => f.write_str("off"),
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in [
            "off",
            "127.0.0.1:9469",
            "[::1]:9469",
            "[2001:db8::1]:80",
            "unix:/run/netspawn/metrics.sock",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "9469",
            ":9469",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "::1:9469",
            "localhost:9469",
            "unix:",
            "unix:metrics.sock",
            "unix:/run/",
            "/run/metrics.sock",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
