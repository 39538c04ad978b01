//! libvirt, with virtual machines under QEMU's software emulation.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use netspawn_tests::{Guest, Kernel, Kit, SystemdHost, wait_until};

use super::scenario::{Engine, Wanted, becomes, machine, record, report, says, shows, up};

const KIT: Kit = Kit {
    name: "libvirt",
    recipe: 2,
    release: None,
    packages: &[],
    backports: &[
        "libvirt-daemon-system",
        "libvirt-clients",
        "qemu-system-x86",
        "libvirt*",
        "qemu*",
        "seabios",
        "ipxe*",
        "libslirp*",
        "libfdt*",
        "vgabios",
        "ovmf*",
    ],
    testing: &[],
    script: "",
};
/// Until ten guests have booted, on two cores.
const BOOT: Duration = Duration::from_secs(240);
/// What a guest runs. Its addresses are in its kernel's command line.
const GUEST: &str = r#"
for word in $(cat /proc/cmdline); do
    case $word in v4=* | v6=*) eval "$word" ;; esac
done
echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set eth0 up
ip addr add "$v4/32" dev eth0
ip addr add "$v6/128" dev eth0
ip route add default via 169.254.1.1 dev eth0 onlink
ip -6 route add default via fe80::1 dev eth0
echo READY
exec sleep 100000
"#;
/// Where the guests' kernel is, and what they print.
const FOLDER: &str = "/var/lib/engines/guests";

struct Libvirt(SystemdHost);

impl Libvirt {
    /// A host with the agent and libvirt.
    fn boot() -> Result<Self> {
        let system = SystemdHost::with(&KIT)?;
        system.shell(&format!("mkdir -p {FOLDER} && chmod 755 {FOLDER}"))?;
        let folder = system.files().join(FOLDER.trim_start_matches('/'));
        let kernel = Kernel::series("6.12")?;
        let (vmlinuz, initrd) = Guest::new(&kernel)
            .modules(&["virtio_pci", "virtio_net"])?
            .programs(&["ip"])?
            .image(GUEST)?;
        fs::copy(vmlinuz, folder.join("vmlinuz"))?;
        fs::write(folder.join("initrd"), initrd)?;
        system.shell("systemctl start virtlogd libvirtd")?;
        system.install("")?;
        Ok(Libvirt(system))
    }

    /// Creates domains, with that metadata and that interface each, and waits until
    /// they have booted.
    fn create(
        &self,
        machines: &[Wanted],
        metadata: impl Fn(&Wanted) -> String,
        interface: impl Fn(&Wanted) -> String,
    ) -> Result<()> {
        for machine in machines {
            let Wanted { name, v4, v6 } = machine;
            let file = format!("{FOLDER}/{name}.xml");
            self.0.write(
                &file,
                &format!(
                    "<domain type='qemu'><name>{name}</name>
                    <metadata>{}</metadata>
                    <memory unit='MiB'>192</memory><vcpu>1</vcpu>
                    <os><type arch='x86_64' machine='q35'>hvm</type>
                    <kernel>{FOLDER}/vmlinuz</kernel><initrd>{FOLDER}/initrd</initrd>
                    <cmdline>console=ttyS0 panic=-1 quiet mitigations=off v4={v4} v6={v6}</cmdline>
                    </os><features><acpi/></features><cpu mode='maximum'/>
                    <on_crash>destroy</on_crash>
                    <devices>{}<serial type='file'><source path='{FOLDER}/{name}.log'/></serial>
                    <memballoon model='none'/></devices><seclabel type='none'/></domain>",
                    metadata(machine),
                    interface(machine)
                ),
            )?;
            self.0.run(&format!("virsh --quiet create {file}"))?;
        }
        for Wanted { name, .. } in machines {
            let console = || self.0.run(&format!("cat {FOLDER}/{name}.log"));
            let ready = wait_until(BOOT, || console().is_ok_and(|text| text.contains("READY")));
            ensure!(ready, "{name} has not booted\n{:?}", console());
        }
        Ok(())
    }
}

fn addresses(machine: &Wanted) -> String {
    format!(
        "<n:machine xmlns:n='urn:netspawn:libvirt:1'><n:address>{}</n:address>\
         <n:address>{}</n:address></n:machine>",
        machine.v4, machine.v6
    )
}

fn tap(_: &Wanted) -> String {
    "<interface type='ethernet'><model type='virtio'/></interface>".to_owned()
}

impl Engine for Libvirt {
    const NAME: &'static str = "libvirt";

    fn system(&self) -> &SystemdHost {
        &self.0
    }

    fn start(&self, machines: &[Wanted]) -> Result<()> {
        self.create(machines, addresses, tap)
    }

