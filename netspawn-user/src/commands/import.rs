//! `import`.

use std::{fs, thread, time::Duration, time::Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    cli::{Global, ImportArgs, LogFormat},
    import::{self, Replaced, Standing},
    model::{DisplayMac, Host, Unfollowed},
    net::{neighbor, netlink::Netlink},
    outcome::Outcome,
    output,
    source::{
        Created, Source, Sources, create_machine,
        kernel::{Found, Survey, Why, survey},
        machine_path, text_of,
    },
};

/// How long machines have to answer: the kernel asks three times, a second
/// apart (`mcast_solicit`, `retrans_time_ms`).
const ANSWERS: Duration = Duration::from_millis(3500);
/// How often the answers are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A machine file, for programs.
#[derive(Serialize)]
struct Row {
    name: String,
    path: String,
    interface: String,
    mac: Option<String>,
    addresses: Vec<ipnet::IpNet>,
    content: String,
}

/// Prints what the kernel's routes and proxy neighbors declare, or writes it.
///
/// # Errors
/// When the host's network cannot be read, or a file cannot be written.
#[expect(
    clippy::disallowed_methods,
    reason = "a setting that the kernel does not have"
)]
pub fn run(global: &Global, args: &ImportArgs) -> Result<Outcome> {
    let (host, unfollowed, survey) = look().context("cannot read the host's network")?;
    let snapshot = Sources::new(
        &global.config_dir,
        &global.run_dir,
        [Source::Files, Source::Nspawn],
    )
    .read(&host);
    for problem in &snapshot.problems {
        say(global, &format!("# {problem}"));
    }

    let mut replaced = Replaced::default();
    for declared in snapshot.declarations.values() {
        replaced.prefixes.extend(&declared.addresses);
    }
    let mut rows = Vec::new();
    let mut remains = Vec::new();
    for machine in &survey.machines {
        match import::standing(machine, &snapshot) {
            Standing::New => {
                let row = row(global, machine)?;
                if !args.write || write(global, machine, &row, &mut remains)? {
                    rows.push(row);
                    replaced.prefixes.extend(machine.addresses());
                    replaced.routes.extend(&machine.routes);
                }
            }
            Standing::Declared(name) => {
                say(global, &format!("# {name} is declared already"));
                replaced.routes.extend(&machine.routes);
            }
            Standing::Differs => remains.push(differs(machine)),
            Standing::Taken { prefix, holder } => remains.push(format!(
                "{} is left out: {prefix} is declared by {holder}; remove it there, or write {}",
                machine.name,
                machine_path(&global.config_dir, &machine.name).display()
            )),
        }
    }
    print(global, args, &rows)?;

    for lost in &survey.unattributed {
        if replaced.prefixes.contains(&lost.route.destination) {
            replaced.routes.push(&lost.route);
        } else if lost.is_loss() {
            remains.push(lost.to_string());
        } else {
            say(global, &format!("# {lost}"));
        }
    }
    for proxy in &survey.unrouted {
        let mut prefixes = replaced.prefixes.iter();
        if !prefixes.any(|prefix| prefix.contains(&proxy.address)) {
            remains.push(import::unrouted(proxy, &host));
        }
    }
    if survey.machines.is_empty() {
        say(
            global,
            "# no host route to a veth or tap, or to a bridge of these, leads to a machine: \
             nothing to import",
        );
    }
    replaced.complete = remains.is_empty();
    let cleanup = import::cleanup(&host, &unfollowed, &survey, &replaced, |key| {
        let value = fs::read_to_string(format!("/proc/sys/net/{key}")).ok()?;
        Some(value.trim_end().to_owned())
    });
    tell_cleanup(global, &host, &survey, &cleanup, replaced.complete);
    Ok(Outcome::of(remains))
}

