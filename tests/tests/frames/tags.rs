//! Row A7, and tags on the way to and from a machine of a VLAN, on real interfaces:
//! `BPF_PROG_TEST_RUN` does not show the tag beside a frame.

use std::{path::Path, time::Duration};

use anyhow::Result;
use netspawn_bench::programs::{Hook, Programs};
use netspawn_ebpf::abi::endpoint_flag;
use netspawn_tests::{Capture, Ns, send_frame};
use netspawn_user::datapath::object::Sizes;

use crate::rows::{
    build::{self, Arp},
    world::{self, ASKER, ASKER4, ASKER6, FAR4, ROUTER, TAGGED, UPLINK, VLAN},
};

/// Priority 5 in front of the VLAN's id.
const TAG: u16 = 0xa000 | VLAN;

/// An uplink and a port, whose other ends stand in a namespace of their own.
struct Wires {
    _programs: Programs,
    _host: Ns,
    outside: Ns,
}

impl Wires {
    fn new() -> Result<Self> {
        let host = Ns::new("frames-host")?;
        let outside = Ns::new("frames-outside")?;
        for (here, there) in [("uplink", "lan"), ("port", "machine")] {
            let path = outside.path();
            host.run(&format!(
                "ip link add {here} type veth peer name {there} netns {}",
                path.display()
            ))?;
            // No neighbor discovery of the interfaces' own in between.
            for (ns, interface) in [(&host, here), (&outside, there)] {
                ns.set_sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
                ns.run(&format!("ip link set {interface} up"))?;
            }
        }
        let uplink = host.ifindex("uplink")?;
        let port = host.ifindex("port")?;
        let mut programs = Programs::load(Sizes {
            machines: 64,
            addresses: 64,
        })?;
        programs.settings(world::settings(0))?;
        programs.uplink(uplink, world::uplink())?;
        programs.port(port, Some(TAGGED))?;
        let mut endpoint = world::endpoint(TAGGED, port);
        endpoint.flags |= endpoint_flag::NO_PEER;
        programs.endpoint(TAGGED, endpoint)?;
        programs.owners4(&world::prefixes4())?;
        programs.owners6(&world::prefixes6())?;
        let mut hops = world::nexthops();
        for hop in &mut hops {
            hop.ifindex = uplink;
        }
        programs.nexthops(&hops)?;
        programs.routes4(&world::routes4())?;
        host.enter(|| {
            programs.attach(Hook::UplinkIngress, "uplink")?;
            programs.attach(Hook::UplinkEgress, "uplink")?;
            programs.attach(Hook::PortIngress, "port")
        })?;
        Ok(Wires {
            _programs: programs,
            _host: host,
            outside,
        })
    }

    /// Sends a frame at one end, and expects another at one.
    fn leads_to(&self, at: &str, frame: &[u8], heard_at: &str, wanted: &[u8]) -> Result<()> {
        let mut capture = Capture::start(&self.outside, heard_at)?;
        send_frame(&self.outside, at, frame)?;
        let heard = capture.wait(Duration::from_secs(2), |got| got == wanted);
        if !heard {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("frames_tags.pcap");
            capture.save(&path)?;
            panic!(
                "{heard_at} did not hear {wanted:02x?}, but what is in {}",
                path.display()
            );
        }
        Ok(())
    }
}

#[test]
fn questions_are_answered_under_their_tag() -> Result<()> {
    let wires = Wires::new()?;
    let asked = Arp::who_has(world::ip4(TAGGED), ASKER, ASKER4);
    wires.leads_to(
        "lan",
        &build::tagged(&asked.padded(0xa5), TAG),
        "lan",
        &build::tagged(&asked.is_at(UPLINK).padded(0), TAG),
    )?;
    let target = world::ip6(TAGGED);
    // Without the option the frame grows, with its tag.
    let asked = build::solicitation(target, ASKER6, ASKER, &[]);
    let told = build::advertisement(target, UPLINK, ASKER6, ASKER, 0x60);
    wires.leads_to(
        "lan",
        &build::tagged(&asked.frame(), TAG),
        "lan",
        &build::tagged(&told.frame(), TAG),
    )
}

#[test]
fn tags_end_at_the_uplink() -> Result<()> {
    let wires = Wires::new()?;
    let address = world::ip4(TAGGED);
    let (guest, port) = (world::mac(TAGGED), world::port_mac(TAGGED));
    let to = build::packet(ASKER, UPLINK, ASKER4, address);
    wires.leads_to(
        "lan",
        &build::tagged(&to.frame(), TAG),
        "machine",
        &to.hop(port, guest).frame(),
    )?;
    let from = build::packet(guest, port, address, FAR4);
    wires.leads_to(
        "machine",
        &from.frame(),
        "lan",
        &build::tagged(&from.hop(UPLINK, ROUTER).frame(), VLAN),
    )
}
