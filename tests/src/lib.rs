//! The lab that tests and `cargo xtask` share: network, host and machines as network
//! namespaces, each with a kernel stack of its own.
//!
//! ```text
//!        net                          host                             machines
//!  203.0.113.1/24        eth0 203.0.113.10/24, 2001:db8::10/64       web: host0
//!  2001:db8::1/64  lan0 ══════ eth0        ve-web ═══════════════ 203.0.113.2, 2001:db8::2
//!  lo 198.51.100.1       rp_filter as asked                          2001:db8:1::/64
//!     2001:db8:ffff::1   ip_forward=0      ve-db  ═══ db, ve-mail ═══ mail
//! ```
//!
//! ```no_run
//! use netspawn_tests::{Agent, Lab, ping, tcp};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::usual()?;                    // web, db, mail, declared in CONFIGDIR/machines
//! let agent = Agent::start(&lab, "eth0")?;    // `netspawn-xdp attach eth0`, ready
//! let web = lab.machine("web");
//! ping(&lab.net, web.v4())?;                  // from the outside
//! tcp(&web.ns, &lab.net, netspawn_tests::FAR6, 1 << 20)?;
//! lab.run("add extra --interface ve-x --address 203.0.113.9")?;
//! assert_eq!(lab.json("status")?["machines"]["up"], 3);
//! agent.kill()?;                              // SIGKILL: the data plane stays
//! assert_eq!(lab.output("detach")?.code(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! - [`Ns`]: a namespace. [`Ns::run`] (one command line), [`Ns::cmd`] (arguments, input,
//!   time limit), [`Ns::enter`] (a closure on a thread inside), [`Ns::set_sysctl`].
//!   It vanishes with the value and the processes in it, also when the test is killed.
//!   Names are for messages only; nothing is ever made in the machine's own namespace.
//! - [`Lab`]: [`Lab::builder`], [`Spec`] for a machine, [`Lab::plug`] and
//!   [`Lab::unplug`] for links that come and go, [`Lab::declare`] and [`Lab::withdraw`]
//!   for files; [`Lab::run`], [`Lab::output`], [`Lab::json`] for `netspawn-xdp` in the
//!   host with the lab's own `--config-dir`, `--run-dir`, `--bpf-dir`.
//! - [`Agent`]: a running `attach`; [`Attached`]: a lab with one, in a [`Mode`].
//!   [`Process`]: any other process.
//! - [`SystemdHost`]: a booted systemd host in a box with real nspawn machines
//!   ([`Nspawn`]); [`SystemdHost::with`] a [`Kit`], one with an engine.
//! - [`Guest`]: another kernel, which runs a script and ends.
//! - [`Snapshot`]: the state of the host, for "as before".
//! - [`Capture`]: every frame on an interface; [`send_frame`]: a frame by hand
//!   (etherparse builds them). [`Tcpdump`]: the same for people's eyes. [`Checksums`]:
//!   what tcpdump says of them.
//! - [`TapWire`]: the wire's end of a tap device, with a card's offloads. [`vnet`]: frames
//!   with what a sender says beside them, by packet sockets.
//! - [`Tmux`]: a terminal to look at and to type into.
//! - [`habets_arping`]: a program whose package excludes another that is needed.
//! - [`ping`], [`tcp`], [`udp`]: traffic whose payload is compared; [`Pinging`]: pings
//!   that go on meanwhile; [`silent`]: who does not answer, of many; [`all_reachable`]:
//!   everything to everything.
//! - [`Canaries`]: numbered packets that go on meanwhile, every one answered; [`Crowd`]:
//!   thousands of machines that come and go; [`Usage`]: what a data plane and its agent
//!   hold, in numbers, and [`Trend`], whether these stay level.
//! - [`Counter`]: a counting program of somebody else, by tcx, clsact or XDP.
//!
//! `/sys` stays the machine's own inside a namespace entered here, `/proc/sys/net` and
//! netlink are the namespace's.

mod agent;
mod bpf;
mod canary;
mod capture;
mod checksums;
mod cmd;
mod crowd;
mod debian;
mod echo;
mod habets;
mod kernels;
mod lab;
mod ns;
mod nspawn;
mod pinging;
pub mod protocol;
mod snapshot;
mod tmux;
mod traffic;
mod tuntap;
mod usage;
pub mod vnet;
mod workdir;

use std::{
    thread,
    time::{Duration, Instant},
};

pub use agent::{Agent, Attached, Mode, READY, ready_for};
pub use bpf::{Counter, Direction, Kind, Program, accept_xdp, tcx_programs};
pub use canary::{Canaries, Stream, Tally};
pub use capture::{Capture, Tcpdump, send_frame, send_frames, write_pcap};
pub use checksums::Checksums;
pub use cmd::{Cmd, LIMIT, Output, Process};
pub use crowd::{Crowd, SLOTS};
pub use echo::silent;
pub use habets::habets_arping;
pub use kernels::{Guest, Kernel, Report};
pub use lab::{
    Builder, DELEGATED, Delegation, FAR4, FAR6, GATEWAY4, GATEWAY6, HOST0, HOST4, HOST6, INSIDE,
    LAN, Lab, Machine, Spec, UPLINK, binary,
};
pub use nix::sys::signal::Signal;
pub use ns::{Ns, forget, refuse_root_namespace, require_root};
pub use nspawn::{Kit, Nspawn, SystemdHost, release_named};
pub use pinging::{PING_INTERVAL, Pinging};
pub use snapshot::{Snapshot, interfaces};
pub use tmux::Tmux;
pub use traffic::{
    STALL, all_reachable, fetch, pattern, ping, ping_sized, serve, tcp, udp, unreachable, wait_ping,
};
pub use tuntap::{Offload, TapWire, Undone};
pub use usage::{Trend, Usage};
pub use workdir::{Workdir, remount, remove as remove_folder, remove_all as remove_folders};

/// Makes two tests of each function that takes a [`Mode`]: `tc::NAME` and `xdp::NAME`.
#[macro_export]
macro_rules! in_each_mode {
    ($($name:ident)*) => {
        mod tc {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name($crate::Mode::Tc) })*
        }
        mod xdp {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name($crate::Mode::Xdp) })*
        }
    };
}

/// Asks `condition` again and again until it is true; false when `limit` is over.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
