//! Prints, as a JSON object, the parts of the documents that follow from the code, by name:
//! `cargo xtask docs` puts each between its markers.

use std::{collections::BTreeMap, io};

use clap::CommandFactory as _;
use netspawn_ebpf::verdict::{Kind, Reason};
use netspawn_user::{check::rules, cli::Cli, metrics::catalog};

/// Columns of help texts, so that they fit the page.
const WIDTH: usize = 88;

fn main() -> io::Result<()> {
    let parts: BTreeMap<&str, String> = [
        ("commands", commands()),
        ("reasons", reasons()),
        ("metrics", metrics()),
        ("findings", findings()),
        (
            "netspawn.toml",
            file("toml", include_str!("../../packaging/netspawn.toml")),
        ),
        (
            "machine.toml",
            file("toml", include_str!("../../packaging/examples/web.toml")),
        ),
    ]
    .into();
    serde_json::to_writer(io::stdout().lock(), &parts)?;
    Ok(())
}

/// Every command with what it does, the help of each, and the options of all.
fn commands() -> String {
    let mut cli = Cli::command().term_width(WIDTH);
    cli.build();
    let visible: Vec<_> = cli
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help")
        .collect();
    let mut text = String::from("| command | what |\n|---|---|\n");
    for command in &visible {
        let (name, about) = (command.get_name(), about(command));
        text += &format!("| [`{name}`](#{name}) | {about} |\n");
    }
    for command in &visible {
        let own = (*command).clone().mut_args(|arg| {
            let everywhere = arg.is_global_set() || arg.get_id() == "help";
            arg.hide(everywhere)
        });
        let help = own.clone().render_long_help().to_string();
        text += &format!("\n### {}\n\n{}", own.get_name(), file("text", &help));
    }
    // Of the whole program's help only these are left.
    let help = Cli::command()
        .term_width(WIDTH)
        .help_template("{all-args}")
        .disable_help_subcommand(true)
        .mut_subcommands(|command| command.hide(true))
        .render_long_help()
        .to_string();
    text + "\n### Options of all commands\n\n" + &file("text", &help)
}

fn about(command: &clap::Command) -> String {
    command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// Every reason with its kind and meaning.
fn reasons() -> String {
    let mut text = String::from("| kind | reason | when |\n|---|---|---|\n");
    for reason in Reason::ALL {
        let kind = match reason.kind() {
            Kind::Pass => "pass",
            Kind::Drop => "drop",
            Kind::Answer => "answer",
            Kind::Forward => "forward",
        };
        text += &format!("| {kind} | `{}` | {} |\n", reason.name(), reason.meaning());
    }
    text
}

/// Every metric with its kind, its labels and what it tells.
fn metrics() -> String {
    let mut text = String::from("| metric | kind | labels | what |\n|---|---|---|---|\n");
    for metric in catalog::ALL {
        let labels = metric.labels.iter().map(|name| format!("`{name}`"));
        text += &format!(
            "| `{}` | {} | {} | {} |\n",
            metric.name,
            metric.kind.name(),
            labels.collect::<Vec<_>>().join(", "),
            metric.help
        );
    }
    text
}

/// Everything that `check` finds.
fn findings() -> String {
    let mut text =
        String::from("| id | severity | found when | why it matters |\n|---|---|---|---|\n");
    for rule in rules::ALL {
        let severity = rule.severity.name();
        text += &format!(
            "| `{}` | {severity} | {} | {} |\n",
            rule.id, rule.when, rule.why
        );
    }
    text
}

/// A text as it is.
fn file(language: &str, text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
    format!("```{language}\n{}\n```\n", lines.join("\n"))
}
