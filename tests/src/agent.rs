//! A running `netspawn-xdp attach`.

use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use crate::{
    bpf::accept_xdp,
    cmd::{Output, Process},
    lab::{HOST0, LAN, Lab},
};

/// How the uplink's programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `--mode tc`.
    Tc,
    /// `--mode xdp`.
    Xdp,
}

impl Mode {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Tc => "tc",
            Mode::Xdp => "xdp",
        }
    }

    /// The words for `attach`, with the lab's uplink.
    pub const fn attach(self) -> &'static str {
        match self {
            Mode::Tc => "eth0 --mode tc",
            Mode::Xdp => "eth0 --mode xdp",
        }
    }
}

/// A lab whose host runs an agent.
pub struct Attached {
    /// The agent; it goes before the lab.
    pub agent: Agent,
    /// The lab.
    pub lab: Lab,
}

impl Attached {
    /// Makes the lab ready for the mode, if it is not, and attaches.
    pub fn new(lab: Lab, mode: Mode) -> Result<Self> {
        ready_for(&lab, mode)?;
        let agent = Agent::start(&lab, mode.attach())?;
        Ok(Attached { agent, lab })
    }

    /// Attaches to a lab with the usual machines.
    pub fn usual(mode: Mode) -> Result<Self> {
        Attached::new(Lab::usual()?, mode)
    }
}

/// Gives the far ends of veths what hardware brings along: they take in frames that XDP
/// sends them.
///
/// Frames sent by `XDP_TX` or redirected over a devmap vanish on a veth whose other
/// end has neither an XDP program nor GRO (`veth_xdp_xmit`, drivers/net/veth.c).
pub fn ready_for(lab: &Lab, mode: Mode) -> Result<()> {
    let pin = lab.bpffs().join("lab_pass");
    if mode == Mode::Xdp && !pin.exists() {
        accept_xdp(&lab.net, LAN, &pin)?;
        for machine in lab.machines().iter().filter(|machine| machine.plugged()) {
            machine.ns.run(&format!("ethtool -K {HOST0} gro on"))?;
        }
    }
    Ok(())
}

/// How long an attach may take until it is ready.
pub const READY: Duration = Duration::from_secs(90);

/// A `netspawn-xdp attach` that said it is ready. Killed with SIGKILL when dropped,
/// which leaves the data plane in place.
pub struct Agent {
    process: Process,
    ready: String,
}

impl Agent {
    /// Starts `attach` with these words (uplinks and options, split at white space) in
    /// the lab's host and waits for its `ready:` line.
    pub fn start(lab: &Lab, words: &str) -> Result<Self> {
        let args = std::iter::once("attach").chain(words.split_whitespace());
        let mut process = lab.xdp(args)?.start()?;
        let ready = process.wait_line(READY, |line| line.starts_with("ready:"))?;
        Ok(Agent { process, ready })
    }

    /// The line it printed, `ready: N machines, M prefixes on eth0 (tc)`.
    pub fn ready(&self) -> &str {
        &self.ready
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it printed so far: standard output, then standard error.
    pub fn words(&self) -> String {
        self.process.out() + &self.process.err()
    }

    /// Waits for a line on standard output or error that `wanted` accepts.
    pub fn wait_line(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.process.wait_line(limit, wanted)
    }

    /// True until it has ended.
    pub fn running(&mut self) -> bool {
        self.process.running()
    }

    /// Ends it as a crash would.
    pub fn kill(self) -> Result<()> {
        self.process
            .end(Signal::SIGKILL, Duration::from_secs(5))
            .map(drop)
    }

    /// Ends it as systemd would; it must go on its own within 10 s, with exit code 0.
    pub fn terminate(self) -> Result<Output> {
        let output = self.process.end(Signal::SIGTERM, Duration::from_secs(10))?;
        if output.code() != 0 {
            bail!(
                "{} ended with code {} after SIGTERM\n{}{}",
                output.line,
                output.code(),
                output.stdout,
                output.stderr
            );
        }
        Ok(output)
    }
}
