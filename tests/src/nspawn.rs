//! A systemd host in a box, with real nspawn machines in it.
//!
//! The box is a debootstrapped Debian, booted by systemd-nspawn from a cached folder
//! that stays as it is: what the box writes goes to memory. It may set nothing of the
//! machine's own: all of /proc/sys but its own network is read-only to it.

mod kit;
mod root;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::Signal;

pub use self::kit::{Kit, release_named};
use crate::{
    agent::Mode,
    bpf::accept_xdp,
    cmd::{Cmd, Output, Process},
    lab::{DELEGATED, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, LAN, UPLINK, binary, outside},
    ns::{Ns, require_root},
    wait_until,
    workdir::Workdir,
};

/// The service that packages install.
const SERVICE: &str = include_str!("../../packaging/netspawn-xdp@.service");

const BOOT: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(20);
/// Until a machine is registered.
const START: Duration = Duration::from_secs(10);

/// A running systemd host. Stopped, with its machines, when the value is dropped.
pub struct SystemdHost {
    /// The outside, as in a [`crate::Lab`].
    pub net: Ns,
    /// The box's network namespace.
    pub host: Ns,
    leader: u32,
    process: Mutex<Option<Process>>,
    machines: PathBuf,
    cgroups: Vec<PathBuf>,
    dir: Workdir,
}

impl SystemdHost {
    /// Boots the box; makes it first, once, which takes a minute or two.
    pub fn boot() -> Result<Self> {
        // The box runs a program built here, so it is of this machine's release.
        Self::boot_root(&root::cached(&root::codename()?)?, Some(&binary()?), &[])
    }

    /// Boots a box with an engine in it, which may make containers of its own. None of
    /// what it came with has been started.
    pub fn with(kit: &Kit) -> Result<Self> {
        let mut options = vec!["--system-call-filter=@keyring".to_owned()];
        for device in ["/dev/net/tun", "/dev/fuse", "/dev/kmsg"] {
            if Path::new(device).exists() {
                options.push(format!("--bind={device}"));
            }
        }
        let system = Self::boot_root(&kit.cached()?, Some(&binary()?), &options)?;
        system.shell(
            "for group in /sys/fs/cgroup/*/; do mount -o remount,rw,bind \"$group\"; done
            # Where engines lay images over each other, which the box's own root is.
            mkdir -p /var/lib/engines && mount -t tmpfs engines /var/lib/engines",
        )?;
        Ok(system)
    }

    /// Boots a box of that release of Debian in which nothing of ours is installed.
    pub fn bare(suite: &str) -> Result<Self> {
        let system = Self::boot_root(&root::cached(suite)?, None, &[])?;
        // What programs are bound to in other boxes.
        system.run("rm /usr/bin/netspawn-xdp")?;
        Ok(system)
    }

    fn boot_root(cached: &Path, program: Option<&Path>, options: &[String]) -> Result<Self> {
        require_root()?;
        let dir = Workdir::new()?;
        let machines = dir.folder("machines")?;
        let net = Ns::new("net")?;
        let cgroups = payload_cgroups();
        let mut boot = net
            .cmd("systemd-nspawn")
            // The box's settings are its network's; nothing else can be written.
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .args(["--quiet", "--boot", "--register=no", "--keep-unit"])
            .args(["--volatile=overlay", "--private-users=no"])
            .args(["--capability=all", "--system-call-filter=bpf"])
            // Killed outright it would leave the box running.
            .farewell(Signal::SIGTERM)
            .arg(format!("--machine=netspawn-box-{}", std::process::id()))
            .arg(format!("--network-veth-extra={LAN}:{UPLINK}"))
            .arg(format!("--directory={}", cached.join("root").display()))
            .arg(format!("--bind-ro={}:/tiny", cached.join("tiny").display()))
            .arg(format!("--bind-ro={}:/machines", machines.display()));
        if let Some(program) = program {
            let program = program.display();
            boot = boot.arg(format!("--bind-ro={program}:/usr/bin/netspawn-xdp"));
        }
        let mut process = boot
            .args(options)
            // For systemd 256 and 257 where this machine has cgroups of the first version.
            .args(["--", "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"])
            .start()?;
        let found = leader(&mut process).and_then(|leader| Ok((leader, namespace(leader)?)));
        let (leader, host) = match found {
            Ok(found) => found,
            Err(error) => {
                let _ = process.end(Signal::SIGTERM, STOP);
                return Err(error);
            }
        };
        let mut booted = SystemdHost {
            host,
            net,
            leader,
            process: Mutex::new(Some(process)),
            machines,
            cgroups,
            dir,
        };
        booted.wait_running()?;
        booted.configure()?;
        Ok(booted)
    }

