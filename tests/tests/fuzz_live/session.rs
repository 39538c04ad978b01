//! One run: frames made, sent, looked for everywhere, judged.

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::Read as _,
    net::{IpAddr, Ipv6Addr},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_ebpf::abi::GATEWAY6;
use netspawn_tests::{
    vnet::{Received, Vnet, gso},
    write_pcap,
};

use crate::{
    generate::Generator,
    host,
    oracle::{Oracle, Source, Whose, number, source},
    packets::{Made, make},
    rig::{Link, Origin, PHASE, Phase, Place, Rig, Setup, colons},
    rows::world::{self, WEB},
};

/// Frames between two looks around.
const BATCH: u64 = 64;
/// Frames between two honest pings.
const PING: u64 = 4096;
/// Violations of one kind that are shown.
const SHOWN: u64 = 1;
/// Batches that a frame may be late by.
const LATE: usize = 16;

/// What went wrong.
struct Violation {
    what: &'static str,
    place: Place,
    vnet: Vnet,
    /// A whole frame, or a datagram's payload.
    frame: Vec<u8>,
    /// Whom a socket heard.
    from: Option<IpAddr>,
}

/// What a run saw.
pub struct Report {
    setup: Setup,
    seed: u64,
    frames: u64,
    taken: u64,
    partial: u64,
    segments: u64,
    /// Frames of the fuzzer by where they came out.
    seen: BTreeMap<Place, u64>,
    others: u64,
    datagrams: u64,
    pings: u64,
    lost: u64,
    tunnels: bool,
    took: Duration,
    pub violations: BTreeMap<String, u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup {
            origin,
            link,
            uplink,
            mode,
        } = self.setup;
        let share = |part: u64| part * 100 / self.frames.max(1);
        write!(
            f,
            "{origin:?} {link:?} (uplink {uplink:?}) {}: {} frames, seed {}, {:.0} s: {} % taken \
             by the kernel ({} % with a sum left, {} % with segments{}), seen",
            mode.name(),
            self.frames,
            self.seed,
            self.took.as_secs_f64(),
            share(self.taken),
            share(self.partial),
            share(self.segments),
            if self.tunnels {
                ", also of tunnels"
            } else {
                ""
            },
        )?;
        for (place, count) in &self.seen {
            write!(f, " {place:?} {count},")?;
        }
        write!(
            f,
            " by sockets {}, of others {}, no room for {}; {} pings answered; violations: ",
            self.datagrams, self.others, self.lost, self.pings
        )?;
        if self.violations.is_empty() {
            return write!(f, "none");
        }
        write!(f, "{:?}", self.violations)
    }
}

/// What is remembered of a frame that was sent.
struct Sent {
    index: u64,
    source: Option<Source>,
    segments: bool,
}

/// Frames that are made from a seed, and what becomes of them.
pub struct Session {
    rig: Rig,
    generator: Generator,
    oracle: Oracle,
    seed: u64,
    report: Report,
    /// The frames sent last, by batch.
    recent: VecDeque<Vec<Sent>>,
    log: Option<File>,
    quiet: bool,
}

impl Session {
    pub fn new(setup: Setup, seed: u64) -> Result<Self> {
        let rows = host::all_rows();
        let seeds = rows.into_iter().map(|row| (row.at, row.frame)).collect();
        let rig = Rig::raise(setup)?;
        Ok(Session {
            generator: Generator::new(seed, seeds),
            oracle: Oracle::new(setup.origin),
            seed,
            report: Report {
                setup,
                seed,
                frames: 0,
                taken: 0,
                partial: 0,
                segments: 0,
                seen: BTreeMap::new(),
                others: 0,
                datagrams: 0,
                pings: 0,
                lost: 0,
                tunnels: rig.tunnels,
                took: Duration::ZERO,
                violations: BTreeMap::new(),
            },
            rig,
            recent: VecDeque::new(),
            log: kernel_log(),
            quiet: false,
        })
    }

    /// Sends so many frames, or the one with that number.
    pub fn run(mut self, frames: u64, only: Option<u64>) -> Result<Report> {
        let start = Instant::now();
        if let Some(index) = only {
            self.send(index..index + 1)?;
        } else {
            let mut from = 0;
            while from < frames {
                let to = (from + BATCH).min(frames);
                self.send(from..to)?;
                if to % PING < BATCH {
                    self.ping((to / PING) as u32)?;
                }
                if to % (PING * 16) < BATCH {
                    self.neighbors()?;
                }
                from = to;
            }
        }
        // What is late.
        std::thread::sleep(Duration::from_millis(100));
        self.look(None)?;
        for number in 0..4 {
            self.ping(number)?;
        }
        self.neighbors()?;
        for watch in &self.rig.watches {
            if let crate::rig::End::Packet(port) = &watch.end {
                self.report.lost += port.lost()?;
            }
        }
        self.kernel_is_content()?;
        self.report.took = start.elapsed();
        if only.is_none() {
            self.enough()?;
        }
        Ok(self.report)
    }

