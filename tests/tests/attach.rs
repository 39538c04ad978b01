//! Attaching to ports and uplinks, and reading the host's network, in namespaces.

use std::{
    io::Error,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Counter, Direction, Kind, Ns, Snapshot, Workdir, ping, unreachable, wait_until,
};
use netspawn_user::{
    datapath::attach::{
        Change, Guard, Means, NAME, Ports, Uplinks, block,
        bpf::{self, Hook},
        uplink_check,
    },
    model::{Host, Link, Peer},
    net::{Observer, multicast, namespace, neighbor, netlink::Netlink, xdp_ready},
};
use serde_json::Value;

const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const XDP_PASS: i32 = 2;

/// Loads `r0 = verdict; exit`.
fn program(kind: u32, verdict: i32) -> Result<OwnedFd> {
    let mut code = [0u8; 16];
    code[0] = 0xb7;
    code[4..8].copy_from_slice(&verdict.to_ne_bytes());
    code[8] = 0x95;
    let mut attribute = [0u8; 128];
    attribute[0..4].copy_from_slice(&kind.to_ne_bytes());
    attribute[4..8].copy_from_slice(&2u32.to_ne_bytes());
    attribute[8..16].copy_from_slice(&(code.as_ptr() as u64).to_ne_bytes());
    attribute[16..24].copy_from_slice(&(c"GPL".as_ptr() as u64).to_ne_bytes());
    attribute[48..53].copy_from_slice(b"trial");
    // SAFETY: BPF_PROG_LOAD reads the attribute, the code and the licence, all alive.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 5, attribute.as_mut_ptr(), attribute.len()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd
        .ok_or_else(Error::last_os_error)
        .context("cannot load a program")?;
    // SAFETY: the command returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn id(program: &OwnedFd) -> Result<u32> {
    Ok(bpf::program_id(program.as_fd())?)
}

/// A host with ports `p0`…, whose machines have 192.0.n.2 for 192.0.n.1 on the port. Every
/// other port is of the same block.
struct Site {
    host: Ns,
    machines: Vec<Ns>,
    bpffs: PathBuf,
    _workdir: Workdir,
}

impl Site {
    fn new(ports: u8) -> Result<Self> {
        let workdir = Workdir::new()?;
        let host = Ns::new("host")?;
        let mut machines = Vec::new();
        for number in 0..ports {
            let machine = Ns::new(&format!("m{number}"))?;
            let near = format!("p{number}");
            let ifindex = 1000 + 32 * u32::from(number);
            host.run(&format!(
                "ip link add {near} index {ifindex} type veth peer name m0"
            ))?;
            move_link(&host, "m0", &machine)?;
            machine.run(&format!("ip addr add 192.0.{number}.2/24 dev m0"))?;
            machine.run("ip link set m0 up")?;
            host.run(&format!("ip addr add 192.0.{number}.1/24 dev {near}"))?;
            host.run(&format!("ip link set {near} up"))?;
            machines.push(machine);
        }
        Ok(Site {
            bpffs: workdir.bpffs("bpf")?,
            host,
            machines,
            _workdir: workdir,
        })
    }

    fn pins(&self) -> PathBuf {
        self.bpffs.join("links")
    }

    fn ports(&self) -> Result<Ports> {
        self.host.enter(|| Ok(Ports::open(&self.pins())?))
    }

    fn uplinks(&self) -> Result<Uplinks> {
        self.host.enter(|| Ok(Uplinks::open()?))
    }

    fn ifindex(&self, name: &str) -> Result<u32> {
        self.host.ifindex(name)
    }

    fn json(&self, command: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.host.run(command)?)?)
    }

    fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&self.host, &self.bpffs)
    }
}

/// Whether the kernel has tcx (Linux 6.6, commit e420bed02507); says so where not.
fn has_tcx() -> Result<bool> {
    let found = Counter::load(Kind::Tc)?
        .tcx(&Ns::new("trial")?, "lo", Direction::Ingress)
        .is_ok();
    assert_eq!(bpf::has_tcx(), found);
    if !found {
        println!("skipped: this kernel has no tcx (Linux 6.6)");
    }
    Ok(found)
}

fn move_link(from: &Ns, name: &str, to: &Ns) -> Result<()> {
    from.run(&format!("ip link set {name} netns {}", to.path().display()))?;
    Ok(())
}

/// The filters of the block of `p0`.
fn block_filters(site: &Site) -> Result<Vec<Value>> {
    let block = block(site.ifindex("p0")?);
    let filters = site.json(&format!("tc -j filter show block {block}"))?;
    Ok(filters
        .as_array()
        .into_iter()
        .flatten()
        .filter(|filter| filter["options"]["bpf_name"].is_string())
        .cloned()
        .collect())
}

