//! Which neighbors frames speak of, and which ones they need.

#[allow(
    dead_code,
    reason = "what is done with verdicts is for the other tests"
)]
mod host;
#[allow(dead_code, reason = "the outcomes of the rows are for the other tests")]
mod rows;

use netspawn_ebpf::{
    abi::{self, MACHINE, NO_NEIGHBOR, Neighbor},
    decide::{
        Meta,
        neighbor::{NO_LINK, heard, link, mapped, sought},
        offload::Said,
    },
    verdict::{Reason, Verdict},
    wire::{Ipv4, Ipv6, Words6, words6},
};

use host::{World, decide};
use rows::{
    At,
    build::{self, Arp, Inner, Packet, packet},
    world::*,
};

const PORT: u32 = 77;
const NOBODY: Words6 = [0; 2];

fn sought_by(frame: &[u8]) -> Neighbor {
    let world = World::new(0);
    let said = Said {
        length: frame.len() as u32,
        ..Said::default()
    };
    let meta = Meta::new(frame, &said);
    let verdict =
        decide(&world, At::Port(WEB), frame, &meta, &said).expect("it is a machine's port");
    match link(&verdict, PORT) {
        NO_LINK => NO_NEIGHBOR,
        link => sought(frame, link, WEB, &world),
    }
}

fn from4(source: Ipv4, destination: Ipv4) -> Vec<u8> {
    packet(mac(WEB), port_mac(WEB), source, destination).frame()
}

fn from6(source: Ipv6, destination: Ipv6) -> Vec<u8> {
    packet(mac(WEB), port_mac(WEB), source, destination).frame()
}

#[test]
fn destinations_on_the_link_are_sought() {
    let wanted = abi::neighbor(&mapped(NEIGHBOR4), 2, 0);
    assert_eq!(sought_by(&from4(ip4(WEB), NEIGHBOR4)), wanted);
    let wanted = abi::neighbor(&words6(&NEIGHBOR6), 2, 0);
    assert_eq!(sought_by(&from6(ip6(WEB), NEIGHBOR6)), wanted);
}

#[test]
fn routers_and_machines_are_not_sought() {
    for destination in [FAR4, UNRESOLVED4, ip4(DB), ip4(ACME), REFUSED4] {
        assert_eq!(sought_by(&from4(ip4(WEB), destination)), NO_NEIGHBOR);
    }
    for destination in [FAR6, UNRESOLVED6, ip6(DB), ip6(ACME), REFUSED6] {
        assert_eq!(sought_by(&from6(ip6(WEB), destination)), NO_NEIGHBOR);
    }
}

#[test]
fn host_remembers_whom_it_answers_on_the_link() {
    let wanted = abi::neighbor(&mapped(ON_LINK4), 2, MACHINE);
    assert_eq!(sought_by(&from4(ON_LINK4, HOST4)), wanted);
    let wanted = abi::neighbor(&words6(&ON_LINK6), 2, MACHINE);
    assert_eq!(sought_by(&from6(ON_LINK6, HOST6)), wanted);
    // Behind a router, and single.
    assert_eq!(sought_by(&from4(INSIDE4, HOST4)), NO_NEIGHBOR);
    assert_eq!(sought_by(&from4(ip4(WEB), HOST4)), NO_NEIGHBOR);
    assert_eq!(sought_by(&from6(ip6(WEB), HOST6)), NO_NEIGHBOR);
}

#[test]
fn host_remembers_link_local_addresses_on_the_port() {
    for (source, port) in [(guest_link_local(WEB), PORT), (guest_link_local(DB), PORT)] {
        let ping: Packet<Ipv6> = packet(mac(WEB), port_mac(WEB), source, port_link_local(WEB));
        let wanted = abi::neighbor(&words6(&source), port, MACHINE);
        assert_eq!(
            sought_by(
                &ping
                    .with(Inner::Other(58, vec![128, 0, 0, 0, 0, 0, 0, 0]))
                    .frame()
            ),
            wanted
        );
    }
    let dhcp = packet(
        mac(WEB),
        [0x33, 0x33, 0, 1, 0, 2],
        guest_link_local(WEB),
        [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2],
    );
    let wanted = abi::neighbor(&words6(&guest_link_local(WEB)), PORT, MACHINE);
    let dhcp = dhcp.with(Inner::Udp(546, 547, 60)).frame();
    assert_eq!(sought_by(&dhcp), wanted);
}

fn heard_in(frame: &[u8]) -> Words6 {
    let world = World::new(0);
    let said = Said {
        length: frame.len() as u32,
        ..Said::default()
    };
    let meta = Meta::new(frame, &said);
    let verdict = decide(&world, At::Uplink, frame, &meta, &said).expect("the uplink takes all");
    heard(frame, &verdict)
}

#[test]
fn stations_are_heard_in_arp() {
    let ask = |tpa| Arp::who_has(tpa, ASKER, ASKER4);
    for tpa in [ip4(WEB), HOST4] {
        assert_eq!(heard_in(&ask(tpa).frame()), mapped(ASKER4));
    }
    let reply = Arp::who_has(FREE4, UPLINK, HOST4).is_at(ASKER);
    assert_eq!(heard_in(&reply.frame()), mapped(FREE4));
    // A probe, one for others, one that claims a machine's address.
    let probe = Arp::who_has(ip4(WEB), ASKER, [0; 4]);
    assert_eq!(heard_in(&probe.frame()), NOBODY);
    assert_eq!(heard_in(&ask(FREE4).frame()), NOBODY);
    let claim = Arp::who_has(HOST4, ASKER, ip4(WEB));
    assert_eq!(heard_in(&claim.frame()), NOBODY);
}

#[test]
fn packets_are_not_heard() {
    assert_eq!(
        heard_in(&packet(ASKER, UPLINK, ASKER4, HOST4).frame()),
        NOBODY
    );
    assert_eq!(
        heard_in(&packet(ASKER, UPLINK, ASKER6, HOST6).frame()),
        NOBODY
    );
}

/// A neighbor's message, as if it had been found to be for the host.
fn heard_as_hosts(frame: &[u8]) -> Words6 {
    heard(frame, &Verdict::pass(Reason::ForHost))
}

#[test]
fn stations_are_heard_in_neighbor_discovery_of_their_own_link() {
    const HOPS: usize = 14 + 7;
    const TYPE: usize = 14 + 40;
    let to_host = packet(ASKER, UPLINK, ASKER6, HOST6).with(Inner::Other(58, vec![0; 40]));
    let ask = build::patch(to_host.frame(), TYPE, &[135]);
    let near = build::patch(ask.clone(), HOPS, &[255]);
    assert_eq!(heard_as_hosts(&near), words6(&ASKER6));
    assert_eq!(heard_as_hosts(&ask), NOBODY, "it came by a router");
    let target = 14 + 40 + 8;
    let tell = build::patch(build::patch(near, TYPE, &[136]), target, &FREE6);
    assert_eq!(heard_as_hosts(&tell), words6(&FREE6));
    let far = build::patch(tell, HOPS, &[254]);
    assert_eq!(heard_as_hosts(&far), NOBODY, "it came by a router");
}
