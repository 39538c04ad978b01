//! `cargo xtask bench`.

use std::{
    fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use netspawn_bench::{
    figure::Figure,
    report::{self, Earlier, Host, Options, Outcome, Report},
    run::{Run, Stopped},
    scenarios::{SCENARIOS, Scenario},
};

/// Measures what netspawn-xdp costs beside what people use in its place.
///
/// Ctrl-C ends the run at its next step and reports what is complete; once more ends it
/// at once.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench")]
struct Cli {
    /// What to measure; everything if none is named
    #[arg(value_enum)]
    scenario: Vec<Scenario>,
    /// Machines at most
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    machines: u32,
    /// Rounds of each path, of which the median counts
    #[arg(long, value_name = "R", default_value_t = 5,
          value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Folder for bench.json and bench.html [default: target/bench/ and the time]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A bench.json of an earlier run, to show changes against
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Measures nothing, and reports what this bench.json says
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenario", "machines", "rounds"])]
    from: Option<PathBuf>,
}

/// As shells have it for a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    bench(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn bench(cli: Cli) -> Result<ExitCode> {
    // Before hours of measuring.
    let earlier = match &cli.against {
        Some(path) => Some(Earlier {
            name: path.display().to_string(),
            report: Report::load(path)?,
        }),
        None => None,
    };
    let known = cli.from.as_deref().map(Report::load).transpose()?;
    let host = Host::here();
    let out = cli.out.clone().unwrap_or_else(|| folder(&host));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;

    let (report, stopped) = match known {
        Some(report) => (report, false),
        None => measure(&cli, host, &out)?,
    };
    print!("{}", report::terminal(&report, earlier.as_ref()));
    let page = out.join("bench.html");
    fs::write(&page, report::page(&report, earlier.as_ref())?)
        .with_context(|| format!("cannot write {}", page.display()))?;
    eprintln!("\nreport: {}", page.display());
    Ok(if stopped {
        ExitCode::from(INTERRUPTED)
    } else if report
        .scenarios
        .iter()
        .any(|outcome| outcome.error.is_some())
    {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Runs the scenarios; keeps what is there after each of them. Also says whether the user
/// stopped it.
fn measure(cli: &Cli, host: Host, out: &Path) -> Result<(Report, bool)> {
    netspawn_tests::require_root()?;
    let scenarios: Vec<&Scenario> = SCENARIOS
        .iter()
        .filter(|one| {
            cli.scenario.is_empty() || cli.scenario.iter().any(|wanted| wanted.name == one.name)
        })
        .collect();
    let options = Options {
        machines: cli.machines,
        rounds: cli.rounds.into(),
    };
    let mut run = Run::new(options.machines, options.rounds);
    if std::io::stderr().is_terminal() {
        run = run.with_bar();
    }
    let run = Arc::new(run);
    stop_on_interrupt(&run)?;

    let mut report = Report::new(host, options);
    let file = out.join("bench.json");
    report.save(&file)?;
    for (at, scenario) in scenarios.iter().enumerate() {
        if run.stopping() {
            break;
        }
        let later = scenarios[at + 1..].iter();
        run.begin(
            scenario.name,
            scenario.usual,
            later.map(|scenario| scenario.usual).sum(),
        );
        let start = Instant::now();
        let result = alone(scenario, &run);
        let mut outcome = Outcome {
            name: scenario.name.to_owned(),
            seconds: start.elapsed().as_secs_f64(),
            error: None,
        };
        match result {
            Ok(figures) => report.figures.extend(figures),
            Err(error) if error.is::<Stopped>() => break,
            Err(error) => {
                let words = format!("{error:#}");
                run.say(format_args!("error: {}: {words}", scenario.name));
                outcome.error = Some(words);
            }
        }
        report.scenarios.push(outcome);
        report.save(&file)?;
    }
    run.end();
    report.complete = report.scenarios.len() == scenarios.len();
    report.save(&file)?;
    eprintln!("figures: {}", file.display());
    Ok((report, run.stopping()))
}

/// Runs one in a thread of its own: what it leaves running ends with the thread, and its
/// panic is a failure like any other.
fn alone(scenario: &Scenario, run: &Run) -> Result<Vec<Figure>> {
    thread::scope(|scope| {
        scope
            .spawn(|| (scenario.run)(run))
            .join()
            .unwrap_or_else(|panic| {
                let words = panic
                    .downcast_ref::<&str>()
                    .copied()
                    .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                Err(anyhow!("panicked: {}", words.unwrap_or("without words")))
            })
    })
}

/// The first interrupt ends the run at its next step, the second one at once.
fn stop_on_interrupt(run: &Arc<Run>) -> Result<()> {
    let run = Arc::clone(run);
    ctrlc::set_handler(move || {
        if run.stopping() {
            netspawn_tests::remove_folders();
            std::process::exit(INTERRUPTED.into());
        }
        run.stop();
        run.say("stopping after this step; Ctrl-C again stops at once");
    })
    .context("cannot wait for Ctrl-C")
}

/// A folder for this run beside what cargo builds.
fn folder(host: &Host) -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    // target/release/netspawn-bench
    let target = program.ancestors().nth(2).unwrap_or(Path::new("target"));
    // Colons are no good in names of files.
    target.join("bench").join(host.date.replace(':', "-"))
}
