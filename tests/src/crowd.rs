//! Thousands of machines of a lab that come and go many at a time, at the cost of one
//! process for each.

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{HOST0, LAN, Lab},
    ns::Ns,
};

/// How many machines a crowd may have.
pub const SLOTS: usize = 60_000;

/// Machines by number, each with a namespace that stays while its link comes and goes.
/// The network of the lab has their addresses on its link.
pub struct Crowd {
    machines: Vec<Ns>,
}

impl Crowd {
    /// So many machines, without links yet.
    pub fn new(lab: &Lab, count: usize) -> Result<Self> {
        ensure!(count <= SLOTS, "{count} machines are too many");
        more_descriptors()?;
        lab.net
            .run(&format!("ip route add 198.18.0.0/16 dev {LAN}"))?;
        let machines = (0..count)
            .map(|number| Ns::new(&Self::name(number)))
            .collect::<Result<_>>()?;
        Ok(Crowd { machines })
    }

    /// The name of a machine.
    pub fn name(number: usize) -> String {
        format!("m{number}")
    }

    /// The name of its port.
    pub fn port(number: usize) -> String {
        format!("ve-m{number}")
    }

    /// Its IPv4 address.
    pub fn v4(number: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(0xc612_0100 + u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// Its IPv6 address, which every eighth has: 2,000 machines have as many link-layer
    /// groups as an uplink joins before it takes all of them.
    pub fn v6(number: usize) -> Option<Ipv6Addr> {
        let bits = 0x2001_0db8_u128 << 96 | 1 << 32 | number as u128;
        number.is_multiple_of(8).then(|| Ipv6Addr::from_bits(bits))
    }

    /// What it owns.
    pub fn addresses(number: usize) -> impl Iterator<Item = IpAddr> {
        let v4 = IpAddr::V4(Self::v4(number));
        std::iter::once(v4).chain(Self::v6(number).map(IpAddr::V6))
    }

    /// The text of its declaration.
    pub fn declaration(number: usize) -> String {
        let addresses: Vec<String> = Self::addresses(number)
            .map(|address| address.to_string())
            .collect();
        format!("addresses = {addresses:?}\n")
    }

    /// The namespace of a machine.
    pub fn ns(&self, number: usize) -> &Ns {
        &self.machines[number]
    }

    /// Makes the links of those machines, both ends configured and up.
    pub fn plug(&self, lab: &Lab, numbers: &[usize]) -> Result<()> {
        let links: Vec<_> = numbers
            .iter()
            .map(|&number| (number, Self::port(number), None))
            .collect();
        self.plug_as(lab, &links)
    }

    /// The same by names, and with an ifindex where one is given.
    pub fn plug_as(&self, lab: &Lab, links: &[(usize, String, Option<u32>)]) -> Result<()> {
        let (mut make, mut up) = (String::new(), String::new());
        for (number, port, index) in links {
            let path = self.machines[*number].path();
            let index = index.map_or(String::new(), |index| format!("index {index} "));
            writeln!(
                make,
                "link add {port} {index}type veth peer name {HOST0} netns {}",
                path.display()
            )?;
            writeln!(up, "link set {port} up")?;
        }
        batch(&lab.host, make)?;
        for (number, ..) in links {
            self.configure(*number)?;
        }
        batch(&lab.host, up)
    }

    /// Gives a machine's end of its link what it has, and sets it up.
    pub fn configure(&self, number: usize) -> Result<()> {
        let mut lines = format!("link set {HOST0} up\n");
        for address in Self::addresses(number) {
            let length = if address.is_ipv4() { "32" } else { "128 nodad" };
            writeln!(lines, "addr add {address}/{length} dev {HOST0}")?;
        }
        writeln!(
            lines,
            "route add default via 169.254.1.1 dev {HOST0} onlink"
        )?;
        writeln!(lines, "route add default via fe80::1 dev {HOST0}")?;
        batch(&self.machines[number], lines)
    }

    /// Takes the links of those machines away.
    pub fn unplug(&self, lab: &Lab, numbers: &[usize]) -> Result<()> {
        let mut lines = String::new();
        for &number in numbers {
            writeln!(lines, "link del {}", Self::port(number))?;
        }
        batch(&lab.host, lines)
    }
}

fn batch(ns: &Ns, lines: String) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    ns.cmd("ip")
        .args(["-batch", "-"])
        .input(lines)
        .limit(Duration::from_secs(300))
        .text()
        .with_context(|| format!("the links of {}", ns.name()))
        .map(drop)
}

/// As many descriptors as the process may have: a namespace takes one.
fn more_descriptors() -> Result<()> {
    // SAFETY: the calls read and write the struct, which outlives them.
    let result = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        match libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) {
            0 => {
                limit.rlim_cur = limit.rlim_max;
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
            }
            failed => failed,
        }
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("cannot raise the limit of descriptors");
    }
    Ok(())
}
