//! ndppd, which answers neighbor solicitations from user space.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use netspawn_tests::{Process, UPLINK};

use super::world::{World, machine6};

/// A running ndppd. It ends with the value.
pub struct Ndppd {
    process: Process,
}

impl Ndppd {
    /// Starts it in the host, on the cores of this thread, answering for all machines'
    /// addresses by one rule.
    ///
    /// `static` answers at once, which is the fastest there is; `auto` and `iface` ask the
    /// machine first. Rules are a list that is gone through for every solicitation, so
    /// that one prefix is faster than an address each.
    pub fn start(world: &World) -> Result<Self> {
        // The kernel's own proxy would look the target up as well.
        for interface in ["all", UPLINK] {
            let key = format!("net/ipv6/conf/{interface}/proxy_ndp");
            world.host.set_sysctl(&key, "0")?;
        }
        let config = world.file("ndppd.conf");
        let text = format!(
            "proxy {UPLINK} {{\n  rule {}/96 {{\n    static\n  }}\n}}\n",
            machine6(0)
        );
        fs::write(&config, text).context("cannot write ndppd.conf")?;
        let mut process = world
            .host
            .cmd("ndppd")
            .args(["-v", "-c"])
            .arg(&config)
            .args(["-p".as_ref(), world.file("ndppd.pid").as_os_str()])
            .start()?;
        process.wait_line(Duration::from_secs(10), |line| {
            line.contains("ndppd (NDP Proxy Daemon)")
        })?;
        Ok(Ndppd { process })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}
