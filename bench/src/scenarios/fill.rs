//! How long it takes to fill addresses into the maps.
//!
//! Half of the addresses are IPv4 and half IPv6, single addresses in no order, a machine
//! for every hundred. The time is that of the agent's own steps for the addresses of a
//! state: the plan, and the writes to the maps as they are pinned, empty at first.

use std::{
    slice,
    time::{Duration, Instant},
};

use anyhow::Result;
use netspawn_tests::Workdir;
use netspawn_user::{
    datapath::{
        maps::Maps,
        object::{self, Sizes},
    },
    plan::{self, Op, State},
};

use crate::{
    figure::{Figure, Unit},
    run::Run,
};

const SIZES: [u32; 3] = [1000, 10_000, 100_000];
/// Addresses of one machine.
const EACH: u32 = 100;

/// Time to fill, with batches and without.
///
/// # Errors
/// When the kernel refuses maps or entries, or the run is to stop.
pub fn run(run: &Run) -> Result<Vec<Figure>> {
    let paths: [(&str, Fill); 2] = [
        ("ours", |maps, ops| maps.apply(ops)),
        ("without batch", |maps, ops| {
            ops.iter()
                .try_for_each(|op| maps.apply(slice::from_ref(op)))
        }),
    ];
    let mut figures = Vec::new();
    // These are addresses: they do not depend on how many machines are asked for.
    for size in SIZES {
        run.step(&format!("fill: {size} addresses"))?;
        let mut rounds = [const { Vec::new() }; 2];
        for _ in 0..run.rounds {
            for ((_, fill), rounds) in paths.iter().zip(&mut rounds) {
                rounds.push(time(size, *fill)?.as_secs_f64() * 1e3);
            }
        }
        for ((path, _), rounds) in paths.iter().zip(rounds) {
            let unit = Unit::Milliseconds;
            figures.push(Figure::new(
                "fill",
                "time to fill",
                unit,
                path,
                size,
                rounds,
            ));
        }
    }
    Ok(figures)
}

type Fill = fn(&mut Maps, &[Op]) -> Result<()>;

fn time(size: u32, fill: Fill) -> Result<Duration> {
    let dir = Workdir::new()?;
    let pins = dir.bpffs("bpf")?;
    let loaded = object::load(Some(&pins), Sizes::default())?;
    let mut maps = Maps::open(&pins)?;
    let wanted = wanted(size);
    let empty = State::default();
    let start = Instant::now();
    fill(&mut maps, &plan::plan(&empty, &wanted))?;
    let took = start.elapsed();
    let held = maps.read()?;
    anyhow::ensure!(
        held.addresses == wanted.addresses,
        "the maps do not hold what was filled in"
    );
    drop(loaded);
    Ok(took)
}

/// Addresses whose owners are numbers: nothing asks for the machines themselves.
fn wanted(size: u32) -> State {
    let mut state = State::default();
    for number in 0..size {
        let address = if number % 2 == 0 {
            std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
        } else {
            // Scattered over an interface identifier, as real ones are.
            let id = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let bits = 0x2001_0db8_u128 << 96 | u128::from(id);
            std::net::IpAddr::from(std::net::Ipv6Addr::from_bits(bits))
        };
        state.addresses.insert(address.into(), number / EACH);
    }
    state
}
