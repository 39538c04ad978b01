//! Incus, with containers whose network devices are routed or point-to-point.

use anyhow::{Result, ensure};
use netspawn_tests::{Kit, SystemdHost};
use serde_json::{Value, json};

use super::scenario::{self, Engine, Wanted, becomes, record, says};

const KIT: Kit = Kit {
    name: "incus",
    recipe: 2,
    release: None,
    packages: &[],
    backports: &["incus-base", "incus-client", "incus*"],
    testing: &[],
    script: "
        mkdir -p /root/tiny/rootfs/sbin
        cat > /root/tiny/metadata.yaml <<END
architecture: x86_64
creation_date: 1
properties: {description: tiny}
END
        # No address of its own but those that Incus gives it.
        cat > /root/tiny/rootfs/sbin/init <<END
#!/bin/sh
[ -x /setup ] && . /setup
exec httpd -f -p 80 -h /tmp
END
        chmod 755 /root/tiny/rootfs/sbin/init
    ",
};
/// Image and profile, and what Incus asks of a host with routed network devices. Its
/// files lie where it can make file systems of its own.
const PREPARE: &str = "set -e
    for key in ipv4/conf/all/forwarding ipv6/conf/all/forwarding \\
               ipv6/conf/all/proxy_ndp ipv6/conf/eth0/proxy_ndp; do
        echo 1 > /proc/sys/net/$key
    done
    rm -rf /var/lib/incus
    mkdir /var/lib/engines/incus
    ln -s /var/lib/engines/incus /var/lib/incus
    systemctl start incus.socket incus.service
    incus admin init --preseed <<END
storage_pools: [{name: default, driver: dir}]
profiles: [{name: default, devices: {root: {type: disk, path: /, pool: default}}}]
END
    cp -a /tiny/. /root/tiny/rootfs
    tar -C /root/tiny -czf /tmp/tiny.tar.gz metadata.yaml rootfs
    incus image import /tmp/tiny.tar.gz --alias tiny";

struct Incus(SystemdHost);

impl Incus {
    /// A host with the agent and Incus.
    fn boot() -> Result<Self> {
        let system = SystemdHost::with(&KIT)?;
        system.shell(PREPARE)?;
        system.install("")?;
        Ok(Incus(system))
    }

    /// Starts a container with that configuration, as `incus launch` reads it.
    fn launch(&self, name: &str, options: &str, config: &Value) -> Result<()> {
        self.0
            .cmd("sh")
            .args(["-c", &format!("incus launch --quiet tiny {name} {options}")])
            .input(config.to_string())
            .text()
            .map(drop)
    }
}

/// A routed network device. Without a parent Incus has the kernel answer for nobody.
fn routed(machine: &Wanted) -> Value {
    json!({ "devices": { "eth0": {
        "type": "nic", "nictype": "routed",
        "ipv4.address": machine.v4, "ipv6.address": machine.v6,
    } } })
}

/// Waits for all of these, and fails with the first that does.
fn all(commands: impl Iterator<Item = String>) -> String {
    let mut script = "pids=".to_owned();
    for command in commands {
        script += &format!("\n{command} & pids=\"$pids $!\"");
    }
    script + "\nfor pid in $pids; do wait $pid || exit 1; done"
}

impl Engine for Incus {
    const NAME: &'static str = "incus";

    fn system(&self) -> &SystemdHost {
        &self.0
    }

    fn start(&self, machines: &[Wanted]) -> Result<()> {
        let launch = machines.iter().map(|machine| {
            let config = routed(machine);
            format!(
                "echo '{config}' | incus launch --quiet tiny {}",
                machine.name
            )
        });
        self.0.shell(&all(launch)).map(drop)
    }

    fn stop(&self, machines: &[Wanted]) -> Result<()> {
        let delete = machines
            .iter()
            .map(|machine| format!("incus delete --force {}", machine.name));
        self.0.shell(&all(delete)).map(drop)
    }

    fn restart(&self) -> Result<()> {
        self.0.run("systemctl restart incus.service").map(drop)
    }

    fn version(&self) -> Result<String> {
        let text = self.0.run("incus version")?;
        let server = text
            .lines()
            .find_map(|line| line.strip_prefix("Server version: "));
        Ok(server.unwrap_or_default().to_owned())
    }
}

#[test]
fn shows_what_engines_show() -> Result<()> {
    scenario::shows(&Incus::boot()?)
}