#[test]
fn ports_of_a_block_share_one_filter_that_is_replaced_in_one_step() -> Result<()> {
    let site = Site::new(3)?;
    let before = site.snapshot()?;
    let (first, second) = (program(SCHED_CLS, NEXT)?, program(SCHED_CLS, SHOT)?);
    site.host.enter(|| {
        let mut ports = site.ports()?;
        for name in ["p0", "p1", "p2"] {
            let ifindex = site.ifindex(name)?;
            for _ in 0..2 {
                assert_eq!(ports.ensure(ifindex, first.as_fd())?, Guard::Block);
            }
        }
        let of = |name| Ok::<_, anyhow::Error>(block(site.ifindex(name)?));
        assert_eq!(of("p0")?, of("p2")?);
        assert_ne!(of("p0")?, of("p1")?);
        let filters = block_filters(&site)?;
        assert_eq!(filters.len(), 1, "{filters:?}");
        assert_eq!(filters[0]["options"]["bpf_name"], NAME);
        let states = ports.dump()?;
        assert_eq!(states.len(), 3);
        assert!(
            states
                .values()
                .all(|state| state.guarded_by(id(&first).unwrap()))
        );
        ping(&site.machines[0], "192.0.0.1".parse::<IpAddr>()?)?;

        ports.replace_program(second.as_fd())?;
        assert_eq!(block_filters(&site)?.len(), 1);
        let states = ports.dump()?;
        assert!(
            states
                .values()
                .all(|state| state.guarded_by(id(&second).unwrap()))
        );
        unreachable(&site.machines[0], "192.0.0.1".parse::<IpAddr>()?)?;

        // The filter goes with the last port and is made again with the next.
        for name in ["p0", "p1", "p2"] {
            assert!(ports.remove(site.ifindex(name)?)?);
            assert!(!ports.remove(site.ifindex(name)?)?);
        }
        assert!(ports.dump()?.is_empty());
        before.same(&site.snapshot()?)?;
        let ifindex = site.ifindex("p0")?;
        ports.ensure(ifindex, first.as_fd())?;
        assert!(ports.dump()?[&ifindex].guarded_by(id(&first)?));
        // A port that comes while the program is a newer one brings it to its block.
        ports.ensure(site.ifindex("p2")?, second.as_fd())?;
        assert!(ports.dump()?[&ifindex].guarded_by(id(&second)?));
        ports.remove_all()?;
        before.same(&site.snapshot()?)
    })
}

#[test]
fn a_port_that_went_leaves_the_others_guarded() -> Result<()> {
    let site = Site::new(2)?;
    let guard = program(SCHED_CLS, NEXT)?;
    site.host.enter(|| {
        let mut ports = site.ports()?;
        let (gone, stays) = (site.ifindex("p0")?, site.ifindex("p1")?);
        ports.ensure(gone, guard.as_fd())?;
        ports.ensure(stays, guard.as_fd())?;
        site.host.run("ip link del p0")?;
        assert!(!ports.remove(gone)?);
        let error = ports.ensure(gone, guard.as_fd()).unwrap_err().to_string();
        assert!(error.contains("No such device"), "{error}");
        let states = ports.dump()?;
        assert_eq!(states.keys().collect::<Vec<_>>(), [&stays]);

        // In another namespace a port has no qdisc any more, and back again none either.
        move_link(&site.host, "p1", &site.machines[0])?;
        assert!(ports.dump()?.is_empty());
        move_link(&site.machines[0], "p1", &site.host)?;
        assert!(ports.dump()?.is_empty());
        let stays = site.ifindex("p1")?;
        ports.ensure(stays, guard.as_fd())?;
        assert!(ports.dump()?[&stays].guarded_by(id(&guard)?));
        Ok(())
    })
}

#[test]
fn a_port_with_anothers_programs_is_guarded_before_them() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let site = Site::new(4)?;
    let (open, shut) = (program(SCHED_CLS, NEXT)?, program(SCHED_CLS, SHOT)?);
    site.host.enter(|| {
        let counter = Counter::load(Kind::Tc)?;
        counter.clsact(
            &site.host,
            "p0",
            Direction::Ingress,
            &site.bpffs.join("other"),
        )?;
        site.host.run("tc qdisc add dev p1 ingress")?;
        let _link = counter.tcx(&site.host, "p2", Direction::Ingress)?;
        let before = site.snapshot()?;

        let mut ports = site.ports()?;
        for (name, wanted) in [
            ("p0", Guard::Link),
            ("p1", Guard::Link),
            ("p2", Guard::Link),
            ("p3", Guard::Block),
        ] {
            let ifindex = site.ifindex(name)?;
            assert_eq!(ports.ensure(ifindex, open.as_fd())?, wanted, "{name}");
            assert_eq!(ports.ensure(ifindex, open.as_fd())?, wanted, "{name}");
        }
        let states = ports.dump()?;
        assert_eq!(states.len(), 4);
        assert!(
            states
                .values()
                .all(|state| state.guarded_by(id(&open).unwrap()))
        );

        for (machine, address) in [(0, "192.0.0.1"), (1, "192.0.1.1"), (2, "192.0.2.1")] {
            ping(&site.machines[machine], address.parse::<IpAddr>()?)?;
        }
        assert!(
            counter.count()? > 0,
            "the other's programs see what the guard passes"
        );
        ports.replace_program(shut.as_fd())?;
        let states = ports.dump()?;
        assert!(
            states
                .values()
                .all(|state| state.guarded_by(id(&shut).unwrap()))
        );
        // What is still on its way from before.
        std::thread::sleep(Duration::from_millis(50));
        let seen = counter.count()?;
        for (machine, address) in [(0, "192.0.0.1"), (1, "192.0.1.1"), (2, "192.0.2.1")] {
            unreachable(&site.machines[machine], address.parse::<IpAddr>()?)?;
        }
        assert_eq!(
            counter.count()?,
            seen,
            "what the guard drops is seen by nobody"
        );

        ports.remove_all()?;
        before.same(&site.snapshot()?)
    })
}

