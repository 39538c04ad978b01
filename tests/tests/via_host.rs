//! `via-host`: what machines send to these prefixes goes through the host's own stack,
//! whose NAT makes services of them.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Attached, Capture, FAR4, FAR6, HOST0, HOST4, HOST6, LAN, Lab, Machine, Mode, Ns, fetch,
    in_each_mode, ping, serve, unreachable, wait_until,
};

in_each_mode! {
    machines_reach_each_other_through_the_hosts_nat
    answers_that_pass_the_host_by_need_masquerading
    network_neither_finds_nor_impersonates_it
    denied_host_denies_it_too
}

const SOON: Duration = Duration::from_secs(5);

/// What a machine asks for, and in whose place the host's NAT has `db`, `web`, the host
/// itself, and a station beyond the gateway.
const DB: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const WEB: [&str; 2] = ["10.96.0.2", "fd00:96::2"];
const HOST: [&str; 2] = ["10.96.0.3", "fd00:96::3"];
const FAR: [&str; 2] = ["10.96.0.4", "fd00:96::4"];

/// More than one window and many super-packets.
const BYTES: usize = 1 << 20;

/// A host that forwards and translates as kube-proxy has it do, with `policy` besides.
fn services(mode: Mode, policy: &str, masquerade: &str) -> Result<Attached> {
    let lab = Lab::usual()?;
    fs::write(
        lab.config_dir().join("netspawn.toml"),
        format!("[policy]\nvia-host = [\"10.96.0.0/16\", \"fd00:96::/112\"]\n{policy}"),
    )?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        lab.host.set_sysctl(key, "1")?;
    }
    let address = |machine: &Machine| -> [IpAddr; 2] { [machine.v4().into(), machine.v6().into()] };
    let mut rules = String::new();
    for ([v4, v6], [to4, to6]) in [
        (DB, address(lab.machine("db"))),
        (WEB, address(lab.machine("web"))),
        (HOST, [HOST4.into(), HOST6.into()]),
        (FAR, [FAR4.into(), FAR6.into()]),
    ] {
        rules += &format!("ip daddr {v4} dnat ip to {to4}\nip6 daddr {v6} dnat ip6 to {to6}\n");
    }
    lab.host
        .cmd("nft")
        .args(["-f", "-"])
        .input(format!(
            "table inet services {{
                chain prerouting {{ type nat hook prerouting priority dstnat;\n{rules}}}
                chain output {{ type nat hook output priority -100;\n{rules}}}
                chain postrouting {{ type nat hook postrouting priority srcnat;\n{masquerade}\n}}
            }}"
        ))
        .text()?;
    for (at, name) in [
        (&lab.machine("db").ns, "db"),
        (&lab.machine("web").ns, "web"),
        (&lab.host, "host"),
        (&lab.net, "far"),
    ] {
        serve(at, &page(name))?;
    }
    Attached::new(lab, mode)
}

fn page(name: &str) -> String {
    name.repeat(BYTES / name.len())
}

const MASQUERADE: &str = "ct status dnat masquerade";

fn asks(at: &Ns, service: [&str; 2], name: &str) -> Result<()> {
    for address in service {
        let answer = fetch(at, address.parse::<IpAddr>()?)?;
        ensure!(answer.contains(&page(name)), "{address} is not {name}");
    }
    Ok(())
}

fn machines_reach_each_other_through_the_hosts_nat(mode: Mode) -> Result<()> {
    let on = services(mode, "", MASQUERADE)?;
    let [web, mail] = ["web", "mail"].map(|name| &on.lab.machine(name).ns);
    for at in [web, mail, &on.lab.host] {
        asks(at, DB, "db")?;
    }
    asks(web, WEB, "web").context("a machine by way of its own service")?;
    asks(web, HOST, "host")?;
    asks(web, FAR, "far")?;
    for address in DB {
        ping(web, address.parse::<IpAddr>()?)?;
    }
    // The rest of the network is reached past the host's stack, as ever.
    ping(web, FAR4)?;
    ping(web, FAR6)?;
    let counters = on.lab.json("counters")?;
    ensure!(counters["dropped"]["martian_source"] == 0, "{counters}");

    // The agent follows the file.
    fs::remove_file(on.lab.config_dir().join("netspawn.toml"))?;
    let gone = wait_until(SOON, || {
        unreachable(web, DB[0].parse::<IpAddr>().unwrap()).is_ok()
    });
    ensure!(gone, "what is not via the host is still reached through it");
    Ok(())
}

fn answers_that_pass_the_host_by_need_masquerading(mode: Mode) -> Result<()> {
    let on = services(mode, "", "")?;
    let web = &on.lab.machine("web").ns;
    for address in DB {
        let answer = fetch(web, address.parse::<IpAddr>()?);
        ensure!(answer.is_err(), "{address} answers from behind");
    }
    // These answers come from the host anyway.
    asks(web, HOST, "host")
}

fn network_neither_finds_nor_impersonates_it(mode: Mode) -> Result<()> {
    let on = services(mode, "", MASQUERADE)?;
    let lab = &on.lab;
    let output = lab
        .net
        .cmd("arping")
        .args(["-c", "1", "-w", "1", "-I", LAN, DB[0]])
        .output()?;
    ensure!(output.code() != 0, "{output:?}");
    let output = lab
        .net
        .cmd("ndisc6")
        .args(["-1", "-r", "1", "-w", "500", DB[1], LAN])
        .output()?;
    ensure!(output.code() != 0, "{output:?}");

    let web = lab.machine("web");
    let mut seen = Capture::incoming(&web.ns, HOST0)?;
    for address in DB {
        lab.net.run(&format!("ip addr add {address} dev lo"))?;
    }
    let dropped = || -> Result<u64> {
        let counters = lab.json("counters")?;
        let count = counters["dropped"]["martian_source"].as_u64();
        count.context("counters have no martian_source")
    };
    for (from, to) in DB.iter().zip([web.v4().to_string(), web.v6().to_string()]) {
        let before = dropped()?;
        let output = lab
            .net
            .cmd("ping")
            .args(["-n", "-c", "1", "-W", "0.3", "-I", from, &to])
            .output()?;
        ensure!(output.code() != 0, "{to} answers {from}");
        ensure!(dropped()? > before, "nothing was dropped for {from}");
    }
    let spoofed: Vec<IpAddr> = DB
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    for address in spoofed {
        let bytes = match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        ensure!(seen.containing(&bytes).is_empty(), "{address} got in");
    }
    Ok(())
}

fn denied_host_denies_it_too(mode: Mode) -> Result<()> {
    let on = services(mode, "host = \"deny\"\n", MASQUERADE)?;
    let web = &on.lab.machine("web").ns;
    for address in [DB, HOST].concat() {
        unreachable(web, address.parse::<IpAddr>()?)?;
    }
    let counters = on.lab.json("counters")?;
    ensure!(counters["dropped"]["host_denied"] != 0, "{counters}");
    let question = format!("explain out web tcp {}:80", DB[0]);
    let words = on.lab.output(&question)?;
    ensure!(words.stdout.contains("host_denied"), "{words:?}");
    Ok(())
}
