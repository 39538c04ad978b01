//! `explain`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use netspawn_ebpf::{
    abi::program,
    decide::reply,
    verdict::{Action, Reason},
};

use crate::{
    cli::Global,
    control::RunDir,
    datapath::{object::Sizes, pins::Pins, plane::Plane},
    explain::{
        At, Case,
        args::{Captured, ExplainArgs, Question},
        capture::{Capture, Place, Placed},
        judge::{self, Judged},
        run::{self, Stage},
        say::Answer,
        world::{Attached, World, is_machine},
    },
    model::Host,
    outcome::Outcome,
    output::{self, Report as _},
};

const UNATTACHED: &str = "no uplink is attached, so the data plane looks at no frame; attach one \
                          with `netspawn-xdp attach eth0`";

/// Says what would happen to a frame, or to all of a capture.
///
/// # Errors
/// When nothing is attached, the question names what is not there, or stdout is closed.
pub fn run(global: &Global, args: &ExplainArgs) -> Result<Outcome> {
    args.question.check()?;
    let mut explainer = Explainer::open(global)?;
    let world = &explainer.world;
    let case = match &args.question {
        Question::Arp(asks) | Question::Ndp(asks) => world.asked(asks)?,
        Question::In(question) => world.inward(question)?,
        Question::Out(question) => world.outward(question)?,
        Question::Host(question) => world.from_host(question)?,
        Question::Pcap(captured) => return pcap(global, captured, &mut explainer),
    };
    let (mut answer, fault) = explainer.explain(&case)?;
    answer.verbose = global.verbose > 0;
    print(global, &answer)?;
    Ok(Outcome::of(fault.into_iter().collect()))
}

fn print(global: &Global, answer: &Answer) -> Result<()> {
    if global.json {
        // One object a line, so that captures can be read as they come.
        output::print(&(serde_json::to_string(answer)? + "\n"))
    } else {
        answer.print(false)
    }
}

fn pcap(global: &Global, captured: &Captured, explainer: &mut Explainer) -> Result<Outcome> {
    let world = &explainer.world;
    let place = match (&captured.uplink, &captured.machine) {
        (Some(uplink), _) => {
            let anywhere = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
            Place::Uplink(world.uplink_named(Some(uplink), anywhere)?)
        }
        (None, Some(machine)) => Place::Port(world.machine_named(machine)?),
        (None, None) => Place::Any,
    };
    let mut capture = Capture::open(&captured.file)?;
    let mut totals: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut faults = Vec::new();
    while let Some(frame) = capture.next_frame()? {
        let mut answer = match explainer.world.place(place, &frame) {
            Placed::Skipped(why) => Answer::skipped(frame.number, &frame.bytes, why),
            Placed::Case(case) => {
                let (answer, fault) = explainer.explain(&case)?;
                faults.extend(fault.map(|fault| format!("frame {}: {fault}", frame.number)));
                answer
            }
        };
        answer.number = Some(frame.number);
        answer.verbose = global.verbose > 0;
        *totals.entry(answer.verdict).or_default() += 1;
        if global.json || answer.verbose {
            print(global, &answer)?;
            if !global.json {
                output::print("\n")?;
            }
        } else {
            output::print(&answer.line())?;
        }
    }
    let totals: Vec<String> = totals
        .iter()
        .map(|(verdict, count)| format!("{count} {verdict}"))
        .collect();
    let totals = if totals.is_empty() {
        "no frames".to_owned()
    } else {
        totals.join(", ")
    };
    tracing::info!("{}: {totals}", captured.file.display());
    Ok(Outcome::of(faults))
}

/// The data plane as it is, and programs to ask.
struct Explainer {
    plane: Plane,
    pins: Pins,
    world: World,
    stage: Stage,
    /// Programs that run now, by name, with their digests.
    running: BTreeMap<&'static str, Vec<u64>>,
}

impl Explainer {
    fn open(global: &Global) -> Result<Self> {
        RunDir::new(&global.run_dir).check_namespace()?;
        let plane = Plane::open(&global.bpf_dir)?;
        let pins = Pins::new(&global.bpf_dir);
        let sizes = Sizes::pinned(&pins.maps())?;
        let (mut plane, sizes) = plane.zip(sizes).context(UNATTACHED)?;
        let world = read(&mut plane)?;
        if world.uplinks.is_empty() {
            bail!(UNATTACHED);
        }
        let running = plane.program_tags()?;
        let stage = Stage::load(&pins.maps(), sizes)?;
        Ok(Explainer {
            plane,
            pins,
            world,
            stage,
            running,
        })
    }

