//! The command line. Parsing does nothing but parse.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use netspawn_ebpf::{
    verdict::{Kind, Reason},
    wire::Mac,
};
use serde::{Deserialize, Serialize};

use crate::{
    config::MAX_ENTRIES, explain::args::ExplainArgs, fields, metrics, problem::Fault,
    source::Source,
};

const EXAMPLES: &str = "\
Examples:
  netspawn-xdp attach eth0
  netspawn-xdp add web --interface ve-web --address 203.0.113.2 2001:db8:1::/64
  netspawn-xdp list
  netspawn-xdp detach

Exit codes: 0 done, 1 failed, 2 usage, 3 done in part (the rest is named on stderr).";

/// Public IPv4 and IPv6 addresses for containers and virtual machines, without
/// bridge, proxy ARP, NDP proxy or NAT.
#[derive(Clone, Debug, Parser)]
#[command(name = "netspawn-xdp", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const CONFIG_DIR: &str = "/etc/netspawn";
const RUN_DIR: &str = "/run/netspawn";
const BPF_DIR: &str = "/sys/fs/bpf/netspawn";

/// Options of all commands.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Folder of netspawn.toml and machines/NAME.toml
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = CONFIG_DIR
    )]
    pub config_dir: PathBuf,
    /// Folder of what does not outlive a reboot, such as what `add` declares
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = RUN_DIR
    )]
    pub run_dir: PathBuf,
    /// Folder on a bpffs, for maps and programs
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = BPF_DIR
    )]
    pub bpf_dir: PathBuf,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Form of what is said on stderr
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t
    )]
    pub log_format: LogFormat,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Default for Global {
    fn default() -> Self {
        Global {
            config_dir: CONFIG_DIR.into(),
            run_dir: RUN_DIR.into(),
            bpf_dir: BPF_DIR.into(),
            json: false,
            log_format: LogFormat::default(),
            verbose: 0,
        }
    }
}

/// Form of logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Load the data plane, and follow the machines until told to stop
    Attach(AttachArgs),
    /// Keep what `attach --revert-after` has attached
    #[command(after_help = "\
Prints what is kept. Where no revert is pending, or its time is over, exit code 1.

Example:
  netspawn-xdp confirm")]
    Confirm,
    /// Take the data plane away from all uplinks, or from those named
    Detach(DetachArgs),
    /// Declare a machine until the next reboot
    Add(AddArgs),
    /// Withdraw a machine that `add` declared
    Remove(RemoveArgs),
    /// Show the machines: addresses, state, traffic, drops
    List(ListArgs),
    /// Show whether all is well: uplinks, machines, the agent, and what differs
    Status(WatchArgs),
    /// Show how many frames were passed, dropped, answered and forwarded, and why
    Counters(WatchArgs),
    /// Print what happens, one line each, until told to stop
    Monitor(MonitorArgs),
    /// Show the machines' traffic as it goes, on the whole terminal
    Top(TopArgs),
    /// Find what keeps machines from being served, and say how to mend it
    Check(CheckArgs),
    /// Say what would happen to a frame, without sending it
    Explain(ExplainArgs),
    /// Show what host routes and proxy neighbors declare, as machine files
    Import(ImportArgs),
    /// Print the network configuration of a machine, or install it into its image
    Guest(GuestArgs),
    /// Print a script that completes commands in a shell
    #[command(after_help = "\
Example:
  netspawn-xdp completions bash >/etc/bash_completion.d/netspawn-xdp")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a page of the manual
    Man(ManArgs),
}

/// How frames are taken from the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// tc, on every uplink
    #[default]
    Auto,
    /// At tc ingress
    Tc,
    /// In the driver, for bare metal: ARP, NDP and all but TCP by XDP
    Xdp,
}

impl Mode {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Auto => "auto",
            Mode::Tc => "tc",
            Mode::Xdp => "xdp",
        }
    }
}

/// `attach`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Machines are those in CONFIGDIR/machines, RUNDIR/machines, and in the [X-Netspawn]
sections of systemd's .nspawn files. SIGTERM or SIGINT ends the agent; the data plane
stays until `detach`. Defaults for the options, and policy, are read from
CONFIGDIR/netspawn.toml.

Examples:
  netspawn-xdp attach eth0
  netspawn-xdp attach eth0 eth1 --mode tc --once
  netspawn-xdp attach eth0 --metrics 127.0.0.1:9469
  netspawn-xdp attach eth0 --dry-run
  netspawn-xdp attach eth0 --once --revert-after 60s   # then: netspawn-xdp confirm")]
