//! After `ptp`, which makes the link and routes to it.

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::ping;
use serde_json::{Value, json};
use std::net::IpAddr;

use super::{
    plugin::{Container, PATH, boot, refused},
    report, scenario,
};

#[test]
fn link_of_another_plugin_is_served() -> Result<()> {
    let system = boot()?;
    let a = Container::make(&system, "a")?;
    let ptp = json!({
        "cniVersion": "1.0.0",
        "name": "public",
        "type": "ptp",
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni/networks",
            "ranges": [
                [{"subnet": "198.18.0.0/24"}],
                [{"subnet": "2001:db8:5::/64"}],
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    let first = |command: &str| {
        let output = system
            .cmd("env")
            .args([&format!("CNI_COMMAND={command}"), "CNI_CONTAINERID=a"])
            .args(["CNI_NETNS=/run/netns/a", "CNI_IFNAME=eth0"])
            .args([&format!("CNI_PATH={PATH}"), &format!("{PATH}/ptp")])
            .input(ptp.to_string());
        output.text()
    };
    let result: Value = serde_json::from_str(&first("ADD")?)?;
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": "public",
        "type": "netspawn-cni",
        "tenant": "acme",
        "prevResult": result,
    });
    ensure!(a.does("ADD", &config)? == result);
    let list: Value = serde_json::from_str(&system.xdp("--json list")?.success()?)?;
    ensure!(
        list[0]["tenant"] == "acme" && list[0]["state"] == "up",
        "{list:#}"
    );
    let v4: IpAddr = address(&result, 0)?.parse()?;
    system.net.run("ip route add 198.18.0.0/24 dev lan0")?;
    ping(&system.net, v4).with_context(|| report(&system))?;
    // The host by its own route, and the container to the gateway that it was given.
    system.run(&format!("ping -c 1 -W 2 {v4}"))?;
    a.run("ping -c 1 -W 2 203.0.113.10")?;
    a.run("ping -c 1 -W 2 203.0.113.1")?;
    a.does("CHECK", &config)?;
    let mut wrong = config.clone();
    wrong["ipam"] = json!({"type": "static"});
    a.refuses("ADD", &wrong, 7)?;
    // `ptp` has the host forward, so that an answer alone tells nothing.
    let list: Value = serde_json::from_str(&system.xdp("--json list")?.success()?)?;
    ensure!(list[0]["rx_packets"].as_u64() >= Some(1), "{list:#}");
    a.does("DEL", &config)?;
    ensure!(scenario::up(&system)? == 0, "{}", report(&system));
    // The link is not ours to remove.
    a.run("ip link show eth0")?;
    first("DEL")?;

    config["prevResult"]["interfaces"] = json!([]);
    refused(a.call("ADD", &config)?, 7)?;
    Ok(())
}

fn address(result: &Value, index: usize) -> Result<&str> {
    let text = result["ips"][index]["address"].as_str();
    let (address, _) = text
        .and_then(|text| text.split_once('/'))
        .context("no address")?;
    Ok(address)
}
