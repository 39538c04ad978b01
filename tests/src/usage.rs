//! What a data plane and its agent hold, in numbers, to be compared over time.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    bpf::{self, Direction, Object, tcx_programs},
    ns::Ns,
};

/// The first of the blocks that ports share, and how many there are.
const BLOCKS: std::ops::Range<u32> = 0x6e73_7800..0x6e73_7840;

/// Numbers by name; those of maps begin with `map `.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage(pub BTreeMap<String, u64>);

impl Usage {
    /// What the data plane in a namespace holds, whose maps and links are pinned in a
    /// directory, and what its agent does, if there is one.
    pub fn take(host: &Ns, pins: &Path, uplink: &str, agent: Option<u32>) -> Result<Self> {
        let mut usage = Usage::default();
        if let Some(agent) = agent {
            usage.process(agent)?;
        }
        usage.maps(&pins.join("maps"))?;
        usage.interfaces(host, uplink)?;
        usage.objects(&pins.join("maps"))?;
        Ok(usage)
    }

    /// A number; 0 when there is none of that name.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    fn set(&mut self, name: impl Into<String>, value: usize) {
        self.0.insert(name.into(), value as u64);
    }

    /// Memory in KiB, descriptors, threads.
    fn process(&mut self, pid: u32) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("the agent {pid} is gone"))?;
        for (name, key) in [("rss", "VmRSS:"), ("threads", "Threads:")] {
            let value = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|word| word.parse().ok())
                .with_context(|| format!("no {key} in the status of {pid}"))?;
            self.set(name, value);
        }
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        self.set("descriptors", descriptors);
        Ok(())
    }

    /// Entries of those maps that have more or fewer of them.
    fn maps(&mut self, folder: &Path) -> Result<()> {
        for entry in
            fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().display().to_string();
            if let Some(entries) = bpf::map_entries(&path)? {
                self.set(format!("map {name}"), entries);
            }
        }
        Ok(())
    }

    fn interfaces(&mut self, host: &Ns, uplink: &str) -> Result<()> {
        let text = host.run("tc -j qdisc show")?;
        let qdiscs: Vec<Value> =
            serde_json::from_str(&text).with_context(|| format!("tc printed {text}"))?;
        let ours = |qdisc: &&Value| {
            ["ingress", "clsact"]
                .iter()
                .any(|kind| qdisc["kind"] == **kind)
        };
        self.set("qdiscs", qdiscs.iter().filter(ours).count());
        let mut filters = 0;
        for block in BLOCKS {
            // A block is there while a port is in it.
            let output = host
                .cmd("tc")
                .args(["filter", "show", "block", &block.to_string()])
                .output()?;
            filters += output.stdout.matches(" handle 0x").count();
        }
        let mut tcx = 0;
        for direction in [Direction::Ingress, Direction::Egress] {
            tcx += tcx_programs(host, uplink, direction)?.len();
            let side = match direction {
                Direction::Ingress => "ingress",
                Direction::Egress => "egress",
            };
            let text = host.run(&format!("tc filter show dev {uplink} {side}"))?;
            filters += text.matches(" handle 0x").count();
        }
        self.set("filters", filters);
        self.set("tcx", tcx);
        let groups = host.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/dev_mcast")?))?;
        let groups = groups
            .lines()
            .filter(|line| line.split_whitespace().nth(1) == Some(uplink));
        self.set("groups", groups.count());
        Ok(())
    }

    /// Programs that use one of the maps pinned, what they use, and links to them: those
    /// that nothing leads to any more as well.
    fn objects(&mut self, folder: &Path) -> Result<()> {
        let mut maps = std::collections::BTreeSet::new();
        for entry in fs::read_dir(folder)? {
            maps.insert(bpf::pinned_map_id(&entry?.path())?);
        }
        ensure!(!maps.is_empty(), "no map is in {}", folder.display());
        let mut programs = std::collections::BTreeSet::new();
        for (id, object) in bpf::objects(Object::Program)? {
            let used = bpf::program_maps(&object)?;
            if used.iter().any(|map| maps.contains(map)) {
                programs.insert(id);
                // Not those of others who use the same map: nobody else does.
                maps.extend(used);
            }
        }
        let mut links = 0;
        for (_, object) in bpf::objects(Object::Link)? {
            links += usize::from(programs.contains(&bpf::link_program(&object)?));
        }
        self.set("programs", programs.len());
        self.set("links", links);
        self.set("maps", maps.len());
        Ok(())
    }
}

/// Whether numbers taken over time stay level.
///
/// What is counted has to come back to the same number. Memory, which allocators keep and
/// give back as they see fit, and the map of drops, which has an entry for each reason
/// that a machine had, may grow a little between the second quarter and the last one.
#[derive(Clone, Debug)]
pub struct Trend {
    rows: Vec<Usage>,
}

/// What some may grow by: percent, and a number where that is more.
const GROWTH: [(&str, u64, u64); 2] = [("rss", 5, 2_048), ("map drops", 10, 100)];

impl Trend {
    /// Of rows in their order.
    pub const fn new(rows: Vec<Usage>) -> Self {
        Trend { rows }
    }

    /// What is not level, in words; nothing when all of it is.
    ///
    /// # Errors
    /// When there are fewer than four rows.
    pub fn faults(&self) -> Result<Vec<String>> {
        if self.rows.len() < 4 {
            bail!("{} rows say nothing about a trend", self.rows.len());
        }
        let names: std::collections::BTreeSet<&String> =
            self.rows.iter().flat_map(|row| row.0.keys()).collect();
        let mut faults = Vec::new();
        for name in names {
            let values: Vec<u64> = self.rows.iter().map(|row| row.get(name)).collect();
            let quarter = values.len() / 4;
            let (early, late) = (
                median(&values[quarter..2 * quarter.max(1)]),
                median(&values[values.len() - quarter.max(1)..]),
            );
            let allowed = GROWTH
                .iter()
                .find(|(noisy, ..)| noisy == name)
                .map_or(0, |(_, percent, least)| (early * percent / 100).max(*least));
            if late > early + allowed {
                faults.push(format!("{name} grew from {early} to {late}"));
            }
        }
        Ok(faults)
    }
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(name: &str, values: impl IntoIterator<Item = u64>) -> Trend {
        let row = |value| Usage(BTreeMap::from([(name.to_owned(), value)]));
        Trend::new(values.into_iter().map(row).collect())
    }

    #[test]
    fn what_grows_is_seen() {
        let faults = |trend: Trend| trend.faults().unwrap();
        assert_eq!(faults(trend("descriptors", [20; 8])), [""; 0]);
        // One row is noise, and a beginning is not yet level.
        assert_eq!(
            faults(trend("descriptors", [9, 12, 20, 20, 27, 20, 20, 20])),
            [""; 0]
        );
        assert_eq!(
            faults(trend("descriptors", [20, 20, 20, 20, 20, 21, 21, 21])),
            ["descriptors grew from 20 to 21"]
        );
        assert_eq!(
            faults(trend("rss", (0..40).map(|row| 90_000 + row))),
            [""; 0]
        );
        assert_eq!(
            faults(trend("rss", (0..40).map(|row| 90_000 + 500 * row))),
            ["rss grew from 97500 to 107500"]
        );
    }

    #[test]
    fn few_rows_are_no_trend() {
        assert!(trend("rss", [1, 2, 3]).faults().is_err());
    }
}
