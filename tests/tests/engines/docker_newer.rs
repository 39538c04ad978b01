//! Newer releases of Docker, as they are configured where nobody has configured them: with
//! a bridge, the host's packet filter and IPv6.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{HOST4, Kit, wait_until};

use crate::{
    docker::{
        Docker, Release, come_back, driver_serves, labels_are_heeded, networks_tell_apart, run,
    },
    scenario::{Engine as _, SOON, agent, becomes, machine, record, report, up},
};

/// That of Debian 13.
const STABLE: Release = Release {
    name: "docker_newer",
    kit: Kit {
        name: "docker-stable",
        recipe: 1,
        release: Some("trixie"),
        packages: &["docker.io", "docker-cli", "docker-compose", "iptables"],
        backports: &[],
        testing: &[],
        script: "",
    },
    settings: "",
};

/// That of what is to be Debian 14, in a host of Debian 13.
const TESTING: Release = Release {
    kit: Kit {
        name: "docker-testing",
        packages: &["iptables"],
        testing: &[
            "docker.io",
            "docker-cli",
            "docker-compose",
            "containerd",
            "runc",
        ],
        ..STABLE.kit
    },
    ..STABLE
};

/// The tests named, of each release.
macro_rules! of_each {
    ($($test:ident),* $(,)?) => {
        mod stable {
            $(#[test] fn $test() -> anyhow::Result<()> { super::$test(&super::STABLE) })*
        }
        mod testing {
            $(#[test] fn $test() -> anyhow::Result<()> { super::$test(&super::TESTING) })*
        }
    };
}

of_each!(
    driver_serves,
    come_back,
    labels_are_heeded,
    networks_tell_apart,
    rules_of_the_host_are_passed_by,
    containers_are_followed,
    nothing_is_left_of_a_hundred,
);

/// Docker 28 and later does without IPv4 if it is told to, gives the default route to the
/// network that it is told, and need not announce addresses, which would wait for the agent.
#[test]
fn ipv6_alone_and_ipv4_alone() -> Result<()> {
    let docker = Docker::of(&TESTING, "")?;
    let system = &docker.system;
    system.net.run("ip route add 198.18.1.0/24 dev lan0")?;
    docker.sh(
        "docker network create -d netspawn --ipv4=false --ipv6 --subnet 2001:db8:1::/64 \
         -o com.docker.network.advertise_addr_nmsgs=0 six
        docker network create -d netspawn --subnet 198.18.1.0/24 four",
    )?;
    docker.sh(&[
        run("--name six --network six --ip6 2001:db8:1::10"),
        run("--name four --network four --ip 198.18.1.10"),
        run("--name both --network name=four,ip=198.18.1.11,gw-priority=1"),
        "docker network connect bridge both\n".to_owned(),
        run("--name each --network name=four,ip=198.18.1.12 --network name=six,ip6=2001:db8:1::12"),
    ]
    .concat())?;
    docker.answers(&[
        "2001:db8:1::10",
        "198.18.1.10",
        "198.18.1.11",
        "198.18.1.12",
        "2001:db8:1::12",
    ])?;
    reaches(&docker, "six", "2001:db8::1")?;
    let routes = docker.sh("docker exec both ip route")?;
    ensure!(routes.contains("default via 198.18.1.1 "), "{routes}");
    let words = docker.sh("journalctl --unit docker --no-pager")?;
    ensure!(!words.contains("neighbour advertisement"), "{words}");
    let shown = "IPv6 alone, IPv4 alone, gw-priority";
    record(TESTING.name, &docker.version()?, shown)
}

/// What is answered to the outside by HTTP.
fn get(docker: &Docker, url: &str) -> Result<String> {
    let curl = docker.system.net.cmd("curl");
    curl.args(["-sS", "--fail", "--max-time", "5", url]).text()
}

/// That a container reaches an address, or a name.
fn reaches(docker: &Docker, name: &str, to: &str) -> Result<()> {
    docker
        .sh(&format!("docker exec {name} ping -c 1 -W 2 {to}"))
        .map(drop)
}

/// Beside Docker's own bridge, with its rules and its proxy for published ports.
fn rules_of_the_host_are_passed_by(release: &Release) -> Result<()> {
    let docker = Docker::of(release, "")?.and_network()?;
    let system = &docker.system;
    docker.sh(&[
        run("--name one --network pub --ip 203.0.113.101 --ip6 2001:db8::101"),
        run("--name two --network pub --ip 203.0.113.102 --ip6 2001:db8::102"),
        run("--name nat -p 8080:80").replace("sleep 100000", "httpd -f -h /etc"),
    ]
    .concat())?;
    let both = [
        "203.0.113.101",
        "2001:db8::101",
        "203.0.113.102",
        "2001:db8::102",
    ];
    docker.answers(&both)?;
    for (name, to) in [
        ("one", "203.0.113.102"),
        ("two", "2001:db8::101"),
        ("one", "203.0.113.1"),
        ("one", "2001:db8::1"),
        // By the host's address, as the outside knows no way to its own.
        ("nat", "203.0.113.1"),
        ("nat", "203.0.113.101"),
    ] {
        reaches(&docker, name, to)?;
    }
    let rules = docker.sh("iptables -S FORWARD")?;
    ensure!(rules.starts_with("-P FORWARD DROP"), "{rules}");
    let url = format!("http://{HOST4}:8080/os-release");
    ensure!(get(&docker, &url)?.contains("tiny"), "{url}");
    let published = docker.sh(&format!("docker exec one wget -q -O - {url}"))?;
    ensure!(published.contains("tiny"), "{published}");

    // On both, a container is reached by both.
    docker.sh("docker network connect bridge one")?;
    let nat = "docker inspect -f '{{.NetworkSettings.Networks.bridge.IPAddress}}' nat";
    reaches(&docker, "one", docker.sh(nat)?.trim())?;
    docker.answers(&both)?;
    ensure!(up(system)? == 2, "{}", report(system));
    let shown = "iptables and docker0 as by default, published ports beside";
    record(release.name, &docker.version()?, shown)
}

/// What may happen to a container, and what compose makes.
fn containers_are_followed(release: &Release) -> Result<()> {
    let docker = Docker::of(release, "")?.and_network()?;
    let system = &docker.system;
    let addresses = ["203.0.113.101", "2001:db8::101"];
    docker.sh(&run(
        "--name web --restart always --network pub --ip 203.0.113.101 --ip6 2001:db8::101 \
         --mac-address 02:11:22:33:44:55",
    ))?;
    docker.answers(&addresses)?;
    ensure!(
        machine(system, "web")?["mac"] == "02:11:22:33:44:55",
        "{}",
        report(system)
    );
    let refusal = docker.refused("docker network rm pub")?;
    ensure!(refusal.contains("active endpoints"), "{refusal}");

    docker.sh("docker pause web && docker unpause web && docker rename web shop")?;
    becomes(system, "shop", |machine| machine["state"] == "up")?;
    for change in [
        "docker restart -t 0 shop",
        "kill -KILL $(docker inspect -f '{{.State.Pid}}' shop)",
    ] {
        let before = machine(system, "shop")?;
        docker.sh(change)?;
        becomes(system, "shop", |after| {
            after["state"] == "up" && after["interface"] != before["interface"]
        })?;
        docker.answers(&addresses)?;
    }

    docker.sh(
        "docker create --name late --network pub --ip 203.0.113.102 tiny sleep 100000
        systemctl restart netspawn-xdp@eth0
        docker start late",
    )?;
    docker.answers(&["203.0.113.102"])?;
    docker.sh("docker rm -f late shop && docker network rm pub")?;
    docker.is_silent("203.0.113.101")?;

    system.write("/root/compose.yaml", COMPOSE)?;
    docker.sh("cd /root && docker-compose up -d")?;
    docker.answers(&[
        "203.0.113.110",
        "2001:db8::110",
        "203.0.113.111",
        "2001:db8::111",
    ])?;
    reaches(&docker, "site-web-1", "db")?;
    docker.sh("cd /root && docker-compose down -t 0")?;
    docker.is_silent("203.0.113.110")?;
    ensure!(up(system)? == 0, "{}", report(system));
    let shown = "restart, kill, rename, MAC, compose, agent restarted before a start";
    record(release.name, &docker.version()?, shown)
}

const COMPOSE: &str = "name: site
networks:
  pub:
    driver: netspawn
    enable_ipv6: true
    driver_opts: { netspawn.tenant: acme }
    ipam:
      config: [{ subnet: 203.0.113.0/24 }, { subnet: \"2001:db8::/64\" }]
x-service: &service { image: tiny, command: sleep 100000, stop_grace_period: 0s }
services:
  web:
    <<: *service
    networks: { pub: { ipv4_address: 203.0.113.110, ipv6_address: \"2001:db8::110\" } }
  db:
    <<: *service
    networks: { pub: { ipv4_address: 203.0.113.111, ipv6_address: \"2001:db8::111\" } }
";

/// Until a hundred containers have come and gone.
const CHURN: Duration = Duration::from_secs(180);

/// A hundred containers, of which most end before they are served.
fn nothing_is_left_of_a_hundred(release: &Release) -> Result<()> {
    let docker = Docker::of(release, "")?.and_network()?;
    let state = || {
        docker.sh("for link in $(ls /sys/class/net); do
                case $link in dk*|dp*) echo $link;; esac
            done
            find /run/netspawn -type f | sort")
    };
    let memory = || -> Result<u64> {
        let pid = agent(&docker.system)?;
        let text = docker.sh(&format!("grep VmRSS /proc/{pid}/status"))?;
        let words = text.split_whitespace().nth(1);
        words
            .and_then(|word| word.parse().ok())
            .context(text.clone())
    };
    let some = |count: u32| {
        let line = "docker run --rm --network pub --name n$0 tiny sleep 0.$0";
        let xargs = docker.system.cmd("xargs").args(["-P", "4", "-n", "1"]);
        let numbers: String = (0..count).map(|number| format!("{number}\n")).collect();
        xargs
            .args(["sh", "-c", line])
            .input(numbers)
            .limit(CHURN)
            .text()
    };
    let before = state()?;
    some(20)?;
    let rss = memory()?;
    some(100)?;
    let mut after = String::new();
    let same = wait_until(SOON, || {
        after = state().unwrap_or_default();
        after == before
    });
    ensure!(same, "{before}\n{after}\n{}", report(&docker.system));
    let more = memory()?.saturating_sub(rss);
    println!("the agent has {rss} KiB, and {more} KiB more after 100 containers");
    ensure!(more < 2048, "{more} KiB");
    let shown = "100 come and gone, 4 at a time: nothing is left";
    record(release.name, &docker.version()?, shown)
}
