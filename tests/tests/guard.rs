//! What a machine must not say reaches nobody.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use netspawn_tests::{
    Attached, Capture, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, LAN, Lab, Machine, Mode, UPLINK,
    in_each_mode, ping, send_frame, wait_until,
};

const MARKER: &[u8] = b"a payload that only this test sends";

/// Every place a machine's frame could get to.
struct Ears(Vec<(String, Capture)>);

impl Ears {
    /// Listens at the network, at the host's stack (what comes in on its uplink) and in
    /// every machine but the sender; and on the other ports.
    fn everywhere_but(lab: &Lab, sender: &Machine) -> Result<Self> {
        let mut ears = vec![
            ("the network".to_owned(), Capture::start(&lab.net, LAN)?),
            ("the host".to_owned(), Capture::start(&lab.host, UPLINK)?),
        ];
        for machine in lab.machines() {
            if machine.name() != sender.name() {
                ears.push((
                    machine.name().to_owned(),
                    Capture::start(&machine.ns, HOST0)?,
                ));
                ears.push((
                    machine.port().to_owned(),
                    Capture::start(&lab.host, machine.port())?,
                ));
            }
        }
        Ok(Ears(ears))
    }

    /// Who got a frame with these bytes.
    fn heard(&mut self, bytes: &[u8]) -> Vec<String> {
        self.0
            .iter_mut()
            .filter_map(|(name, capture)| {
                let heard = !capture.containing(bytes).is_empty();
                heard.then(|| name.clone())
            })
            .collect()
    }

    /// Fails if anybody got a frame with these bytes; leaves what they got as pcap files.
    fn assert_silent(&mut self, bytes: &[u8]) -> Result<()> {
        let heard = self.heard(bytes);
        for (name, capture) in self.0.iter_mut().filter(|(name, _)| heard.contains(name)) {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pcap"));
            capture.save(&file)?;
            eprintln!("see {}", file.display());
        }
        ensure!(heard.is_empty(), "heard by {heard:?}");
        Ok(())
    }
}

/// What a machine sends: destination addresses that lead everywhere there is.
fn udp4(from: &[u8; 6], to: &[u8; 6], source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(*from, *to)
        .ipv4(source, destination, 64)
        .udp(4000, 4000)
        .write(&mut frame, MARKER)
        .expect("a Vec takes everything");
    frame
}

fn udp6(from: &[u8; 6], to: &[u8; 6], source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(*from, *to)
        .ipv6(source, destination, 64)
        .udp(4000, 4000)
        .write(&mut frame, MARKER)
        .expect("a Vec takes everything");
    frame
}

fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}

fn arp(operation: ArpOperation, sender: [u8; 6], claimed: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &sender,
        &claimed,
        &[0; 6],
        &target,
    )
    .expect("addresses of the usual lengths");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(sender, [0xff; 6])
        .arp(packet)
        .write(&mut frame)
        .expect("a Vec takes everything");
    frame
}