#[test]
fn a_program_that_comes_before_the_guard_is_noticed_and_overtaken() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let site = Site::new(1)?;
    let guard = program(SCHED_CLS, NEXT)?;
    site.host.enter(|| {
        let mut ports = site.ports()?;
        let ifindex = site.ifindex("p0")?;
        assert_eq!(ports.ensure(ifindex, guard.as_fd())?, Guard::Block);
        let other = Counter::load(Kind::Tc)?;
        let link = other.tcx(&site.host, "p0", Direction::Ingress)?;
        assert!(!ports.dump()?[&ifindex].guarded_by(id(&guard)?));
        assert_eq!(ports.ensure(ifindex, guard.as_fd())?, Guard::Link);
        assert!(ports.dump()?[&ifindex].guarded_by(id(&guard)?));
        assert!(!site.host.run("tc qdisc show dev p0")?.contains("ingress"));

        // The number of an interface that is gone may be another's.
        drop(link);
        site.host.run("ip link del p0")?;
        site.host.run(&format!(
            "ip link add p9 index {ifindex} type veth peer name q9"
        ))?;
        assert!(ports.dump()?.is_empty());
        assert!(!site.pins().join(format!("port-{ifindex}")).exists());
        assert_eq!(ports.ensure(ifindex, guard.as_fd())?, Guard::Block);
        Ok(ports.remove_all()?)
    })
}

#[test]
fn without_tcx_a_port_with_anothers_qdisc_has_a_filter_of_its_own() -> Result<()> {
    let site = Site::new(2)?;
    let (open, shut) = (program(SCHED_CLS, NEXT)?, program(SCHED_CLS, SHOT)?);
    site.host.enter(|| {
        let counter = Counter::load(Kind::Tc)?;
        counter.clsact(
            &site.host,
            "p0",
            Direction::Ingress,
            &site.bpffs.join("other"),
        )?;
        site.host.run("tc qdisc add dev p1 ingress")?;
        let before = site.snapshot()?;
        let mut ports = site.ports()?.without_tcx();
        for name in ["p0", "p1"] {
            for _ in 0..2 {
                let guard = ports.ensure(site.ifindex(name)?, open.as_fd())?;
                assert_eq!(guard, Guard::Filter);
            }
        }
        let states = ports.dump()?;
        assert_eq!(states.len(), 2);
        assert!(
            states
                .values()
                .all(|state| state.guarded_by(id(&open).unwrap()))
        );
        ports.replace_program(shut.as_fd())?;
        assert!(
            ports
                .dump()?
                .values()
                .all(|state| state.guarded_by(id(&shut).unwrap()))
        );
        unreachable(&site.machines[0], "192.0.0.1".parse::<IpAddr>()?)?;
        unreachable(&site.machines[1], "192.0.1.1".parse::<IpAddr>()?)?;
        ports.remove_all()?;
        before.same(&site.snapshot()?)
    })
}

#[test]
fn a_port_that_cannot_be_guarded_is_left_as_it_was() -> Result<()> {
    let site = Site::new(2)?;
    let (wrong, guard) = (program(XDP, XDP_PASS)?, program(SCHED_CLS, NEXT)?);
    site.host.enter(|| {
        site.host.run("tc qdisc add dev p1 ingress")?;
        let before = site.snapshot()?;
        let mut ports = site.ports()?;
        for name in ["p0", "p1"] {
            let error = ports
                .ensure(site.ifindex(name)?, wrong.as_fd())
                .unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("{name}: cannot ")),
                "{error}"
            );
        }
        before.same(&site.snapshot()?)?;
        if !has_tcx()? {
            return Ok(());
        }
        let mut nowhere = Ports::open(Path::new("/proc/self/nowhere"))?;
        let error = nowhere
            .ensure(site.ifindex("p1")?, guard.as_fd())
            .unwrap_err();
        assert!(error.to_string().contains("/proc/self/nowhere"), "{error}");
        before.same(&site.snapshot()?)
    })
}

