//! What one frame costs in a program by itself, without the network around it.

use anyhow::Result;

use crate::{
    cost::{self, Options},
    figure::Figure,
    programs::Hook,
    run::Run,
};

/// Numbers of prefixes for the frames that are looked up in the tries.
const PREFIXES: [u32; 2] = [1_000, 100_000];

/// Nanoseconds of each frame in each program: paths are programs, metrics are frames,
/// sizes are addresses, or prefixes where the frame's destination is inside one.
///
/// # Errors
/// As of [`cost::measure`].
pub fn run(run: &Run) -> Result<Vec<Figure>> {
    let options = Options {
        rounds: run.rounds,
        ..Options::default()
    };
    run.expect(options.addresses.len() * options.hooks.len() + PREFIXES.len());
    let step = |what: &str| run.step(what);
    let mut figures = cost::measure(&options, step)?.figures();
    for prefixes in PREFIXES {
        let options = Options {
            prefixes,
            addresses: vec![1],
            hooks: vec![Hook::UplinkIngress],
            ..options.clone()
        };
        let inside = cost::measure(&options, step)?
            .figures()
            .into_iter()
            .filter(|figure| figure.metric.ends_with(cost::INSIDE))
            .map(|figure| Figure {
                size: prefixes.into(),
                ..figure
            });
        figures.extend(inside);
    }
    Ok(figures)
}