fn spoofed_sources_reach_nobody(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db, mail) = (lab.machine("web"), lab.machine("db"), lab.machine("mail"));
    let own = web.ns.mac(HOST0)?;
    let port = lab.host.mac(web.port())?;
    let mut ears = Ears::everywhere_but(lab, web)?;

    // That the ears hear: the same frames with the machine's own source arrive.
    for to in [GATEWAY4, db.v4(), HOST4] {
        send_frame(
            &web.ns,
            HOST0,
            &udp4(&own, &port, web.v4().octets(), to.octets()),
        )?;
    }
    for to in [GATEWAY6, db.v6(), HOST6] {
        send_frame(
            &web.ns,
            HOST0,
            &udp6(&own, &port, web.v6().octets(), to.octets()),
        )?;
    }
    let mut heard = Vec::new();
    wait_until(Duration::from_secs(1), || {
        heard = ears.heard(MARKER);
        ["the network", "the host", "db"]
            .iter()
            .all(|ear| heard.iter().any(|name| name == ear))
    });
    for ear in ["the network", "the host", "db"] {
        assert!(
            heard.iter().any(|name| name == ear),
            "{ear} heard nothing, only {heard:?} did"
        );
    }

    let mut ears = Ears::everywhere_but(lab, web)?;
    let stranger4 = [192, 0, 2, 66];
    let stranger6 = "2001:db8:66::66".parse::<std::net::Ipv6Addr>()?;
    for source in [
        db.v4().octets(),
        HOST4.octets(),
        GATEWAY4.octets(),
        stranger4,
        [0; 4],
    ] {
        for to in [GATEWAY4, db.v4(), mail.v4(), HOST4, [255; 4].into()] {
            let frame = udp4(&own, &port, source, to.octets());
            send_frame(&web.ns, HOST0, &frame)?;
        }
    }
    for source in [db.v6(), HOST6, GATEWAY6, stranger6, [0; 16].into()] {
        for to in [GATEWAY6, db.v6(), mail.v6(), HOST6, "ff02::1".parse()?] {
            let frame = udp6(&own, &port, source.octets(), to.octets());
            send_frame(&web.ns, HOST0, &frame)?;
        }
    }
    // Not its own link-layer address.
    let other = [2, 0, 0, 0, 0, 0x66];
    send_frame(
        &web.ns,
        HOST0,
        &udp4(&other, &port, web.v4().octets(), GATEWAY4.octets()),
    )?;
    // What was sent is dealt with before the answer to this returns.
    ping(&web.ns, GATEWAY4)?;
    ears.assert_silent(MARKER)?;
    let list = lab.json("list")?;
    let drops = list
        .as_array()
        .and_then(|list| list.iter().find(|machine| machine["name"] == "web"))
        .map(|machine| machine["drops"]["spoofed_source"].clone());
    assert!(
        drops.and_then(|n| n.as_u64()).is_some_and(|n| n >= 40),
        "{list:#}"
    );
    Ok(())
}

fn spoofed_arp_takes_nothing_over(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let own = web.ns.mac(HOST0)?;
    let mut ears = Ears::everywhere_but(lab, web)?;
    for claimed in [db.v4(), HOST4, GATEWAY4] {
        for operation in [ArpOperation::REQUEST, ArpOperation::REPLY] {
            for target in [claimed, GATEWAY4, HOST4, db.v4()] {
                let frame = arp(operation, own, claimed.octets(), target.octets());
                send_frame(&web.ns, HOST0, &frame)?;
            }
        }
    }
    ping(&web.ns, GATEWAY4)?;
    ears.assert_silent(&own)?;
    for (ns, address) in [
        (&lab.net, db.v4()),
        (&lab.host, db.v4()),
        (&db.ns, GATEWAY4),
    ] {
        ping(ns, address)?;
        let neighbors = ns.run("ip neigh")?;
        let own = own.map(|byte| format!("{byte:02x}")).join(":");
        assert!(!neighbors.contains(&own), "{neighbors}");
    }
    Ok(())
}

fn spoofed_advertisements_take_nothing_over(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let own = web.ns.mac(HOST0)?;
    let mut ears = Ears::everywhere_but(lab, web)?;
    for claimed in [db.v6(), HOST6, GATEWAY6] {
        // Target, then the option that names the sender's link-layer address.
        let payload = [&claimed.octets()[..], &[2, 1], &own].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(own, [0x33, 0x33, 0, 0, 0, 1])
            .ipv6(
                claimed.octets(),
                "ff02::1".parse::<std::net::Ipv6Addr>()?.octets(),
                255,
            )
            // Override, unsolicited.
            .icmpv6_raw(136, 0, [0x20, 0, 0, 0])
            .write(&mut frame, &payload)?;
        send_frame(&web.ns, HOST0, &frame)?;
    }
    ping(&web.ns, GATEWAY6)?;
    ears.assert_silent(&own)?;
    for (ns, address) in [(&lab.net, db.v6()), (&lab.host, db.v6())] {
        ping(ns, address)?;
    }
    Ok(())
}

