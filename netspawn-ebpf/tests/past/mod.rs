//! Row U2: which frames leave by an uplink with a machine's source, by where they have
//! come from.

use netspawn_ebpf::{
    abi::settings_flag,
    decide::past::{Past, Routed, leaving},
    verdict::Reason::{self, MartianSource, UnknownPort},
};

use crate::host::{PORT_OF_DB, PORT_OF_WEB, SHUT, STRANGE, UPLINK_INDEX, WAY_IN, World};
use crate::rows::{
    build::{Arp, Icmp6, advertisement, packet, solicited, tagged},
    world::{
        ASKER, ASKER4, ASKER6, DB, DOWN, FREE4, HOST4, HOST6, INSIDE6, ROUTER, UPLINK, WEB, ip4,
        ip6, mac,
    },
};

const ANOTHER_UPLINK: u32 = 7;

fn verdict(frame: &[u8], ingress: u32, past: Past) -> Option<Reason> {
    verdict_in(&World::new(0), frame, ingress, past)
}

fn verdict_in(world: &World, frame: &[u8], ingress: u32, past: Past) -> Option<Reason> {
    leaving(frame, UPLINK_INDEX, ingress, || past, world)
}

fn from_web() -> Vec<Vec<u8>> {
    let four = packet(UPLINK, ROUTER, ip4(WEB), ASKER4).frame();
    let six = packet(UPLINK, ROUTER, ip6(WEB), ASKER6).frame();
    let prefix = packet(UPLINK, ROUTER, INSIDE6, ASKER6).frame();
    let nested = |frame: &[u8]| tagged(&tagged(frame, 9), 7);
    let tags = [
        tagged(&four, 7),
        tagged(&six, 7),
        nested(&four),
        nested(&six),
    ];
    [vec![four, six, prefix], tags.to_vec()].concat()
}

#[test]
fn a_socket_of_the_host_may_send_as_a_machine() {
    for frame in from_web() {
        for routed in [Routed::Here, Routed::Nowhere] {
            let past = Past {
                routed,
                ..Past::OWN
            };
            assert_eq!(verdict(&frame, 0, past), None);
        }
    }
}

#[test]
fn what_has_no_socket_of_the_host_may_not() {
    let strange = [
        Past {
            socket: false,
            ..Past::OWN
        },
        Past {
            routed: Routed::Elsewhere,
            ..Past::OWN
        },
        // What a machine got from the host, and sends back by a device on the uplink.
        Past {
            received: true,
            ..Past::OWN
        },
    ];
    for frame in from_web() {
        for past in strange {
            assert_eq!(verdict(&frame, 0, past), Some(MartianSource), "{past:?}");
        }
    }
    for frame in [
        packet(ASKER, ROUTER, ip4(WEB), ASKER4).frame(),
        packet(mac(WEB), ROUTER, ip6(WEB), ASKER6).frame(),
    ] {
        assert_eq!(verdict(&frame, 0, Past::OWN), Some(MartianSource));
    }
}

#[test]
fn what_comes_in_by_an_uplink_is_routed_on() {
    let forwarded = Past {
        socket: false,
        received: true,
        ..Past::OWN
    };
    for frame in from_web() {
        for ingress in [UPLINK_INDEX, ANOTHER_UPLINK, WAY_IN, PORT_OF_WEB] {
            assert_eq!(verdict(&frame, ingress, forwarded), None, "{ingress}");
        }
        for ingress in [STRANGE, SHUT, PORT_OF_DB] {
            let found = verdict(&frame, ingress, forwarded);
            assert_eq!(found, Some(MartianSource), "{ingress}");
        }
        // In another namespace the same number is another interface's.
        for routed in [Routed::Nowhere, Routed::Elsewhere] {
            let past = Past {
                routed,
                ..forwarded
            };
            for ingress in [UPLINK_INDEX, WAY_IN, PORT_OF_WEB] {
                let found = verdict(&frame, ingress, past);
                assert_eq!(found, Some(MartianSource), "{ingress} {routed:?}");
            }
        }
    }
}