    /// What happens to a frame, and what is wrong if library and programs differ.
    fn explain(&mut self, case: &Case) -> Result<(Answer, Option<String>)> {
        let (answer, fault) = self.attempt(case)?;
        if fault.is_none() {
            return Ok((answer, None));
        }
        // The maps may have changed between the reading of them and the run.
        self.plane.reread()?;
        self.world = read(&mut self.plane)?;
        self.attempt(case)
    }

    fn attempt(&mut self, case: &Case) -> Result<(Answer, Option<String>)> {
        let runs = self.stage.run(&self.world, case)?;
        for run in runs.iter().flatten() {
            self.check_build(run.program)?;
        }
        let mut judged = judge::judge(&self.world, case).with_context(|| {
            format!(
                "the maps do not hold the place of the frame ({:?}); see `netspawn-xdp status`",
                case.at
            )
        })?;
        if judged.verdict.reason == Reason::HostDenied
            && let Some(run) = runs.iter().flatten().next_back()
            && !run.counted.contains(&Reason::HostDenied)
        {
            // It answers a socket of the host's, which the program alone can find.
            judged.verdict = reply::let_in(&judged.verdict);
        }
        let mut fault = None;
        for run in runs.iter().flatten() {
            if let Some(difference) = judged.differs(run) {
                fault = Some(format!(
                    "{} and the library differ ({difference}); please report it with this \
                     command's output and `-v`",
                    run.program
                ));
            }
        }
        let said = runs.as_deref().map_err(|why| *why);
        let mut answer = Answer::new(&self.world, case, &judged, said);
        if fault.is_some() {
            answer.agrees = Some(false);
        }
        answer.remarks.extend(self.limits(&judged)?);
        answer
            .remarks
            .extend(onward(case, &judged).map(str::to_owned));
        Ok((answer, fault))
    }

    /// Warns once of a program that is not the one that is attached.
    fn check_build(&mut self, name: &'static str) -> Result<()> {
        let Some(running) = self.running.remove(name) else {
            return Ok(());
        };
        let own = self.stage.tag(name)?;
        if let Some(other) = running.into_iter().find(|tag| *tag != own) {
            tracing::warn!(
                "what is attached is another build of {name} (tag {other:016x}) than this \
                 command's ({own:016x}), which speaks here; `netspawn-xdp attach` brings it up to \
                 date"
            );
        }
        Ok(())
    }

    fn limits(&self, judged: &Judged<'_>) -> Result<Option<String>> {
        let id = judged.verdict.id;
        let error = judged.verdict.error;
        if judged.error && is_machine(id) && run::is_exhausted(&self.pins.maps(), id, error)? {
            return Ok(Some(
                "such errors about its packets are used up for the moment: none would be sent now"
                    .to_owned(),
            ));
        }
        Ok(None)
    }
}

/// What happens behind the program that decides.
fn onward(case: &Case, judged: &Judged<'_>) -> Option<&'static str> {
    let verdict = &judged.verdict;
    if verdict.reason == Reason::HostDenied {
        return Some("let in where it answers what the host has sent just now");
    }
    match (verdict.action, case.at) {
        (Action::ToHost, _) => Some("the host's stack gets it, marked, and its firewall decides"),
        (Action::Pass, At::Host(_)) => Some("it goes on as the host sent it"),
        (Action::Pass, _) if judged.verdict.mac != 0 => {
            Some("the host's stack gets it under its own link-layer address, nobody else does")
        }
        (Action::Pass, _) => Some("the host's stack gets it unchanged, and its firewall decides"),
        _ => None,
    }
}

fn read(plane: &mut Plane) -> Result<World> {
    let host = Host::dump().context("cannot read the host's network")?;
    let uplinks = plane
        .attached()?
        .into_iter()
        // Its interface may be gone.
        .filter(|uplink| !uplink.programs.is_empty())
        .map(|uplink| Attached {
            ifindex: uplink.ifindex,
            xdp: uplink
                .programs
                .iter()
                .any(|name| name == program::UPLINK_XDP),
        })
        .collect();
    Ok(World::new(plane.state().clone(), host, uplinks))
}