    fn wait_running(&mut self) -> Result<()> {
        let mut state = String::new();
        let running = wait_until(BOOT, || {
            let output = self.cmd("systemctl").arg("is-system-running").output();
            state = output.map_or_else(|error| error.to_string(), |output| output.stdout);
            // What fails in a box (a getty, a remount) is not what is tested.
            ["running", "degraded"].contains(&state.trim())
        });
        if !running {
            let process = self
                .process
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            let log = process
                .as_ref()
                .map_or(String::new(), |process| process.out() + &process.err());
            bail!("the box did not boot within {BOOT:?}, it is `{state}`\n{log}");
        }
        Ok(())
    }

    /// The bpf file system, the uplink, and a host that leaves its ports alone.
    fn configure(&self) -> Result<()> {
        self.shell(&format!(
            "set -e
            mount -o remount,rw /sys
            mkdir -p /sys/fs/bpf
            mount -t bpf -o mode=0700 bpf /sys/fs/bpf
            # Read-only, or networkd waits for an udev that is not there.
            mount -o remount,ro /sys
            mkdir -p /etc/systemd/network
            cat > /etc/systemd/network/10-uplink.network <<END
[Match]
Name={UPLINK}
[Network]
Address={HOST4}/24
Address={HOST6}/64
Gateway={GATEWAY4}
Gateway={GATEWAY6}
IPv6AcceptRA=no
END
            # Instead of systemd's own for ve-*, which serves DHCP and masquerades.
            cat > /etc/systemd/network/10-ports.network <<END
[Match]
Kind=veth
Name=ve-*
[Network]
LinkLocalAddressing=ipv6
IPv6AcceptRA=no
END
            systemctl start systemd-networkd systemd-machined"
        ))?;
        outside(&self.net)?;
        self.net
            .run(&format!("ip -6 route add {DELEGATED} dev {LAN}"))?;
        self.net.settled(LAN)?;
        let uplink = format!("ip -6 addr show dev {UPLINK} scope global -tentative");
        let mut last = Ok(String::new());
        let mut ready = || {
            wait_until(Duration::from_secs(20), || {
                last = self.host.run(&uplink);
                last.as_ref()
                    .is_ok_and(|text| text.contains(&HOST6.to_string()))
            })
        };
        if !ready() {
            let state = self.shell(&format!(
                "networkctl --no-pager status {UPLINK}; ip address show dev {UPLINK}; \
                 journalctl --no-pager --lines 20 --unit systemd-networkd"
            ));
            bail!("networkd in the box did not configure {UPLINK}\n{last:?}\n{state:?}");
        }
        Ok(())
    }

    /// As [`crate::ready_for`]; the machines are left as their maker leaves them.
    pub fn ready_for(&self, mode: Mode) -> Result<()> {
        if mode == Mode::Xdp {
            accept_xdp(&self.net, LAN, &self.dir.bpffs("bpf")?.join("pass"))?;
        }
        Ok(())
    }

    /// A command inside the box, in all of its namespaces.
    pub fn cmd(&self, program: &str) -> Cmd {
        self.net
            .cmd("nsenter")
            .args(["--target", &self.leader.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["--", program])
    }

    /// Runs a shell script inside the box and returns what it printed.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.cmd("sh").args(["-c", script]).text()
    }