#[test]
fn joining_a_thousand_ports_is_fast() -> Result<()> {
    const PORTS: u32 = 1000;
    let site = Site::new(0)?;
    let guard = program(SCHED_CLS, NEXT)?;
    let other = program(SCHED_CLS, SHOT)?;
    let batch: String = (0..PORTS / 2)
        .map(|number| format!("link add a{number} type veth peer name b{number}\n"))
        .collect();
    site.host
        .cmd("ip")
        .args(["-batch", "-"])
        .input(batch)
        .text()?;
    site.host.enter(|| {
        let ifindexes: Vec<u32> = Host::dump()?
            .links
            .into_keys()
            .filter(|n| *n != 1)
            .collect();
        assert_eq!(ifindexes.len(), PORTS as usize);
        let mut ports = site.ports()?;
        let mut timed = |what: &str, work: &mut dyn FnMut(&mut Ports) -> Result<()>| {
            let start = Instant::now();
            work(&mut ports)?;
            let each = start.elapsed() / PORTS;
            println!("{what}: {each:?} a port");
            Ok::<_, anyhow::Error>(each)
        };
        let joined = timed("join", &mut |ports| {
            for ifindex in &ifindexes {
                ports.ensure(*ifindex, guard.as_fd())?;
            }
            Ok(())
        })?;
        timed("check", &mut |ports| {
            ensure!(ports.dump()?.len() == PORTS as usize);
            Ok(())
        })?;
        timed("replace", &mut |ports| {
            Ok(ports.replace_program(other.as_fd())?)
        })?;
        timed("leave", &mut |ports| Ok(ports.remove_all()?))?;
        ensure!(
            joined < Duration::from_millis(3),
            "joining took {joined:?} a port"
        );
        Ok(())
    })
}

/// What `attach` puts on an uplink, with its pins.
fn slots(site: &Site) -> [(Hook, PathBuf); 2] {
    [
        (Hook::TcIngress, site.bpffs.join("up_in")),
        (Hook::TcEgress, site.bpffs.join("up_out")),
    ]
}

fn borrowed(slots: &[(Hook, PathBuf); 2]) -> [(Hook, &Path); 2] {
    slots.each_ref().map(|(hook, pin)| (*hook, pin.as_path()))
}

fn tcx_ids(ifindex: u32, hook: Hook) -> Result<Vec<u32>> {
    let attached = bpf::tcx_query(ifindex, hook)?.context("this kernel has no tcx")?;
    Ok(attached.iter().map(|entry| entry.program).collect())
}

#[test]
fn an_uplinks_links_are_appended_replaced_and_made_again() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let site = Site::new(1)?;
    let (first, second) = (program(SCHED_CLS, NEXT)?, program(SCHED_CLS, NEXT)?);
    site.host.enter(|| {
        let other = Counter::load(Kind::Tc)?;
        let _link = other.tcx(&site.host, "p0", Direction::Ingress)?;
        let before = site.snapshot()?;
        let slots = slots(&site);
        let pins = borrowed(&slots);
        let mut uplinks = site.uplinks()?;
        let ifindex = site.ifindex("p0")?;
        for (hook, pin) in pins {
            let change = uplinks.attach(ifindex, hook, first.as_fd(), pin)?;
            assert_eq!(change, Change::Attached(Means::Link));
            let change = uplinks.attach(ifindex, hook, second.as_fd(), pin)?;
            assert_eq!(change, Change::Replaced(Means::Link));
        }
        assert_eq!(
            tcx_ids(ifindex, Hook::TcIngress)?.last(),
            Some(&id(&second)?)
        );
        assert_eq!(tcx_ids(ifindex, Hook::TcIngress)?.len(), 2);
        assert_eq!(tcx_ids(ifindex, Hook::TcEgress)?, [id(&second)?]);
        let found = uplinks.query(ifindex, &pins)?;
        assert_eq!(found.len(), 2);
        assert!(
            found
                .iter()
                .all(|entry| entry.program == id(&second).unwrap())
        );
        for _ in 0..2 {
            uplinks.detach(ifindex, &pins)?;
            assert!(uplinks.query(ifindex, &pins)?.is_empty());
        }
        before.same(&site.snapshot()?)?;

        // An uplink that was deleted and came back, under the same number.
        for (hook, pin) in pins {
            uplinks.attach(ifindex, hook, first.as_fd(), pin)?;
        }
        site.host.run("ip link del p0")?;
        assert!(uplinks.query(ifindex, &pins)?.is_empty());
        site.host.run(&format!(
            "ip link add p0 index {ifindex} type veth peer name q0"
        ))?;
        assert!(uplinks.query(ifindex, &pins)?.is_empty());
        for (hook, pin) in pins {
            let change = uplinks.attach(ifindex, hook, first.as_fd(), pin)?;
            assert_eq!(change, Change::Attached(Means::Link));
        }
        assert_eq!(uplinks.query(ifindex, &pins)?.len(), 2);
        site.host.run("ip link del p0")?;
        uplinks.detach(ifindex, &pins)?;
        assert!(pins.iter().all(|(_, pin)| !pin.exists()));
        Ok(())
    })
}