#[test]
fn devices_keys_and_projects_have_their_meaning() -> Result<()> {
    let incus = Incus::boot()?;
    let system = &incus.0;

    // Point-to-point: nothing else on the host answers for it.
    let p2p = Wanted::number(1);
    let setup = format!(
        "#!/bin/sh\nip link set eth0 up\nip addr add {}/32 dev eth0\nip addr add {}/128 dev eth0\n\
         ip route add default via 169.254.1.1 dev eth0 onlink\n\
         ip -6 route add default via fe80::1 dev eth0\n",
        p2p.v4, p2p.v6
    );
    let config = json!({
        "config": { "user.netspawn.tenant": "acme" },
        "devices": { "eth0": {
            "type": "nic", "nictype": "p2p",
            "ipv4.routes": format!("{}/32", p2p.v4), "ipv6.routes": format!("{}/128", p2p.v6),
        } },
    });
    system
        .cmd("sh")
        .args([
            "-c",
            &format!(
                "cat > /tmp/config && incus init --quiet tiny {0} < /tmp/config \
                 && printf '{setup}' > /tmp/setup \
                 && incus file push --quiet --mode 755 /tmp/setup {0}/setup && incus start {0}",
                p2p.name
            ),
        ])
        .input(config.to_string())
        .text()?;
    p2p.answers(system)?;
    becomes(system, &p2p.name, |machine| machine["tenant"] == "acme")?;
    // A key that changes while it runs.
    system.run(&format!(
        "incus config set {} user.netspawn.tenant=",
        p2p.name
    ))?;
    becomes(system, &p2p.name, |machine| machine["tenant"].is_null())?;

    // A bad value leaves what was there, and is named with its place.
    system.run(&format!(
        "incus config set {} user.netspawn.addresses=203.0.113.300",
        p2p.name
    ))?;
    says(
        system,
        &format!("incus container {}: user.netspawn.addresses", p2p.name),
    )?;
    p2p.still_answers(system)?;

    // Another project; then it is restricted, and gets what it may have.
    let other = Wanted::number(2);
    system.shell(
        "incus project create p -c features.images=false
        incus profile device add default root disk path=/ pool=default --project p",
    )?;
    let mut config = routed(&other);
    config["devices"]["eth0"]["parent"] = json!("eth0");
    incus.launch(&other.name, "--project p", &config)?;
    other.answers(system)?;
    let name = format!("{}.p", other.name);
    becomes(system, &name, |machine| machine["state"] == "up")?;
    system.shell(
        "incus project set p restricted=true restricted.devices.nic=allow \
         restricted.networks.access=eth0",
    )?;
    says(system, "incus project set p user.netspawn.addresses=")?;
    becomes(system, &name, Value::is_null)?;
    system.shell(&format!(
        "incus project set p user.netspawn.addresses={}/32 user.netspawn.tenant=p",
        other.v4
    ))?;
    becomes(system, &name, |machine| {
        machine["addresses"] == json!([format!("{}/32", other.v4)]) && machine["tenant"] == "p"
    })?;
    record(
        Incus::NAME,
        &incus.version()?,
        "routed, p2p, keys, projects",
    )
}

#[test]
fn link_that_a_user_names_like_a_port_is_not_taken_for_it() -> Result<()> {
    let incus = Incus::boot()?;
    let system = &incus.0;
    let victim = Wanted::number(3);
    // Outside of the projects nobody has a say but root, who has no need to wait.
    system.shell(
        "incus project create p -c features.images=false -c restricted=true \
             -c restricted.devices.nic=allow -c restricted.networks.access=eth0
        incus profile device add default root disk path=/ pool=default --project p",
    )?;
    let intruder = json!({ "devices": { "eth0": {
        "type": "nic", "nictype": "p2p", "host_name": "ve-victim",
    } } });
    let addresses = [victim.v4.as_str(), &victim.v6];
    for (round, line) in ["", "interface = \"ve-victim\"\n"].iter().enumerate() {
        let file = format!("{line}addresses = {addresses:?}\n");
        system.write("/etc/netspawn/machines/victim.toml", &file)?;
        becomes(system, "victim", |machine| machine["state"] == "waiting")?;
        // Several times, so that the agent is met at several moments.
        for _ in 0..5 {
            incus.launch("u1", "--project p", &intruder)?;
            // It has the addresses, and would answer.
            system.shell(&format!(
                "incus exec --project p u1 -- ip link set eth0 up
                incus exec --project p u1 -- ip addr add {}/32 dev eth0
                incus exec --project p u1 -- ip addr add {}/128 dev eth0",
                victim.v4, victim.v6
            ))?;
            victim.is_silent(system)?;
            let found = scenario::machine(system, "victim")?;
            ensure!(
                found["state"] == "waiting" && found["ifindex"].is_null(),
                "{found:#}"
            );
            system.run("incus delete --force --project p u1")?;
        }
        // Not for a moment.
        let guarded = system.words()?.matches("ve-victim is guarded").count();
        ensure!(guarded == round, "{}", system.words()?);
        // The link is root's when root makes it.
        system.start_machine("victim", &addresses)?;
        victim.answers(system)?;
        system.stop_machine("victim")?;
        victim.is_silent(system)?;
    }
    record(
        Incus::NAME,
        &incus.version()?,
        "links that users name like a machine's port",
    )
}
