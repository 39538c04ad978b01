//! LXC, whose containers are found by the host routes of `veth.mode = router`.

use anyhow::Result;
use netspawn_tests::{Kit, SystemdHost};

use super::scenario::{Engine, Wanted, shows};

const KIT: Kit = Kit {
    name: "lxc",
    recipe: 1,
    release: None,
    packages: &["lxc"],
    backports: &[],
    testing: &[],
    script: "",
};
/// Folder of the containers.
const FOLDER: &str = "/var/lib/engines/lxc";

struct Lxc(SystemdHost);

impl Engine for Lxc {
    const NAME: &'static str = "lxc";
    const HAS_DAEMON: bool = false;

    fn system(&self) -> &SystemdHost {
        &self.0
    }

    fn start(&self, machines: &[Wanted]) -> Result<()> {
        for Wanted { name, v4, v6 } in machines {
            self.0.write(
                &format!("{FOLDER}/{name}/config"),
                &format!(
                    "lxc.uts.name = {name}
                    lxc.rootfs.path = dir:/var/lib/engines/root
                    lxc.apparmor.profile = unconfined
                    lxc.init.cmd = /bin/httpd -f -p 80
                    lxc.net.0.type = veth
                    lxc.net.0.veth.mode = router
                    lxc.net.0.veth.pair = {name}
                    lxc.net.0.name = eth0
                    lxc.net.0.flags = up
                    lxc.net.0.ipv4.address = {v4}/32
                    lxc.net.0.ipv4.gateway = 169.254.1.1
                    lxc.net.0.ipv6.address = {v6}/128
                    lxc.net.0.ipv6.gateway = fe80::1
                    "
                ),
            )?;
        }
        self.each("lxc-start", machines)
    }

    fn stop(&self, machines: &[Wanted]) -> Result<()> {
        self.each("lxc-stop --kill", machines)
    }

    /// There is no daemon.
    fn restart(&self) -> Result<()> {
        Ok(())
    }

    fn version(&self) -> Result<String> {
        Ok(self.0.run("lxc-start --version")?.trim().to_owned())
    }
}

impl Lxc {
    fn each(&self, command: &str, machines: &[Wanted]) -> Result<()> {
        for machine in machines {
            let line = format!("{command} --lxcpath {FOLDER} --name {}", machine.name);
            self.0.run(&line)?;
        }
        Ok(())
    }
}

#[test]
fn shows_what_engines_show() -> Result<()> {
    let system = SystemdHost::with(&KIT)?;
    system.shell(
        "set -e
        cp -a /tiny /var/lib/engines/root
        # What LXC asks of a host with routed containers.
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
    )?;
    system.install("source = [\"files\", \"kernel\"]")?;
    shows(&Lxc(system))
}