#[test]
fn without_tcx_an_uplink_has_filters_and_gets_its_qdisc_back() -> Result<()> {
    for (qdisc, filter) in [(false, false), (true, false), (true, true)] {
        let site = Site::new(1)?;
        let (first, second) = (program(SCHED_CLS, NEXT)?, program(SCHED_CLS, SHOT)?);
        site.host.enter(|| {
            if qdisc {
                site.host.run("tc qdisc add dev p0 clsact")?;
            }
            if filter {
                let other = Counter::load(Kind::Tc)?;
                other.clsact(
                    &site.host,
                    "p0",
                    Direction::Egress,
                    &site.bpffs.join("other"),
                )?;
            }
            let before = site.snapshot()?;
            let slots = slots(&site);
            let pins = borrowed(&slots);
            let ifindex = site.ifindex("p0")?;
            let mut uplinks = site.uplinks()?.without_tcx();
            for (hook, pin) in pins {
                let change = uplinks.attach(ifindex, hook, first.as_fd(), pin)?;
                assert_eq!(change, Change::Attached(Means::Filter));
                let change = uplinks.attach(ifindex, hook, second.as_fd(), pin)?;
                assert_eq!(change, Change::Replaced(Means::Filter));
            }
            let found = uplinks.query(ifindex, &pins)?;
            assert_eq!(found.len(), 2);
            assert!(
                found
                    .iter()
                    .all(|entry| entry.program == id(&second).unwrap())
            );
            assert!(unreachable(&site.machines[0], "192.0.0.1".parse::<IpAddr>()?).is_ok());
            // An uplink is not taken for a port.
            let mut ports = site.ports()?.without_tcx();
            assert!(ports.dump()?.is_empty());
            ports.remove_all()?;
            assert_eq!(uplinks.query(ifindex, &pins)?.len(), 2);
            uplinks.detach(ifindex, &pins)?;
            uplinks.detach(ifindex, &pins)?;
            before.same(&site.snapshot()?)
        })?;
    }
    Ok(())
}

#[test]
fn an_xdp_slot_that_is_taken_is_named_with_its_holder() -> Result<()> {
    let site = Site::new(1)?;
    let (first, second) = (program(XDP, XDP_PASS)?, program(XDP, XDP_PASS)?);
    site.host.enter(|| {
        let pin = site.bpffs.join("up_xdp");
        let pins = [(Hook::Xdp, pin.as_path())];
        let mut uplinks = site.uplinks()?;
        let ifindex = site.ifindex("p0")?;
        let before = site.snapshot()?;
        let attach = |uplinks: &mut Uplinks, program: BorrowedFd<'_>| {
            uplinks.attach(ifindex, Hook::Xdp, program, &pin)
        };
        assert_eq!(
            attach(&mut uplinks, first.as_fd())?,
            Change::Attached(Means::Link)
        );
        assert_eq!(
            attach(&mut uplinks, second.as_fd())?,
            Change::Replaced(Means::Link)
        );
        assert_eq!(uplinks.query(ifindex, &pins)?[0].program, id(&second)?);
        let mode = site.json("ip -j link show dev p0")?;
        assert_eq!(mode[0]["xdp"]["mode"], 1, "{mode}");
        uplinks.detach(ifindex, &pins)?;
        before.same(&site.snapshot()?)?;

        bpf::pin(first.as_fd(), &site.bpffs.join("other"))?;
        let other = site.bpffs.join("other");
        for mode in ["xdpdrv", "xdpgeneric"] {
            site.host.run(&format!(
                "ip link set dev p0 {mode} pinned {}",
                other.display()
            ))?;
            let before = site.snapshot()?;
            let error = attach(&mut uplinks, second.as_fd())
                .unwrap_err()
                .to_string();
            let holder = format!(
                "p0: its XDP slot is taken by program {} \"trial\"",
                id(&first)?
            );
            assert!(error.starts_with(&holder), "{error}");
            before.same(&site.snapshot()?)?;
            site.host.run(&format!("ip link set dev p0 {mode} off"))?;
        }
        // Larger than a page: veth refuses.
        site.host.run("ip link set p0 mtu 9000")?;
        site.machines[0].run("ip link set m0 mtu 9000")?;
        let error = attach(&mut uplinks, second.as_fd())
            .unwrap_err()
            .to_string();
        assert!(error.contains("does not take an XDP program"), "{error}");
        Ok(())
    })
}

