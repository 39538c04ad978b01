//! The lab itself: what the other suites take for granted.

use std::{fs, path::Path, time::Duration};

use anyhow::Result;
use netspawn_tests::{
    Capture, Counter, Direction, FAR4, FAR6, GATEWAY4, HOST4, HOST6, Kind, LAN, Lab, Ns, Snapshot,
    UPLINK, accept_xdp, ping, refuse_root_namespace, send_frame, tcp, tcx_programs, udp,
    unreachable, wait_until,
};

#[test]
fn root_namespace_is_refused() -> Result<()> {
    let own = Ns::open("own", Path::new("/proc/self/ns/net"));
    assert!(own.is_err_and(|error| error.to_string().contains("machine's own")));
    assert!(refuse_root_namespace().is_err());
    Ns::new("any")?.enter(refuse_root_namespace)
}

#[test]
fn settings_outside_the_network_are_refused() -> Result<()> {
    let ns = Ns::new("any")?;
    assert!(ns.set_sysctl("kernel/hostname", "x").is_err());
    assert!(ns.set_sysctl("net/../kernel/hostname", "x").is_err());
    Ok(())
}

#[test]
fn host_is_reached_and_machines_are_not_without_attach() -> Result<()> {
    let lab = Lab::usual()?;
    ping(&lab.net, HOST4)?;
    ping(&lab.net, HOST6)?;
    ping(&lab.host, FAR4)?;
    tcp(&lab.host, &lab.net, FAR6, 300_000)?;
    tcp(&lab.net, &lab.host, HOST4, 300_000)?;
    for size in [1, 1400, 4000] {
        udp(&lab.net, &lab.host, HOST6, size)?;
    }
    for machine in lab.machines() {
        unreachable(&lab.net, machine.v4())?;
        unreachable(&lab.net, machine.v6())?;
        unreachable(&machine.ns, GATEWAY4)?;
    }
    Ok(())
}

#[test]
fn snapshot_shows_a_change_and_its_return() -> Result<()> {
    let lab = Lab::usual()?;
    let before = Snapshot::host(&lab)?;
    ping(&lab.host, GATEWAY4)?;
    before.same(&Snapshot::host(&lab)?)?;
    let counter = Counter::load(Kind::Tc)?;
    let link = counter.tcx(&lab.host, UPLINK, Direction::Ingress)?;
    let pin = lab.bpffs().join("other");
    counter.clsact(&lab.host, "ve-db", Direction::Egress, &pin)?;
    lab.host.set_sysctl("net/ipv4/conf/ve-web/rp_filter", "2")?;
    lab.host.run("ip maddr add 33:33:ff:00:00:02 dev eth0")?;
    let changes = before.changes(&Snapshot::host(&lab)?).join("\n");
    for part in [
        "+ tcx eth0 ingress",
        "clsact",
        "rp_filter = 2",
        "ff:00:00:02",
        "/other",
    ] {
        assert!(changes.contains(part), "{part} is missing in\n{changes}");
    }
    drop(link);
    lab.host.run("tc qdisc del dev ve-db clsact")?;
    lab.host.set_sysctl("net/ipv4/conf/ve-web/rp_filter", "0")?;
    lab.host.run("ip maddr del 33:33:ff:00:00:02 dev eth0")?;
    fs::remove_file(pin)?;
    before.same(&Snapshot::host(&lab)?)
}

#[test]
fn programs_of_others_count() -> Result<()> {
    let lab = Lab::builder().build()?;
    let tcx = Counter::load(Kind::Tc)?;
    let _link = tcx.tcx(&lab.host, UPLINK, Direction::Ingress)?;
    assert_eq!(
        tcx_programs(&lab.host, UPLINK, Direction::Ingress)?.len(),
        1
    );
    let clsact = Counter::load(Kind::Tc)?;
    clsact.clsact(&lab.host, UPLINK, Direction::Egress, &lab.bpffs().join("a"))?;
    let xdp = accept_xdp(&lab.net, LAN, &lab.bpffs().join("b"))?;
    ping(&lab.net, HOST4)?;
    for (name, counter) in [("tcx", tcx), ("clsact", clsact), ("xdp", xdp)] {
        assert!(counter.count()? > 0, "{name} counted nothing");
    }
    Ok(())
}

#[test]
fn capture_shows_frames_with_their_tags() -> Result<()> {
    let lab = Lab::builder().build()?;
    let mut capture = Capture::start(&lab.host, UPLINK)?;
    let marker = b"a frame of the lab";
    let head = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];
    let frame = [&head[..], &[0x81, 0, 0, 7, 0x88, 0xb5], marker].concat();
    send_frame(&lab.net, LAN, &frame)?;
    assert_eq!(capture.containing(marker), [&frame]);
    capture.clear();
    assert!(capture.containing(marker).is_empty());
    Ok(())
}

#[test]
fn processes_end_with_the_value() -> Result<()> {
    let ns = Ns::new("any")?;
    let process = ns.cmd("sh").args(["-c", "sleep 100 & sleep 100"]).start()?;
    let entry = format!("/proc/{}", process.id());
    assert!(Path::new(&entry).exists());
    drop(process);
    assert!(!Path::new(&entry).exists());
    let slow = ns.cmd("sleep").arg("100").limit(Duration::from_millis(50));
    assert!(
        slow.output()
            .is_err_and(|error| error.to_string().contains("no result after"))
    );
    Ok(())
}

#[test]
fn kept_lab_is_found_again_and_removed() -> Result<()> {
    let path = std::env::temp_dir().join(format!("netspawn-kept-{}", std::process::id()));
    Lab::builder().usual_machines().build_at(&path)?.keep()?;
    let lab = Lab::open(&path)?;
    ping(&lab.net, HOST4)?;
    assert_eq!(lab.machine("web").addresses().len(), 3);
    lab.remove()?;
    assert!(wait_until(Duration::from_secs(1), || !path.exists()));
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    assert!(!mounts.contains("netspawn-kept-"), "{mounts}");
    Ok(())
}

#[test]
fn machine_answers_inside_its_prefix() -> Result<()> {
    let lab = Lab::usual()?;
    let web = lab.machine("web");
    // Without netspawn-xdp only the machine itself can tell.
    ping(&web.ns, "2001:db8:1::1234".parse::<std::net::Ipv6Addr>()?)
}
