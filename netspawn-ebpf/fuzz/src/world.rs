//! The tables and the context that an input asks for.

use netspawn_ebpf::{
    abi::{HOST, Owner, nexthop_flag, settings_flag},
    decide::{Meta, offload::Said},
};

use crate::{
    host::World,
    mend::mend,
    rows::{
        At,
        world::{self, MACHINES},
    },
};

/// A frame, where it comes in, and what the tables say.
pub struct Input {
    pub at: At,
    pub world: World,
    pub meta: Meta,
    pub said: Said,
    pub frame: Vec<u8>,
}

/// Bits of the context.
const TAGGED: u8 = 1;
const SEGMENTED: u8 = 2;
const BEYOND: u8 = 4;
/// Changes rarely get past a checksum that they break.
const MEND: u8 = 8;

impl Input {
    /// Reads an input; `None` when it is too short to have a head.
    pub fn read(bytes: &[u8], at: impl Fn(u8) -> At) -> Option<Self> {
        let [policy, port, context, value, changes, rest @ ..] = bytes else {
            return None;
        };
        let (changes, frame) = rest.split_at_checked(usize::from(changes % 8) * 4)?;
        let mut frame = frame.to_vec();
        if context & MEND != 0 {
            mend(&mut frame);
        }
        let known = settings_flag::ISOLATION_ROUTE | settings_flag::HOST_DENY;
        let mut world = World::new(u32::from(*policy) & known);
        for change in changes.as_chunks::<4>().0 {
            apply(&mut world, *change, &frame);
        }
        let beyond = if context & BEYOND != 0 {
            u32::from(*value) * 64
        } else {
            0
        };
        let said = Said {
            length: frame.len() as u32 + beyond,
            gso_size: if context & SEGMENTED != 0 {
                u32::from(*value) * 8 + 1
            } else {
                0
            },
            ..Said::default()
        };
        let meta = Meta {
            vlan: if context & TAGGED != 0 {
                u16::from(*value)
            } else {
                0
            },
            tagged: context & TAGGED != 0,
            ..Meta::new(&frame[..], &said)
        };
        Some(Input {
            at: at(*port),
            world,
            meta,
            said,
            frame,
        })
    }
}

fn owner(pick: u8) -> Owner {
    match MACHINES.get(usize::from(pick)) {
        Some(id) => *id,
        None => HOST,
    }
}

fn address<const N: usize>(frame: &[u8], offset: usize) -> Option<[u8; N]> {
    frame.get(offset..)?.first_chunk().copied()
}

/// Changes the world: what, which of the frame's addresses, a prefix length, a value.
fn apply(world: &mut World, [what, which, length, value]: [u8; 4], frame: &[u8]) {
    const PLACES4: [usize; 4] = [26, 30, 28, 38];
    const PLACES6: [usize; 3] = [22, 38, 62];
    let four = address(frame, PLACES4[usize::from(which) % 4]);
    let six = address(frame, PLACES6[usize::from(which) % 3]);
    let id = MACHINES[usize::from(which) % MACHINES.len()];
    let Some(endpoint) = world.endpoints.get_mut(&id) else {
        return;
    };
    match what % 10 {
        0 => world
            .owners4
            .extend(four.map(|it| (it, u32::from(length % 33), owner(value)))),
        1 => world
            .owners6
            .extend(six.map(|it| (it, u32::from(length % 129), owner(value)))),
        2 => world
            .routes4
            .extend(four.map(|it| (it, u32::from(length % 33), u32::from(value % 3)))),
        3 => world
            .routes6
            .extend(six.map(|it| (it, u32::from(length % 129), u32::from(value % 3)))),
        4 => endpoint.flags = u32::from(value & 15),
        5 => endpoint.mtu = u32::from(value) * 16 + u32::from(length),
        6 => endpoint.mac = [value & 0xfe, 0, 0, 0, length, 1],
        7 => endpoint.tenant = u32::from(value),
        8 => endpoint.vlan = u16::from(value),
        _ => {
            let hop = &mut world.hops[usize::from(which % 3)];
            hop.flags = u32::from(value) & (nexthop_flag::RESOLVED | nexthop_flag::REFUSED);
            hop.mtu = u32::from(length) * 16;
            world.uplink.address4 = if value & 128 != 0 {
                [0; 4]
            } else {
                world::HOST4
            };
        }
    }
}
