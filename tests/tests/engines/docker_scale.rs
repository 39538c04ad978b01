//! More containers on one network than a bridge has ports for (1,023).

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{HOST4, HOST6, SystemdHost, wait_until};

use crate::{
    docker::Docker,
    scenario::{Engine, record, report, up},
};

const CONTAINERS: u32 = 1100;
/// Starts at a time.
const AT_A_TIME: u32 = 4;
/// Until all are started, some half a second each.
const START: Duration = Duration::from_secs(45 * 60);
/// Until the last of them is served.
const SERVED: Duration = Duration::from_secs(60);

/// Addresses of a container in 198.18.8.0/21 and 2001:db8:1::/64.
fn addresses(number: u32) -> [String; 2] {
    let host = number + 10;
    [
        format!("198.18.{}.{}", 8 + host / 256, host % 256),
        format!("2001:db8:1::{host:x}"),
    ]
}

/// How many neighbors of a family there can be.
fn room(system: &SystemdHost) -> Result<u32> {
    let text = system.run("ip ntable show name arp_cache")?;
    let mut words = text.split_whitespace();
    words.find(|word| *word == "thresh3");
    Ok(words.next().context("no thresh3")?.parse()?)
}

/// How often there was no room for one more, of either family, since the kernel's start.
fn overflows(system: &SystemdHost) -> Result<u64> {
    let text = system.run("ip -s ntable show")?;
    let mut words = text.split_whitespace();
    let mut sum = 0;
    while words.any(|word| word == "table_fulls") {
        sum += words.next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(sum)
}

#[test]
fn more_containers_than_a_bridge_has_ports() -> Result<()> {
    let docker = Docker::boot("")?;
    let system = &docker.system;
    // Routed, as a large subnet would be: the outside has no room for as many neighbors.
    system
        .net
        .run(&format!("ip route add 198.18.8.0/21 via {HOST4}"))?;
    system
        .net
        .run(&format!("ip -6 route replace 2001:db8:1::/64 via {HOST6}"))?;
    docker.sh(
        "docker network create -d netspawn --subnet 198.18.8.0/21 --ipv6 \
         --subnet 2001:db8:1::/64 --gateway 198.18.8.1 --gateway 2001:db8:1::1 many",
    )?;
    let mut lines = String::new();
    let mut targets = String::new();
    for number in 0..CONTAINERS {
        let [v4, v6] = addresses(number);
        writeln!(lines, "c{number} --ip {v4} --ip6 {v6} tiny sleep 100000")?;
        writeln!(targets, "{v4}\n{v6}")?;
    }
    let started = Instant::now();
    system
        .cmd("xargs")
        .args(["-P", &AT_A_TIME.to_string(), "-L", "1"])
        .args(["docker", "run", "-d", "--network", "many", "--name"])
        .input(lines)
        .limit(START)
        .text()?;
    println!("{CONTAINERS} started in {:.0?}", started.elapsed());
    let wanted = usize::try_from(CONTAINERS)?;
    let served = wait_until(SERVED, || up(system).is_ok_and(|up| up == wanted));
    ensure!(served, "{} are up\n{}", up(system)?, report(system));
    println!("all served after {:.0?}", started.elapsed());
    // The kernel has room for 1,024 neighbors of a family in all namespaces together, unless
    // its administrator has made more: some containers have to wait for their gateway's.
    let before = overflows(system)?;
    system
        .net
        .cmd("xargs")
        .args(["-P", "4", "-n", "1", "sh", "-c"])
        .arg(
            "for attempt in 1 2 3 4 5 6; do
                ping -n -q -c 1 -W 1 $0 > /dev/null && exit
                sleep 5
            done
            echo \"$0 does not answer\"; exit 1",
        )
        .input(targets)
        .limit(Duration::from_secs(600))
        .text()?;
    println!("all answer after {:.0?}", started.elapsed());
    let (room, after) = (room(system)?, overflows(system)?);
    println!(
        "room for {room} neighbors, full {} times meanwhile",
        after - before
    );
    let checked = Instant::now();
    let said = system.xdp("check")?.stdout;
    println!("checked in {:.1?}", checked.elapsed());
    ensure!(
        said.contains("neighbor-table-small") == (CONTAINERS > room / 4 * 3),
        "room for {room}\n{said}"
    );
    record(
        "docker_scale",
        &docker.version()?,
        &format!("{CONTAINERS} containers on one netspawn network, all answering v4 and v6"),
    )
}
