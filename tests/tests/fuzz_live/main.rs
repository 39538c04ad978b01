//! Frames with all that a sender can say beside them, from a machine's port and from the
//! network, made from a seed; receivers on the network, in other machines and on the host.
//! No frame may be seen anywhere whose source is not its sender's, also after the kernel,
//! or a device, has completed its checksum.
//!
//! `NETSPAWN_FUZZ_FRAMES`, `NETSPAWN_FUZZ_SEED`, `NETSPAWN_FUZZ_INDEX` and
//! `NETSPAWN_FUZZ_UPLINK` make it longer and different (`cargo xtask fuzz-live`).

mod oracle;
mod packets;
mod rig;
mod session;

#[path = "../differential/generate.rs"]
mod generate;
#[path = "../../../netspawn-ebpf/tests/host/mod.rs"]
#[allow(dead_code, reason = "only its list of rows is wanted")]
mod host;
#[path = "../differential/mend.rs"]
mod mend;
#[path = "../../../netspawn-ebpf/tests/rows/mod.rs"]
#[allow(dead_code, reason = "the outcomes of the rows are for other tests")]
mod rows;

use std::{
    env,
    io::{self, Write as _},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{Mode, protocol};

use rig::{Link, Origin, Setup};
use session::Session;

/// Without a word about it: a few seconds.
const FRAMES: u64 = 24_000;

fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = env::var(name) else {
        return Ok(None);
    };
    let number = text.parse().with_context(|| format!("{name} is `{text}`"));
    number.map(Some)
}

fn run(origin: Origin, link: Link, mode: Mode) -> Result<()> {
    let _rows = protocol::holds("fuzz_live", Some(mode), &["G1", "G2", "S1", "S2", "S3"]);
    let frames = number("NETSPAWN_FUZZ_FRAMES")?.unwrap_or(FRAMES);
    let seed = number("NETSPAWN_FUZZ_SEED")?.unwrap_or(1);
    let index = number("NETSPAWN_FUZZ_INDEX")?;
    let uplink = match (origin, env::var("NETSPAWN_FUZZ_UPLINK").as_deref()) {
        (Origin::Network, _) | (_, Err(_)) => link,
        (_, Ok("veth")) => Link::Veth,
        (_, Ok("tap")) => Link::Tap,
        (_, Ok(other)) => bail!("NETSPAWN_FUZZ_UPLINK is `{other}`, not veth or tap"),
    };
    let setup = Setup {
        origin,
        link,
        uplink,
        mode,
    };
    let report = Session::new(setup, seed)?.run(frames, index)?;
    // The harness hides what `eprintln` says of tests that pass.
    writeln!(io::stderr(), "{report}")?;
    ensure!(report.violations.is_empty(), "{report}");
    Ok(())
}

macro_rules! combinations {
    ($($name:ident: $origin:ident $link:ident $mode:ident,)*) => {
        $(#[test] fn $name() -> Result<()> { run(Origin::$origin, Link::$link, Mode::$mode) })*
    };
}

combinations! {
    port_veth_tc: Port Veth Tc,
    port_veth_xdp: Port Veth Xdp,
    port_tap_tc: Port Tap Tc,
    port_tap_xdp: Port Tap Xdp,
    network_veth_tc: Network Veth Tc,
    network_veth_xdp: Network Veth Xdp,
    network_tap_tc: Network Tap Tc,
    network_tap_xdp: Network Tap Xdp,
}
