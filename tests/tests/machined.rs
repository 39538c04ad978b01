//! Machines that systemd-machined knows, under a real systemd, with the agent as the
//! service that packages install.

use std::{
    fs::File,
    io::{ErrorKind, Read as _},
    net::IpAddr,
    os::{fd::AsRawFd as _, unix::net::UnixListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_bench::scenarios::nspawn::{self, Stretch};
use netspawn_tests::{Lab, Nspawn, SystemdHost, fetch, ping, unreachable, wait_ping, wait_until};
use serde_json::Value;

const WEB: [&str; 2] = ["203.0.113.2", "2001:db8::2"];
const DB: [&str; 2] = ["203.0.113.3", "2001:db8::3"];
/// Until what an event causes is done and the machine itself is ready.
const SOON: Duration = Duration::from_secs(5);

/// A box whose ports are left to whoever the test says.
fn box_without_port_file() -> Result<SystemdHost> {
    let system = SystemdHost::boot()?;
    system.shell("rm /etc/systemd/network/10-ports.network")?;
    Ok(system)
}

/// A box with the agent running, whose ports nobody but the agent sets up.
fn masked() -> Result<SystemdHost> {
    let system = box_without_port_file()?;
    for name in ["ve", "vz", "vb"] {
        let file = format!("/etc/systemd/network/80-container-{name}.network");
        system.run(&format!("ln -s /dev/null {file}"))?;
    }
    system.run("networkctl reload")?;
    system.install("")?;
    Ok(system)
}

/// A box with the agent running and the file for ports that packages bring along.
fn packaged() -> Result<SystemdHost> {
    let system = box_without_port_file()?;
    system.write(
        "/etc/systemd/network/80-container-ve.network",
        include_str!("../../packaging/80-container-ve.network"),
    )?;
    system.run("networkctl reload")?;
    system.install("")?;
    Ok(system)
}

fn list(system: &SystemdHost) -> Result<Vec<Value>> {
    let text = system.xdp("--json list")?.success()?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

fn entry(system: &SystemdHost, name: &str) -> Result<Value> {
    list(system)?
        .into_iter()
        .find(|machine| machine["name"] == name)
        .with_context(|| format!("{name} is not listed"))
}

/// Waits until a machine is listed in that state.
fn wait_state(system: &SystemdHost, name: &str, state: &str) -> Result<Value> {
    let mut last = Value::Null;
    let reached = wait_until(SOON, || {
        last = entry(system, name).unwrap_or_default();
        last["state"] == state
    });
    ensure!(
        reached,
        "{name} is not {state}: {last}\n{}",
        system.words()?
    );
    Ok(last)
}

/// What is to be known when something went wrong.
fn situation(system: &SystemdHost) -> String {
    let all = system.shell(
        "journalctl --unit=netspawn-xdp@eth0 --no-pager --output=short-iso-precise
        netspawn-xdp --json list
        netspawn-xdp --json counters
        ip -brief link
        machinectl --no-pager list
        systemctl --no-pager list-units 'machine-*'",
    );
    all.unwrap_or_else(|error| format!("{error:#}"))
}

fn answers(system: &SystemdHost, name: &str, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        let address: IpAddr = address.parse()?;
        wait_ping(&system.net, address, SOON).with_context(|| situation(system))?;
        // It answers pings a moment before it serves.
        let mut last = String::new();
        let served = wait_until(SOON, || {
            last = fetch(&system.net, address).unwrap_or_else(|error| format!("{error:#}"));
            last.contains(&format!("hello from {name}\n"))
        });
        ensure!(served, "{address} served {last}");
    }
    Ok(())
}

fn silent(system: &SystemdHost, addresses: &[&str]) -> Result<()> {
    for address in addresses {
        unreachable(&system.net, address.parse::<IpAddr>()?)?;
    }
    Ok(())
}

#[test]
fn start_and_end_of_a_machine_take_ten_times_their_goals_at_most() -> Result<()> {
    let figures = nspawn::measure(6, |_| Ok(()))?;
    eprintln!("{figures}");
    for (stretch, percent, limit) in [
        (Stretch::CarrierToEntry, 50.0, 100.0),
        (Stretch::CarrierToEntry, 99.0, 500.0),
        (Stretch::EndToSilence, 99.0, 1_000.0),
    ] {
        let value = figures.percentile(stretch, percent);
        ensure!(value < limit, "{stretch:?} took {value} ms");
    }
    Ok(())
}

#[test]
fn port_that_nobody_sets_up_is_set_up_and_down_again() -> Result<()> {
    let system = masked()?;
    system.declare("web", &WEB)?;
    system.start_machine("web", &WEB)?;
    answers(&system, "web", &WEB)?;
    ensure!(system.words()?.contains("ve-web was down, and is set up"));

    // Whoever sets it down later means it, also for the next agent.
    system.run("ip link set ve-web down")?;
    wait_state(&system, "web", "down")?;
    system.run("systemctl restart netspawn-xdp@eth0")?;
    wait_state(&system, "web", "down")?;
    system.run("ip link set ve-web up")?;
    answers(&system, "web", &WEB)?;

    system.xdp("detach")?.success()?;
    let link = system.run("ip -oneline link show dev ve-web")?;
    ensure!(link.contains("state DOWN"), "{link}");
    Ok(())
}

#[test]
fn stock_file_for_ports_does_no_harm() -> Result<()> {
    let system = box_without_port_file()?;
    system.run("networkctl reload")?;
    system.install("")?;
    system.declare("web", &WEB)?;
    system.start_machine("web", &WEB)?;
    answers(&system, "web", &WEB)?;
    let subnet = "ip -4 -oneline addr show dev ve-web";
    let leased = wait_until(SOON, || {
        system.run(subnet).is_ok_and(|text| text.contains("inet"))
    });
    ensure!(leased, "networkd did not take systemd's own file");
    answers(&system, "web", &WEB)?;
    system.inside("web", "ping -n -c 1 -W 2 203.0.113.1")?;

    // networkd looks after the port, so that it stays up.
    system.xdp("detach")?.success()?;
    let link = system.run("ip -oneline link show dev ve-web")?;
    ensure!(link.contains("LOWER_UP"), "{link}");
    Ok(())
}

#[test]
fn links_of_all_shapes_are_found() -> Result<()> {
    let system = packaged()?;
    system.shell("ip link add br0 type bridge && ip link set br0 up")?;
    let long = "a-machine-with-a-rather-long-name";
    // Name, what systemd-nspawn is told, the machine's end, name of the port.
    let shapes: [(&str, &[&str], &str, Option<&str>); 6] = [
        (
            "bridged",
            &["--network-bridge=br0"],
            "host0",
            Some("vb-bridged"),
        ),
        ("zoned", &["--network-zone=a"], "host0", Some("vb-zoned")),
        (long, &["--network-veth"], "host0", None),
        (
            "main",
            &["--network-veth", "--network-veth-extra=aaa:eth1"],
            "host0",
            Some("ve-main"),
        ),
        (
            "zonedtoo",
            &["--network-zone=a", "--network-veth-extra=aab:eth1"],
            "host0",
            Some("vb-zonedtoo"),
        ),
        (
            "solo",
            &["--network-veth-extra=solo0:eth0"],
            "eth0",
            Some("solo0"),
        ),
    ];
    for (index, (name, network, interface, port)) in shapes.iter().enumerate() {
        let addresses = [
            format!("203.0.113.{}", 20 + index),
            format!("2001:db8::{}", 20 + index),
        ];
        let addresses = [&*addresses[0], &*addresses[1]];
        system.declare(name, &addresses)?;
        let machine = Nspawn::new(name)
            .addresses(&addresses)
            .network(network)
            .interface(Some(interface));
        system.start(&machine)?;
        let entry = wait_state(&system, name, "up")?;
        if let Some(port) = port {
            ensure!(entry["interface"] == *port, "{entry}");
        }
        answers(&system, name, &addresses)?;
    }
    // Bridges have changed their MACs as ports came.
    for (index, (name, ..)) in shapes.iter().enumerate() {
        answers(&system, name, &[&format!("203.0.113.{}", 20 + index)])?;
    }
    let port = entry(&system, long)?["interface"].clone();
    let port = port.as_str().context("no port")?;
    ensure!(port.starts_with("ve-a-machin"), "{port}");

    // A machine in the host's own namespace has no link.
    system.declare("none", &["203.0.113.30"])?;
    system.start(&Nspawn::new("none").network(&[]).interface(None))?;
    ensure!(entry(&system, "none")?["state"] == "waiting");
    ensure!(entry(&system, "none")?["interface"].is_null());

    // The next agent finds the same.
    let before = list(&system)?;
    system.run("systemctl restart netspawn-xdp@eth0")?;
    for (before, after) in before.iter().zip(list(&system)?) {
        for key in ["name", "interface", "ifindex", "state"] {
            ensure!(before[key] == after[key], "{before}\n{after}");
        }
    }
    // And so does a command without one.
    system.run("systemctl stop netspawn-xdp@eth0")?;
    ensure!(entry(&system, "solo")?["interface"] == "solo0");
    Ok(())
}

#[test]
fn tap_of_a_virtual_machine_is_found() -> Result<()> {
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
    let system = packaged()?;
    system.write(
        "/run/netspawn/machines/vm.toml",
        "addresses = [\"203.0.113.40\"]\nmac = \"02:00:00:00:00:05\"\n",
    )?;
    let mut tap = system.host.enter(|| tap("vnet7"))?;
    system.run("ip link set vnet7 up")?;
    let ifindex = system.host.ifindex("vnet7")?;
    system.run("systemd-run --quiet --unit=emulator --slice=machine.slice sleep 1000")?;
    let pid = system.run("systemctl show emulator --property=MainPID --value")?;
    let register = format!(
        "busctl call org.freedesktop.machine1 /org/freedesktop/machine1 \
         org.freedesktop.machine1.Manager RegisterMachineWithNetwork sayssusai \
         vm 0 test vm {} / 1 {ifindex}",
        pid.trim()
    );
    system.shell(&format!(
        "{register} || {}",
        register.replace(" / ", " '' ")
    ))?;
    let entry = wait_state(&system, "vm", "up")?;
    ensure!(entry["interface"] == "vnet7", "{entry}");

    let request = thread::scope(|scope| {
        let frame = scope.spawn(|| wait_frame(&mut tap, MAC));
        // Nobody answers it: what counts is that the tap gets it.
        let _ = wait_ping(
            &system.net,
            "203.0.113.40".parse::<IpAddr>()?,
            Duration::from_millis(500),
        );
        frame.join().expect("waiting does not panic")
    })?;
    ensure!(request[30..34] == [203, 0, 113, 40], "{request:?}");

    system.run("systemctl stop emulator")?;
    wait_state(&system, "vm", "waiting")?;
    Ok(())
}

/// Waits for an IPv4 frame to a station.
fn wait_frame(tap: &mut File, mac: [u8; 6]) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    let arrived = wait_until(SOON, || {
        let mut frame = [0; 2048];
        match tap.read(&mut frame) {
            Ok(length) if frame[..6] == mac && frame[12..14] == [8, 0] => {
                found = frame[..length].to_vec();
                true
            }
            Ok(_) => false,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    });
    ensure!(arrived && !found.is_empty(), "no frame came to the tap");
    Ok(found)
}

/// A tap in this thread's namespace, as long as the file is open.
fn tap(name: &str) -> Result<File> {
    let file = std::os::unix::fs::OpenOptionsExt::custom_flags(
        File::options().read(true).write(true),
        libc::O_NONBLOCK,
    )
    .open("/dev/net/tun")
    .context("/dev/net/tun is missing: the kernel has no tun")?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF takes an `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) };
    if result != 0 {
        bail!("cannot make a tap: {}", std::io::Error::last_os_error());
    }
    Ok(file)
}

#[test]
fn agent_killed_amid_a_hundred_starts_loses_none() -> Result<()> {
    let system = packaged()?;
    let machines: Vec<(Nspawn, [String; 2])> = (0..100)
        .map(|index| {
            let addresses = [
                format!("203.0.113.{}", 100 + index),
                format!("2001:db8::1:{index}"),
            ];
            let words = [&*addresses[0], &*addresses[1]];
            (
                Nspawn::new(&format!("m{index}")).addresses(&words),
                addresses,
            )
        })
        .collect();
    for (machine, addresses) in &machines {
        system.declare(machine.name(), &addresses.each_ref().map(String::as_str))?;
    }
    let count = |state: &str| -> Result<usize> {
        let machines = list(&system)?;
        Ok(machines.iter().filter(|m| m["state"] == state).count())
    };
    let all: Vec<Nspawn> = machines
        .iter()
        .map(|(machine, _)| machine.clone())
        .collect();
    thread::scope(|scope| {
        let starts = scope.spawn(|| system.start_all(&all, 5));
        let amid = wait_until(Duration::from_secs(30), || {
            count("up").is_ok_and(|up| up >= 30)
        });
        ensure!(amid, "no 30 machines came up");
        system.run("systemctl kill --kill-who=main --signal=SIGKILL netspawn-xdp@eth0")?;
        ensure!(!starts.is_finished(), "the agent was killed too late");
        starts.join().expect("starting does not panic")
    })?;
    let up = wait_until(Duration::from_secs(20), || {
        count("up").is_ok_and(|up| up == 100)
    });
    ensure!(up, "{} of 100 are up\n{}", count("up")?, system.words()?);
    for machine in list(&system)? {
        let name = machine["interface"].as_str().context("no port")?;
        let ifindex = system.host.ifindex(name)?;
        ensure!(machine["ifindex"] == ifindex, "{machine} is at {ifindex}");
    }
    each(&machines, |(machine, addresses)| {
        answers(
            &system,
            machine.name(),
            &addresses.each_ref().map(String::as_str),
        )
    })?;

    system.shell("systemctl stop 'machine-m*'")?;
    let gone = wait_until(SOON, || count("waiting").is_ok_and(|gone| gone == 100));
    ensure!(
        gone,
        "{} of 100 wait\n{}",
        count("waiting")?,
        system.words()?
    );
    each(&machines, |(_, addresses)| {
        silent(&system, &addresses.each_ref().map(String::as_str))
    })
}

/// Does the same for all, ten at a time.
fn each<T: Sync>(all: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = all
            .chunks(all.len().div_ceil(10))
            .map(|some| scope.spawn(move || some.iter().try_for_each(work)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("the work does not panic"))
    })
}

#[test]
fn machined_that_restarts_is_followed_again() -> Result<()> {
    let system = packaged()?;
    let zoned = |name: &str, addresses: &[&str]| {
        Nspawn::new(name)
            .addresses(addresses)
            .network(&[&format!("--network-zone={name}")])
    };
    system.declare("web", &WEB)?;
    system.declare("db", &DB)?;
    system.start(&zoned("web", &WEB))?;
    answers(&system, "web", &WEB)?;
    let port = entry(&system, "web")?["ifindex"].clone();

    system.run("systemctl restart systemd-machined")?;
    answers(&system, "web", &WEB)?;
    let followed = "systemd-machined is followed again";
    let said = wait_until(SOON, || {
        system.words().is_ok_and(|all| all.contains(followed))
    });
    ensure!(said, "{}", system.words()?);
    system.start(&zoned("db", &DB))?;
    answers(&system, "db", &DB)?;

    // A machine that ends while machined is away is noticed when it is back.
    system.run("systemctl kill --kill-who=main --signal=SIGKILL systemd-machined")?;
    answers(&system, "web", &WEB)?;
    system.run("systemctl stop machine-db")?;
    system.run("machinectl list")?;
    wait_state(&system, "db", "waiting")?;
    answers(&system, "web", &WEB)?;
    ensure!(entry(&system, "web")?["ifindex"] == port);
    let words = system.words()?;
    ensure!(
        words.matches("lost systemd-machined").count() == 2,
        "{words}"
    );
    ensure!(words.matches(followed).count() == 2, "{words}");
    Ok(())
}

#[test]
fn bus_that_restarts_is_followed_again() -> Result<()> {
    let system = packaged()?;
    system.declare("web", &WEB)?;
    system.declare("db", &DB)?;
    system.start_machine("web", &WEB)?;
    answers(&system, "web", &WEB)?;
    system.run("systemctl restart dbus")?;
    answers(&system, "web", &WEB)?;
    let back = wait_until(Duration::from_secs(15), || {
        system
            .words()
            .is_ok_and(|all| all.contains("systemd-machined is followed again"))
    });
    ensure!(back, "{}", system.words()?);
    answers(&system, "web", &WEB)?;
    let db = Nspawn::new("db")
        .addresses(&DB)
        .network(&["--network-zone=a"]);
    system.start(&db)?;
    answers(&system, "db", &DB)?;
    let words = system.words()?;
    ensure!(
        words.matches("lost systemd-machined").count() == 1,
        "{words}"
    );
    Ok(())
}

#[test]
fn agent_does_not_wait_for_a_machined_that_hangs() -> Result<()> {
    let system = packaged()?;
    system.declare("web", &WEB)?;
    system.start_machine("web", &WEB)?;
    answers(&system, "web", &WEB)?;
    system.run("systemctl kill --kill-who=main --signal=SIGSTOP systemd-machined")?;
    let started = Instant::now();
    system.run("systemctl restart netspawn-xdp@eth0")?;
    let took = started.elapsed();
    ensure!(took < Duration::from_secs(4), "a restart took {took:?}");
    answers(&system, "web", &WEB)?;
    system.run("systemctl kill --kill-who=main --signal=SIGCONT systemd-machined")?;
    system.run("systemctl stop machine-web")?;
    wait_state(&system, "web", "waiting")?;
    Ok(())
}

#[test]
fn signals_of_others_are_ignored() -> Result<()> {
    let system = packaged()?;
    system.declare("web", &WEB)?;
    system.start_machine("web", &WEB)?;
    answers(&system, "web", &WEB)?;
    // The bus lets anyone send a signal to a connection.
    system.shell(
        "set -e
        pid=$(systemctl show netspawn-xdp@eth0 --property=MainPID --value)
        name=$(busctl list --no-legend | while read -r name owner _; do
            [ \"$owner\" != \"$pid\" ] || echo \"$name\"
        done)
        busctl emit --destination=\"$name\" /org/freedesktop/machine1 \\
            org.freedesktop.machine1.Manager MachineRemoved so web /a
        busctl emit --destination=\"$name\" /org/freedesktop/DBus org.freedesktop.DBus \\
            NameOwnerChanged sss org.freedesktop.machine1 :1.1 ''",
    )?;
    // What machined says comes after that.
    system.declare("db", &DB)?;
    let db = Nspawn::new("db")
        .addresses(&DB)
        .network(&["--network-zone=a"]);
    system.start(&db)?;
    answers(&system, "db", &DB)?;
    answers(&system, "web", &WEB)?;
    let words = system.words()?;
    ensure!(!words.contains("lost systemd-machined"), "{words}");
    ensure!(!words.contains("web is waiting"), "{words}");
    Ok(())
}

#[test]
fn link_made_again_is_followed() -> Result<()> {
    let system = packaged()?;
    system.declare("web", &WEB)?;
    system.start_machine("web", &WEB)?;
    answers(&system, "web", &WEB)?;
    let before = entry(&system, "web")?["ifindex"].clone();
    let leader = system.leader("web")?;
    system.run("ip link del ve-web")?;
    wait_state(&system, "web", "waiting")?;
    silent(&system, &WEB)?;
    system.run(&format!(
        "ip link add ve-web type veth peer name host0 netns {leader}"
    ))?;
    system.inside(
        "web",
        &format!(
            "ip link set host0 up
            ip addr add {}/32 dev host0
            ip addr add {}/128 dev host0 nodad
            ip route add default via 169.254.1.1 dev host0 onlink
            ip -6 route add default via fe80::1 dev host0",
            WEB[0], WEB[1]
        ),
    )?;
    let after = wait_state(&system, "web", "up")?;
    ensure!(after["ifindex"] != before, "{after}");
    answers(&system, "web", &WEB)
}

#[test]
fn address_goes_to_a_renamed_machine_when_it_is_withdrawn() -> Result<()> {
    let system = packaged()?;
    system.declare("web", &WEB)?;
    system.start_machine("web", &WEB)?;
    answers(&system, "web", &WEB)?;

    // Declared twice: the holder keeps it, running or not.
    system.declare("a", &[WEB[0], "203.0.113.9"])?;
    let conflict = wait_state(&system, "a", "conflict")?;
    let expected = serde_json::json!([{"prefix": "203.0.113.2/32", "holder": "web"}]);
    ensure!(conflict["conflicts"] == expected, "{conflict}");
    answers(&system, "web", &WEB)?;
    system.stop_machine("web")?;
    wait_state(&system, "web", "waiting")?;
    wait_state(&system, "a", "conflict")?;
    silent(&system, &WEB)?;

    // The machine under its new name.
    system.start_machine("www", &WEB)?;
    system.shell("mv /run/netspawn/machines/web.toml /run/netspawn/machines/www.toml")?;
    system.run("rm /run/netspawn/machines/a.toml")?;
    let renamed = wait_state(&system, "www", "up")?;
    ensure!(renamed["interface"] == "ve-www", "{renamed}");
    answers(&system, "www", &WEB)?;
    ensure!(list(&system)?.len() == 1);
    Ok(())
}

#[test]
fn machined_of_another_namespace_is_not_asked() -> Result<()> {
    let system = packaged()?;
    system.declare("web", &WEB)?;
    system.start_machine("web", &WEB)?;
    answers(&system, "web", &WEB)?;
    let ifindex = entry(&system, "web")?["ifindex"].clone();
    // There a link has the very ifindex of the machine's link here.
    let words = system.shell(&format!(
        "set -e
        ip netns add other
        ip -n other link add not-web index {ifindex} type veth peer index 998 name not-peer
        ip -n other link add up0 index 996 type veth peer index 997 name up1
        ip -n other link set up0 up
        ip -n other link set up1 up
        mkdir -p /run/other/machines
        echo 'addresses = [\"198.51.100.9\"]' > /run/other/machines/web.toml
        command='netspawn-xdp -v --run-dir /run/other --bpf-dir /sys/fs/bpf/other'
        nsenter --net=/run/netns/other $command attach up0 --once 2>&1
        nsenter --net=/run/netns/other $command --json list
        nsenter --net=/run/netns/other $command detach
        ip netns del other"
    ))?;
    ensure!(words.contains("is in another network namespace"), "{words}");
    ensure!(words.contains("\"state\": \"waiting\""), "{words}");
    Ok(())
}

#[test]
fn agent_starts_at_once_without_a_bus() -> Result<()> {
    let lab = Lab::usual()?;
    // There may be one on the machine the test runs on.
    let missing = lab.dir().join("no-bus");
    let (took, words) = attach_with_bus(&lab, &missing)?;
    ensure!(took < Duration::from_secs(5), "it took {took:?}\n{words}");
    let said = words.matches("systemd-machined is not followed").count();
    ensure!(said == 1, "{words}");
    ping(&lab.net, lab.machine("web").v4())
}

#[test]
fn agent_starts_soon_with_a_bus_that_does_not_answer() -> Result<()> {
    let lab = Lab::usual()?;
    let bus = lab.dir().join("bus");
    let _listener = UnixListener::bind(&bus)?;
    let (took, words) = attach_with_bus(&lab, &bus)?;
    // A call on the bus is waited for 25 s by most.
    ensure!(took < Duration::from_secs(10), "it took {took:?}\n{words}");
    ping(&lab.net, lab.machine("web").v4())
}

/// Attaches with that socket for the system bus; how long it took, and what was said
/// in the second after.
fn attach_with_bus(lab: &Lab, bus: &Path) -> Result<(Duration, String)> {
    let started = Instant::now();
    let mut agent = lab
        .xdp(["attach", "eth0"])?
        .env(
            "DBUS_SYSTEM_BUS_ADDRESS",
            format!("unix:path={}", bus.display()),
        )
        .start()?;
    agent.wait_line(SOON, |line| line.starts_with("ready:"))?;
    let took = started.elapsed();
    // Tried again meanwhile, and not said again.
    ensure!(agent.wait(Duration::from_secs(1))?.is_none(), "it ended");
    Ok((took, agent.out() + &agent.err()))
}

#[test]
fn machine_is_connected_to_by_name_at_the_first_address() -> Result<()> {
    let system = packaged()?;
    for (name, addresses) in [("web", WEB), ("db", DB)] {
        system.declare(name, &addresses)?;
        system.start(&Nspawn::new(name).addresses(&addresses).nodad())?;
        let named = wait_until(SOON, || {
            let found = system.run(&format!("getent --service=mymachines ahosts {name}"));
            found.is_ok_and(|found| addresses.iter().all(|address| found.contains(address)))
        });
        ensure!(named, "{name} has no addresses\n{}", situation(&system));
        connect(&system, name)?;
    }
    // The host prefers the machine's link-local address once it has one of its own on
    // the port.
    let link_local = "ip -6 -oneline addr show dev ve-web scope link -tentative";
    let settled = wait_until(SOON, || {
        system
            .run(link_local)
            .is_ok_and(|text| text.contains("fe80"))
    });
    ensure!(settled, "{}", situation(&system));
    let found = connect(&system, "web")?;
    ensure!(found.starts_with("fe80:"), "{found}");
    Ok(())
}

/// Connects from the host, by name, in the order of `getaddrinfo(3)`, and fetches the
/// machine's page. Returns what the name stands for.
fn connect(system: &SystemdHost, name: &str) -> Result<String> {
    // A machine's link-local address is tentative for a second (RFC 4862 5.4), and the host
    // asks for it again after another: only a second try is not to wait.
    let (_, first) = connect_once(system, name)?;
    let (found, second) = connect_once(system, name)?;
    let took = first.min(second);
    ensure!(took < LIMIT, "the connection took {took:?}\n{found}");
    Ok(found)
}

/// Far less than the second after which a lost packet is sent again.
const LIMIT: Duration = Duration::from_millis(200);

fn connect_once(system: &SystemdHost, name: &str) -> Result<(String, Duration)> {
    let script = format!(
        "started=${{EPOCHREALTIME/./}}
        exec 3<>/dev/tcp/{name}/80
        echo $((${{EPOCHREALTIME/./}} - started))
        printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3
        cat <&3"
    );
    let mut text = Ok(String::new());
    // It has its addresses a moment before it serves.
    wait_until(SOON, || {
        text = system.cmd("bash").args(["-c", &script]).text();
        text.is_ok()
    });
    let text = text?;
    let (micros, page) = text.split_once('\n').context("bash printed nothing")?;
    let took = Duration::from_micros(micros.parse()?);
    let found = system.run(&format!("getent ahosts {name}"))?;
    let first = found.lines().next().unwrap_or_default();
    eprintln!("connected to {name} in {took:?}; its first address now: {first}");
    ensure!(page.contains(&format!("hello from {name}\n")), "{page}");
    Ok((found, took))
}