    fn made(&mut self, index: u64) -> Made {
        let Setup { origin, link, .. } = self.rig.setup;
        // By the machine that the test runs on, so that numbers mean the same everywhere.
        let tunnels = link == Link::Tap && Phase::of(index).tunnels && self.rig.tunnels;
        let side = u64::from(origin == Origin::Network);
        self.generator
            .reseed((self.seed << 34 | side << 33 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        make(
            &mut self.generator,
            self.rig.setup.at(),
            index as u32,
            tunnels,
        )
    }

    /// Sends frames, and looks around after the last.
    fn send(&mut self, frames: std::ops::Range<u64>) -> Result<()> {
        self.rig.enter(Phase::of(frames.start))?;
        const { assert!(PHASE.is_multiple_of(BATCH)) };
        let mut batch = Vec::new();
        for index in frames.clone() {
            let made = self.made(index);
            let segments = made.vnet.gso_type & !gso::ECN != 0;
            batch.push(Sent {
                index,
                source: source(&made.frame),
                segments,
            });
            let sent = self.rig.sender.send(&made.vnet, &made.frame);
            if self.quiet {
                continue;
            }
            self.report.frames += 1;
            if sent.is_ok() {
                self.report.taken += 1;
                self.report.partial += u64::from(made.vnet.flags & 1);
                self.report.segments += u64::from(segments);
            }
        }
        self.recent.push_back(batch);
        if self.recent.len() > LATE {
            self.recent.pop_front();
        }
        self.look(Some(frames))
    }

    /// Judges all that has come out somewhere.
    fn look(&mut self, frames: Option<std::ops::Range<u64>>) -> Result<()> {
        let mut violations = self.collect()?;
        violations.extend(self.datagrams()?);
        for violation in violations {
            let name = format!("{} at {:?}", violation.what, violation.place);
            let count = self.report.violations.entry(name).or_default();
            *count += 1;
            if *count <= SHOWN {
                self.show(&violation, frames.clone())?;
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<Violation>> {
        let mut found = Vec::new();
        let mut judged = Vec::new();
        for watch in &mut self.rig.watches {
            let (place, oracle) = (watch.place, &self.oracle);
            watch.end.receive(|received| {
                let mut frame = received.frame.to_vec();
                received.vnet.complete(&mut frame);
                match oracle.judge(place, &received, &frame) {
                    Ok(Whose::Sender) => judged.push((place, received.vnet, frame)),
                    Ok(Whose::Other) => judged.push((place, Vnet::default(), Vec::new())),
                    Err(what) => found.push(violation(what, place, &received)),
                }
            });
        }
        for (place, vnet, frame) in judged {
            if frame.is_empty() {
                self.report.others += 1;
                continue;
            }
            if !self.quiet {
                *self.report.seen.entry(place).or_default() += 1;
            }
            if self.rig.setup.origin == Origin::Network && !self.as_sent(&frame) {
                found.push(Violation {
                    what: "its source is not the one that was sent",
                    place,
                    vnet,
                    frame,
                    from: None,
                });
            }
        }
        Ok(found)
    }

    /// Whether a frame from the network has the source that it was sent with.
    fn as_sent(&self, frame: &[u8]) -> bool {
        let Some(seen) = source(frame) else {
            return true;
        };
        let mut sent = self.recent.iter().flatten();
        let Some(index) = number(frame) else {
            return sent.any(|sent| sent.source == Some(seen));
        };
        // Segments of a veth's far end, which completes sums itself, may be others.
        let cuts = self.rig.setup.uplink == Link::Veth;
        sent.find(|sent| sent.index == index)
            .is_none_or(|sent| sent.source == Some(seen) || cuts && sent.segments)
    }

    /// What ordinary sockets were sent.
    fn datagrams(&mut self) -> Result<Vec<Violation>> {
        let mut found = Vec::new();
        let mut buffer = [0; 2048];
        for (place, socket) in &self.rig.sockets {
            // The end is an error: nothing to read yet.
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                self.report.datagrams += 1;
                let IpAddr::V6(address) = from.ip() else {
                    continue;
                };
                let source = plain(address);
                let own = match self.rig.setup.origin {
                    Origin::Port => {
                        let link_local = address.is_unicast_link_local()
                            && address.octets() != GATEWAY6
                            && *place == Place::Uplink;
                        link_local || self.oracle.owner(source) == WEB
                    }
                    Origin::Network => *place == Place::Uplink || !self.oracle.is_martian(source),
                };
                if !own {
                    found.push(Violation {
                        what: "a socket heard a source that is not the sender's",
                        place: *place,
                        vnet: Vnet::default(),
                        frame: buffer[..length].to_vec(),
                        from: Some(from.ip()),
                    });
                }
            }
        }
        Ok(found)
    }

    fn ping(&mut self, number: u32) -> Result<()> {
        for _ in 0..5 {
            // What came out meanwhile is judged first.
            self.look(None)?;
            if self.rig.ping(number, Duration::from_secs(2))? {
                self.report.pings += 1;
                return Ok(());
            }
        }
        anyhow::bail!(
            "honest ping {number} is not answered after {} frames, seed {}",
            self.report.frames,
            self.seed
        )
    }

    /// Nobody believes an address to be at the sender's that is not the sender's.
    fn neighbors(&mut self) -> Result<()> {
        let mut tables = vec![(Place::Uplink, self.rig.lab.host.run("ip -j neigh show")?)];
        for (id, ns) in self.rig.stacks() {
            tables.push((Place::Machine(id), ns.run("ip -j neigh show")?));
        }
        let sender = colons(world::mac(WEB));
        for (place, text) in tables {
            let entries: Vec<serde_json::Value> = serde_json::from_str(&text)?;
            for entry in entries {
                let word = |key: &str| entry[key].as_str().unwrap_or_default();
                let Ok(address) = word("dst").parse::<IpAddr>() else {
                    continue;
                };
                let mac = word("lladdr");
                let right = match (self.rig.setup.origin, place) {
                    _ if mac.is_empty() => true,
                    (_, Place::Machine(id)) => mac == colons(world::port_mac(id)),
                    (Origin::Port, _) => {
                        let owner = self.oracle.owner(match address {
                            IpAddr::V4(address) => Source::V4(address.octets()),
                            IpAddr::V6(address) => Source::V6(address.octets()),
                        });
                        let own = owner == WEB
                            || matches!(address, IpAddr::V6(address)
                                if address.is_unicast_link_local() && address.octets() != GATEWAY6);
                        mac != sender || own
                    }
                    // The network may say of itself what it likes.
                    (Origin::Network, _) => true,
                };
                if !right {
                    *self
                        .report
                        .violations
                        .entry(format!("a neighbor table was deceived at {place:?}"))
                        .or_default() += 1;
                    eprintln!("{place:?} believes {entry}");
                }
            }
        }
        Ok(())
    }

    /// Prints a violation, with the frame that made it.
    fn show(&mut self, violation: &Violation, frames: Option<std::ops::Range<u64>>) -> Result<()> {
        let index = match number(&violation.frame) {
            Some(index) => Some(index),
            None => match frames {
                Some(frames) if !self.quiet => self.find(violation, frames)?,
                _ => None,
            },
        };
        let mut completed = violation.frame.clone();
        violation.vnet.complete(&mut completed);
        let mut text = format!(
            "\n{} at {:?} {}\n  received {:?}\n  {}\n  completed\n  {}\n",
            violation.what,
            violation.place,
            violation
                .from
                .map_or(String::new(), |from| format!("from {from}")),
            violation.vnet,
            hex(&violation.frame),
            hex(&completed)
        );
        let mut all = vec![violation.frame.clone(), completed];
        if violation.from.is_some() {
            all.clear();
        }
        let Setup {
            origin,
            link,
            uplink,
            mode,
        } = self.rig.setup;
        if let Some(index) = index {
            let made = self.made(index);
            writeln!(
                text,
                "  sent as frame {index} of seed {} in {:?}, {} bytes: {:?}\n  {}",
                self.seed,
                Phase::of(index),
                made.frame.len(),
                made.vnet,
                hex(&made.frame)
            )?;
            let word = |debug: &dyn fmt::Debug| format!("{debug:?}").to_lowercase();
            writeln!(
                text,
                "  again: cargo xtask fuzz-live --from {} --kind {} --uplink {} --mode {} \
                 --seed {} --index {index}",
                word(&origin),
                word(&link),
                word(&uplink),
                mode.name(),
                self.seed
            )?;
            all.insert(0, made.frame);
        }
        let name = format!(
            "fuzz-live-{origin:?}-{link:?}-{}-{}.pcap",
            mode.name(),
            violation.what.replace(' ', "-")
        );
        // In a guest there is no such directory.
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let directory = if directory.is_dir() {
            directory
        } else {
            env::temp_dir()
        };
        let path = directory.join(name.to_lowercase());
        write_pcap(&path, &all)?;
        let decoded = Command::new("tcpdump")
            .args(["-nn", "-e", "-t", "-v", "-Z", "root", "-r"])
            .arg(&path)
            .output()
            .context("tcpdump decodes the frames")?;
        writeln!(text, "  sent, received, completed ({}):", path.display())?;
        eprintln!("{text}{}", String::from_utf8_lossy(&decoded.stdout));
        Ok(())
    }

    /// Sends the frames of a batch once more, one at a time, until the same comes out.
    fn find(&mut self, violation: &Violation, frames: std::ops::Range<u64>) -> Result<Option<u64>> {
        self.quiet = true;
        let mut found = None;
        for index in frames {
            let made = self.made(index);
            // Refused then as now.
            let _ = self.rig.sender.send(&made.vnet, &made.frame);
            std::thread::sleep(Duration::from_millis(2));
            let again = self.collect()?;
            if again
                .iter()
                .any(|other| (other.what, other.place) == (violation.what, violation.place))
            {
                found = Some(index);
                break;
            }
        }
        self.quiet = false;
        Ok(found)
    }

    /// Fails if the run has proved nothing.
    fn enough(&self) -> Result<()> {
        let report = &self.report;
        ensure!(
            report.taken * 3 > report.frames,
            "the kernel took few frames: {report}"
        );
        let least = report.frames / 200;
        let wanted: &[Place] = match report.setup.origin {
            Origin::Port => &[
                Place::Network,
                Place::Uplink,
                Place::Machine(world::DB),
                Place::Machine(world::SMALL),
            ],
            Origin::Network => &[
                Place::Machine(WEB),
                Place::Machine(world::DB),
                Place::Machine(world::SMALL),
            ],
        };
        for place in wanted {
            let seen = report.seen.get(place).copied().unwrap_or(0);
            ensure!(seen > least, "few frames came out at {place:?}: {report}");
        }
        ensure!(report.datagrams > 0, "no socket heard anything: {report}");
        ensure!(
            report.lost * 1000 < report.frames,
            "frames were missed: {report}"
        );
        Ok(())
    }

    /// Fails if the kernel has complained of itself.
    fn kernel_is_content(&mut self) -> Result<()> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let mut buffer = [0; 8192];
        let mut complaints = String::new();
        // One record a call; the end is an error: nothing more yet.
        while let Ok(length) = log.read(&mut buffer) {
            let record = String::from_utf8_lossy(&buffer[..length]);
            if complains(&record) {
                complaints += &record;
            }
        }
        ensure!(complaints.is_empty(), "the kernel says\n{complaints}");
        Ok(())
    }
}

/// Whether a record of the kernel's log is about a defect.
///
/// Linux 6.17 and later mark a packet of a tap as of a tunnel (`virtio_net_hdr_tnl_to_skb`)
/// although it is too short to be cut, and then cannot describe it to the next tap: that
/// one loses the packet, with a warning once.
fn complains(record: &str) -> bool {
    let undescribed = |kind: &str| {
        let types = ["0x400", "0x402", "0x800", "0x802"].map(|t| format!("type: {t}, gso_size 0,"));
        types.iter().any(|known| kind.contains(known))
    };
    // What the host's own stack sends on from the network to the network is its own affair.
    let elsewhere = record.contains("unexpected GSO") && !record.contains("vm-");
    let known = record.contains("tun_vnet.h") || undescribed(record) || elsewhere;
    let words = [
        "WARNING:",
        "BUG:",
        "Oops",
        "general protection",
        "unexpected GSO",
        "bad offload",
    ];
    !known && words.iter().any(|word| record.contains(word))
}

fn violation(what: &'static str, place: Place, received: &Received<'_>) -> Violation {
    let mut frame = received.frame.to_vec();
    if let Some((kind, tag)) = received.tag
        && frame.len() >= 12
    {
        frame.splice(12..12, [kind.to_be_bytes(), tag.to_be_bytes()].concat());
    }
    Violation {
        what,
        place,
        vnet: received.vnet,
        frame,
        from: None,
    }
}

fn plain(address: Ipv6Addr) -> Source {
    match address.to_ipv4_mapped() {
        Some(v4) => Source::V4(v4.octets()),
        None => Source::V6(address.octets()),
    }
}

fn hex(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let mut text: String = bytes
        .iter()
        .take(MOST)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if bytes.len() > MOST {
        text += "...";
    }
    text
}

/// The kernel's log from here on, where it can be read.
fn kernel_log() -> Option<File> {
    let log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .ok()?;
    // SAFETY: the call takes no pointers.
    let at = unsafe { libc::lseek(log.as_raw_fd(), 0, libc::SEEK_END) };
    (at >= 0).then_some(log)
}
