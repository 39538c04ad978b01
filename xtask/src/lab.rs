//! `cargo xtask lab`: a lab of network namespaces that stays until it is taken down.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use netspawn_tests::{
    GATEWAY4, GATEWAY6, HOST4, HOST6, Lab, Ns, UPLINK, binary, remove_folder, require_root,
};

use crate::{build, setup};

/// Where the lab is.
const PLACE: &str = "/run/netspawn-lab";

/// Arguments of `cargo xtask lab`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds netspawn-xdp and raises the lab: network, host, machines web, db and mail
    Up,
    /// Ends what runs in the lab and removes it
    Down,
    /// Opens a shell in a part of the lab
    Shell {
        /// net, host, web, db or mail
        #[arg(default_value = "host")]
        name: String,
    },
}

/// Raises, removes or enters the lab.
pub fn run(args: Args) -> Result<()> {
    require_root()?;
    match args.verb {
        Verb::Up => up(),
        Verb::Down => down(),
        Verb::Shell { name } => shell(&name),
    }
}

fn up() -> Result<()> {
    let place = Path::new(PLACE);
    if place.join("lab.json").exists() {
        bail!(
            "a lab is up already: enter it with `cargo xtask lab shell`, or take it down with `cargo xtask lab down`"
        );
    }
    setup::ready()?;
    build::programs(false)?;
    if place.exists() {
        // Half a lab, of a run that was interrupted.
        remove_folder(place);
    }
    let lab = Lab::builder().usual_machines().build_at(place)?;
    write_wrapper(&lab)?;
    println!("\nThe lab is up.\n");
    let row =
        |name: &str, addresses: &str, what: &str| println!("  {name:<5} {addresses:<42} {what}");
    row(
        "net",
        &format!("{GATEWAY4}, {GATEWAY6}"),
        "the outside: gateway and neighbor",
    );
    row(
        "host",
        &format!("{HOST4}, {HOST6}"),
        &format!("its uplink is {UPLINK}"),
    );
    for machine in lab.machines() {
        row(
            machine.name(),
            &machine.addresses().join(", "),
            &format!("behind {}", machine.port()),
        );
    }
    println!(
        "
  cargo xtask lab shell        a shell in the host: try `netspawn-xdp attach {UPLINK}`
  cargo xtask lab shell net    a shell outside: try `ping {}`
  cargo xtask lab down         takes it all away\n",
        lab.machine("web").v4()
    );
    lab.keep()
}

/// `netspawn-xdp` for people in the host's shell, with the lab's folders.
fn write_wrapper(lab: &Lab) -> Result<()> {
    let folder = lab.dir().join("bin");
    fs::create_dir(&folder)?;
    let wrapper = folder.join("netspawn-xdp");
    let words: Vec<_> = lab.options();
    let text = format!(
        "#!/bin/sh\nexec '{}' {} \"$@\"\n",
        binary()?.display(),
        words.join(" ")
    );
    fs::write(&wrapper, text)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", wrapper.display()))
}

fn existing() -> Result<Lab> {
    let place = Path::new(PLACE);
    if !place.join("lab.json").exists() {
        bail!("no lab is up: raise one with `cargo xtask lab up`");
    }
    Lab::open(place)
}

fn shell(name: &str) -> Result<()> {
    let lab = existing()?;
    let ns = match name {
        "net" => &lab.net,
        "host" => &lab.host,
        name => {
            let machine = lab.machines().iter().find(|machine| machine.name() == name);
            let names: Vec<_> = lab
                .machines()
                .iter()
                .map(|machine| machine.name())
                .collect();
            &machine
                .with_context(|| {
                    format!(
                        "the lab has no {name}: it has net, host, {}",
                        names.join(", ")
                    )
                })?
                .ns
        }
    };
    let mut path = env::var_os("PATH").unwrap_or_default();
    if name == "host" {
        let folders = std::iter::once(lab.dir().join("bin")).chain(env::split_paths(&path));
        path = env::join_paths(folders.collect::<Vec<_>>())?;
    }
    let shell = env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    ns.cmd(shell)
        .env("PATH", path)
        // Debian's prompts show it.
        .env("debian_chroot", format!("lab {name}"))
        .interactive()?;
    // What the last command in the shell returned is not our result.
    Ok(())
}

fn down() -> Result<()> {
    let lab = existing()?;
    end_processes(&lab)?;
    lab.remove()?;
    println!("The lab is down.");
    Ok(())
}

/// Ends what still runs in the lab's namespaces, which would otherwise keep them.
fn end_processes(lab: &Lab) -> Result<()> {
    let machines = lab.machines().iter().map(|machine| &machine.ns);
    let spaces: Vec<u64> = [&lab.net, &lab.host]
        .into_iter()
        .chain(machines)
        .map(inode)
        .collect::<Result<_>>()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut signal = "TERM";
    loop {
        let left = processes(&spaces)?;
        if left.is_empty() {
            return Ok(());
        }
        for pid in &left {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if signal == "TERM" {
                println!("ending {} ({pid})", name.trim());
            }
            Command::new("kill")
                .args(["-s", signal, &pid.to_string()])
                .status()?;
        }
        // Shells ignore SIGTERM.
        signal = "KILL";
        if Instant::now() >= deadline {
            bail!("still running in the lab: {left:?}");
        }
        thread::sleep(Duration::from_millis(500));
    }
}

fn inode(ns: &Ns) -> Result<u64> {
    Ok(File::open(ns.path())?.metadata()?.ino())
}

fn processes(spaces: &[u64]) -> io::Result<Vec<u32>> {
    let in_lab = |entry: PathBuf| {
        let inode = fs::metadata(entry.join("ns/net")).ok()?.ino();
        let pid = entry.file_name()?.to_str()?.parse().ok()?;
        (spaces.contains(&inode)).then_some(pid)
    };
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| in_lab(entry.path()))
        .collect())
}
