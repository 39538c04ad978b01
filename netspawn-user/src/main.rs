//! `netspawn-xdp`: parses, runs one command, and says how it ended.

use std::process::ExitCode;

use clap::Parser;
use netspawn_user::{
    cli::{Cli, Command},
    commands,
    driver::cni,
    folder,
    logging::{self, Form},
    outcome::{self, Outcome},
    pinned::Pinned,
    revert::keeper,
};

fn main() -> ExitCode {
    folder::restrict();
    let mut words = std::env::args_os();
    if cni::is_called(words.next().as_deref()) {
        return cni::main();
    }
    if words.next().is_some_and(|word| word == keeper::WORD) {
        return keeper::main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let form = logging::start(&cli);
    let code = match run(&cli) {
        Ok(outcome) => {
            if let Outcome::Partly(remains) = &outcome {
                tell(form, remains);
            }
            outcome.code()
        }
        Err(error) => match outcome::code(&error) {
            0 => 0,
            code => {
                tell(form, &outcome::lines(&error));
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
        Command::Confirm => commands::confirm::run(global),
        Command::Detach(args) => commands::detach::run(global, args),
        Command::Add(args) => commands::add::run(global, args, plane),
        Command::Remove(args) => commands::remove::run(global, args, plane),
        Command::List(args) => commands::list::run(global, args, plane),
        Command::Status(args) => commands::status::run(global, args, plane),
        Command::Counters(args) => commands::counters::run(global, args, plane),
        Command::Top(args) => commands::top::run(global, args),
        Command::Monitor(args) => commands::monitor::run(global, args),
        Command::Check(args) => commands::check::run(global, args, plane),
        Command::Explain(args) => commands::explain::run(global, args),
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

/// Says what failed or remains, in the form asked for.
fn tell(form: Form, lines: &[String]) {
    for line in lines {
        match form {
            Form::Text => eprintln!("netspawn-xdp: {line}"),
            Form::Json | Form::Journal => tracing::error!("{line}"),
        }
    }
}
