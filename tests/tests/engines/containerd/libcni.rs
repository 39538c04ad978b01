//! The reference library takes what the plugin says, in every version that both speak.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::plugin::{Container, boot, network};

#[test]
fn reference_library_takes_all_versions() -> Result<()> {
    let system = boot()?;
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let mut plugin = network(version, &["203.0.113.100/24", "2001:db8::100/64"]);
        plugin["dns"] = json!({"nameservers": ["198.51.100.53"]});
        plugin["capabilities"] = json!({"mac": true});
        plugin["ipam"]["routes"] =
            json!([{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
        let list = json!({"cniVersion": version, "name": "public", "plugins": [plugin]});
        system.write("/etc/cni/public.conflist", &list.to_string())?;
        let id = format!("c{}", version.replace('.', ""));
        let container = Container::make(&system, &id)?;
        let call = |command: &str| {
            system
                .cmd("libcni")
                .args([command, "/etc/cni/public.conflist", &id])
                .args([
                    &format!("/run/netns/{id}"),
                    "eth0",
                    "{\"mac\": \"02:00:00:00:00:77\"}",
                ])
                .output()?
                .success()
                .with_context(|| format!("{command} in version {version}"))
        };
        call("VALIDATE")?;
        // As the library has understood it, and writes it again.
        let result: Value = serde_json::from_str(&call("ADD")?)?;
        let family = |number: &str| match version {
            "1.0.0" => Value::Null,
            _ => json!(number),
        };
        ensure!(result["cniVersion"] == version, "{result:#}");
        ensure!(
            result["interfaces"][1]["mac"] == "02:00:00:00:00:77",
            "{result:#}"
        );
        ensure!(
            result["interfaces"][1]["sandbox"] == format!("/run/netns/{id}"),
            "{result:#}"
        );
        ensure!(
            result["ips"][0]["address"] == "203.0.113.100/32",
            "{result:#}"
        );
        ensure!(result["ips"][1]["gateway"] == "fe80::1", "{result:#}");
        for (index, number) in ["4", "6"].into_iter().enumerate() {
            ensure!(
                result["ips"][index]["version"] == family(number),
                "{result:#}"
            );
            ensure!(result["ips"][index]["interface"] == 1, "{result:#}");
        }
        ensure!(result["routes"][1]["gw"] == "203.0.113.1", "{result:#}");
        ensure!(
            result["dns"]["nameservers"][0] == "198.51.100.53",
            "{result:#}"
        );
        let routes = container.run("ip route")?;
        ensure!(
            routes.contains("192.0.2.0/24 via 203.0.113.1 dev eth0"),
            "{routes}"
        );
        if version >= "0.4.0" {
            call("CHECK")?;
        }
        call("DEL")?;
        call("DEL")?;
        container.end()?;
    }
    Ok(())
}
