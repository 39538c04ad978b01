//! Metrics: a real Prometheus scrapes a real agent.

mod files;
mod many;
mod page;
mod prometheus;
mod serving;

use anyhow::Result;
use etherparse::PacketBuilder;
use netspawn_tests::{GATEWAY4, HOST0, Lab, Machine, send_frames};

/// Where the agent serves in the host of a lab, which nothing else uses.
const ADDRESS: &str = "127.0.0.1:9469";

/// Where that is on the command line.
const ATTACH: &str = "eth0 --metrics 127.0.0.1:9469";

/// Sends frames of a machine from an address that is not its own.
fn spoof(lab: &Lab, machine: &Machine, count: usize) -> Result<()> {
    let (own, port) = (machine.ns.mac(HOST0)?, lab.host.mac(machine.port())?);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(own, port)
        .ipv4([192, 0, 2, 66], GATEWAY4.octets(), 64)
        .udp(4000, 4000)
        .write(&mut frame, b"not mine")?;
    send_frames(&machine.ns, HOST0, &frame, count)
}