pub struct AttachArgs {
    /// Interfaces that face the network; netspawn.toml may name the default
    #[arg(value_name = "UPLINK", value_parser = fields::interface_name)]
    pub uplinks: Vec<String>,
    /// How frames are taken from the uplink [default: auto]
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// Where machines are declared, separated by commas: files, nspawn,
    /// machined, docker, incus, libvirt, cni, kernel [default: all but kernel]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub source: Option<Vec<Source>>,
    /// End after all is applied, rather than follow the machines
    #[arg(long)]
    pub once: bool,
    /// Print what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Serve metrics to Prometheus, at an address and port of the host or at
    /// unix:PATH [default: off]
    #[arg(long, value_name = "ADDR", conflicts_with = "once")]
    pub metrics: Option<metrics::Address>,
    /// Undo this attach unless `confirm` comes within that time, such as 60s or 5m, even when
    /// the terminal is gone
    #[arg(long, value_name = "DURATION", value_parser = fields::waiting_time)]
    pub revert_after: Option<Duration>,
    /// Have the programs say what becomes of each frame that they do not forward at
    /// once, until the next attach: for debugging, not for a busy host
    #[arg(long, conflicts_with_all = ["once", "dry_run"])]
    pub log_programs: bool,
    /// Machines to have room for [default: 16384]
    #[arg(long, value_name = "N", value_parser = entries())]
    pub max_machines: Option<u32>,
    /// Addresses, and prefixes, of each family to have room for [default: 131072]
    #[arg(long, value_name = "N", value_parser = entries())]
    pub max_addresses: Option<u32>,
}

fn entries() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_ENTRIES))
}

/// `detach`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  netspawn-xdp detach
  netspawn-xdp detach eth1")]
pub struct DetachArgs {
    /// Uplinks to detach [default: all, and everything with them]
    #[arg(value_name = "UPLINK", value_parser = fields::interface_name)]
    pub uplinks: Vec<String>,
}

/// `add`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Writes RUNDIR/machines/NAME.toml, in place of one that is there, and applies it at once.

Examples:
  netspawn-xdp add web --interface ve-web --address 203.0.113.2 2001:db8::2
  netspawn-xdp add db --interface ve-db --address 2001:db8:1::/64 --tenant acme")]
pub struct AddArgs {
    /// Name of the machine
    #[arg(value_parser = fields::machine_name)]
    pub name: String,
    /// The host's end of the machine's link
    #[arg(long, value_name = "IF", value_parser = fields::interface_name)]
    pub interface: String,
    /// Address, or prefix, that the machine owns; several may follow
    #[arg(long = "address", value_name = "PREFIX", required = true, num_args = 1..,
          value_delimiter = ',', value_parser = fields::prefix)]
    pub addresses: Vec<IpNet>,
    /// Tenant; machines exchange packets with those of the same tenant
    #[arg(long, value_name = "TENANT", value_parser = fields::tenant)]
    pub tenant: Option<String>,
    /// Link-layer address of the machine's end [default: read from the link]
    #[arg(long, value_parser = fields::mac)]
    pub mac: Option<Mac>,
    /// 802.1Q id of the machine's traffic on the uplink, 1 to 4094
    #[arg(long, value_name = "ID", value_parser = vlan)]
    pub vlan: Option<u16>,
}

fn vlan(text: &str) -> Result<u16, Fault> {
    fields::vlan(
        text.parse()
            .map_err(|_| Fault::new(format!("{text:?} is not a number"), "write 1 to 4094"))?,
    )
}

/// `remove`.
#[derive(Args, Clone, Debug)]
pub struct RemoveArgs {
    /// Name of the machine
    #[arg(value_parser = fields::machine_name)]
    pub name: String,
}

/// `monitor`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Spoofed and rogue frames, addresses that others on the network use, frames dropped with the
reason, machines and uplinks that come and go, announcements. The agent tells them; frames
are counted once a second. Reasons are those of `counters` under dropped, and
address_conflict. With --json, each line is an object.

Examples:
  netspawn-xdp monitor
  netspawn-xdp monitor --machine web db
  netspawn-xdp monitor --reason spoofed_source spoofed_mac --json")]
pub struct MonitorArgs {
    /// Only what concerns these machines; several may follow
    #[arg(long = "machine", value_name = "NAME", num_args = 1.., value_delimiter = ',',
          value_parser = fields::machine_name)]
    pub machines: Vec<String>,
    /// Only what has these reasons; several may follow
    #[arg(long = "reason", value_name = "REASON", num_args = 1.., value_delimiter = ',',
          hide_possible_values = true, value_parser = reasons())]
    pub reasons: Vec<String>,
}

