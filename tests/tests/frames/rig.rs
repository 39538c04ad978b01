//! The programs loaded once, in the world of the rows, and the comparison.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex},
};

use anyhow::{Context as _, Result};
use netspawn_bench::programs::{self, Context, Hook, IFINDEX, Programs, Run};
use netspawn_ebpf::{
    abi::{NOBODY, NextHop, Owner, Traffic},
    decide::offload::surplus,
    verdict::{Kind, Reason},
};
use netspawn_tests::{protocol, require_root};
use netspawn_user::datapath::{events::Report, object::Sizes};

use crate::rows::{At, Row, world};

// Actions as numbers: include/uapi/linux/{pkt_cls,bpf}.h.
pub const TC_NEXT: u32 = u32::MAX;
pub const TC_SHOT: u32 = 2;
pub const TC_REDIRECT: u32 = 7;
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
pub const XDP_REDIRECT: u32 = 4;

/// The one set of programs of this process: loading them takes the verifier a while.
pub static RIG: LazyLock<Mutex<Rig>> =
    LazyLock::new(|| Mutex::new(Rig::new().expect("the kernel takes the programs")));

/// A frame, and everything that must be so afterwards.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub at: At,
    pub hook: Hook,
    pub frame: Vec<u8>,
    pub vlan: Option<u16>,
    pub gso_size: u32,
    pub mark_in: u32,
    pub policy: u32,
    /// The action.
    pub code: u32,
    /// The frame, unless it is dropped.
    pub out: Option<Vec<u8>>,
    pub mark: u32,
    /// By how much counters go up, and no other.
    pub counted: BTreeMap<Reason, u64>,
    /// Whom the drop is charged to.
    pub charged: Option<Owner>,
    /// Whose counters of received frames go up.
    pub received: Option<Owner>,
    /// Whose counters of sent frames go up.
    pub sent: Option<Owner>,
}

impl Case {
    pub fn new(row: &Row, hook: Hook, code: u32) -> Self {
        let drops = row.reason.kind() == Kind::Drop;
        Case {
            name: row.name,
            at: row.at,
            hook,
            frame: row.frame.clone(),
            vlan: row.vlan,
            gso_size: row.said.gso_size,
            mark_in: 0,
            policy: row.policy,
            code,
            out: row.out.clone(),
            mark: 0,
            counted: [Some(row.reason), row.also]
                .into_iter()
                .flatten()
                .map(|reason| (reason, 1))
                .collect(),
            charged: (drops && row.machine != NOBODY).then_some(row.machine),
            received: None,
            sent: None,
        }
    }
}

/// Everything that the programs count.
#[derive(PartialEq)]
struct Counters {
    reasons: BTreeMap<Reason, u64>,
    traffic: Vec<Traffic>,
    drops: BTreeMap<(Owner, u32), u64>,
}

pub struct Rig {
    programs: Programs,
}

impl Rig {
    fn new() -> Result<Self> {
        require_root()?;
        let mut programs = Programs::load(Sizes {
            machines: 64,
            addresses: 64,
        })?;
        for id in world::MACHINES {
            programs.endpoint(id, world::endpoint(id, IFINDEX))?;
        }
        programs.uplink(IFINDEX, world::uplink())?;
        // Where the next hops lead.
        programs.uplink(2, world::uplink())?;
        programs.xdp_port(IFINDEX)?;
        programs.owners4(&world::prefixes4())?;
        programs.owners6(&world::prefixes6())?;
        programs.sources4(&world::sources4())?;
        programs.sources6(&world::sources6())?;
        programs.nexthops(&world::nexthops())?;
        programs.routes4(&world::routes4())?;
        programs.routes6(&world::routes6())?;
        Ok(Rig { programs })
    }

    /// Runs `work` while the interface is no uplink.
    pub fn without_uplink(&mut self, work: impl FnOnce(&mut Self)) {
        self.programs.no_uplink(IFINDEX).expect("there was one");
        work(self);
        self.programs
            .uplink(IFINDEX, world::uplink())
            .expect("there is room for it");
    }

    /// Runs the cases of a test that stand for rows of the protocol, and records which.
    pub fn check_rows(&mut self, test: &str, cases: impl IntoIterator<Item = Case>) {
        let test = format!("frames::{test}");
        let rows = cases.into_iter().map(|case| {
            let row = case.name.split(' ').next().unwrap_or_default();
            let mode = match case.hook.kind() {
                programs::Kind::Tc => "tc",
                programs::Kind::Xdp => "xdp",
            };
            (Some((row.to_owned(), mode)), case)
        });
        self.check_all(rows, |(row, mode), passed| {
            let mut chars = row.chars();
            let letter = chars.next().is_some_and(|first| first.is_ascii_uppercase());
            if letter && chars.next().is_some_and(|second| second.is_ascii_digit()) {
                protocol::record(row, mode, &test, passed);
            }
        });
    }

