//! What the data plane makes of a frame: the library's decision carried out on the host,
//! and the loaded programs under `BPF_PROG_TEST_RUN`, which must say the same.

use anyhow::{Result, ensure};
use netspawn_bench::programs::{Context, Hook, IFINDEX, Programs};
use netspawn_ebpf::{
    abi::{Endpoint, Owner, endpoint_flag},
    decide::offload::surplus,
    decide::{Meta, offload::Said},
    verdict::{Action, Error, Kind, Reason},
};
use netspawn_user::datapath::object::Sizes;

use crate::{
    host::{World, carry_out, decide},
    rows::{At, world},
};

const TC_NEXT: u32 = u32::MAX;
const TC_SHOT: u32 = 2;
const TC_REDIRECT: u32 = 7;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    pub reason: Reason,
    /// Whose machine gets it, or is charged with its drop.
    pub to: Owner,
    /// Whether the kernel's neighbor table says where it goes out.
    pub by_neighbor: bool,
    /// Whether an error is to be made, if one is due about such a packet.
    pub refuses: bool,
    /// The frame, unless it is dropped; the error about it, where there is one.
    pub frame: Option<Vec<u8>>,
}

/// Library and programs in the world of the rows.
pub struct Ours {
    world: World,
    programs: Programs,
    at: Option<At>,
    /// Runs of programs.
    pub runs: u64,
    /// Frames that `BPF_PROG_TEST_RUN` does not take.
    pub refused: u64,
}

impl Ours {
    /// Loads the programs.
    pub fn new() -> Result<Self> {
        let mut programs = Programs::load(Sizes {
            machines: 64,
            addresses: 64,
        })?;
        for id in world::MACHINES {
            programs.endpoint(id, world::endpoint(id, IFINDEX))?;
        }
        programs.uplink(IFINDEX, world::uplink())?;
        // Where the next hops lead.
        programs.uplink(2, world::uplink())?;
        programs.xdp_port(IFINDEX)?;
        programs.owners4(&world::prefixes4())?;
        programs.owners6(&world::prefixes6())?;
        programs.nexthops(&world::nexthops())?;
        programs.routes4(&world::routes4())?;
        programs.routes6(&world::routes6())?;
        programs.sources4(&world::sources4())?;
        programs.sources6(&world::sources6())?;
        programs.settings(world::settings(0))?;
        Ok(Ours {
            world: World::new(0),
            programs,
            at: None,
            runs: 0,
            refused: 0,
        })
    }

    /// The library's outcome. A tag is beside the frame at tc, and so it is here.
    pub fn decide(&self, at: At, frame: &[u8]) -> Result<Outcome> {
        let (frame, tag) = untag(frame);
        let said = Said {
            length: frame.len() as u32,
            ..Said::default()
        };
        let meta = Meta {
            vlan: tag.unwrap_or(0) & 0xfff,
            tagged: tag.is_some(),
            ..Meta::new(&frame[..], &said)
        };
        let verdict =
            decide(&self.world, at, &frame, &meta, &said).expect("the port is a machine's");
        let out = carry_out(&self.world, at, &verdict, &frame, true)
            .map_err(|()| anyhow::anyhow!("{:?} does not fit the frame", verdict.action))?;
        Ok(Outcome {
            action: verdict.action,
            reason: verdict.reason,
            to: verdict.id,
            refuses: verdict.error != Error::None,
            by_neighbor: verdict.hop.is_some_and(|hop| hop.deadline == 1),
            frame: out,
        })
    }