    fn stop(&self, machines: &[Wanted]) -> Result<()> {
        for machine in machines {
            self.0
                .run(&format!("virsh --quiet destroy {}", machine.name))?;
        }
        Ok(())
    }

    fn restart(&self) -> Result<()> {
        self.0.run("systemctl restart libvirtd")?;
        // It finds its domains again one after the other, and knows none before that.
        let found = wait_until(BOOT, || {
            self.0
                .shell(
                    "test $(virsh list --name | grep -c .) = $(ls /run/libvirt/qemu/*.xml | wc -l)",
                )
                .is_ok()
        });
        ensure!(found, "libvirtd has lost domains\n{}", report(&self.0));
        Ok(())
    }

    fn version(&self) -> Result<String> {
        Ok(self.0.run("virsh --version")?.trim().to_owned())
    }
}

#[test]
fn shows_what_engines_show() -> Result<()> {
    shows(&Libvirt::boot()?)
}

#[test]
fn filters_bridges_and_changes_of_running_domains_have_their_meaning() -> Result<()> {
    let libvirt = Libvirt::boot()?;
    let system = &libvirt.0;
    system.shell("ip link add br0 type bridge && ip link set br0 up")?;

    // A tap whose addresses are in its filter, and one in a bridge.
    let filter = |machine: &Wanted| {
        format!(
            "<interface type='ethernet'><mac address='52:54:00:00:00:01'/><model type='virtio'/>\
             <filterref filter='clean-traffic'><parameter name='IP' value='{}'/>\
             <parameter name='IPV6' value='{}'/></filterref></interface>",
            machine.v4, machine.v6
        )
    };
    let bridge = |_: &Wanted| {
        "<interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>"
            .to_owned()
    };
    let [plain, bridged] = [Wanted::number(1), Wanted::number(2)];
    libvirt.create(std::slice::from_ref(&plain), |_| String::new(), filter)?;
    libvirt.create(std::slice::from_ref(&bridged), addresses, bridge)?;
    plain.answers(system)?;
    bridged.answers(system)?;

    // machined knows them too, by names of its own.
    let registered = system.run("machinectl list --no-legend")?;
    ensure!(
        registered.contains("qemu-1-m1 vm") || registered.contains("qemu-1-m1          vm"),
        "{registered}"
    );
    ensure!(up(system)? == 2, "{}", report(system));

    // Metadata replaces the filter, while the domain runs; a bad value is named, and
    // leaves what was there.
    let set = |inner: &str| {
        system
            .cmd("virsh")
            .args(["--quiet", "metadata", &plain.name, "urn:netspawn:libvirt:1"])
            .args(["--live", "--key", "netspawn", "--set", inner])
            .text()
    };
    let Wanted { v4, .. } = &plain;
    set(&format!(
        "<machine tenant='acme'><address>{v4}</address></machine>"
    ))?;
    becomes(system, &plain.name, |machine| {
        machine["addresses"]
            .as_array()
            .is_some_and(|all| all.len() == 1)
            && machine["tenant"] == "acme"
    })?;
    set("<machine tenant='acme'><adress>203.0.113.3</adress></machine>")?;
    says(
        system,
        "libvirt domain m1: metadata {urn:netspawn:libvirt:1}adress",
    )?;
    ensure!(
        machine(system, &plain.name)?["state"] == "up",
        "{}",
        report(system)
    );

    // A second interface.
    set(
        "<machine><address>203.0.113.101</address><interface mac='52:54:00:00:00:09'>\
         <address>203.0.113.77</address></interface></machine>",
    )?;
    says(system, "the domain has no interface for 203.0.113.77")?;
    system.write(
        "/run/second.xml",
        "<interface type='ethernet'><mac address='52:54:00:00:00:09'/>\
         <model type='virtio'/></interface>",
    )?;
    system.run(&format!(
        "virsh --quiet attach-device {} /run/second.xml --live",
        plain.name
    ))?;
    becomes(system, "m1.net1", |machine| {
        machine["addresses"][0] == "203.0.113.77/32"
    })?;

    // QEMU's user can write into the folder, and is not believed.
    system.shell(
        "cd /run/libvirt/qemu && sed 's/<name>m1/<name>evil/; s/203.0.113.101/203.0.113.66/' m1.xml \
         > /run/evil && chown libvirt-qemu /run/evil && mv /run/evil evil.xml",
    )?;
    says(system, "/run/libvirt/qemu/evil.xml is left out")?;
    ensure!(machine(system, "evil")?.is_null(), "{}", report(system));
    record(
        Libvirt::NAME,
        &libvirt.version()?,
        "metadata, filters, bridge, changes of a running domain, with machined",
    )
}
