//! Findings that are provoked in a namespace.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Counter, Direction, Kind, Lab, Spec, UPLINK, remount, wait_until};

use crate::stage::{Mend, Stage, machines, plain, play};

macro_rules! provoked {
    ($($name:ident: $id:literal, $lab:expr, $provoke:expr, $mend:expr;)*) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                play($id, $lab, $provoke, $mend)
            }
        )*
        /// The findings that are provoked here.
        pub const PROVOKED: &[&str] = &[$($id),*];
    };
}

use Mend::{Person, Printed};

provoked! {
    unprivileged: "unprivileged", plain, |stage| {
        stage.within = "setpriv --reuid 65534 --regid 65534 --clear-groups"
            .split(' ').map(str::to_owned).collect();
        Ok(())
    }, Person(alone);
    bpf_refused: "bpf-refused", plain, |stage| {
        stage.within = ["setpriv", "--bounding-set=-all"].map(str::to_owned).into();
        Ok(())
    }, Person(alone);
    btf_missing: "btf-missing", plain, |stage| {
        stage.mounts("mount -t tmpfs none /sys/kernel/btf")
    }, Person(alone);
    offload_fields_unseen: "offload-fields-unseen", plain, |stage| {
        stage.mounts("mount -t tmpfs none /sys/kernel/btf")
    }, Person(alone);
    bpffs_missing: "bpffs-missing", plain, |stage| {
        let folder = stage.lab.dir().join("plain");
        fs::create_dir(&folder)?;
        stage.bpf_dir = Some(folder.join("netspawn"));
        Ok(())
    }, Printed;
    bpffs_read_only: "bpffs-read-only", plain, |stage| {
        remount(&stage.lab.bpffs(), true)
    }, Printed;
    bpffs_open: "bpffs-open", plain, |stage| {
        let open = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(stage.lab.bpffs(), open)?;
        Ok(())
    }, Printed;
    bpf_dir_foreign: "bpf-dir-foreign", plain, |stage| {
        fs::create_dir(stage.lab.bpf_dir())?;
        chown(stage.lab.bpf_dir(), Some(65534), None)?;
        Ok(())
    }, Person(|stage| Ok(fs::remove_dir(stage.lab.bpf_dir())?));
    other_namespace: "other-namespace", plain, |stage| {
        stage.lab.run("attach eth0 --once")?;
        stage.outside = true;
        Ok(())
    }, Person(|stage| { stage.outside = false; Ok(()) });
    data_plane_unreadable: "data-plane-unreadable", plain, |stage| {
        stage.lab.run("attach eth0 --once")?;
        for version in fs::read_dir(stage.lab.bpf_dir())? {
            fs::remove_file(version?.path().join("programs/port_ingress"))?;
        }
        Ok(())
    }, Printed;

    no_uplink: "no-uplink", plain, |stage| {
        stage.words.clear();
        stage.host(&["ip route del default", "ip -6 route del default"])
    }, Person(|stage| { UPLINK.clone_into(&mut stage.words); Ok(()) });
    uplink_missing: "uplink-missing", plain, |stage| {
        stage.words = "eth9".to_owned();
        Ok(())
    }, Person(|stage| { UPLINK.clone_into(&mut stage.words); Ok(()) });
    uplink_is_port: "uplink-is-port", plain, |stage| {
        stage.host(&["ip link add br0 type bridge", "ip link set br0 up", "ip link set eth0 master br0"])
    }, Person(|stage| stage.lab.run("attach br0 --once").map(drop));
    uplink_not_ethernet: "uplink-not-ethernet", plain, |stage| {
        stage.words = "lo".to_owned();
        Ok(())
    }, Person(|stage| { UPLINK.clone_into(&mut stage.words); Ok(()) });
    uplink_down: "uplink-down", plain, |stage| stage.host(&["ip link set eth0 down"]), Printed;
    uplink_no_carrier: "uplink-no-carrier", plain, |stage| {
        stage.lab.net.run("ip link set lan0 down").map(drop)
    }, Person(|stage| stage.lab.net.run("ip link set lan0 up").map(drop));
    xdp_slot_taken: "xdp-slot-taken", plain, |stage| {
        mode(stage, "xdp")?;
        Counter::load(Kind::Xdp)?.xdp(&stage.lab.host, UPLINK, &stage.lab.bpffs().join("other"))
    }, Printed;
    xdp_before_ours: "xdp-before-ours", plain, |stage| {
        Counter::load(Kind::Xdp)?.xdp(&stage.lab.host, UPLINK, &stage.lab.bpffs().join("other"))
    }, Printed;
    xdp_unsupported: "xdp-unsupported", plain, |stage| {
        stage.host(&["ip link add br0 type bridge", "ip link set br0 up"])?;
        stage.words = "br0".to_owned();
        mode(stage, "xdp")
    }, Person(|stage| mode(stage, "tc"));
    xdp_veth: "xdp-veth", plain, |stage| mode(stage, "xdp"), Person(|stage| mode(stage, "tc"));
    tcx_before_ours: "tcx-before-ours", plain, |stage| {
        let counter = Counter::load(Kind::Tc)?;
        stage.links.push(counter.tcx(&stage.lab.host, UPLINK, Direction::Ingress)?);
        Ok(())
    }, Person(|stage| { stage.links.clear(); Ok(()) });
    filters_bypassed: "filters-bypassed", plain, |stage| {
        let pin = stage.lab.bpffs().join("other");
        Counter::load(Kind::Tc)?.clsact(&stage.lab.host, UPLINK, Direction::Ingress, &pin)
    }, Person(|stage| stage.host(&["tc qdisc del dev eth0 clsact"]));

    gro_off: "gro-off", || {
        let lab = plain()?;
        // A veth has it off by itself.
        lab.host.run("ip tuntap add dev tap0 mode tap")?;
        lab.host.run("ip link set tap0 up")?;
        Ok(lab)
    }, |stage| {
        stage.words = "tap0".to_owned();
        stage.host(&["ethtool -K tap0 gro off"])
    }, Printed;
    tso_off: "tso-off", plain, |stage| stage.host(&["ethtool -K eth0 tso off"]), Printed;
    machine_gro_off: "machine-gro-off", || {
        let lab = plain()?;
        for machine in lab.machines() {
            machine.ns.run("ethtool -K host0 gro on")?;
        }
        fs::write(lab.config_dir().join("netspawn.toml"), "[attach]\nmode = \"xdp\"\n")?;
        Ok(lab)
    }, |stage| within(stage, "web", "ethtool -K host0 gro off"), Printed;

    machine_mtu_large: "machine-mtu-large", plain, |stage| {
        within(stage, "web", "ip link set host0 mtu 2000")
    }, Printed;
    port_mtu_differs: "port-mtu-differs", plain, |stage| {
        stage.host(&["ip link set ve-web mtu 1600"])
    }, Printed;
    port_mtu_small: "port-mtu-small", plain, |stage| {
        stage.host(&["ip link set ve-web mtu 1400"])?;
        within(stage, "web", "ip link set host0 mtu 1400")
    }, Printed;

    forwarding_on: "forwarding-on", plain, |stage| {
        stage.lab.host.set_sysctl("net/ipv4/ip_forward", "1")
    }, Person(|stage| stage.lab.host.set_sysctl("net/ipv4/ip_forward", "0"));
    via_host_not_forwarded: "via-host-not-forwarded", plain, |stage| {
        let policy = "[policy]\nvia-host = [\"10.96.0.0/16\", \"fd00:96::/112\"]\n";
        Ok(fs::write(stage.lab.config_dir().join("netspawn.toml"), policy)?)
    }, Printed;
    rp_filter: "rp-filter", || machines().rp_filter(1).build(), astray, Printed;
    proxy_arp_on: "proxy-arp-on", plain, |stage| {
        stage.lab.host.set_sysctl("net/ipv4/conf/eth0/proxy_arp", "1")?;
        stage.lab.host.set_sysctl("net/ipv4/conf/ve-web/proxy_arp", "1")
    }, Printed;
    proxy_ndp_on: "proxy-ndp-on", plain, |stage| {
        stage.lab.host.set_sysctl("net/ipv6/conf/all/proxy_ndp", "1")
    }, Printed;
    ipv6_disabled: "ipv6-disabled", plain, |stage| {
        stage.lab.host.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
    }, Printed;

    proxy_neighbors_left: "proxy-neighbors-left", plain, |stage| {
        stage.host(&[
            "ip neigh add proxy 203.0.113.2 dev eth0",
            "ip neigh add proxy 2001:db8::3 dev eth0",
        ])
    }, Printed;
    host_routes_left: "host-routes-left", plain, |stage| {
        stage.host(&[
            "ip route add 203.0.113.2 dev ve-web",
            "ip route add 2001:db8::3 dev ve-db metric 7",
        ])
    }, Printed;
    proxy_daemon: "proxy-daemon", plain, |stage| {
        let path = stage.lab.dir().join("ndppd.conf");
        fs::write(&path, "proxy eth0 {\n rule 2001:db8::/64 {\n static\n }\n}\n")?;
        let mut ndppd = stage.lab.host.cmd("ndppd").arg("-c").arg(&path).start()?;
        let comm = format!("/proc/{}/comm", ndppd.id());
        let named = || fs::read_to_string(&comm).is_ok_and(|name| name == "ndppd\n");
        ensure!(wait_until(Duration::from_secs(10), named) && ndppd.running(), "{}", ndppd.err());
        stage.processes.push(ndppd);
        Ok(())
    }, Printed;
    gateway_silent: "gateway-silent", plain, |stage| {
        stage.host(&["ip route replace default via 203.0.113.99"])?;
        let failed = wait_until(Duration::from_secs(10), || {
            let ping = stage.lab.host.cmd("ping").args(["-c1", "-W1", "203.0.113.99"]);
            let _ = ping.output();
            let shown = stage.lab.host.run("ip neigh show 203.0.113.99");
            shown.is_ok_and(|text| text.contains("FAILED"))
        });
        ensure!(failed, "the kernel does not give up");
        Ok(())
    }, Person(|stage| stage.host(&["ip route replace default via 203.0.113.1"]));

    no_default_route: "no-default-route", plain, |stage| stage.host(&["ip -6 route del default"]),
        Person(|stage| stage.host(&["ip -6 route add default via 2001:db8::1 dev eth0"]));
    default_route_elsewhere: "default-route-elsewhere", plain, |stage| {
        stage.other_network()?;
        stage.host(&["ip route replace default via 192.0.2.2 dev alt0"])
    }, Person(|stage| stage.host(&["ip route add default via 203.0.113.1 metric 50"]));
    route_elsewhere: "route-elsewhere", plain, astray, Printed;
    address_on_host: "address-on-host", plain, |stage| {
        stage.host(&["ip address add 203.0.113.2/24 dev eth0"])
    }, Printed;
    address_reserved: "address-reserved", plain, |stage| {
        stage.lab.declare("new", "addresses = [\"203.0.113.1\"]\n")
    }, Person(|stage| stage.lab.withdraw("new"));
    address_twice: "address-twice", plain, |stage| {
        stage.lab.declare("web-2", "addresses = [\"203.0.113.2\"]\n")
    }, Person(|stage| stage.lab.withdraw("web-2"));
    address_private: "address-private", plain, |stage| {
        stage.lab.declare("old", "addresses = [\"10.1.2.3\"]\n")
    }, Person(|stage| stage.lab.withdraw("old"));
    address_not_on_link: "address-not-on-link", plain, |stage| {
        stage.lab.declare("floating", "addresses = [\"198.51.100.77\"]\n")
    }, Person(|stage| stage.lab.withdraw("floating"));
    routed_prefix_on_link: "routed-prefix-on-link", plain, |stage| {
        stage.host(&["ip -6 route replace default via fe80::1 dev eth0"])
    }, Person(|stage| stage.run_printed(
        "ip address del 2001:db8::10/64 dev eth0; ip address add 2001:db8::10/128 dev eth0"
    ));

    guest_ipv4_link_local: "guest-ipv4-link-local", plain, |stage| {
        within(stage, "web", "ip address add 169.254.7.7/16 dev host0")
    }, Printed;
    guest_image_link_local: "guest-image-link-local", plain, |stage| {
        stage.mounts(IMAGE)
    }, Printed;
    guest_only_ula: "guest-only-ula", plain, |stage| {
        stage.lab.declare("inner", "addresses = [\"203.0.113.9\", \"fd00::9\"]\n")
    }, Person(|stage| {
        stage.lab.declare("inner", "addresses = [\"203.0.113.9\", \"fd00::9\", \"2001:db8::9\"]\n")
    });
    guests_not_read: "guests-not-read", plain, |stage| {
        stage.machines.retain(|(name, _)| name != "web");
        Ok(())
    }, Person(Stage::occupy);
    port_down: "port-down", plain, |stage| stage.host(&["ip link set ve-web down"]), Printed;
    machine_link_down: "machine-link-down", plain, |stage| {
        within(stage, "web", "ip link set host0 down")
    }, Printed;
    machine_without_port: "machine-without-port", plain, |stage| {
        stage.lab.declare("ghost", "addresses = [\"203.0.113.66\"]\n")
    }, Person(|stage| stage.lab.withdraw("ghost"));
    no_machines: "no-machines", || {
        Lab::builder().machine(Spec::new("web").address("203.0.113.2")).build()
    }, |stage| stage.lab.withdraw("web"), Person(|stage| {
        stage.lab.declare("web", "addresses = [\"203.0.113.2\"]\n")
    });
    file_broken: "file-broken", plain, |stage| {
        stage.lab.declare("new", "addreses = [\"203.0.113.7\"]\n")
    }, Person(|stage| stage.lab.withdraw("new"));

    forward_rules_bypassed: "forward-rules-bypassed", plain, |stage| {
        stage.nft("table inet filter {
            chain forward {
                type filter hook forward priority 0; policy drop;
                ip daddr 203.0.113.2 tcp dport 25 drop
            }
        }")
    }, Person(flush);
    forward_policy_drop: "forward-policy-drop", plain, |stage| {
        stage.nft("table ip filter {
            chain DOCKER-USER { }
            chain FORWARD {
                type filter hook forward priority 0; policy drop;
                jump DOCKER-USER
            }
        }")
    }, Person(flush);
    egress_chain: "egress-chain", plain, |stage| {
        stage.nft("table netdev filter {
            chain out {
                type filter hook egress device eth0 priority 0; policy accept;
                tcp dport 25 drop
            }
        }")
    }, Person(flush);
}