#[test]
fn machines_of_this_host_are_reached_by_the_same_rule() {
    let strange = Past {
        socket: false,
        received: true,
        ..Past::OWN
    };
    for frame in [
        packet(UPLINK, mac(DB), ip4(WEB), ip4(DB)).frame(),
        packet(UPLINK, mac(DB), ip6(WEB), ip6(DB)).frame(),
        // Those of a stopped machine as well.
        packet(UPLINK, mac(DB), ip4(DOWN), ip4(DB)).frame(),
    ] {
        assert_eq!(verdict(&frame, STRANGE, strange), Some(MartianSource));
        assert_eq!(verdict(&frame, UPLINK_INDEX, strange), None);
    }
}

#[test]
fn other_sources_are_not_looked_at() {
    let strange = Past {
        routed: Routed::Elsewhere,
        socket: false,
        received: true,
    };
    for frame in [
        packet(ASKER, ROUTER, HOST4, ASKER4).frame(),
        packet(ASKER, ROUTER, HOST6, ASKER6).frame(),
        packet(ASKER, ROUTER, FREE4, ASKER4).frame(),
        packet(ASKER, ROUTER, ASKER4, ip4(WEB)).frame(),
    ] {
        for ingress in [0, STRANGE, SHUT] {
            assert_eq!(verdict(&frame, ingress, strange), None);
        }
    }
    for length in 0..54 {
        let frame = packet(ASKER, ROUTER, HOST6, ASKER6).frame();
        assert_eq!(verdict(&frame[..length], STRANGE, strange), None);
    }
}

#[test]
fn nothing_leaves_that_has_come_in_by_a_closed_port() {
    let mut world = World::new(0);
    let past = Past {
        socket: false,
        received: true,
        ..Past::OWN
    };
    let frame = packet(UPLINK, ROUTER, FREE4, ASKER4).frame();
    // Without the flag nobody looks.
    assert_eq!(verdict_in(&world, &frame, SHUT, past), None);
    world.settings.flags |= settings_flag::CLOSED;
    assert_eq!(verdict_in(&world, &frame, SHUT, past), Some(UnknownPort));
    for ingress in [0, STRANGE, WAY_IN, UPLINK_INDEX, PORT_OF_WEB] {
        assert_eq!(verdict_in(&world, &frame, ingress, past), None);
    }
    let elsewhere = Past {
        routed: Routed::Elsewhere,
        ..past
    };
    assert_eq!(verdict_in(&world, &frame, SHUT, elsewhere), None);
}

/// That a machine is where the uplink is may be said by anybody, and nothing else.
#[test]
fn nobody_else_says_where_machines_are() {
    let arp = |source, sha| {
        let request = Arp::who_has(ASKER4, sha, ip4(WEB));
        Arp { source, ..request }.frame()
    };
    let strange = Past {
        routed: Routed::Nowhere,
        socket: false,
        received: false,
    };
    assert_eq!(verdict(&arp(UPLINK, UPLINK), 0, strange), None);
    for (source, sha) in [(ASKER, ASKER), (UPLINK, ASKER), (ASKER, UPLINK)] {
        for frame in [arp(source, sha), tagged(&arp(source, sha), 7)] {
            assert_eq!(verdict(&frame, 0, strange), Some(MartianSource));
        }
    }
    let (group, group_mac) = solicited(ip6(WEB));
    let found = advertisement(ip6(WEB), UPLINK, group, group_mac, 0x20);
    let other_source = Icmp6 {
        source: ASKER6,
        ..found.clone()
    };
    for frame in [found.frame(), other_source.frame()] {
        assert_eq!(verdict(&frame, 0, Past::OWN), None);
        assert_eq!(verdict(&frame, 0, strange), Some(MartianSource));
    }
}
