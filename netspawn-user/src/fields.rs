//! What a valid value of each field of a declaration is, wherever it was
//! written: in a file, or on the command line.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::SignedDuration;
use netspawn_ebpf::{abi::NAME_LEN, wire::Mac};

use crate::{problem::Fault, revert};

/// The name of a machine, as systemd and the file system allow it: letters,
/// digits, `-`, `_` and `.`, 64 bytes at most.
pub fn machine_name(text: &str) -> Result<String, Fault> {
    let fault = |what: &str| {
        Fault::new(
            format!("{text:?} is not a machine name: {what}"),
            format!("use letters, digits, `-`, `_` and `.`, {NAME_LEN} at most"),
        )
    };
    if text.is_empty() {
        return Err(fault("it is empty"));
    }
    if text.len() > NAME_LEN {
        return Err(fault("it is too long"));
    }
    if let Some(bad) = text
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.'))
    {
        return Err(fault(&format!("it has {bad:?}")));
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || text.ends_with(['-', '.']) {
        return Err(fault(
            "it has to start with a letter or digit and not to end in `-` or `.`",
        ));
    }
    if text.contains("..") {
        return Err(fault("it has two dots in a row"));
    }
    Ok(text.to_owned())
}

/// A time in seconds, such as 2 or 0.5: a tenth of a second to a day.
pub fn seconds(text: &str) -> Result<Duration, Fault> {
    let remedy = "write seconds such as 2 or 0.5";
    let seconds: f64 = text
        .parse()
        .map_err(|_| Fault::new(format!("{text:?} is not a number of seconds"), remedy))?;
    if !(0.1..=86400.0).contains(&seconds) {
        return Err(Fault::new(
            format!("{text} is out of range"),
            "write 0.1 to 86400 seconds",
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The name of an interface, or an alternative name, which may be 127 bytes
/// long (`ALTIFNAMSIZ`), as `dev_valid_name` in net/core/dev.c has it.
pub fn interface_name(text: &str) -> Result<String, Fault> {
    let valid = !text.is_empty()
        && text.len() < 128
        && text != "."
        && text != ".."
        && !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'));
    if valid {
        Ok(text.to_owned())
    } else {
        Err(Fault::new(
            format!("{text:?} is not an interface name"),
            "write a name that `ip link` shows, such as \"ve-web\"",
        ))
    }
}

/// How long an attach waits for `confirm`.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn waiting_time(text: &str) -> Result<Duration, Fault> {
    let time: SignedDuration = text.parse().map_err(|_| {
        Fault::new(
            format!("{text:?} is not a duration"),
            "write a number with a unit, such as 60s, 5m or 1h",
        )
    })?;
    Duration::try_from(time)
        .ok()
        .filter(|time| (revert::SHORTEST..=revert::LONGEST).contains(time))
        .ok_or_else(|| {
            Fault::new(
                format!("{text} is out of range"),
                "write a duration from 1s to 24h",
            )
        })
}

/// Ranges that no machine can own, and what they are.
const RESERVED: [(IpNet, &str); 10] = [
    (v4([0, 0, 0, 0], 8), "unspecified (0.0.0.0/8)"),
    (v4([127, 0, 0, 0], 8), "loopback (127.0.0.0/8)"),
    (v4([169, 254, 0, 0], 16), "link-local (169.254.0.0/16)"),
    (v4([224, 0, 0, 0], 4), "multicast (224.0.0.0/4)"),
    (v4([255, 255, 255, 255], 32), "broadcast (255.255.255.255)"),
    (v6([0; 8], 128), "unspecified (::)"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback (::1)"),
    (
        v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
        "IPv4-mapped (::ffff:0:0/96)",
    ),
    (
        v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
        "link-local (fe80::/10)",
    ),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast (ff00::/8)"),
];

const fn v4(octets: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(groups: [u16; 8], length: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = groups;
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(a, b, c, d, e, f, g, h),
        length,
    ))
}

/// Whether two prefixes have addresses in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// An address as people write it: without the length that says it is one.
pub fn shortest(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}

/// An address, or a prefix without host bits, that a machine can own.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn prefix(text: &str) -> Result<IpNet, Fault> {
    const EXAMPLE: &str =
        "write an address such as 203.0.113.2 or a prefix such as 2001:db8:1::/64";
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address = IpAddr::from_str(address).map_err(|_| {
        Fault::new(
            format!("{address:?} is neither an IPv4 nor an IPv6 address"),
            EXAMPLE,
        )
    })?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => longest,
        Some(length) => length
            .parse()
            .ok()
            .filter(|parsed| *parsed <= longest && length.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| {
                Fault::new(
                    format!("{length:?} is not a prefix length from 1 to {longest}"),
                    EXAMPLE,
                )
            })?,
    };
    if length == 0 {
        return Err(Fault::new(
            format!("{text} stands for every address there is"),
            EXAMPLE,
        ));
    }
    let prefix = IpNet::new_assert(address, length);
    let network = prefix.trunc();
    if prefix != network {
        return Err(Fault::new(
            format!("{text} has host bits set"),
            format!(
                "write {network} for the whole prefix, or {address}/{longest} for the one address"
            ),
        ));
    }
    for (reserved, what) in &RESERVED {
        if reserved.contains(&prefix) {
            return Err(Fault::new(
                format!("{text} is {what}, which no machine can own"),
                EXAMPLE,
            ));
        }
        if prefix.contains(reserved) {
            return Err(Fault::new(
                format!("{text} contains what is {what}, which no machine can own"),
                "declare longer prefixes beside it",
            ));
        }
    }
    Ok(prefix)
}

/// The link-layer address of one station.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn mac(text: &str) -> Result<Mac, Fault> {
    const EXAMPLE: &str = "write six bytes such as 02:00:00:00:00:05";
    let malformed = || Fault::new(format!("{text:?} is not a MAC address"), EXAMPLE);
    let mut mac: Mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        *byte = parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(malformed)?;
    }
    if parts.next().is_some() {
        return Err(malformed());
    }
    if mac[0] & 1 == 1 {
        return Err(Fault::new(
            format!("{text} is a multicast MAC address"),
            "write the address of the machine's own interface (the first byte is even)",
        ));
    }
    if mac == [0; 6] {
        return Err(Fault::new(
            format!("{text} is no station's address"),
            EXAMPLE,
        ));
    }
    Ok(mac)
}