    /// Runs the programs of a hook, and fails where one differs from the library.
    pub fn run(&mut self, at: At, frame: &[u8], outcome: &Outcome) -> Result<()> {
        if self.at != Some(at) {
            let port = match at {
                At::Port(id) => Some(id),
                At::Uplink | At::Host => None,
            };
            self.programs.port(IFINDEX, port)?;
            self.at = Some(at);
        }
        let (untagged, tag) = untag(frame);
        if refused(&untagged) {
            self.refused += 1;
        } else {
            let hook = match at {
                At::Uplink => Hook::UplinkIngress,
                At::Host => Hook::UplinkEgress,
                At::Port(_) => Hook::PortIngress,
            };
            let context = Context {
                vlan: tag.unwrap_or(0),
                ..Context::default()
            };
            let error = outcome.action == Action::Drop && outcome.frame.is_some();
            if error {
                self.programs.refill_budget(outcome.to)?;
            }
            let run = if tag.is_some() {
                self.programs.run_tagged(hook, &untagged, context)?
            } else {
                self.programs.run(hook, &untagged, context)?
            };
            let code = match outcome.reason.kind() {
                Kind::Pass => TC_NEXT,
                Kind::Drop if !error => TC_SHOT,
                Kind::Drop | Kind::Answer | Kind::Forward => TC_REDIRECT,
            };
            self.runs += 1;
            // Row U2 looks behind tags, before the library's decision on what the host sends.
            if at == At::Host && run.code == TC_SHOT && frame.get(12..14) == Some(&[0x81, 0]) {
                return Ok(());
            }
            same(hook, code, outcome.frame.as_deref(), run.code, &run.frame)?;
        }
        if at == At::Uplink && tag.is_none() {
            let run = self
                .programs
                .run(Hook::UplinkXdp, frame, Context::default())?;
            self.runs += 1;
            let (code, out) = at_xdp(frame, outcome);
            same(Hook::UplinkXdp, code, out, run.code, &run.frame)?;
        }
        Ok(())
    }
}

fn same(hook: Hook, code: u32, frame: Option<&[u8]>, got: u32, out: &[u8]) -> Result<()> {
    let name = hook.name();
    ensure!(got == code, "{name}: action {got}, the library has {code}");
    if let Some(frame) = frame {
        ensure!(
            frame == out,
            "{name}: the frame is {}, the library has {}",
            hex(out),
            hex(frame)
        );
    }
    Ok(())
}

/// What the XDP program does: what is passed, sent by TCP, or for a machine that takes no
/// XDP frames, is left to tc.
fn at_xdp<'a>(frame: &'a [u8], outcome: &'a Outcome) -> (u32, Option<&'a [u8]>) {
    let out = outcome.frame.as_deref();
    match outcome.action {
        Action::Pass => (XDP_PASS, Some(frame)),
        // Only an skb can be made an error, and whether one is due is seen at tc.
        Action::Drop if outcome.refuses => (XDP_PASS, Some(frame)),
        Action::Drop => (XDP_DROP, None),
        Action::Arp | Action::Ndp => (XDP_TX, out),
        Action::Deliver => {
            let Endpoint { flags, .. } = world::endpoint(outcome.to, 0);
            let protocol = if frame[12] == 8 { frame[23] } else { frame[20] };
            // What follows a packet is cut off at tc.
            let length = frame.len() as u32;
            let longer = surplus(frame, length, true).is_some();
            if protocol == 6 || flags & endpoint_flag::XDP == 0 || longer {
                (XDP_PASS, Some(frame))
            } else {
                (XDP_REDIRECT, out)
            }
        }
        _ => (XDP_PASS, Some(frame)),
    }
}

/// The frame without its outer 802.1Q tag, which the kernel puts beside it before tc, and
/// the tag.
pub fn untag(frame: &[u8]) -> (std::borrow::Cow<'_, [u8]>, Option<u16>) {
    match frame {
        [.., _] if frame.len() >= 18 && frame[12..14] == [0x81, 0] => {
            let tag = u16::from_be_bytes([frame[14], frame[15]]);
            ([&frame[..12], &frame[16..]].concat().into(), Some(tag))
        }
        _ => (frame.into(), None),
    }
}

/// Whether `BPF_PROG_TEST_RUN` refuses the frame for an skb: cut within its IP header
/// (net/bpf/test_run.c).
fn refused(frame: &[u8]) -> bool {
    let header = match frame[12..14] {
        [8, 0] => 20,
        [0x86, 0xdd] => 40,
        _ => 0,
    };
    frame.len() < 14 + header
}

/// Bytes as digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
