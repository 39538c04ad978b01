//! Every system call of the kinds that reach for what may fail, failing once, and the
//! process killed at it: nothing is lost, leaked or left unguarded.
//!
//! strace injects the faults into the program as it is shipped: no layer of the program
//! itself has to know, calls of its libraries and of the standard library are reached as
//! well, and everything else is the real kernel's. Namespaces of a lab are enough for it.
//!
//! `cargo xtask test injection` takes a sample for a minute and a half, `cargo xtask faults`
//! takes all of them. A failure names its case, which `cargo xtask faults --case CASE`
//! repeats.

mod case;
mod operation;
mod strace;
mod world;

use std::{
    collections::BTreeMap,
    env,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::{
    case::{Case, Fault},
    operation::Operation,
    world::{Verdict, World},
};

/// How long the sample may take.
const SAMPLE: Duration = Duration::from_secs(90);

/// What is to be run, by environment variables that `cargo xtask faults` sets.
struct Wanted {
    /// Cases at all; without a limit all of them.
    limit: Option<Duration>,
    seed: u64,
    operations: Vec<Operation>,
    case: Option<Case>,
}

impl Wanted {
    fn read() -> Result<Self> {
        let text = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
        let number = |name: &str| -> Result<Option<u64>> {
            text(name)
                .map(|text| text.parse().with_context(|| format!("{name}={text}")))
                .transpose()
        };
        let all = text("NETSPAWN_INJECTION").is_some();
        let minutes = number("NETSPAWN_INJECTION_MINUTES")?;
        let case: Option<Case> = text("NETSPAWN_INJECTION_CASE")
            .map(|text| text.parse())
            .transpose()?;
        let operations = match (text("NETSPAWN_INJECTION_OPERATION"), &case) {
            (Some(name), _) => vec![name.parse()?],
            (None, Some(case)) => vec![case.operation],
            (None, None) => Operation::ALL.to_vec(),
        };
        Ok(Wanted {
            limit: match (all, minutes) {
                (_, Some(minutes)) => Some(Duration::from_secs(60 * minutes)),
                (true, None) => None,
                (false, None) => Some(SAMPLE),
            },
            seed: number("NETSPAWN_INJECTION_SEED")?.unwrap_or(1),
            operations,
            case,
        })
    }
}

/// What was seen of an operation.
#[derive(Default)]
struct Seen {
    /// Calls that a run without a fault makes.
    calls: usize,
    /// Cases run.
    cases: usize,
    /// Of these, those whose fault was reached.
    reached: usize,
    /// Of these, those that succeeded all the same.
    succeeded: usize,
    failed: usize,
}

#[test]
fn every_step_may_fail() -> Result<()> {
    let wanted = Wanted::read()?;
    let start = Instant::now();
    let mut world = World::new()?;
    let mut seen: BTreeMap<Operation, Seen> = BTreeMap::new();
    let mut cases = Vec::new();
    for &operation in &wanted.operations {
        let (calls, numbers) = world.calls(operation)?;
        seen.entry(operation).or_default().calls = calls;
        for (call, numbers) in numbers {
            for index in numbers {
                for fault in Fault::ALL {
                    cases.push(Case {
                        operation,
                        call,
                        index,
                        fault,
                    });
                }
            }
        }
    }
    if let Some(case) = wanted.case {
        cases = vec![case];
    } else if wanted.limit.is_some() {
        // Every call once, with one fault or another, before any of them again.
        let mut random = fastrand::Rng::with_seed(wanted.seed);
        random.shuffle(&mut cases);
        let mut tried: BTreeMap<(Operation, &str, usize), usize> = BTreeMap::new();
        cases.sort_by_cached_key(|case| {
            let times = tried
                .entry((case.operation, case.call, case.index))
                .or_default();
            *times += 1;
            *times
        });
    }
    let all = cases.len();
    let mut failures = Vec::new();
    for case in cases {
        if wanted.limit.is_some_and(|limit| start.elapsed() >= limit) {
            break;
        }
        let seen = seen.entry(case.operation).or_default();
        seen.cases += 1;
        if seen.cases.is_multiple_of(100) {
            say(&format!(
                "{:5} s: {case} is case {}",
                start.elapsed().as_secs(),
                seen.cases
            ))?;
        }
        match world.run(&case) {
            Ok(Verdict { reached, succeeded }) => {
                seen.reached += usize::from(reached);
                seen.succeeded += usize::from(reached && succeeded);
            }
            Err(error) => {
                seen.failed += 1;
                say(&format!("{case}: {error:#}"))?;
                failures.push(case.to_string());
                // What it left is nobody else's.
                world = World::new()?;
            }
        }
    }
    let words = table(&seen, start.elapsed(), all);
    say(&words)?;
    world.end()?;
    ensure!(
        failures.is_empty(),
        "{} cases failed: {}",
        failures.len(),
        failures.join(" ")
    );
    Ok(())
}

fn table(seen: &BTreeMap<Operation, Seen>, took: Duration, all: usize) -> String {
    let mut text = String::from(
        "| operation | calls | cases run | fault reached | succeeded all the same | failed |\n\
         |---|---|---|---|---|---|\n",
    );
    let mut run = 0;
    for (operation, seen) in seen {
        run += seen.cases;
        text += &format!(
            "| {operation} | {} | {} | {} | {} | {} |\n",
            seen.calls, seen.cases, seen.reached, seen.succeeded, seen.failed
        );
    }
    text + &format!("{run} of {all} cases in {} s", took.as_secs())
}

/// Said also when the test passes, and at once.
fn say(words: &str) -> Result<()> {
    Ok(writeln!(io::stderr(), "{words}")?)
}