/// A machine's image whose networkd takes systemd's own file.
const IMAGE: &str = "mount -t tmpfs none /var/lib/machines
    cd /var/lib/machines
    mkdir -p web/etc/systemd/system/multi-user.target.wants web/usr/lib/systemd/network
    touch web/usr/lib/systemd/systemd-networkd
    ln -s /lib/systemd/system/systemd-networkd.service \
        web/etc/systemd/system/multi-user.target.wants/systemd-networkd.service
    printf '%s\\n' '[Match]' 'Virtualization=container' 'Name=host0' '[Network]' 'DHCP=yes' \
        'LinkLocalAddressing=yes' >web/usr/lib/systemd/network/80-container-host0.network";

/// Has `check` run as the test does.
fn alone(stage: &mut Stage) -> Result<()> {
    stage.within.clear();
    Ok(())
}

fn flush(stage: &mut Stage) -> Result<()> {
    stage.host(&["nft flush ruleset"])
}

/// Runs a command line in a machine.
fn within(stage: &mut Stage, machine: &str, line: &str) -> Result<()> {
    stage.lab.machine(machine).ns.run(line).map(drop)
}

/// Writes the mode into netspawn.toml.
fn mode(stage: &mut Stage, mode: &str) -> Result<()> {
    let path = stage.lab.config_dir().join("netspawn.toml");
    fs::write(&path, format!("[attach]\nmode = \"{mode}\"\n"))
        .with_context(|| path.display().to_string())
}

/// Leads the host's route to a machine astray.
fn astray(stage: &mut Stage) -> Result<()> {
    stage.other_network()?;
    stage.host(&["ip route add 203.0.113.2 dev alt0"])
}
