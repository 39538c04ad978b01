//! What it takes to go back to how things were. Pure, but for [`Standing::read`].

use std::{collections::BTreeSet, fmt};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::{
    cli::{Global, Mode},
    control::RunDir,
    datapath::{object::Sizes, pins::Pins},
    gone,
    model::Link,
    source::Source,
};

/// An uplink that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Its name when it was looked at.
    pub name: String,
    /// Its ifindex, which tells a renamed interface from another of its name.
    pub ifindex: u32,
    /// [`Mode::Tc`] or [`Mode::Xdp`].
    pub mode: Mode,
}

impl Attached {
    fn is(&self, other: &Attached) -> bool {
        self.ifindex == other.ifindex || self.name == other.name
    }
}

/// What is attached at one moment, as far as an attach changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Whether anything is pinned.
    pub pinned: bool,
    /// Whether all is pinned that a data plane needs; an attach that was killed
    /// leaves less.
    pub whole: bool,
    /// The uplinks that were asked for.
    pub uplinks: Vec<Attached>,
    /// Where machines are declared.
    pub sources: BTreeSet<Source>,
}

impl Standing {
    /// Reads what is pinned and recorded. To be believed as long as nobody
    /// attaches meanwhile.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn read(global: &Global) -> Result<Self> {
        let pins = Pins::new(&global.bpf_dir);
        let uplinks = pins.uplinks()?.into_iter();
        let guard = gone::is_there(&pins.guard()).context("cannot look for the guard")?;
        Ok(Standing {
            pinned: pins.exist()?,
            whole: guard && Sizes::pinned(&pins.maps())?.is_some(),
            uplinks: uplinks
                .filter(|uplink| !uplink.follows)
                .map(|uplink| Attached {
                    name: uplink.name,
                    ifindex: uplink.ifindex,
                    mode: if uplink.xdp { Mode::Xdp } else { Mode::Tc },
                })
                .collect(),
            sources: RunDir::new(&global.run_dir).sources()?,
        })
    }

    /// What it will be once these uplinks are attached; `sources` are those of the
    /// process that follows the machines from then on.
    #[must_use]
    pub fn with(&self, uplinks: &[(&Link, Mode)], sources: &BTreeSet<Source>) -> Self {
        let mut after = Standing {
            pinned: true,
            whole: true,
            sources: sources.clone(),
            ..self.clone()
        };
        for (link, mode) in uplinks {
            let new = Attached {
                name: link.name.clone(),
                ifindex: link.ifindex,
                mode: match mode {
                    Mode::Xdp => Mode::Xdp,
                    Mode::Auto | Mode::Tc => Mode::Tc,
                },
            };
            match after.uplinks.iter_mut().find(|uplink| uplink.is(&new)) {
                Some(uplink) => *uplink = new,
                None => after.uplinks.push(new),
            }
        }
        after
    }
}

/// Who follows the machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// Nobody.
    None,
    /// The attach that is to be undone.
    Own,
    /// Another process, which stays.
    Other,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undo {
    /// Nothing was attached before: all goes.
    pub everything: bool,
    /// Whether the agent ends.
    pub end_agent: bool,
    /// Uplinks that get their former mode, and by the way the former sources.
    pub restore: Vec<(String, Mode)>,
    /// Uplinks that were not attached before.
    pub detach: Vec<String>,
}

impl Undo {
    /// What leads from `now` to `before`, as far as an attach has led away from it. What was
    /// taken off in between stays off.
    pub fn of(before: &Standing, now: &Standing, agent: Agent) -> Undo {
        if !now.pinned {
            return Undo::default();
        }
        if !before.pinned {
            return Undo {
                everything: true,
                detach: now
                    .uplinks
                    .iter()
                    .map(|uplink| uplink.name.clone())
                    .collect(),
                ..Undo::default()
            };
        }
        let sources = agent != Agent::Other && before.sources != now.sources;
        let mut undo = Undo {
            end_agent: agent == Agent::Own,
            ..Undo::default()
        };
        for uplink in &now.uplinks {
            match before.uplinks.iter().find(|was| was.is(uplink)) {
                Some(was) if was.mode != uplink.mode || sources || !now.whole => {
                    undo.restore.push((uplink.name.clone(), was.mode));
                }
                Some(_) => {}
                None => undo.detach.push(uplink.name.clone()),
            }
        }
        undo
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Undo::default()
    }
}

