//! The rows of the protocol as data: a frame, the hook that gets it, and what must
//! become of it, byte for byte. Decisions are held against them on the host, the
//! loaded programs in the kernel.
//!
//! Frames are built by etherparse, which shares no code with what is tested.

pub mod arp;
pub mod build;
pub mod errors;
pub mod forward;
pub mod guard;
pub mod ndp;
pub mod offload;
pub mod world;

use netspawn_ebpf::{
    abi::{NOBODY, Owner},
    decide::{
        Meta,
        offload::{Open, Said},
    },
    verdict::{Kind, Reason},
};

/// The hook that gets a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Ingress of the uplink.
    Uplink,
    /// Egress of the uplink.
    Host,
    /// Ingress of the port of this machine.
    Port(Owner),
}

/// The ICMP error about a dropped packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    TimeExceeded,
    /// With the MTU of the way on.
    TooBig(u32),
    HostUnreachable,
    NoRoute,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which row, the condition, the paragraph.
    pub name: &'static str,
    /// Where the frame comes in.
    pub at: At,
    /// The frame.
    pub frame: Vec<u8>,
    /// 802.1Q id of a tag beside the frame.
    pub vlan: Option<u16>,
    /// What the sender says beside the bytes.
    pub said: Said,
    /// The Ethernet type that the kernel goes by, where it is not the frame's.
    pub protocol: Option<u16>,
    /// [`netspawn_ebpf::abi::settings_flag`] bits of policy.
    pub policy: u32,
    /// What it is counted as; its kind says what happens to it.
    pub reason: Reason,
    /// A second counter.
    pub also: Option<Reason>,
    /// The frame afterwards: the same for what is passed, the error for what is
    /// dropped and told.
    pub out: Option<Vec<u8>>,
    /// The machine that is charged with a drop, or gets the frame.
    pub machine: Owner,
    /// Whether the sending machine's counters take note.
    pub sent: bool,
}

impl Row {
    fn new(name: &'static str, at: At, frame: Vec<u8>, reason: Reason) -> Self {
        Row {
            name,
            at,
            vlan: None,
            said: Said {
                length: frame.len() as u32,
                ..Said::default()
            },
            protocol: None,
            frame,
            policy: 0,
            reason,
            also: None,
            out: None,
            machine: NOBODY,
            sent: false,
        }
    }

    /// To the stack, unchanged.
    pub fn pass(name: &'static str, at: At, frame: Vec<u8>, reason: Reason) -> Self {
        assert_eq!(reason.kind(), Kind::Pass, "{name}");
        Row {
            out: Some(frame.clone()),
            ..Row::new(name, at, frame, reason)
        }
    }

    /// To the stack, as `out`.
    pub fn to_stack(
        name: &'static str,
        at: At,
        frame: Vec<u8>,
        reason: Reason,
        out: Vec<u8>,
    ) -> Self {
        Row {
            out: Some(out),
            ..Row::pass(name, at, frame, reason)
        }
    }

    /// Dropped, and charged to a machine.
    pub fn drop(
        name: &'static str,
        at: At,
        frame: Vec<u8>,
        reason: Reason,
        machine: Owner,
    ) -> Self {
        assert_eq!(reason.kind(), Kind::Drop, "{name}");
        Row {
            machine,
            ..Row::new(name, at, frame, reason)
        }
    }

    /// Answered with `out`.
    pub fn answer(
        name: &'static str,
        at: At,
        frame: Vec<u8>,
        reason: Reason,
        out: Vec<u8>,
    ) -> Self {
        assert_eq!(reason.kind(), Kind::Answer, "{name}");
        Row {
            out: Some(out),
            ..Row::new(name, at, frame, reason)
        }
    }

    /// Sent on as `out`, to a machine or to [`NOBODY`] of this host.
    pub fn forward(
        name: &'static str,
        at: At,
        frame: Vec<u8>,
        reason: Reason,
        machine: Owner,
        out: Vec<u8>,
    ) -> Self {
        assert_eq!(reason.kind(), Kind::Forward, "{name}");
        Row {
            out: Some(out),
            machine,
            sent: matches!(at, At::Port(_)),
            ..Row::new(name, at, frame, reason)
        }
    }

    /// The machine that it concerns.
    pub fn charged(self, machine: Owner) -> Self {
        Row { machine, ..self }
    }

    /// Whether a drop is told to the sender.
    pub fn is_told(&self) -> bool {
        self.also == Some(Reason::AnsweredError)
    }

    /// Told to the sender of the frame. A super-packet is quoted without its last
    /// eight bytes where it is not cut anyway.
    pub fn told(self, error: Told) -> Self {
        let out = build::error(&self.frame, self.at, error);
        Row {
            also: Some(Reason::AnsweredError),
            out: Some(out),
            ..self
        }
    }

    /// With a tag beside the frame.
    pub fn vlan(self, vlan: u16) -> Self {
        Row {
            vlan: Some(vlan),
            ..self
        }
    }

    /// As a super-packet, of which it is not known how it is to be cut up.
    pub fn gso(mut self, gso_size: u32) -> Self {
        self.said.gso_size = gso_size;
        self
    }

    /// With a checksum to be completed: over what begins at `start` of the frame, written
    /// `offset` bytes behind that.
    pub fn partial(mut self, start: u32, offset: u32) -> Self {
        self.said.open = Open {
            somewhere: true,
            unseen: false,
            start,
            field: start.wrapping_add(offset),
        };
        self
    }

    /// As a super-packet that is to be cut up like that ([`gso`]).
    pub fn segments(mut self, gso_type: u32, gso_size: u32) -> Self {
        self.said.gso_type = gso_type;
        self.said.gso_size = gso_size;
        self
    }

    /// With the kernel going by that Ethernet type.
    pub fn known_as(self, protocol: u16) -> Self {
        Row {
            protocol: Some(protocol),
            ..self
        }
    }

    /// Whether `BPF_PROG_TEST_RUN` can say what the sender does, of a frame that it takes
    /// (a page less what an skb needs around it).
    #[allow(dead_code, reason = "for those who run the programs")]
    pub fn can_be_run(&self) -> bool {
        !self.said.open.somewhere
            && self.said.gso_type == 0
            && self.protocol.is_none()
            && self.frame.len() <= 3_500
    }

    /// What the hook knows beside the frame.
    #[allow(dead_code, reason = "for those who call the library")]
    pub fn meta(&self) -> Meta {
        let meta = Meta::new(&self.frame[..], &self.said);
        Meta {
            vlan: self.vlan.unwrap_or(0),
            tagged: self.vlan.is_some(),
            protocol: self.protocol.map_or(meta.protocol, u16::to_be),
            ..meta
        }
    }

    /// Under a policy.
    pub fn policy(self, policy: u32) -> Self {
        Row { policy, ..self }
    }

    /// Counted as this too.
    pub fn also(self, reason: Reason) -> Self {
        Row {
            also: Some(reason),
            ..self
        }
    }
}