    /// Runs all cases; then fails if any had a fault, naming each.
    pub fn check(&mut self, cases: impl IntoIterator<Item = Case>) {
        self.check_all(cases.into_iter().map(|case| (None::<()>, case)), |(), _| {});
    }

    fn check_all<R>(
        &mut self,
        cases: impl IntoIterator<Item = (Option<R>, Case)>,
        mut tell: impl FnMut(&R, bool),
    ) {
        let mut report = String::new();
        let (mut count, mut failed) = (0, 0);
        for (row, case) in cases {
            count += 1;
            let faults = self.faults(&case).expect("the kernel runs the program");
            if let Some(row) = &row {
                tell(row, faults.is_empty());
            }
            if !faults.is_empty() {
                failed += 1;
                let _ = write!(report, "\n{} ({}):{faults}", case.name, case.hook.name());
            }
        }
        assert!(count > 0, "no cases");
        assert!(failed == 0, "{failed} of {count} cases failed{report}");
    }

    /// Instructions that the verifier walked, by program; none where the kernel does not
    /// say (before 5.16).
    pub fn verified(&mut self) -> Vec<(&'static str, u32)> {
        self.programs
            .verified()
            .expect("the kernel tells of its programs")
    }

    /// What the programs tell of a frame run so many times.
    pub fn reports(&mut self, row: &Row, hook: Hook, times: u32) -> Vec<Report> {
        let port = match row.at {
            At::Port(id) => Some(id),
            At::Uplink | At::Host => None,
        };
        let mut run = || -> Result<Vec<Report>> {
            self.programs.refill_budgets()?;
            self.programs.port(IFINDEX, port)?;
            self.programs.reports()?;
            for _ in 0..times {
                self.programs.run(hook, &row.frame, Context::default())?;
            }
            self.programs.reports()
        };
        run().expect("the kernel runs the program")
    }

