//! What can be measured, a file each.

pub mod forward;

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use netspawn_tests::Ns;

/// Interface numbers of `PREFIX0`, `PREFIX1` and so on.
fn ifindexes(ns: &Ns, prefix: &str, count: u32) -> Result<Vec<u32>> {
    let links = ns.run("ip -j link show")?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&links)?;
    let numbers: HashMap<_, _> = links
        .iter()
        .filter_map(|link| Some((link["ifname"].as_str()?, link["ifindex"].as_u64()?)))
        .collect();
    (0..count)
        .map(|number| {
            let name = format!("{prefix}{number}");
            let ifindex = numbers
                .get(name.as_str())
                .with_context(|| format!("no interface {name} in {}", ns.name()))?;
            Ok(u32::try_from(*ifindex)?)
        })
        .collect()
}