fn tagged_frames_reach_nobody(mode: Mode) -> Result<()> {
    let on = Attached::usual(mode)?;
    let lab = &on.lab;
    let (web, db) = (lab.machine("web"), lab.machine("db"));
    let own = web.ns.mac(HOST0)?;
    let port = lab.host.mac(web.port())?;
    let mut ears = Ears::everywhere_but(lab, web)?;
    let plain: Vec<Vec<u8>> = [GATEWAY4, db.v4(), HOST4]
        .iter()
        .map(|to| udp4(&own, &port, web.v4().octets(), to.octets()))
        .chain(
            [GATEWAY6, db.v6(), HOST6]
                .iter()
                .map(|to| udp6(&own, &port, web.v6().octets(), to.octets())),
        )
        .collect();
    let (q, ad) = ([0x81, 0x00, 0, 7], [0x88, 0xa8, 0, 7]);
    // 0 is the tag of frames that only carry a priority.
    let priority = [0x81, 0x00, 0xe0, 0];
    for frame in &plain {
        for tags in [&[q][..], &[ad], &[priority], &[q, q], &[ad, q]] {
            send_frame(&web.ns, HOST0, &tagged(frame, tags))?;
        }
    }
    ping(&web.ns, GATEWAY4)?;
    ears.assert_silent(MARKER)?;
    Ok(())
}

in_each_mode! {
    spoofed_sources_reach_nobody
    spoofed_arp_takes_nothing_over
    spoofed_advertisements_take_nothing_over
    tagged_frames_reach_nobody
}

/// A machine that bridges or routes for others, once its file says so: its addresses are
/// enforced all the same.
#[test]
fn files_widen_the_guard_as_far_as_they_say() -> Result<()> {
    const STRANGER: [u8; 6] = [2, 0, 0, 0, 0x55, 5];
    let on = Attached::usual(Mode::Tc)?;
    let lab = &on.lab;
    let web = lab.machine("web");
    let (own_mac, port_mac) = (web.ns.mac(HOST0)?, lab.host.mac(web.port())?);
    let mut number = 0u8;
    let mut reaches = |source_mac: [u8; 6], source: [u8; 4]| -> Result<bool> {
        number += 1;
        let payload = [MARKER, &[number]].concat();
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(source_mac, port_mac)
            .ipv4(source, GATEWAY4.octets(), 64)
            .udp(4000, 5000)
            .write(&mut frame, &payload)?;
        let mut capture = Capture::start(&lab.net, LAN)?;
        send_frame(&web.ns, HOST0, &frame)?;
        Ok(wait_until(Duration::from_millis(200), || {
            !capture.containing(&payload).is_empty()
        }))
    };
    let soon = |condition: &mut dyn FnMut() -> Result<bool>| {
        wait_until(Duration::from_secs(5), || {
            condition().is_ok_and(|done| done)
        })
    };
    let (own, routed, other) = (web.v4().octets(), [10, 8, 0, 9], [10, 9, 0, 9]);
    ensure!(reaches(own_mac, own)?, "what may be sent does not arrive");
    ensure!(!reaches(own_mac, routed)? && !reaches(STRANGER, own)?);

    let text = format!("{}sources = [\"10.8.0.0/24\"]\n", web.declaration());
    lab.declare("web", &text)?;
    ensure!(soon(&mut || reaches(own_mac, routed)), "not granted");
    ensure!(!reaches(own_mac, other)? && !reaches(STRANGER, routed)?);

    let text = format!("{}any-mac = true\n", web.declaration());
    lab.declare("web", &text)?;
    ensure!(soon(&mut || reaches(STRANGER, own)), "not granted");
    ensure!(
        soon(&mut || Ok(!reaches(own_mac, routed)?)),
        "not taken back"
    );
    ensure!(!reaches(STRANGER, routed)?);

    lab.declare("web", &web.declaration())?;
    ensure!(soon(&mut || Ok(!reaches(STRANGER, own)?)), "not taken back");
    ensure!(reaches(own_mac, own)?);
    Ok(())
}
