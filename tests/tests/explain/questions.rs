//! The questions.

use netspawn_tests::UPLINK;

/// Questions with verdict, reason, machine, and where the frame leaves.
#[rustfmt::skip]
pub const QUESTIONS: &[(&str, &str, &str, &str, &str)] = &[
    // The network asks.
    ("arp 203.0.113.2", "answered", "arp", "web", UPLINK),
    ("arp 203.0.113.2 --from 0.0.0.0", "answered", "arp", "web", UPLINK),
    ("arp 203.0.113.9", "passed", "not_owned", "", ""),
    ("arp 203.0.113.7", "passed", "not_owned", "off", ""),
    ("arp 203.0.113.10", "passed", "for_host", "", ""),
    ("arp 203.0.113.3 --from 203.0.113.2", "passed", "address_conflict", "web", ""),
    ("arp 203.0.113.6", "passed", "vlan_pass", "tagged", ""),
    ("arp 203.0.113.6 --vlan 30", "answered", "arp", "tagged", UPLINK),
    ("arp 203.0.113.2 --to-mac 02:00:00:00:00:66", "passed", "not_for_us", "web", ""),
    ("ndp 2001:db8::2", "answered", "ndp", "web", UPLINK),
    ("ndp 2001:db8::2 --from ::", "answered", "ndp", "web", UPLINK),
    ("ndp 2001:db8:1::77", "answered", "ndp", "web", UPLINK),
    ("ndp 2001:db8::99", "passed", "not_owned", "", ""),
    // The network sends.
    ("in tcp 198.51.100.7:1234 203.0.113.2:443", "forwarded", "in", "web", "ve-web"),
    ("in udp 198.51.100.7:53 203.0.113.3:4000 --size 1400", "forwarded", "in", "db", "ve-db"),
    ("in udp 198.51.100.7:53 203.0.113.3:4000 --size 1401", "dropped", "too_big", "db", ""),
    ("in udp 198.51.100.7:53 203.0.113.3:4000 --size 1401 --df", "dropped", "too_big", "db", UPLINK),
    ("in icmp 198.51.100.7 203.0.113.2 --ttl 1", "dropped", "ttl_exceeded", "web", UPLINK),
    ("in icmp6 2001:db8:ffff::1 2001:db8::3", "forwarded", "in", "db", "ve-db"),
    ("in tcp [2001:db8:ffff::1]:1 [2001:db8:1::9]:22", "forwarded", "in", "web", "ve-web"),
    ("in udp [2001:db8:ffff::1]:1 [2001:db8::4]:2 --size 1401", "dropped", "too_big", "mail", UPLINK),
    ("in tcp 198.51.100.7:1 203.0.113.7:2", "dropped", "endpoint_down", "off", UPLINK),
    ("in tcp 198.51.100.7:1 203.0.113.10:22", "passed", "for_host", "", ""),
    ("in tcp 198.51.100.7:1 203.0.113.200:22", "passed", "not_owned", "", ""),
    ("in tcp 203.0.113.3:1 203.0.113.2:22", "dropped", "martian_source", "web", ""),
    ("in udp 198.51.100.7:1 203.0.113.6:2", "passed", "vlan_pass", "tagged", ""),
    ("in udp 198.51.100.7:1 203.0.113.6:2 --vlan 30", "forwarded", "in", "tagged", "ve-tagged"),
    // A machine sends.
    ("out web tcp 198.51.100.1:443", "forwarded", "out", "web", UPLINK),
    ("out web icmp6 2001:db8::1", "forwarded", "out", "web", UPLINK),
    ("out web udp 203.0.113.3:53", "forwarded", "local", "db", "ve-db"),
    ("out web udp [2001:db8::3]:53", "forwarded", "local", "db", "ve-db"),
    ("out web icmp 203.0.113.10", "forwarded", "out", "web", UPLINK),
    ("out web icmp 169.254.1.1", "answered", "echo", "web", "ve-web"),
    ("out web icmp6 fe80::1", "answered", "echo", "web", "ve-web"),
    ("out web arp 169.254.1.1", "answered", "arp", "web", "ve-web"),
    ("out web ndp fe80::1", "answered", "ndp", "web", "ve-web"),
    ("out web ndp :: 2001:db8::2", "dropped", "silent", "web", ""),
    ("out web udp 203.0.113.3:1 198.51.100.1:53", "dropped", "spoofed_source", "web", ""),
    ("out web udp 198.51.100.1:53 --mac 02:00:00:00:00:66", "dropped", "spoofed_mac", "web", ""),
    ("out web udp 198.51.100.1:53 --to-mac 02:00:00:00:00:66", "dropped", "wrong_gateway", "web", ""),
    ("out web udp 198.51.100.1:53 --vlan 7", "dropped", "vlan", "web", ""),
    ("out web udp 203.0.113.5:53", "dropped", "tenant_isolation", "web", ""),
    ("out web udp 203.0.113.2:53", "dropped", "own_destination", "web", ""),
    ("out web udp 224.0.0.251:5353", "dropped", "multicast", "web", ""),
    ("out web udp 198.51.100.1:53 --ttl 1", "dropped", "ttl_exceeded", "web", "ve-web"),
    ("out web udp 203.0.113.7:53", "dropped", "endpoint_down", "off", "ve-web"),
    // The host sends.
    ("host tcp 203.0.113.2:22", "forwarded", "in", "web", "ve-web"),
    ("host arp 203.0.113.2", "answered", "arp", "web", UPLINK),
    ("host ndp 2001:db8::3", "answered", "ndp", "db", UPLINK),
    ("host udp 198.51.100.1:53", "passed", "not_owned", "", ""),
    ("host udp [2001:db8::3]:1 --size 1401", "dropped", "too_big", "db", UPLINK),
];
