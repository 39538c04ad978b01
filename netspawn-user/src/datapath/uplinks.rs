//! The life of uplinks: which interface has the programs of which.
//!
//! An uplink is recorded by its name, for people, and its ifindex, which tells a
//! renamed interface from another that has taken its name. An uplink that
//! becomes a port of a bridge or bond gives its programs to that master, which
//! has the frames from then on, and takes them back when it is released.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};

use super::{
    attach::{bpf::Hook, outermost},
    groups, object,
    pins::{self, Uplink},
    plane::{HOOKS, LINKS, Plane, program_of},
};
use crate::{
    cli::Mode,
    model::{Host, Link},
    net::interface,
};

/// What an uplink is called while names change hands: no interface has a colon
/// in its name (`dev_valid_name` in net/core/dev.c).
fn passing(ifindex: u32) -> String {
    format!(":{ifindex}")
}

/// The words for `mode`.
const fn mode(xdp: bool) -> &'static str {
    if xdp { "xdp" } else { "tc" }
}

impl Plane {
    /// Records an uplink as asked for by name.
    pub(super) fn record(&self, link: &Link, how: Mode) -> Result<()> {
        self.record_at(link, how == Mode::Xdp)?;
        for record in [pins::FOLLOWS, pins::MASTER, pins::GONE] {
            self.pins.forget(&link.name, record)?;
        }
        Ok(())
    }

    /// Has the records of an uplink say what they said before [`Plane::record`].
    pub(super) fn restore(&self, uplink: &Uplink) -> Result<()> {
        let name = &uplink.name;
        self.pins
            .record_uplink(name, pins::MODE, mode(uplink.xdp))?;
        if uplink.follows {
            self.pins.record_uplink(name, pins::FOLLOWS, "yes")?;
        }
        Ok(())
    }

    fn record_at(&self, link: &Link, xdp: bool) -> Result<()> {
        let ifindex = link.ifindex.to_string();
        self.pins.record_uplink(&link.name, pins::MODE, mode(xdp))?;
        self.pins.record_uplink(&link.name, pins::IFINDEX, &ifindex)
    }

    /// Has records carry the names that interfaces have now.
    ///
    /// # Errors
    /// When the bpffs refuses.
    pub(super) fn follow_names(&mut self, host: &Host) -> Result<()> {
        let renamed: Vec<(Uplink, &Link)> = self
            .pins
            .uplinks()?
            .into_iter()
            .filter(|uplink| !uplink.gone)
            .filter_map(|uplink| {
                let link = host.links.get(&uplink.ifindex)?;
                (link.name != uplink.name).then_some((uplink, link))
            })
            .collect();
        // In two steps, because two may have exchanged their names.
        for (uplink, _) in &renamed {
            self.pins
                .rename_uplink(&uplink.name, &passing(uplink.ifindex))?;
        }
        for (uplink, link) in &renamed {
            // That of an interface that is gone: its name is another's now.
            self.pins.remove_uplink(&link.name)?;
            self.pins
                .rename_uplink(&passing(uplink.ifindex), &link.name)?;
            tracing::info!(
                "{} is called {} now, and stays attached",
                uplink.name,
                link.name
            );
        }
        if !renamed.is_empty() {
            self.kept.keep_records(&self.pins)?;
        }
        Ok(())
    }

    /// Follows uplinks that were renamed, deleted, made again, put into a bridge
    /// or bond, or released.
    ///
    /// # Errors
    /// When the kernel refuses; what is not done is done by the next call.
    pub(super) fn follow(&mut self, host: &Host) -> Result<()> {
        self.follow_names(host)?;
        if self.programs.is_some() {
            for uplink in self.pins.uplinks()? {
                let absent = uplink.gone || !host.links.contains_key(&uplink.ifindex);
                if absent && !uplink.follows {
                    self.follow_absent(host, &uplink)?;
                }
            }
            for uplink in self.pins.uplinks()? {
                if let Some(link) = host.links.get(&uplink.ifindex)
                    && !uplink.gone
                    && !uplink.follows
                {
                    self.follow_master(host, &uplink, link)?;
                }
            }
        }
        self.drop_followers()
    }

    /// An uplink whose interface is not there: another with its name may be.
    fn follow_absent(&mut self, host: &Host, uplink: &Uplink) -> Result<()> {
        let name = &uplink.name;
        let Some(link) = host.link(name) else {
            if !uplink.gone {
                // It may have gone to another namespace with its programs.
                if let Err(errors) = self.take_programs_off(uplink) {
                    tracing::warn!("{errors}");
                }
                groups::forget(&self.pins, name)?;
                self.pins.forget(name, pins::MASTER)?;
                self.pins.record_uplink(name, pins::GONE, "yes")?;
                tracing::info!(
                    interface = name,
                    "{name} is gone; it is attached again when it is back"
                );
            }
            return Ok(());
        };
        let known = self.pins.uplinks()?;
        if known
            .iter()
            .any(|other| other.name != *name && !other.gone && other.ifindex == link.ifindex)
        {
            // It is back under a name that it also has as another uplink.
            return self.pins.remove_uplink(name);
        }
        groups::forget(&self.pins, name)?;
        self.attach_uplink(name, link.ifindex, uplink.xdp)?;
        let ifindex = link.ifindex.to_string();
        self.pins.record_uplink(name, pins::IFINDEX, &ifindex)?;
        self.pins.forget(name, pins::MASTER)?;
        self.pins.forget(name, pins::GONE)?;
        tracing::info!(interface = name, "{name} is back, and attached again");
        Ok(())
    }