    /// Runs `work` while next hops are behind the interface that runs are on.
    pub fn through<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let behind = |uplink| {
            let hops = world::nexthops().into_iter();
            hops.map(|hop| NextHop { uplink, ..hop })
                .collect::<Vec<_>>()
        };
        let set = |rig: &mut Self, uplink| {
            let result = rig.programs.nexthops(&behind(uplink));
            result.expect("there is room for them");
        };
        set(self, IFINDEX);
        let result = work(self);
        set(self, 2);
        result
    }

    /// The actions for frames that come one after the other, with what was used of
    /// budgets before given back.
    pub fn actions<'f>(
        &mut self,
        port: Option<Owner>,
        frames: impl IntoIterator<Item = (Hook, &'f Vec<u8>)>,
    ) -> Vec<u32> {
        let run = || -> Result<Vec<u32>> {
            self.programs.settings(world::settings(0))?;
            self.programs.refill_budgets()?;
            self.programs.port(IFINDEX, port)?;
            let run = |(hook, frame): (_, &Vec<u8>)| {
                Ok(self.programs.run(hook, frame, Context::default())?.code)
            };
            frames.into_iter().map(run).collect()
        };
        run().expect("the kernel runs the program")
    }

    /// Runs a program on a row's frame, with what is said beside it.
    pub fn run(&mut self, row: &Row, hook: Hook, context: Context) -> Result<Run> {
        if let At::Port(id) = row.at {
            self.programs.port(IFINDEX, Some(id))?;
        }
        self.programs.run(hook, &row.frame, context)
    }

    fn counters(&self) -> Result<Counters> {
        Ok(Counters {
            reasons: self.programs.counts()?,
            traffic: world::MACHINES
                .iter()
                .map(|&id| self.programs.traffic(id))
                .collect::<Result<_>>()?,
            drops: self.programs.drops()?,
        })
    }

    /// What is wrong with the outcome of a case, a line for each.
    fn faults(&mut self, case: &Case) -> Result<String> {
        self.programs.settings(world::settings(case.policy))?;
        self.programs.refill_budgets()?;
        let port = match case.at {
            At::Port(NOBODY) => None,
            At::Port(id) => Some(id),
            At::Uplink | At::Host => None,
        };
        self.programs.port(IFINDEX, port)?;
        let before = self.counters()?;
        let context = Context {
            mark: case.mark_in,
            gso_size: case.gso_size,
            vlan: case.vlan.unwrap_or(0),
            ..Context::default()
        };
        let tagged = case.vlan.is_some() && case.hook.kind() == programs::Kind::Tc;
        let run = if tagged {
            self.programs.run_tagged(case.hook, &case.frame, context)
        } else {
            self.programs.run(case.hook, &case.frame, context)
        }
        .with_context(|| case.name)?;
        let after = self.counters()?;

        let mut faults = String::new();
        if run.code != case.code {
            let _ = write!(faults, "\n  action {}, not {}", run.code, case.code);
        }
        if run.mark != case.mark && case.out.is_some() {
            let _ = write!(faults, "\n  mark {:#x}, not {:#x}", run.mark, case.mark);
        }
        if let Some(out) = &case.out
            && run.frame != *out
        {
            let at = out.iter().zip(&run.frame).position(|(a, b)| a != b);
            let (wanted, got) = (out.len(), run.frame.len());
            let _ = match at {
                Some(at) => write!(
                    faults,
                    "\n  byte {at} is {:#04x}, not {:#04x}",
                    run.frame[at], out[at]
                ),
                None => write!(faults, "\n  {got} bytes, not {wanted}"),
            };
        }
        self.compare(case, &before, after, &mut faults);
        if !faults.is_empty() {
            let frames = [Some(case.frame.clone()), case.out.clone(), Some(run.frame)];
            let frames: Vec<_> = frames.into_iter().flatten().collect();
            let path = pcap(case);
            write_pcap(&path, &frames)?;
            let middle = if case.out.is_some() { ", wanted" } else { "" };
            let _ = write!(faults, "\n  sent{middle}, got: {}", path.display());
        }
        Ok(faults)
    }

    fn compare(&self, case: &Case, before: &Counters, after: Counters, faults: &mut String) {
        let mut wanted = before.reasons.clone();
        for (reason, more) in &case.counted {
            *wanted.entry(*reason).or_default() += more;
        }
        for reason in Reason::ALL {
            let of = |counts: &BTreeMap<Reason, u64>| counts.get(reason).copied().unwrap_or(0);
            if of(&after.reasons) != of(&wanted) {
                let up = of(&after.reasons) - of(&before.reasons);
                let _ = write!(faults, "\n  counter {} went up by {up}", reason.name());
            }
        }
        let mut drops = before.drops.clone();
        if let Some(id) = case.charged {
            for reason in case.counted.keys().filter(|r| r.kind() == Kind::Drop) {
                *drops.entry((id, *reason as u32)).or_default() += 1;
            }
        }
        if after.drops != drops {
            let new: Vec<_> = after
                .drops
                .iter()
                .filter(|(key, value)| before.drops.get(key) != Some(value))
                .map(|(key, _)| key)
                .collect();
            let _ = write!(faults, "\n  charged to (machine, reason) {new:?}");
        }
        // What follows the packet is cut off first.
        let length = case.frame.len() as u32;
        let bytes = surplus(&case.frame[..], length, case.gso_size == 0).unwrap_or(length);
        let bytes = u64::from(bytes);
        for ((id, old), new) in world::MACHINES
            .iter()
            .zip(&before.traffic)
            .zip(after.traffic)
        {
            let mut wanted = *old;
            if case.received == Some(*id) {
                wanted.rx_packets += 1;
                wanted.rx_bytes += bytes;
            }
            if case.sent == Some(*id) {
                wanted.tx_packets += 1;
                wanted.tx_bytes += bytes;
            }
            if new != wanted {
                let _ = write!(
                    faults,
                    "\n  traffic of machine {id}: {new:?}, not {wanted:?}"
                );
            }
        }
    }
}

/// Writes frames as a pcap file, for tcpdump and wireshark.
fn write_pcap(path: &Path, frames: &[Vec<u8>]) -> Result<()> {
    let mut file = Vec::new();
    // Magic, version 2.4, no time zone, no accuracy, longest frame, Ethernet.
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 1 << 18, 1] {
        file.extend(word.to_ne_bytes());
    }
    for frame in frames {
        let length = u32::try_from(frame.len())?;
        file.extend([0, 0, length, length].map(u32::to_ne_bytes).concat());
        file.extend(frame);
    }
    fs::write(path, file).with_context(|| format!("cannot write {}", path.display()))
}

/// Where the frames of a failed case are left.
fn pcap(case: &Case) -> PathBuf {
    let name: String = format!("frames {} {}", case.hook.name(), case.name)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.pcap"))
}