/// Reads everything, and has those asked for that are not known.
fn look() -> Result<(Host, Unfollowed, Survey)> {
    let mut host = Host::dump()?;
    let unfollowed = Unfollowed::dump()?;
    let mut found = survey(&host, &unfollowed);
    let silent: Vec<_> = found
        .unattributed
        .iter()
        .filter_map(|lost| match lost.why {
            Why::Silent { hop } => Some((lost.route.ifindex?, hop)),
            _ => None,
        })
        .collect();
    if silent.is_empty() {
        return Ok((host, unfollowed, found));
    }
    let mut netlink = Netlink::open()?;
    for (ifindex, hop) in silent {
        neighbor::resolve(&mut netlink, ifindex, hop)
            .with_context(|| format!("cannot have {hop} resolved"))?;
    }
    let deadline = Instant::now() + ANSWERS;
    loop {
        thread::sleep(LOOK);
        host = Host::dump()?;
        let unfollowed = Unfollowed::dump()?;
        found = survey(&host, &unfollowed);
        let silent = |why: &Why| matches!(why, Why::Silent { .. });
        if Instant::now() >= deadline || !found.unattributed.iter().any(|lost| silent(&lost.why)) {
            return Ok((host, unfollowed, found));
        }
    }
}

fn row(global: &Global, machine: &Found) -> Result<Row> {
    let declaration = import::declaration(machine);
    Ok(Row {
        name: machine.name.clone(),
        path: machine_path(&global.config_dir, &machine.name)
            .display()
            .to_string(),
        interface: machine.interface.clone(),
        mac: machine.mac.map(|mac| DisplayMac(mac).to_string()),
        content: text_of(&declaration)?,
        addresses: declaration.addresses,
    })
}

/// Whether the machine's file is there now.
fn write(global: &Global, machine: &Found, row: &Row, remains: &mut Vec<String>) -> Result<bool> {
    let created = create_machine(&global.config_dir, &import::declaration(machine))?;
    if created == Created::Differs {
        remains.push(format!(
            "{} exists and says something else; it is left as it is",
            row.path
        ));
    }
    Ok(created != Created::Differs)
}

fn differs(machine: &Found) -> String {
    let addresses: Vec<String> = machine.addresses().map(|one| one.to_string()).collect();
    format!(
        "{} is declared, but not with {} on {}; its file is left as it is: compare, and add what \
         is missing",
        machine.name,
        addresses.join(", "),
        machine.interface
    )
}

fn print(global: &Global, args: &ImportArgs, rows: &[Row]) -> Result<()> {
    if global.json {
        return output::print(&(serde_json::to_string_pretty(rows)? + "\n"));
    }
    let text: Vec<String> = rows
        .iter()
        .map(|row| match args.write {
            true => format!("{}\n", row.path),
            false => format!("# {}\n{}", row.path, row.content),
        })
        .collect();
    output::print(&text.join(if args.write { "" } else { "\n" }))
}

fn tell_cleanup(
    global: &Global,
    host: &Host,
    survey: &Survey,
    cleanup: &import::Cleanup,
    complete: bool,
) {
    if cleanup.commands.is_empty() && cleanup.shared.is_empty() {
        return;
    }
    let uplinks: Vec<&str> = survey
        .uplinks
        .iter()
        .filter_map(|ifindex| host.links.get(ifindex))
        .map(|link| link.name.as_str())
        .collect();
    let uplinks = match &uplinks[..] {
        [] => "UPLINK".to_owned(),
        names => names.join(" "),
    };
    say(
        global,
        &format!(
            "# once `netspawn-xdp attach {uplinks}` serves these machines, remove what did so \
             before, in this order:"
        ),
    );
    for command in &cleanup.commands {
        say(global, command);
    }
    if !complete {
        say(
            global,
            "# proxy_arp, proxy_ndp and forwarding have to stay for what is named below",
        );
    }
    if !cleanup.shared.is_empty() {
        say(global, "# and only if nothing else on this host routes:");
        for command in &cleanup.shared {
            say(global, command);
        }
    }
}

/// A line on stderr that can be pasted as it is.
fn say(global: &Global, line: &str) {
    match global.log_format {
        LogFormat::Text => eprintln!("{line}"),
        LogFormat::Json => tracing::info!("{line}"),
    }
}
