//! Who has made a link, as far as engines' records say.
//!
//! A link's name says nothing about who has made it: users of an engine who are nobody
//! on the host may choose it, and call theirs as another machine's file expects. Nor does
//! the kernel: any engine makes links as root. What tells is the engine's own record of
//! what it has made, read after the link was there.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::{Located, Users, answers, follow};
use crate::{
    model::{Host, Link},
    source::{Source, engine::answers::Answered},
};

/// How long an engine may take to say whose a link is before that is a problem.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of links, by ifindex. Links of which engines say nothing are the host's,
/// and not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Makers(BTreeMap<u32, Maker>);

/// What is known of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maker {
    /// The machine of an engine's that has it as its port, by its name here.
    pub machine: Option<String>,
    /// The user's machine that it is of, when users whom root need not trust have named
    /// it or what is behind it.
    pub user: Option<User>,
    /// The machine that a user has asked such a name for, of which it may be.
    pub wanted: Option<String>,
    /// The engine that has to say whether it is one of its users'.
    pub unsaid: Option<Unsaid>,
}

/// A machine of a user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// What it is to its engine: `incus container web of project acme`.
    pub origin: String,
    /// Its name here, when its place is known by more than a chosen name.
    pub machine: Option<String>,
}

/// That an engine has not listed its machines since a link is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsaid {
    /// The engine.
    pub by: Source,
    /// Whether it takes longer than it should.
    pub overdue: bool,
}

impl Makers {
    /// What is known of a link, `None` when it is the host's.
    pub fn of(&self, ifindex: u32) -> Option<&Maker> {
        self.0.get(&ifindex)
    }

    /// Sets what is known of a link, for tests.
    #[cfg(test)]
    pub(crate) fn set(&mut self, ifindex: u32, maker: Maker) {
        self.0.insert(ifindex, maker);
    }
}

/// What an engine's record says of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OfUsers {
    /// There is none, or it says nothing.
    Nothing,
    /// This.
    Said(Users),
    /// It cannot be read, and may say anything.
    Unreadable,
}

impl OfUsers {
    fn any(&self) -> bool {
        match self {
            OfUsers::Nothing => false,
            OfUsers::Said(users) => users.any,
            OfUsers::Unreadable => true,
        }
    }
}

/// What engines said, when, and since when which links are there.
#[derive(Debug, Default)]
pub struct Known {
    /// When each link was first seen under its present name, by ifindex.
    seen: HashMap<u32, (String, Instant)>,
    answered: Answered,
    /// Of the engines that may have users.
    users: BTreeMap<Source, OfUsers>,
    /// Whether engines are asked by this process, or what others have kept is all there is.
    asks: bool,
    patience: Duration,
    /// Whether engines may be there, for tests; else it is looked at.
    #[cfg(test)]
    pub(super) there: Option<bool>,
}

impl Known {
    /// For a process that reads what others have kept.
    pub fn kept() -> Self {
        Known::default()
    }

    /// For a process that asks engines once, or follows them.
    pub fn asking(follows: bool) -> Self {
        Known {
            asks: true,
            patience: if follows { PATIENCE } else { Duration::ZERO },
            ..Known::default()
        }
    }

    /// Notes which links are there now.
    pub fn see(&mut self, host: &Host, now: Instant) {
        self.seen
            .retain(|ifindex, _| host.links.contains_key(ifindex));
        for link in host.links.values() {
            match self.seen.get_mut(&link.ifindex) {
                Some((name, _)) if *name == link.name => {}
                // A new name is as good as a new link.
                _ => {
                    self.seen.insert(link.ifindex, (link.name.clone(), now));
                }
            }
        }
    }

    /// What engines with users say from now on, with their answers of a moment before it
    /// was read.
    pub fn learn(&mut self, answered: Answered, users: BTreeMap<Source, OfUsers>) {
        self.answered = answered;
        self.users = users;
    }

    /// What is known of the links of `host`. `located`: the engines' machines with the
    /// ports that were found for them.
    pub fn makers<'a>(
        &mut self,
        host: &Host,
        located: impl Iterator<Item = (&'a Located, u32)>,
        now: Instant,
    ) -> Makers {
        self.see(host, now);
        let mut makers = Makers::default();
        self.named(host, &mut makers.0);
        for (machine, ifindex) in located {
            let maker = makers.0.entry(ifindex).or_default();
            maker.machine = Some(machine.name.clone());
            if machine.named_by_user {
                maker.user = Some(User {
                    origin: machine.origin.clone(),
                    machine: Some(machine.name.clone()),
                });
            }
            if machine.by_name()
                && self.have_users()
                && self.asks
                && let Some(since) = self.since(ifindex)
                && !self.answered.has_listed_since(machine.source, since)
            {
                maker.unsaid = Some(self.unsaid(machine.source, since, now));
            }
        }
        for (source, paths) in follow::with_users() {
            let there = self.is_there(paths);
            for ifindex in host.links.keys() {
                let Some(since) = self.since(*ifindex) else {
                    continue;
                };
                if self.may_have_made(source, since, there) {
                    let maker = makers.0.entry(*ifindex).or_default();
                    // Who does not ask has no later answer to wait for.
                    if self.asks || maker.user.is_none() {
                        maker.unsaid = Some(self.unsaid(source, since, now));
                    }
                }
            }
        }
        makers
    }

    /// Links that users have named.
    fn named(&self, host: &Host, makers: &mut BTreeMap<u32, Maker>) {
        let named: HashMap<&str, (Source, &super::Named)> = self
            .users
            .iter()
            .filter_map(|(source, record)| match record {
                OfUsers::Said(users) => Some((*source, &users.links)),
                _ => None,
            })
            .flat_map(|(source, links)| {
                let links = links.iter();
                links.map(move |(link, named)| (link.as_str(), (source, named)))
            })
            .collect();
        if named.is_empty() {
            return;
        }
        let names = |link: &'_ Link| {
            let all = std::iter::once(&link.name).chain(&link.alt_names);
            all.filter_map(|name| named.get(name.as_str()).copied())
                .collect::<Vec<_>>()
        };
        for link in host.links.values() {
            for (source, named) in names(link) {
                let origin = format!("{} {}", source.name(), named.origin);
                let maker = makers.entry(link.ifindex).or_default();
                if named.made {
                    maker.user = Some(User {
                        origin,
                        machine: None,
                    });
                } else {
                    maker.wanted = Some(origin);
                }
            }
        }
    }

    #[cfg(not(test))]
    fn is_there(&self, paths: &[&str]) -> bool {
        answers::is_there(paths)
    }

    #[cfg(test)]
    fn is_there(&self, paths: &[&str]) -> bool {
        self.there.unwrap_or_else(|| answers::is_there(paths))
    }

    fn since(&self, ifindex: u32) -> Option<Instant> {
        self.seen.get(&ifindex).map(|(_, since)| *since)
    }

    fn unsaid(&self, by: Source, since: Instant, now: Instant) -> Unsaid {
        Unsaid {
            by,
            overdue: now.saturating_duration_since(since) >= self.patience,
        }
    }

    fn may_have_made(&self, source: Source, since: Instant, there: bool) -> bool {
        match self.users.get(&source) {
            Some(OfUsers::Said(users)) if !self.asks && !users.any => false,
            record => {
                let kept = record.is_some_and(OfUsers::any);
                self.answered.may_have_made(source, since, kept, there)
            }
        }
    }

    /// Whether any engine has users who name links.
    fn have_users(&self) -> bool {
        let mut records = self.users.iter();
        records.any(|(source, record)| self.answered.has_users(*source, record.any()))
    }
}
