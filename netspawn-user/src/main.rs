//! `netspawn-xdp`: parses, runs one command, and says how it ended.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;
use netspawn_user::{
    cli::{Cli, Command, Global, LogFormat},
    commands,
    outcome::{self, Outcome},
    pinned::Pinned,
};
use tracing::Level;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    log(&cli);
    let code = match run(&cli) {
        Ok(outcome) => {
            if let Outcome::Partly(remains) = &outcome {
                tell(&cli.global, remains);
            }
            outcome.code()
        }
        Err(error) => match outcome::code(&error) {
            0 => 0,
            code => {
                tell(&cli.global, &outcome::lines(&error));
                code
            }
        },
    };
    ExitCode::from(code)
}

fn run(cli: &Cli) -> anyhow::Result<Outcome> {
    let global = &cli.global;
    let plane = &Pinned(global);
    match &cli.command {
        Command::Attach(args) => commands::attach::run(global, args),
        Command::Detach(args) => commands::detach::run(global, args),
        Command::Add(args) => commands::add::run(global, args, plane),
        Command::Remove(args) => commands::remove::run(global, args, plane),
        Command::List => commands::list::run(global, plane),
        Command::Status => commands::status::run(global, plane),
        Command::Counters => commands::counters::run(global, plane),
        Command::Import(args) => commands::import::run(global, args),
        Command::Guest(args) => commands::guest::run(global, args, plane),
        Command::Completions { shell } => commands::completions::run(*shell),
        Command::Man(args) => commands::man::run(args),
    }
}

/// Prints help and version, or what is wrong with the command line.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to tell when stdout is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    match text.strip_prefix("error: ") {
        Some(text) => eprint!("netspawn-xdp: {text}"),
        // Help, for want of a command.
        None => eprint!("{text}"),
    }
    ExitCode::from(2)
}

/// Sends what the library and others log to stderr. Only the agent, which runs
/// for long, says when.
fn log(cli: &Cli) {
    let (own, others) = match cli.global.verbose {
        0 => (Level::INFO, Level::WARN),
        1 => (Level::DEBUG, Level::INFO),
        _ => (Level::TRACE, Level::DEBUG),
    };
    let levels = Targets::new()
        .with_default(others)
        .with_target("netspawn_user", own)
        .with_target("netspawn_xdp", own);
    let text = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(cli.global.verbose > 0);
    let layer = match (cli.global.log_format, &cli.command) {
        (LogFormat::Json, _) => text.json().flatten_event(true).boxed(),
        (LogFormat::Text, Command::Attach(_)) => text.boxed(),
        (LogFormat::Text, _) => text.without_time().boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(levels))
        .init();
}

/// Says what failed or remains, in the form asked for.
fn tell(global: &Global, lines: &[String]) {
    for line in lines {
        match global.log_format {
            LogFormat::Text => eprintln!("netspawn-xdp: {line}"),
            LogFormat::Json => tracing::error!("{line}"),
        }
    }
}
