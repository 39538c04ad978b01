//! One run: frames made, sent both ways, compared, counted.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    mem::discriminant,
    ops::AddAssign,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use netspawn_tests::write_pcap;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    compare::{Case, Difference, differences},
    generate::{Generator, present},
    host,
    kernel::{Kernel, Seen},
    mend::mend,
    ours::{Ours, Outcome, hex, untag},
    rows::{At, build, world::WEB},
    rules::{RULES, explanation},
};

/// Frames at one hook before the next is chosen.
const BATCH: u64 = 256;
/// Frames between two times that the reference forgets its neighbors, whose number the
/// kernel limits for all namespaces together.
const FORGET: u64 = 16 * BATCH;
/// Differences that are shown before a run gives up.
const SHOWN: u64 = 10;

/// What a run found.
#[derive(Default)]
pub struct Report {
    frames: u64,
    compared: u64,
    runs: u64,
    refused: u64,
    took: Duration,
    /// Frames by what ours did, of those that the reference got too.
    outcomes: BTreeMap<&'static str, u64>,
    explained: BTreeMap<usize, u64>,
    state: u64,
    pub unexplained: u64,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Report) {
        self.frames += other.frames;
        self.compared += other.compared;
        self.runs += other.runs;
        self.refused += other.refused;
        self.took = self.took.max(other.took);
        for (name, count) in other.outcomes {
            *self.outcomes.entry(name).or_default() += count;
        }
        for (rule, count) in other.explained {
            *self.explained.entry(rule).or_default() += count;
        }
        self.state += other.state;
        self.unexplained += other.unexplained;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        writeln!(
            f,
            "\n{:>12} frames in {seconds:.0} s, {:.0}/s",
            self.frames,
            self.frames as f64 / seconds
        )?;
        writeln!(
            f,
            "{:>12} runs of programs equal to the library ({} frames not taken by tc)",
            self.runs, self.refused
        )?;
        writeln!(f, "{:>12} frames compared with the kernel:", self.compared)?;
        for (name, count) in &self.outcomes {
            writeln!(f, "{count:>12}   {name}")?;
        }
        writeln!(f, "differences by the rule that explains them:")?;
        for (rule, _) in RULES.iter().enumerate() {
            let count = self.explained.get(&rule).unwrap_or(&0);
            writeln!(f, "{count:>12}   {}", RULES[rule].name)?;
        }
        writeln!(
            f,
            "{:>12}   gone when the kernel forgot what earlier frames taught it",
            self.state
        )?;
        write!(f, "{:>12} unexplained", self.unexplained)
    }
}

/// The two sides and what is sent to them.
pub struct Session {
    generator: Generator,
    ours: Ours,
    kernel: Kernel,
    report: Report,
    seen: Vec<Seen>,
    job: u64,
}

impl Session {
    /// Raises the reference and loads the programs, on a core of its own.
    pub fn new(seed: u64, job: u64) -> Result<Self> {
        let mut core = CpuSet::new();
        core.set(job.try_into()?)?;
        sched_setaffinity(Pid::from_raw(0), &core).context("cannot stay on one core")?;
        let rows = host::all_rows()
            .into_iter()
            .filter(|row| row.said.gso_size == 0 && row.can_be_run());
        let mut seeds: Vec<_> = rows
            .map(|row| match row.vlan {
                Some(vlan) => (row.at, build::tagged(&row.frame, vlan)),
                None => (row.at, row.frame),
            })
            .collect();
        seeds.extend(captures()?);
        Ok(Session {
            generator: Generator::new(seed, seeds),
            ours: Ours::new()?,
            kernel: Kernel::new()?,
            report: Report::default(),
            seen: Vec::new(),
            job,
        })
    }

    /// Compares so many frames, unless there is much to show before.
    pub fn run(mut self, frames: u64) -> Result<Report> {
        let start = Instant::now();
        let over = |report: &Report| report.frames >= frames || report.unexplained >= SHOWN;
        while !over(&self.report) {
            let at = self.generator.hook();
            for _ in 0..BATCH {
                let frame = self.generator.frame(at);
                self.check(at, &frame)?;
            }
            if self.report.frames.is_multiple_of(FORGET) {
                self.kernel.forget_neighbors()?;
            }
        }
        self.report.took = start.elapsed();
        self.report.runs = self.ours.runs;
        self.report.refused = self.ours.refused;
        Ok(self.report)
    }

    fn check(&mut self, at: At, frame: &[u8]) -> Result<()> {
        self.report.frames += 1;
        let ours = self.ours.decide(at, frame)?;
        if let Err(error) = self.ours.run(at, frame, &ours) {
            self.report.unexplained += 1;
            eprintln!("{at:?} {}: {error:#}", hex(frame));
            return Ok(());
        }
        if at == At::Host || matches!(at, At::Port(id) if present().all(|other| other != id)) {
            return Ok(());
        }
        self.report.compared += 1;
        *self.report.outcomes.entry(ours.reason.name()).or_default() += 1;
        let found = self.compare(at, frame, &ours)?;
        if found.is_empty() {
            return Ok(());
        }
        let explained: Vec<_> = found
            .iter()
            .map(|difference| explain(at, frame, &ours, difference))
            .collect();
        if explained.iter().all(Option::is_some) {
            for rule in explained.into_iter().flatten() {
                *self.report.explained.entry(rule).or_default() += 1;
            }
            return Ok(());
        }
        if self.stays(at, frame, &ours)? {
            self.report.unexplained += 1;
            self.show(at, frame)?;
        } else {
            self.report.state += 1;
        }
        Ok(())
    }

