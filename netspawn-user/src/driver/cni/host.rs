//! The data plane and the links of the host, as the plugin uses them.

use std::{fs::File, io, os::unix::fs::MetadataExt as _, path::Path};

use super::{
    attachment::Attachment,
    error::{Error, code},
};
use crate::{
    cli::Global,
    commands::{Applied, DataPlane as _, View},
    datapath::plane::Plane,
    model::Host as Network,
    net::namespace,
    pinned::Pinned,
};

/// The host, whose folders and BPF file system are those of everything else here.
#[derive(Clone, Copy)]
pub struct Host<'a>(pub &'a Global);

impl Host<'_> {
    /// Folder of what is known of containers.
    pub fn run_dir(&self) -> &Path {
        &self.0.run_dir
    }

    /// The host's network.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn network(&self) -> Result<Network, Error> {
        Network::dump().map_err(|error| Error::kernel("cannot read the host's network", error))
    }

    /// Brings the data plane up to date.
    ///
    /// # Errors
    /// When that does not work, or nothing is attached.
    pub fn apply(&self) -> Result<Applied, Error> {
        let applied = Pinned(self.0).apply().map_err(|error| {
            Error::new(
                code::TRY_AGAIN,
                format!("the data plane cannot be brought up to date: {error:#}"),
                "see `netspawn-xdp status`",
            )
        })?;
        if applied.attached {
            Ok(applied)
        } else {
            Err(Error::new(
                code::TRY_AGAIN,
                "netspawn-xdp is attached to no uplink",
                "run `systemctl enable --now netspawn-xdp@UPLINK`",
            ))
        }
    }

    /// Brings the data plane up to date where there is one, in the wake of something that
    /// has succeeded whatever comes of this.
    pub fn settle(&self) {
        if let Err(error) = Pinned(self.0).apply() {
            tracing::warn!("the data plane is brought up to date later: {error:#}");
        }
    }

    /// Takes back what led to a failure. What could not be brought up to date a moment
    /// ago is not tried again: whoever does so next finds the container gone.
    pub fn withdraw(&self, error: &Error) {
        if error.code != code::TRY_AGAIN {
            self.settle();
        }
    }

    /// Whether the data plane serves a container.
    ///
    /// # Errors
    /// When it does not, with the reason.
    pub fn serves(&self, applied: &Applied, attachment: &Attachment) -> Result<(), Error> {
        let port = &attachment.port;
        let machine = &attachment.machine.name;
        let refuse = |why: String, remedy: &str| Err(Error::new(code::NOT_SERVED, why, remedy));
        let Some(found) = applied
            .machines
            .iter()
            .find(|machine| machine.ifindex == Some(port.ifindex))
        else {
            return refuse(
                format!("{machine} is not served on {}", port.name),
                "`netspawn-xdp attach` needs `cni` among its sources, and room in its maps; see \
                 `netspawn-xdp list`",
            );
        };
        if !found.conflicts.is_empty() {
            let lost: Vec<String> = found
                .conflicts
                .iter()
                .map(|conflict| format!("{} belongs to {}", conflict.prefix, conflict.holder))
                .collect();
            return refuse(
                format!("{machine} does not get its addresses: {}", lost.join(", ")),
                "take them out of the range that ipam gives from, or away from who has them",
            );
        }
        Ok(())
    }

    /// What the data plane does now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn view(&self) -> Result<View, Error> {
        Pinned(self.0).view().map_err(|error| unreadable(&error))
    }

    /// The smallest MTU of the uplinks that are attached.
    ///
    /// # Errors
    /// When the data plane cannot be read.
    pub fn uplink_mtu(&self) -> Result<Option<u32>, Error> {
        let network = self.network()?;
        // The agent is not asked, which may be busy, or stopped.
        let plane = Plane::open(&self.0.bpf_dir).map_err(|error| unreadable(&error))?;
        let uplinks = match plane {
            Some(mut plane) => plane.attached().map_err(|error| unreadable(&error))?,
            None => Vec::new(),
        };
        let mtus = uplinks
            .iter()
            .filter_map(|uplink| Some(network.links.get(&uplink.ifindex)?.mtu));
        Ok(mtus.min())
    }
}

fn unreadable(error: &anyhow::Error) -> Error {
    Error::new(
        code::TRY_AGAIN,
        format!("the data plane cannot be read: {error:#}"),
        "see `netspawn-xdp status`",
    )
}

/// The container's network namespace.
///
/// # Errors
/// When there is none at the path, or it is the host's.
pub fn open_namespace(path: &Path) -> Result<File, Error> {
    let wrong = |code, what: &str| {
        let expected = "expected the container's network namespace, as /run/netns/NAME";
        Error::new(
            code,
            format!("CNI_NETNS {}: {what}", path.display()),
            expected,
        )
    };
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => wrong(code::UNKNOWN_CONTAINER, "there is none"),
        _ => wrong(code::ENVIRONMENT, &error.to_string()),
    })?;
    let unknown = |error: io::Error| wrong(code::ENVIRONMENT, &error.to_string());
    let ours = std::fs::metadata("/proc/thread-self/ns/net").map_err(unknown)?;
    let theirs = file.metadata().map_err(unknown)?;
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Err(wrong(code::ENVIRONMENT, "it is the host's own"));
    }
    namespace::inside(Some(path.to_owned()), || Ok(()))
        .map_err(|error| wrong(code::ENVIRONMENT, &format!("cannot be entered: {error}")))?;
    Ok(file)
}