#[test]
fn ports_of_bridges_are_refused_as_uplinks() -> Result<()> {
    let site = Site::new(1)?;
    site.host.run("ip link add br0 type bridge")?;
    site.host.run("ip link set p0 master br0")?;
    let host = site.host.enter(|| Ok(Host::dump()?))?;
    assert_eq!(
        uplink_check(&host, "p0").unwrap_err().to_string(),
        "p0: is a port of the bridge br0; attach to br0 instead"
    );
    assert_eq!(uplink_check(&host, "br0")?.kind.as_deref(), Some("bridge"));
    assert!(
        uplink_check(&host, "lo")
            .unwrap_err()
            .to_string()
            .contains("loopback")
    );
    Ok(())
}

/// Runs `work` with an observer, started in the namespace.
fn observing<T: Send>(
    ns: &Ns,
    start: impl AsyncFnOnce() -> Result<Observer> + Send,
    work: impl AsyncFnOnce(&mut Observer) -> Result<T> + Send,
) -> Result<T> {
    ns.enter(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async { work(&mut start().await?).await })
    })
}

/// Waits until the observer reports a state in which `wanted` holds.
async fn until(observer: &mut Observer, what: &str, wanted: impl Fn(&Host) -> bool) -> Result<()> {
    let limit = tokio::time::sleep(Duration::from_secs(5));
    tokio::pin!(limit);
    while !wanted(observer.host()) {
        tokio::select! {
            changed = observer.changed() => drop(changed?),
            () = &mut limit => anyhow::bail!("{what} was not reported: {:#?}", observer.host()),
        }
    }
    Ok(())
}

/// The kernel's tables and the observer's say the same once all is quiet.
async fn agrees(observer: &mut Observer) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let _ = tokio::time::timeout(Duration::from_millis(100), observer.changed()).await;
        let (read, followed) = (sorted(Host::dump()?), sorted(observer.host().clone()));
        if read == followed {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "read: {read:#?}\nfollowed: {followed:#?}"
        );
    }
}

fn sorted(mut host: Host) -> Host {
    host.routes
        .sort_by_key(|route| (route.destination, route.priority, route.ifindex));
    host.neighbors
        .sort_by_key(|entry| (entry.ifindex, entry.address));
    host
}

fn link<'a>(host: &'a Host, name: &str) -> Option<&'a Link> {
    host.link(name)
}