/// `eth1 is detached, eth0 is attached by xdp again`.
impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        if !self.detach.is_empty() {
            let verb = if self.detach.len() == 1 { "is" } else { "are" };
            parts.push(format!("{} {verb} detached", self.detach.join(", ")));
        } else if self.everything {
            parts.push("everything is detached".to_owned());
        }
        for (name, mode) in &self.restore {
            parts.push(format!("{name} is attached by {} again", mode.name()));
        }
        if self.end_agent {
            parts.push("the agent ends".to_owned());
        }
        if parts.is_empty() {
            parts.push("nothing changes".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(uplinks: &[(&str, u32, Mode)]) -> Standing {
        Standing {
            pinned: !uplinks.is_empty(),
            whole: true,
            uplinks: uplinks
                .iter()
                .map(|&(name, ifindex, mode)| Attached {
                    name: name.to_owned(),
                    ifindex,
                    mode,
                })
                .collect(),
            sources: Source::DEFAULT.into(),
        }
    }

    fn undo(before: &Standing, now: &Standing, agent: Agent) -> String {
        Undo::of(before, now, agent).to_string()
    }

    #[test]
    fn first_attach_is_undone_whole() {
        let (none, one) = (standing(&[]), standing(&[("eth0", 2, Mode::Tc)]));
        let all = Undo::of(&none, &one, Agent::Own);
        assert!(all.everything && all.restore.is_empty() && !all.end_agent);
        assert_eq!(all.to_string(), "eth0 is detached");
        let killed = Standing {
            pinned: true,
            ..Standing::default()
        };
        assert_eq!(undo(&none, &killed, Agent::None), "everything is detached");
        assert!(Undo::of(&none, &none, Agent::None).is_empty());
    }

    #[test]
    fn what_was_attached_before_stays() {
        let one = standing(&[("eth0", 2, Mode::Tc)]);
        let two = standing(&[("eth0", 2, Mode::Tc), ("eth1", 3, Mode::Tc)]);
        assert_eq!(undo(&one, &two, Agent::Other), "eth1 is detached");
        assert_eq!(
            undo(&one, &two, Agent::Own),
            "eth1 is detached, the agent ends"
        );
        assert!(Undo::of(&one, &one, Agent::Other).is_empty());
        assert!(Undo::of(&one, &one, Agent::None).is_empty());
        // The operator has taken it off meanwhile.
        assert!(Undo::of(&two, &one, Agent::None).is_empty());
        assert!(Undo::of(&two, &standing(&[]), Agent::None).is_empty());
        // Renamed, or made again.
        for moved in [("wan", 2, Mode::Tc), ("eth0", 9, Mode::Tc)] {
            assert!(Undo::of(&one, &standing(&[moved]), Agent::None).is_empty());
        }
    }

    #[test]
    fn former_mode_and_sources_come_back() {
        let tc = standing(&[("eth0", 2, Mode::Tc)]);
        let xdp = standing(&[("eth0", 2, Mode::Xdp)]);
        assert_eq!(
            undo(&tc, &xdp, Agent::Other),
            "eth0 is attached by tc again"
        );
        assert_eq!(
            undo(&xdp, &tc, Agent::None),
            "eth0 is attached by xdp again"
        );
        let files = Standing {
            sources: [Source::Files].into(),
            ..tc.clone()
        };
        assert_eq!(
            undo(&tc, &files, Agent::Own),
            "eth0 is attached by tc again, the agent ends"
        );
        // Those of an agent that stays are its own business.
        assert!(Undo::of(&tc, &files, Agent::Other).is_empty());
        let half = Standing {
            whole: false,
            ..tc.clone()
        };
        assert_eq!(
            undo(&tc, &half, Agent::None),
            "eth0 is attached by tc again"
        );
    }

    #[test]
    fn standing_is_foretold() {
        let one = standing(&[("eth0", 2, Mode::Tc)]);
        let (eth0, eth1) = (Link::ethernet(2, "eth0"), Link::ethernet(3, "eth1"));
        assert_eq!(one.with(&[(&eth0, Mode::Auto)], &one.sources), one);
        assert_eq!(
            one.with(&[(&eth0, Mode::Xdp), (&eth1, Mode::Auto)], &one.sources),
            standing(&[("eth0", 2, Mode::Xdp), ("eth1", 3, Mode::Tc)])
        );
    }
}