/// An 802.1Q VLAN id.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn vlan(number: i64) -> Result<u16, Fault> {
    u16::try_from(number)
        .ok()
        .filter(|id| (1..=4094).contains(id))
        .ok_or_else(|| {
            Fault::new(
                format!("{number} is not a VLAN id"),
                "write a number from 1 to 4094, or remove it for untagged",
            )
        })
}

/// The name of a tenant.
pub fn tenant(text: &str) -> Result<String, Fault> {
    if text.is_empty() {
        return Err(Fault::new(
            "an empty tenant is no tenant",
            "name it, or remove the key: machines that name none form one tenant",
        ));
    }
    if text.len() > NAME_LEN {
        return Err(Fault::new(
            format!("the tenant's name has {} bytes", text.len()),
            format!("{NAME_LEN} is the most"),
        ));
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        return Err(Fault::new(
            format!("{text:?} is not a tenant's name"),
            "remove control characters, and blanks at either end",
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_prefixes_of_full_length() {
        assert_eq!(prefix("203.0.113.2").unwrap().to_string(), "203.0.113.2/32");
        assert_eq!(
            prefix("2001:db8::2").unwrap().to_string(),
            "2001:db8::2/128"
        );
        assert_eq!(
            prefix("2001:DB8:1::/64").unwrap().to_string(),
            "2001:db8:1::/64"
        );
    }

    #[test]
    fn bad_prefixes_say_what_was_expected() {
        for (text, message) in [
            ("", "neither an IPv4"),
            ("203.0.113", "neither an IPv4"),
            ("203.0.113.02", "neither an IPv4"),
            ("fe80::1%eth0", "neither an IPv4"),
            ("203.0.113.2/33", "from 1 to 32"),
            ("203.0.113.2/+8", "from 1 to 32"),
            ("2001:db8::/129", "from 1 to 128"),
            ("203.0.113.2/", "from 1 to 32"),
            ("0.0.0.0/0", "every address"),
            ("::/0", "every address"),
            ("203.0.113.2/24", "host bits"),
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("169.254.1.1", "link-local"),
            ("fe80::1", "link-local"),
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("255.255.255.255", "broadcast"),
            ("::ffff:203.0.113.2", "IPv4-mapped"),
            ("128.0.0.0/1", "contains"),
            ("::/3", "contains"),
        ] {
            let fault = prefix(text).unwrap_err();
            assert!(fault.message.contains(message), "{text}: {fault}");
            assert!(!fault.remedy.is_empty());
        }
    }

    #[test]
    fn host_bits_come_with_both_ways_out() {
        assert_eq!(
            prefix("203.0.113.2/24").unwrap_err().to_string(),
            "203.0.113.2/24 has host bits set; write 203.0.113.0/24 for the whole prefix, \
             or 203.0.113.2/32 for the one address"
        );
    }

    #[test]
    fn macs_are_of_one_station() {
        assert_eq!(mac("02:00:00:00:00:0A").unwrap(), [2, 0, 0, 0, 0, 10]);
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:05:06",
            "2:0:0:0:0:5",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:05",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_fit_files_and_maps() {
        for good in ["web", "web-1", "web_1", "a.b", "0", &"x".repeat(64)] {
            assert!(machine_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "a-",
            "a..b",
            "a/b",
            "é",
            "a b",
            &"x".repeat(65),
        ] {
            assert!(machine_name(bad).is_err(), "{bad}");
        }
        assert!(interface_name("ve-web").is_ok());
        for bad in ["", ".", "a/b", "a b", "a:b"] {
            assert!(interface_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn vlans_and_tenants_have_bounds() {
        assert_eq!(vlan(1).unwrap(), 1);
        assert_eq!(vlan(4094).unwrap(), 4094);
        for bad in [0, 4095, -1, 65_537] {
            assert!(vlan(bad).is_err());
        }
        assert!(tenant("acme").is_ok());
        for bad in ["", " a", "a\n", &"x".repeat(65)] {
            assert!(tenant(bad).is_err(), "{bad:?}");
        }
    }
}