    /// Runs a command line split at white space inside the box.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        self.cmd(program).args(words).text()
    }

    /// Runs `netspawn-xdp` inside the box, whatever comes of it.
    pub fn xdp(&self, words: &str) -> Result<Output> {
        self.cmd("netspawn-xdp")
            .args(words.split_whitespace())
            .output()
    }

    /// Starts `netspawn-xdp attach` as a service that tells systemd when it is ready.
    pub fn attach(&self, words: &str) -> Result<()> {
        self.cmd("systemd-run")
            .args([
                "--quiet",
                "--unit=netspawn-xdp@eth0",
                "--property=Type=notify",
            ])
            .args(["netspawn-xdp", "attach"])
            .args(words.split_whitespace())
            .text()
            .map(drop)
            .with_context(|| self.words().unwrap_or_default())
    }

    /// What that service printed so far.
    pub fn words(&self) -> Result<String> {
        self.run("journalctl --unit=netspawn-xdp@eth0 --no-pager --output=cat")
    }

    /// Declares a machine in `RUNDIR/machines`.
    pub fn declare(&self, name: &str, addresses: &[&str]) -> Result<()> {
        self.cmd("sh")
            .args([
                "-c",
                "mkdir -p /run/netspawn/machines && cat > /run/netspawn/machines/$0.toml",
                name,
            ])
            .input(format!("addresses = {addresses:?}\n"))
            .text()
            .map(drop)
    }

    /// Runs the agent as the service that `packaging/` has, with these words of
    /// `[attach]`, such as `max-machines = 100`.
    pub fn install(&self, settings: &str) -> Result<()> {
        self.write("/etc/systemd/system/netspawn-xdp@.service", SERVICE)?;
        self.write(
            "/etc/netspawn/netspawn.toml",
            &format!("[attach]\n{settings}"),
        )?;
        self.shell("systemctl daemon-reload && systemctl start netspawn-xdp@eth0")
            .map(drop)
            .with_context(|| self.words().unwrap_or_default())
    }

    /// Writes a file of the box; its folders are made.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        self.cmd("sh")
            .args(["-c", "mkdir -p \"${0%/*}\" && cat > \"$0\"", path])
            .input(text)
            .text()
            .map(drop)
    }

    /// As [`SystemdHost::start`], for a machine with nothing special.
    pub fn start_machine(&self, name: &str, addresses: &[&str]) -> Result<()> {
        self.start(&Nspawn::new(name).addresses(addresses))
    }

    /// Starts a machine as a service, configures its addresses in it, and serves
    /// `hello from NAME` by HTTP on port 80. It is registered with machined on return,
    /// and its own configuration under way.
    pub fn start(&self, machine: &Nspawn) -> Result<()> {
        self.prepare(machine)?;
        self.cmd("systemd-run")
            .args(machine.service())
            .text()
            .map(drop)
            .with_context(|| {
                let unit = format!("journalctl --unit=machine-{} --no-pager", machine.name);
                self.run(&unit).unwrap_or_default()
            })
    }

    /// Starts machines, some at a time.
    pub fn start_all(&self, machines: &[Nspawn], at_a_time: usize) -> Result<()> {
        let mut lines = String::new();
        for machine in machines {
            self.prepare(machine)?;
            lines += &format!("{}\n", machine.service().join(" "));
        }
        self.cmd("xargs")
            .args(["-P", &at_a_time.to_string(), "-L", "1", "systemd-run"])
            .input(lines)
            .limit(START * u32::try_from(machines.len())?)
            .text()
            .map(drop)
    }

    fn prepare(&self, machine: &Nspawn) -> Result<()> {
        fs::write(self.machines.join(&machine.name), machine.script())?;
        Ok(())
    }

    /// Process id, as the box has it, of a machine's first process.
    pub fn leader(&self, name: &str) -> Result<u32> {
        let text = self.run(&format!("machinectl show {name} --property=Leader --value"))?;
        text.trim()
            .parse()
            .with_context(|| format!("machine {name} has leader `{text}`"))
    }

    /// Runs a shell script in the network namespace of a machine, with the box's
    /// programs.
    pub fn inside(&self, name: &str, script: &str) -> Result<String> {
        let leader = self.leader(name)?;
        self.cmd("nsenter")
            .args(["--target", &leader.to_string(), "--net", "sh", "-c", script])
            .text()
    }

    /// The box's files, as seen from here.
    pub fn files(&self) -> PathBuf {
        format!("/proc/{}/root", self.leader).into()
    }

    /// Stops a machine.
    pub fn stop_machine(&self, name: &str) -> Result<()> {
        self.run(&format!("machinectl terminate {name}")).map(drop)
    }
}

/// A machine to be started by systemd-nspawn, from the box's tiny root.
#[derive(Clone, Debug)]
pub struct Nspawn {
    name: String,
    addresses: Vec<String>,
    network: Vec<String>,
    interface: Option<String>,
    dad: bool,
}