/// Those that events have.
fn reasons() -> clap::builder::PossibleValuesParser {
    let all = Reason::ALL.iter().copied();
    let told = all.filter(|reason| reason.kind() == Kind::Drop || reason.is_told());
    told.map(Reason::name).collect::<Vec<_>>().into()
}

/// Showing again and again.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// Show it again every SECONDS until Ctrl-C [default: 2]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = fields::seconds)]
    pub watch: Option<Duration>,
}

/// `list`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  netspawn-xdp list
  netspawn-xdp list 203.0.113.2          # who owns this address
  netspawn-xdp list web db --watch 5")]
pub struct ListArgs {
    /// Machines to show, by name, address or prefix [default: all]
    #[arg(value_name = "NAME|ADDRESS|PREFIX")]
    pub wanted: Vec<String>,
    /// Showing again and again.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// `top`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Keys: q ends; arrows, page keys, Home and End choose a machine; n, s, r, t, R, T, d sort by
name, state, packets in and out, bytes in and out, drops, and the same key again the other
way round; / filters by name, state, tenant or address, Esc shows all; ? shows help.

Examples:
  netspawn-xdp top
  netspawn-xdp top --interval 5")]
pub struct TopArgs {
    /// Seconds between looks
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = fields::seconds)]
    pub interval: Duration,
}

/// `check`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Looks at the kernel, the uplink, its driver and offloads, MTUs, settings, routes, the
firewall, what else answers for addresses, systemd-networkd, declarations, and machines.
Works before and after `attach`, best as root; changes nothing. Each finding has the
commands that mend it, or says what there is to decide.

Exit codes: 0 no error was found (warnings and notes are none), 1 there is one.

Examples:
  netspawn-xdp check eth0
  netspawn-xdp check --json")]
pub struct CheckArgs {
    /// Interface that faces the network [default: those attached, else those in
    /// netspawn.toml, else those of the default routes]
    #[arg(value_name = "UPLINK", value_parser = fields::interface_name)]
    pub uplink: Option<String>,
}

/// `import`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Reads host routes to veths, taps and bridges of these, and proxy neighbors. Says on
stderr which commands take the old setup away once the machines are served; none is run.
A file that is there is never overwritten.

Examples:
  netspawn-xdp import
  netspawn-xdp import --write && netspawn-xdp attach eth0")]
pub struct ImportArgs {
    /// Write the files into CONFIGDIR/machines
    #[arg(long)]
    pub write: bool,
}

/// `guest`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
The file is for systemd-networkd in the machine: its addresses, and the gateways that every
port answers for. One that somebody has written or changed is never overwritten.

Examples:
  netspawn-xdp guest web
  netspawn-xdp guest web --install /var/lib/machines/web")]
pub struct GuestArgs {
    /// Name of the machine
    #[arg(value_parser = fields::machine_name)]
    pub name: String,
    /// Put it into the machine's root folder, as /etc/systemd/network/10-netspawn.network
    #[arg(long, value_name = "DIR")]
    pub install: Option<PathBuf>,
}

/// `man`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  netspawn-xdp man | man -l -
  netspawn-xdp man attach | man -l -
  netspawn-xdp man --dir /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Command whose page it is [default: the page of the whole]
    pub command: Option<String>,
    /// Write all pages into a folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

/// The command line of the process that `attach --revert-after` starts; people are not offered
/// it.
#[derive(Clone, Debug, Parser)]
#[command(name = "netspawn-xdp revert")]
pub struct Revert {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn addresses_follow_one_option_or_several() {
        for line in [
            "netspawn-xdp add web --interface ve-web --address 203.0.113.2 2001:db8::/64",
            "netspawn-xdp add web --interface ve-web --address 203.0.113.2,2001:db8::/64",
            "netspawn-xdp add web --address 203.0.113.2 --address 2001:db8::/64 --interface ve-web",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Add(args) = cli.command else {
                panic!("not add");
            };
            assert_eq!(args.addresses.len(), 2, "{line}");
        }
    }

    #[test]
    fn global_options_go_before_and_after_the_command() {
        for line in [
            "netspawn-xdp --json -vv list",
            "netspawn-xdp list --json -v -v",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.global.json);
            assert_eq!(cli.global.verbose, 2);
        }
    }
}