    fn compare(&mut self, at: At, frame: &[u8], ours: &Outcome) -> Result<Vec<Difference>> {
        self.seen.clear();
        self.kernel.send(at, frame, &mut self.seen)?;
        Ok(differences(at, frame, ours, &self.seen))
    }

    fn unexplained(&mut self, at: At, frame: &[u8], ours: &Outcome) -> Result<Vec<Difference>> {
        let mut found = self.compare(at, frame, ours)?;
        found.retain(|difference| explain(at, frame, ours, difference).is_none());
        Ok(found)
    }

    /// Whether an unexplained difference is there again, when the kernel knows nothing
    /// of earlier frames.
    fn stays(&mut self, at: At, frame: &[u8], ours: &Outcome) -> Result<bool> {
        for _ in 0..2 {
            self.kernel.forget_neighbors()?;
            if self.unexplained(at, frame, ours)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The smallest frame found that differs in the same way.
    fn minimize(&mut self, at: At, frame: &[u8]) -> Result<Vec<u8>> {
        let ours = self.ours.decide(at, frame)?;
        let kinds = |found: &[Difference]| found.iter().map(discriminant).collect::<Vec<_>>();
        let wanted = kinds(&self.unexplained(at, frame, &ours)?);
        let mut smallest = frame.to_vec();
        let mut attempt = |candidate: &[u8]| -> Result<bool> {
            let outcome = self.ours.decide(at, candidate)?;
            let same = outcome.reason == ours.reason
                && kinds(&self.unexplained(at, candidate, &outcome)?) == wanted;
            Ok(same)
        };
        let mut step = smallest.len() / 2;
        while step > 0 {
            while smallest.len() > 14 + step {
                let shorter = &smallest[..smallest.len() - step];
                if !attempt(shorter)? {
                    break;
                }
                smallest.truncate(smallest.len() - step);
            }
            step /= 2;
        }
        for index in 12..smallest.len() {
            let mut plain = smallest.clone();
            plain[index] = 0;
            let mut mended = plain.clone();
            mend(&mut mended);
            for candidate in [plain, mended] {
                if attempt(&candidate)? {
                    smallest = candidate;
                    break;
                }
            }
        }
        Ok(smallest)
    }

    /// Prints the smallest frame that differs, so that it can become a row.
    fn show(&mut self, at: At, frame: &[u8]) -> Result<()> {
        self.kernel.forget_neighbors()?;
        let frame = self.minimize(at, frame)?;
        self.kernel.forget_neighbors()?;
        self.replay(at, &frame)
    }

    /// Sends a frame once more, and prints what both make of it.
    pub fn replay(&mut self, at: At, frame: &[u8]) -> Result<()> {
        let ours = self.ours.decide(at, frame)?;
        let found = self.unexplained(at, frame, &ours)?;
        let Outcome { action, reason, .. } = ours;
        let mut text = format!("\n{found:?}: ours {action:?} ({reason:?}), the kernel:\n");
        for seen in &self.seen {
            writeln!(text, "  {:?} {}", seen.side, hex(&seen.frame))?;
        }
        writeln!(text, "At::{at:?}, hex(\"{}\"), {reason:?}", hex(frame))?;
        let mut frames = vec![frame.to_vec()];
        frames.extend(ours.frame);
        frames.extend(self.seen.iter().map(|seen| seen.frame.clone()));
        let name = format!("differential-{}-{}.pcap", self.job, self.report.unexplained);
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        write_pcap(&path, &frames)?;
        let decoded = Command::new("tcpdump")
            .args(["-nn", "-e", "-t", "-v", "-r"])
            .arg(&path)
            .output()
            .context("tcpdump decodes the frame")?;
        writeln!(text, "sent, ours, the kernel's ({}):", path.display())?;
        eprintln!("{text}{}", String::from_utf8_lossy(&decoded.stdout));
        Ok(())
    }
}

/// Inputs of the fuzz targets: captures, and what fuzzing has found so far. Sorted, as
/// everything that frames are made from.
fn captures() -> Result<Vec<(At, Vec<u8>)>> {
    const HEAD: usize = 5;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for (target, at) in [("uplink", At::Uplink), ("port", At::Port(WEB))] {
        for folder in ["netspawn-ebpf/fuzz/seeds", "target/fuzz/corpus"] {
            // The second is there only after fuzzing.
            let Ok(files) = fs::read_dir(workspace.join(folder).join(target)) else {
                continue;
            };
            let mut paths = files
                .map(|file| Ok(file?.path()))
                .collect::<Result<Vec<_>>>()?;
            paths.sort();
            for path in paths {
                let input = fs::read(&path)?;
                let changes = input
                    .get(HEAD - 1)
                    .map_or(0, |count| usize::from(count % 8) * 4);
                if let Some(frame) = input.get(HEAD + changes..)
                    && frame.len() >= 14
                {
                    found.push((at, frame.to_vec()));
                }
            }
        }
    }
    Ok(found)
}

fn explain(at: At, frame: &[u8], ours: &Outcome, difference: &Difference) -> Option<usize> {
    let (frame, tag) = untag(frame);
    explanation(&Case {
        at,
        frame: &frame,
        tag,
        ours,
        difference,
    })
}