    /// An uplink that is there: on itself, or on the master that it is a port of.
    fn follow_master(&mut self, host: &Host, uplink: &Uplink, link: &Link) -> Result<()> {
        let name = &uplink.name;
        let master = outermost(host, link);
        if master.ifindex == link.ifindex {
            if uplink.master.is_some() {
                self.attach_uplink(name, link.ifindex, uplink.xdp)?;
                self.pins.forget(name, pins::MASTER)?;
                tracing::info!(
                    interface = name,
                    "{name} is no port any more, and attached itself again"
                );
            }
            return Ok(());
        }
        if uplink.master.is_none() {
            // A bond takes no XDP program while a port of it has one.
            if let Err(errors) = self.take_programs_off(uplink) {
                tracing::warn!("{errors}");
            }
            for line in groups::put_back(&self.pins, &mut self.netlink, name, link.ifindex) {
                tracing::warn!("{line}");
            }
        }
        self.attach_master(master, uplink.xdp)?;
        if uplink.master != Some(master.ifindex) {
            let ifindex = master.ifindex.to_string();
            self.pins.record_uplink(name, pins::MASTER, &ifindex)?;
            tracing::info!(
                "{name} is a port of the {} {}, which is attached in its place",
                master.kind.as_deref().unwrap_or("master"),
                master.name
            );
        }
        Ok(())
    }

    /// Attaches a master in the place of its ports, unless it is attached.
    fn attach_master(&mut self, master: &Link, xdp: bool) -> Result<()> {
        let known = self.pins.uplinks()?;
        if known
            .iter()
            .any(|uplink| uplink.ifindex == master.ifindex && uplink.has_programs())
        {
            return Ok(());
        }
        self.pins
            .record_uplink(&master.name, pins::FOLLOWS, "yes")?;
        self.record_at(master, xdp)?;
        let result = self.attach_uplink(&master.name, master.ifindex, xdp);
        match result {
            Err(error) if xdp => {
                tracing::warn!("{error}; {} is attached by tc alone", master.name);
                self.record_at(master, false)?;
                self.attach_uplink(&master.name, master.ifindex, false)
            }
            result => result,
        }
    }

    /// Takes masters off that are there in place of ports, of which none is left.
    fn drop_followers(&mut self) -> Result<()> {
        let uplinks = self.pins.uplinks()?;
        let needed = |master: &Uplink| {
            uplinks
                .iter()
                .any(|port| port.master == Some(master.ifindex))
        };
        for master in uplinks.iter().filter(|uplink| uplink.follows) {
            if !needed(master) {
                for line in self.take_off(&master.name, master.ifindex) {
                    tracing::warn!("{line}");
                }
            }
        }
        Ok(())
    }

    fn take_programs_off(&mut self, uplink: &Uplink) -> Result<(), super::attach::Errors> {
        let links = self.links(&uplink.name);
        let links: Vec<_> = links
            .iter()
            .map(|(hook, path)| (*hook, path.as_path()))
            .collect();
        self.uplinks.detach(uplink.ifindex, &links)
    }

    /// Attaches this process's programs to an interface. XDP goes first, because
    /// that is what may be refused.
    pub(super) fn attach_uplink(&mut self, name: &str, ifindex: u32, xdp: bool) -> Result<()> {
        self.attach_hooks(&HOOKS, name, ifindex, xdp)
    }

    /// Attaches those of these hooks.
    pub(super) fn attach_hooks(
        &mut self,
        hooks: &[Hook],
        name: &str,
        ifindex: u32,
        xdp: bool,
    ) -> Result<()> {
        let programs = self
            .programs
            .as_mut()
            .context("this process has loaded no programs")?;
        let links = LINKS.map(|(hook, file)| (hook, self.pins.uplink(name).join(file)));
        for (hook, pin) in links.into_iter().filter(|(hook, _)| hooks.contains(hook)) {
            let program = match hook {
                Hook::Xdp if !xdp => {
                    self.uplinks.detach(ifindex, &[(hook, &pin)])?;
                    continue;
                }
                Hook::Xdp => object::xdp(programs)?.fd()?.as_fd(),
                _ => object::classifier(programs, program_of(hook))?
                    .fd()?
                    .as_fd(),
            };
            self.uplinks.attach(ifindex, hook, program, &pin)?;
        }
        Ok(())
    }

    /// Puts back programs and groups that somebody else has taken off uplinks.
    pub(super) fn mend_uplinks(&mut self) -> Result<()> {
        if self.programs.is_none() {
            return Ok(());
        }
        for uplink in self.pins.uplinks()? {
            if !uplink.has_programs() || !exists(uplink.ifindex)? {
                continue;
            }
            let found = self.programs_on(&uplink.name, uplink.ifindex)?;
            let whole = if uplink.xdp { 3 } else { 2 };
            if found.len() < whole {
                tracing::warn!(
                    "programs of {} were taken off; they are put back",
                    uplink.name
                );
                self.attach_uplink(&uplink.name, uplink.ifindex, uplink.xdp)?;
            }
            groups::mend(&self.pins, &mut self.netlink, &uplink.name, uplink.ifindex)?;
        }
        Ok(())
    }
}

/// Whether there is an interface with that number in this namespace.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn exists(ifindex: u32) -> Result<bool> {
    let name = interface::name_of(ifindex);
    Ok(name
        .with_context(|| format!("cannot look for the interface {ifindex}"))?
        .is_some())
}