#[test]
fn the_observer_follows_what_the_kernel_does() -> Result<()> {
    let site = Site::new(1)?;
    let ns = &site.host;
    let machine = &site.machines[0];
    observing(
        ns,
        async || Ok(Observer::start()?),
        async |observer| {
            let host = observer.host();
            let port = link(host, "p0").context("p0 is missing")?;
            assert_eq!(port.kind.as_deref(), Some("veth"));
            assert_eq!((port.hardware, port.mtu), (1, 1500));
            assert!(port.admin_up && port.carrier);
            assert_eq!(port.mac, ns.mac("p0")?);
            let peer = port.peer.context("p0 has no peer")?;
            assert_eq!(peer.mac, Some(machine.mac("m0")?));
            assert!(peer.netnsid.is_some());
            assert!(
                host.addresses
                    .contains(&(port.ifindex, "192.0.0.1/24".parse()?))
            );

            machine.run("ip link set m0 down")?;
            until(observer, "carrier loss", |host| {
                !link(host, "p0").unwrap().carrier
            })
            .await?;
            machine.run("ip link set m0 address 02:00:00:00:00:77")?;
            machine.run("ip link set m0 up")?;
            until(observer, "the peer's new MAC", |host| {
                let port = link(host, "p0").unwrap();
                port.carrier && port.peer.unwrap().mac == Some([2, 0, 0, 0, 0, 0x77])
            })
            .await?;

            ns.run("ip link property add dev p0 altname uplink-of-the-lab")?;
            until(observer, "an alternative name", |host| {
                link(host, "uplink-of-the-lab").is_some()
            })
            .await?;

            for line in [
                "ip route add 198.51.100.0/24 via 192.0.0.2 mtu 1400",
                "ip route add default via 192.0.0.2 metric 7",
                "ip route add unreachable 203.0.113.0/24",
                "ip route add 198.51.101.0/24 nexthop via 192.0.0.2 nexthop via 192.0.0.3",
                "ip route add 198.51.102.0/24 dev p0 table 100",
                "ip -6 route add 2001:db8:5::/48 via fe80::1 dev p0",
                "ip -6 route add blackhole 2001:db8:6::/48",
                "ip route add 198.51.103.0/24 via inet6 fe80::1 dev p0",
            ] {
                ns.run(line)?;
            }
            until(observer, "routes", |host| host.routes.len() >= 8).await?;
            let find = |text: &str| -> Result<_> {
                let wanted = text.parse()?;
                let mut found = observer.host().routes.iter();
                Ok(found.find(|route| route.destination == wanted).cloned())
            };
            let ifindex = site.ifindex("p0")?;
            let plain = find("198.51.100.0/24")?.context("no plain route")?;
            assert_eq!(plain.gateway, Some("192.0.0.2".parse()?));
            assert_eq!((plain.ifindex, plain.mtu), (Some(ifindex), Some(1400)));
            assert_eq!(find("0.0.0.0/0")?.context("no default route")?.priority, 7);
            let refused = find("203.0.113.0/24")?.context("no refusing route")?;
            assert!(refused.refused && refused.ifindex.is_none());
            let first = find("198.51.101.0/24")?.context("no multipath route")?;
            assert_eq!(first.gateway, Some("192.0.0.2".parse()?));
            assert!(find("198.51.102.0/24")?.is_none());
            assert!(find("2001:db8:6::/48")?.context("no blackhole")?.refused);
            let via = find("198.51.103.0/24")?.context("no IPv4 route by an IPv6 hop")?;
            assert_eq!(via.gateway, Some("fe80::1".parse()?));

            ns.run("ip neigh add 192.0.0.9 lladdr 02:00:00:00:00:09 dev p0")?;
            until(observer, "a neighbor", |host| {
                host.neighbors.iter().any(|entry| {
                    entry.address == "192.0.0.9".parse::<IpAddr>().unwrap()
                        && entry.mac == Some([2, 0, 0, 0, 0, 9])
                })
            })
            .await?;
            agrees(observer).await?;

            // Routes that go with an address or a link go without an event.
            ns.run("ip addr del 192.0.0.1/24 dev p0")?;
            until(observer, "routes of an address", |host| {
                !host
                    .routes
                    .iter()
                    .any(|route| route.gateway == "192.0.0.2".parse().ok())
            })
            .await?;
            ns.run("ip addr add 192.0.0.1/24 dev p0")?;
            ns.run("ip link set p0 down")?;
            until(observer, "routes of a link", |host| {
                !host
                    .routes
                    .iter()
                    .any(|route| route.ifindex == Some(ifindex))
            })
            .await?;
            agrees(observer).await?;

            // Both ends here, one of them a bridge's.
            ns.run("ip link add a0 type veth peer name b0")?;
            ns.run("ip link add br0 type bridge")?;
            ns.run("ip link set a0 master br0")?;
            ns.run("ip link set b0 address 02:00:00:00:00:0b")?;
            until(observer, "a peer beside it", |host| {
                link(host, "a0").is_some_and(|link| {
                    link.master.is_some()
                        && link
                            .peer
                            .is_some_and(|peer| peer.mac == Some([2, 0, 0, 0, 0, 0xb]))
                })
            })
            .await?;
            ns.run("ip link set a0 nomaster")?;
            until(observer, "leaving a bridge", |host| {
                link(host, "a0").is_some_and(|link| link.master.is_none())
            })
            .await?;
            ns.run("ip link del p0")?;
            until(observer, "a link's end", |host| {
                link(host, "p0").is_none() && !host.addresses.iter().any(|(of, _)| *of == ifindex)
            })
            .await?;
            agrees(observer).await
        },
    )
}

#[test]
fn the_observer_agrees_with_the_kernel_after_a_storm() -> Result<()> {
    assert_eq!(storm(async || Ok(Observer::start()?))?, 0);
    Ok(())
}

#[test]
fn the_observer_agrees_with_the_kernel_after_lost_events() -> Result<()> {
    let overruns = storm(async || Ok(Observer::start_with_buffer(4096)?))?;
    ensure!(overruns > 0, "no event was lost");
    Ok(())
}

/// Follows hundreds of changes a second; how often events were lost.
fn storm(start: impl AsyncFnOnce() -> Result<Observer> + Send) -> Result<u64> {
    let site = Site::new(1)?;
    let storm: String = (0..300)
        .map(|number| {
            format!(
                "link add a{number} type veth peer name b{number}\n\
                 link set a{number} up\nlink set b{number} up\n\
                 addr add 10.0.{}.{}/32 dev a{number}\n\
                 route add 10.1.{}.{}/32 dev a{number}\n\
                 neigh add 10.2.0.1 lladdr 02:00:00:00:00:01 dev a{number}\n{}",
                number / 250,
                number % 250,
                number / 250,
                number % 250,
                if number % 3 == 0 {
                    format!("link del a{number}\n")
                } else {
                    String::new()
                }
            )
        })
        .collect();
    observing(&site.host, start, async |observer| {
        let ip = site.host.cmd("ip").args(["-batch", "-"]).input(storm);
        let done = tokio::task::spawn_blocking(move || ip.text());
        while !done.is_finished() {
            // Dropped futures lose nothing.
            let _ = tokio::time::timeout(Duration::from_millis(2), observer.changed()).await;
        }
        done.await??;
        agrees(observer).await?;
        observer.refresh();
        agrees(observer).await?;
        Ok(observer.overruns())
    })
}

