//! `man`: the pages of the manual, made of the command line's definition.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::{
    cli::{Cli, ManArgs},
    outcome::{Outcome, Usage},
    output,
    problem::did_you_mean,
};

/// What the definition of the command line does not say.
const FILES: &str = "\
.SH FILES
.TP
\\fI/etc/netspawn/netspawn.toml\\fR
Defaults of \\fBattach\\fR, and policy; commented.
.TP
\\fI/etc/netspawn/machines/NAME.toml\\fR, \\fI/run/netspawn/machines/NAME.toml\\fR
Machines: their addresses, tenant, link. The latter replaces each key that it names.
.TP
\\fI/etc/systemd/nspawn/NAME.nspawn\\fR, \\fI/run/systemd/nspawn/NAME.nspawn\\fR
Machines, in the section [X\\-Netspawn].
.TP
\\fI/sys/fs/bpf/netspawn\\fR
Programs and maps. They work on when the agent ends, until \\fBdetach\\fR.
.TP
\\fInetspawn\\-xdp@.service\\fR
The agent: \\fBsystemctl enable \\-\\-now netspawn\\-xdp@eth0\\fR. Stopping it leaves the data
plane in place.
";

/// Prints a page, or writes all of them.
///
/// # Errors
/// When there is no such command, or the pages cannot be written.
pub fn run(args: &ManArgs) -> Result<Outcome> {
    let pages = pages()?;
    if let Some(folder) = &args.dir {
        write(folder, &pages)?;
        return Ok(Outcome::Done);
    }
    let wanted = match &args.command {
        None => NAME.to_owned(),
        Some(command) => format!("{NAME}-{command}"),
    };
    let Some((_, page)) = pages.iter().find(|(name, _)| *name == wanted) else {
        let command = args.command.as_deref().unwrap_or_default();
        let names: Vec<&str> = pages
            .iter()
            .filter_map(|(name, _)| name.strip_prefix("netspawn-xdp-"))
            .collect();
        return Err(Usage(format!(
            "there is no command {command:?}; {}",
            did_you_mean(command, &names)
        ))
        .into());
    };
    output::print(page)?;
    Ok(Outcome::Done)
}

const NAME: &str = "netspawn-xdp";

/// Names of pages, and what stands there.
fn pages() -> Result<Vec<(String, String)>> {
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let mut pages = vec![(NAME.to_owned(), page(&cli)? + FILES)];
    for command in cli
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let name = format!("{NAME}-{}", command.get_name());
        let see_also = format!(".SH SEE ALSO\n\\fB{NAME}\\fR(1)\n").replace('-', "\\-");
        pages.push((name, page(command)? + &see_also));
    }
    Ok(pages)
}

fn page(command: &Command) -> Result<String> {
    let mut page = Vec::new();
    Man::new(command.clone())
        .manual("netspawn-xdp")
        .render(&mut page)?;
    Ok(String::from_utf8(page)?)
}

fn write(folder: &Path, pages: &[(String, String)]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, page) in pages {
        let path = folder.join(format!("{name}.1"));
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_options() {
        let pages = pages().unwrap();
        let cli = Cli::command();
        for command in cli
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let name = format!("{NAME}-{}", command.get_name());
            let (_, page) = pages.iter().find(|(page, _)| *page == name).unwrap();
            for arg in command.get_arguments() {
                if let Some(long) = arg.get_long() {
                    let option = format!("\\-\\-{}", long.replace('-', "\\-"));
                    assert!(page.contains(&option), "{name} lacks {long}");
                }
            }
        }
        let (_, first) = &pages[0];
        assert!(first.contains(".SH FILES") && first.contains("netspawn\\-xdp\\-attach(1)"));
    }
}