impl Nspawn {
    /// A machine with `--network-veth` and no address yet.
    pub fn new(name: &str) -> Self {
        Nspawn {
            name: name.to_owned(),
            addresses: Vec::new(),
            network: vec!["--network-veth".to_owned()],
            interface: Some(HOST0.to_owned()),
            dad: true,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Addresses, and prefixes, to be configured in it.
    pub fn addresses(mut self, addresses: &[&str]) -> Self {
        self.addresses = addresses.iter().map(|&text| text.to_owned()).collect();
        self
    }

    /// What systemd-nspawn is told of its network.
    pub fn network(mut self, args: &[&str]) -> Self {
        self.network = args.iter().map(|&text| text.to_owned()).collect();
        self
    }

    /// Its own end of its main link; `None` where it has none to configure.
    pub fn interface(mut self, interface: Option<&str>) -> Self {
        self.interface = interface.map(str::to_owned);
        self
    }

    /// Lets it use its IPv6 addresses without duplicate address detection, which takes
    /// the kernel one to two seconds.
    pub fn nodad(mut self) -> Self {
        self.dad = false;
        self
    }

    /// What runs in it.
    fn script(&self) -> String {
        let name = &self.name;
        let Some(interface) = &self.interface else {
            return "exec sleep 1000\n".to_owned();
        };
        let mut script = String::new();
        if !self.dad {
            script += &format!("echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad\n");
        }
        script += &format!("ip link set {interface} up\n");
        for address in &self.addresses {
            let v6 = address.contains(':');
            script += &match (address.contains('/'), v6) {
                (true, _) => format!("ip route add local {address} dev lo\n"),
                (false, true) => format!("ip addr add {address}/128 dev {interface}\n"),
                (false, false) => format!("ip addr add {address}/32 dev {interface}\n"),
            };
        }
        script
            + &format!(
                "ip route add default via 169.254.1.1 dev {interface} onlink
                ip -6 route add default via fe80::1 dev {interface}
                echo hello from {name} > /tmp/index.html
                exec httpd -f -p 80 -h /tmp\n"
            )
    }

    /// Arguments of `systemd-run`, which returns when the machine is registered.
    fn service(&self) -> Vec<String> {
        let name = &self.name;
        let mut args = vec![
            "--quiet".to_owned(),
            "--slice=machine.slice".to_owned(),
            "--property=Delegate=yes".to_owned(),
            "--property=Type=notify".to_owned(),
            "--collect".to_owned(),
            format!("--unit=machine-{name}"),
        ];
        args.extend(
            "systemd-nspawn --quiet --keep-unit --read-only --timezone=off --resolv-conf=off \
             --link-journal=no --directory=/tiny --as-pid2 --bind-ro=/machines:/mnt"
                .split_whitespace()
                .map(str::to_owned),
        );
        args.push(format!("--machine={name}"));
        args.extend(self.network.iter().cloned());
        args.extend(["/bin/sh".to_owned(), format!("/mnt/{name}")]);
        args
    }
}

impl Drop for SystemdHost {
    fn drop(&mut self) {
        let process = self
            .process
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(mut process) = process.take()
            && process.running()
        {
            // systemd's signal for an orderly power-off; whatever is left is then killed.
            let pid = self.leader.to_string();
            let _ = Command::new("kill").args(["-s", "RTMIN+4", &pid]).status();
            if !matches!(process.wait(STOP), Ok(Some(_))) {
                // All in its process namespace go with the first one.
                let _ = Command::new("kill").args(["-s", "KILL", &pid]).status();
                let _ = process.wait(STOP);
            }
        }
        for cgroup in &self.cgroups {
            remove_cgroup(cgroup);
        }
    }
}

/// The box's first process, seen from here.
fn leader(process: &mut Process) -> Result<u32> {
    let deadline = Instant::now() + BOOT;
    while Instant::now() < deadline {
        if !process.running() {
            bail!(
                "systemd-nspawn ended early\n{}{}",
                process.out(),
                process.err()
            );
        }
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let field = |wanted: &str| {
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(wanted))
                    .map(str::trim)
            };
            let child = field("PPid:") == Some(&process.id().to_string());
            if child && field("NSpid:").is_some_and(|ids| ids.ends_with("\t1")) {
                return Ok(pid);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("systemd-nspawn started nothing within {BOOT:?}");
}

/// The network namespace of the box's first process. It starts in that of systemd-nspawn,
/// and has its own a moment later.
fn namespace(leader: u32) -> Result<Ns> {
    let entry = PathBuf::from(format!("/proc/{leader}/ns/net"));
    let mut host = Err(anyhow!("the box has no network namespace"));
    wait_until(BOOT, || {
        host = Ns::open("host", &entry).and_then(|host| {
            host.run(&format!("ip link show dev {UPLINK}"))?;
            Ok(host)
        });
        host.is_ok()
    });
    host
}

/// Where systemd-nspawn will put the box's processes and leave an empty group behind.
fn payload_cgroups() -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut groups = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let roots = match controllers {
            "" => vec!["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
            "name=systemd" => vec!["/sys/fs/cgroup/systemd"],
            _ => continue,
        };
        for root in roots {
            let parent = Path::new(root).join(path.trim_start_matches('/'));
            if parent.join("cgroup.procs").exists() {
                groups.push(parent.join("payload"));
            }
        }
    }
    groups
}

fn remove_cgroup(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    // The kernel refuses while a process is in it: it is in use by somebody else then.
    let _ = fs::remove_dir(group);
}