#[test]
fn a_neighbor_is_resolved_on_request() -> Result<()> {
    let site = Site::new(1)?;
    let mac = site.machines[0].mac("m0")?;
    let address: IpAddr = "192.0.0.2".parse()?;
    site.host.enter(|| {
        let mut netlink = Netlink::open()?;
        neighbor::resolve(&mut netlink, site.ifindex("p0")?, address)?;
        ensure!(wait_until(Duration::from_secs(3), || {
            Host::dump().is_ok_and(|host| {
                host.neighbors
                    .iter()
                    .any(|entry| entry.address == address && entry.mac == Some(mac))
            })
        }));
        // A second time does no harm.
        Ok(neighbor::resolve(
            &mut netlink,
            site.ifindex("p0")?,
            address,
        )?)
    })
}

#[test]
fn a_permanent_neighbor_stays_as_the_operator_made_it() -> Result<()> {
    let site = Site::new(1)?;
    site.host.enter(|| {
        let mut netlink = Netlink::open()?;
        for address in ["192.0.0.9", "2001:db8::9"] {
            for state in ["permanent", "noarp"] {
                site.host.run(&format!(
                    "ip neigh replace {address} lladdr 02:00:00:00:00:09 nud {state} dev p0"
                ))?;
                let shown = format!("ip neigh show {address} nud {state} dev p0");
                let before = site.host.run(&shown)?;
                assert!(before.contains("02:00:00:00:00:09"), "{before}");
                neighbor::resolve(&mut netlink, site.ifindex("p0")?, address.parse()?)?;
                assert_eq!(site.host.run(&shown)?, before);
            }
        }
        Ok(())
    })
}

#[test]
fn groups_outlive_the_process_and_the_operators_stay() -> Result<()> {
    let site = Site::new(1)?;
    let (ours, operators) = ([0x33, 0x33, 0xff, 0, 0, 1], [0x33, 0x33, 0xff, 0, 0, 2]);
    site.host.enter(|| {
        site.host.run("ip maddr add 33:33:ff:00:00:02 dev p0")?;
        let ifindex = site.ifindex("p0")?;
        let before = site.snapshot()?;
        assert!(!multicast::join(ifindex, operators)?, "it was there before");
        assert!(multicast::join(ifindex, ours)?);
        assert!(!multicast::join(ifindex, ours)?);
        assert!(
            site.host
                .run("ip maddr show dev p0")?
                .contains("33:33:ff:00:00:01 static")
        );
        let groups = multicast::list(ifindex)?;
        assert!(
            groups
                .iter()
                .any(|group| group.mac == ours && group.permanent)
        );
        assert!(multicast::leave(ifindex, ours)?);
        assert!(!multicast::leave(ifindex, ours)?);
        let mut netlink = Netlink::open()?;
        assert!(!multicast::allmulti(&mut netlink, ifindex)?);
        multicast::set_allmulti(&mut netlink, ifindex, true)?;
        assert!(multicast::allmulti(&mut netlink, ifindex)?);
        multicast::set_allmulti(&mut netlink, ifindex, false)?;
        before.same(&site.snapshot()?)?;
        let error = multicast::join(9999, ours).unwrap_err().to_string();
        assert!(
            error.starts_with("there is no interface with index 9999"),
            "{error}"
        );
        Ok(())
    })
}

#[test]
fn namespaces_have_cookies_of_their_own() -> Result<()> {
    let (one, two) = (Ns::new("one")?, Ns::new("two")?);
    let cookie = |ns: &Ns| ns.enter(|| Ok(namespace::cookie()?));
    assert_eq!(cookie(&one)?, cookie(&one)?);
    assert_ne!(cookie(&one)?, cookie(&two)?);
    assert_ne!(cookie(&one)?, 0);
    Ok(())
}

#[test]
fn peers_that_take_xdp_are_told_from_those_that_do_not() -> Result<()> {
    let site = Site::new(3)?;
    site.machines[1].run("ethtool -K m0 gro on")?;
    let accept = program(XDP, XDP_PASS)?;
    bpf::pin(accept.as_fd(), &site.bpffs.join("accept"))?;
    site.machines[2].run(&format!(
        "ip link set dev m0 xdpdrv pinned {}",
        site.bpffs.join("accept").display()
    ))?;
    // Namespaces are found by the processes in them.
    let _inside = site
        .machines
        .iter()
        .map(|machine| machine.cmd("sleep").arg("60").start())
        .collect::<Result<Vec<_>>>()?;
    let answers = site.host.enter(|| {
        site.host.run("ip link add a0 type veth peer name b0")?;
        let host = Host::dump()?;
        let peer = |name| {
            link(&host, name)
                .and_then(|link| link.peer)
                .context("no peer")
        };
        let nowhere = Peer {
            ifindex: 1,
            netnsid: Some(12345),
            mac: None,
        };
        let peers = [peer("p0")?, peer("p1")?, peer("p2")?, peer("a0")?, nowhere];
        Ok(xdp_ready::take_xdp(&mut Netlink::open()?, &peers))
    })?;
    assert_eq!(
        answers,
        [Some(false), Some(true), Some(true), Some(false), None]
    );
    Ok(())
}
