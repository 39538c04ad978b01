//! What is known of each container that is connected, a file each in `RUNDIR/cni`.

use std::{
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::environment::Target;
use crate::{
    gone, lock,
    model::Host,
    problem::{Fault, Problem},
    source::{PRIVATE, draft, engine::Machine, replace},
};

/// Hex digits in the names of links and files.
const DIGITS: usize = 12;
/// For a plugin that gives addresses, as one that asks a DHCP server.
const PATIENCE: Duration = Duration::from_secs(15);

/// A container's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The runtime's id of the container.
    pub container: String,
    /// Name of the interface in the container.
    pub ifname: String,
    /// The container's network namespace.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS` at ADD.
    pub args: String,
    /// `CNI_PATH` at ADD.
    pub path: String,
    /// The host's end of the link.
    pub port: Port,
    /// The plugin that has given the addresses, to be told when they are free again;
    /// none after another plugin, whose they are.
    pub ipam: Option<Delegated>,
    /// As the data plane has it.
    pub machine: Machine,
}

/// The host's end of a link. The name alone may be another's by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its ifindex.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Whether it was made here; else by a plugin before in the chain.
    pub own: bool,
}

impl Port {
    /// Whether it is still there.
    pub fn is_there(&self, host: &Host) -> bool {
        let link = host.links.get(&self.ifindex);
        link.is_some_and(|link| link.name == self.name)
    }
}

/// A plugin that has given addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegated {
    /// Its file's name.
    pub kind: String,
    /// The network configuration that it was run with.
    pub config: Value,
}

impl Attachment {
    /// The interface, as a runtime names it.
    pub fn target(&self) -> Target {
        Target {
            container: self.container.clone(),
            ifname: self.ifname.clone(),
            netns: self.netns.clone(),
            args: self.args.clone(),
        }
    }

    /// Whether it is this one's.
    pub fn is(&self, container: &str, ifname: &str) -> bool {
        self.container == container && self.ifname == ifname
    }

    /// Writes down that an ADD of it begins, which may be killed at any time, with what
    /// has to be given back then.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(&self, run_dir: &Path) -> io::Result<Begun> {
        let path = begun(run_dir, &self.container, &self.ifname);
        // Who may open a file may hold it locked, as if this went on for ever.
        make_private(&begun_folder(run_dir))?;
        let draft = draft(&path, &serde_json::to_vec(self)?, PRIVATE)?;
        draft.as_file().lock()?;
        // Whom this process asks for addresses holds it as well, and may outlive it.
        fcntl(draft.as_file(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let lock = draft.persist(&path).map_err(|error| error.error)?;
        Ok(Begun { path, _lock: lock })
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, run_dir: &Path) -> io::Result<()> {
        make_folder(run_dir)?;
        replace(
            &file(run_dir, &self.container, &self.ifname),
            &serde_json::to_vec(self)?,
            PRIVATE,
        )
    }
}

/// An ADD that has begun. Its file is locked until the value is dropped, with which it
/// goes: one that is there and not locked is of an ADD that was killed, and of which nothing
/// runs on.
#[derive(Debug)]
pub struct Begun {
    path: PathBuf,
    _lock: File,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The folder in RUNDIR.
pub fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("cni")
}

/// The folder in RUNDIR of those whose ADD has begun. It is another one, as that of those
/// that are connected is watched.
pub fn begun_folder(run_dir: &Path) -> PathBuf {
    run_dir.join("cni-begun")
}

/// Digits that tell interfaces of containers apart.
fn digits(container: &str, ifname: &str) -> String {
    let digest = Sha256::digest(format!("{container}/{ifname}"));
    let mut digits = String::with_capacity(DIGITS);
    for byte in digest.iter().take(DIGITS / 2) {
        digits += &format!("{byte:02x}");
    }
    digits
}

/// Name of the host's end of an interface's link.
pub fn port_name(container: &str, ifname: &str) -> String {
    format!("cni{}", digits(container, ifname))
}

fn file(run_dir: &Path, container: &str, ifname: &str) -> PathBuf {
    folder(run_dir).join(format!("{}.json", digits(container, ifname)))
}

fn begun(run_dir: &Path, container: &str, ifname: &str) -> PathBuf {
    begun_folder(run_dir).join(format!("{}.json", digits(container, ifname)))
}

/// The one of that interface.
///
/// # Errors
/// When its file cannot be read.
pub fn find(run_dir: &Path, container: &str, ifname: &str) -> Result<Option<Attachment>, Problem> {
    read(&file(run_dir, container, ifname))
}

/// Forgets the one of that interface, and that its ADD was killed. That there is none is
/// no error.
///
/// # Errors
/// When a file cannot be removed.
pub fn forget(run_dir: &Path, container: &str, ifname: &str) -> io::Result<()> {
    let kept = remove(&file(run_dir, container, ifname));
    remove(&begun(run_dir, container, ifname)).and(kept)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All of them, in the order of their links.
///
/// # Errors
/// When the folder or a file cannot be read.
pub fn list(run_dir: &Path) -> Result<Vec<Attachment>, Problem> {
    let mut found = Vec::new();
    for path in files(&folder(run_dir))? {
        found.extend(read(&path)?);
    }
    found.sort_by_key(|attachment| (attachment.port.ifindex, attachment.ifname.clone()));
    Ok(found)
}

/// Those whose ADD was killed.
///
/// # Errors
/// When the folder or a file cannot be read.
pub fn broken_off(run_dir: &Path) -> Result<Vec<Attachment>, Problem> {
    let mut found = Vec::new();
    for path in files(&begun_folder(run_dir))? {
        if is_broken_off(&path).map_err(|error| {
            Fault::new(format!("cannot be looked at: {error}"), "").at(&path, None, None)
        })? {
            found.extend(read(&path)?);
        }
    }
    Ok(found)
}

/// Whether nobody works on an ADD: it is not gone, nor locked.
fn is_broken_off(path: &Path) -> io::Result<bool> {
    let Some(file) = gone::path(File::open(path))? else {
        return Ok(false);
    };
    match file.try_lock() {
        Ok(()) => lock::is_at(&file, path),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Waits for what an ADD of that interface has started and was killed before: it may be about
/// to give addresses.
pub fn wait(run_dir: &Path, container: &str, ifname: &str) {
    let Ok(file) = File::open(begun(run_dir, container, ifname)) else {
        return;
    };
    let start = Instant::now();
    while file.try_lock().is_err() {
        if start.elapsed() > PATIENCE {
            tracing::warn!("an ADD of {ifname} in container {container} does not come to an end");
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The files of a folder that are one's each.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Problem> {
    let unlisted = |error: io::Error| {
        Fault::new(format!("cannot be listed: {error}"), "").at(folder, None, None)
    };
    let entries = gone::list(folder).map_err(unlisted)?;
    let mut found = Vec::new();
    for entry in entries.into_iter().flatten() {
        let path = entry.path();
        // Not the drafts that are about to be one.
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            found.push(path);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Option<Attachment>, Problem> {
    let problem = |message: String| {
        Fault::new(message, "remove it once its container is gone").at(path, None, None)
    };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| problem(format!("is not what was written: {error}"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(problem(format!("cannot be read: {error}"))),
    }
}

/// The right to give back what containers have left behind, which is one process's at a
/// time, until it is dropped.
///
/// # Errors
/// When RUNDIR cannot be used.
pub fn lock(run_dir: &Path) -> io::Result<File> {
    let folder = File::open(make_folder(run_dir)?)?;
    folder.lock()?;
    Ok(folder)
}

/// A network's configuration is nobody else's business than root's.
fn make_folder(run_dir: &Path) -> io::Result<PathBuf> {
    let folder = folder(run_dir);
    make_private(&folder)?;
    Ok(folder)
}

fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    // Of one that was there before.
    fs::set_permissions(folder, Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Link, source::engine::Place};

    fn attachment(container: &str, ifindex: u32) -> Attachment {
        Attachment {
            network: "public".to_owned(),
            container: container.to_owned(),
            ifname: "eth0".to_owned(),
            netns: None,
            args: String::new(),
            path: String::new(),
            port: Port {
                ifindex,
                name: port_name(container, "eth0"),
                own: true,
            },
            ipam: None,
            machine: Machine {
                name: container.to_owned(),
                named_by_user: false,
                origin: String::new(),
                addresses: Vec::new(),
                tenant: None,
                mac: None,
                place: Place::Link(port_name(container, "eth0")),
                sources: Vec::new(),
                faults: Vec::new(),
            },
        }
    }

    #[test]
    fn what_is_kept_is_listed_in_the_order_of_links_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(list(dir.path()).unwrap(), []);
        let [a, b] = [attachment("a", 9), attachment("b", 8)];
        a.keep(dir.path()).unwrap();
        b.keep(dir.path()).unwrap();
        fs::write(folder(dir.path()).join(".x.draft"), "{").unwrap();
        assert_eq!(list(dir.path()).unwrap(), [b.clone(), a.clone()]);
        assert_eq!(find(dir.path(), "a", "eth0").unwrap(), Some(a));
        assert_eq!(find(dir.path(), "a", "eth1").unwrap(), None);
        for _ in 0..2 {
            forget(dir.path(), "a", "eth0").unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [b]);
        fs::write(folder(dir.path()).join("x.json"), "{").unwrap();
        assert!(list(dir.path()).is_err());
    }

    #[test]
    fn add_that_has_begun_is_broken_off_when_it_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        let a = attachment("a", 0);
        assert_eq!(broken_off(dir.path()).unwrap(), []);
        // As an older version made it.
        fs::create_dir(begun_folder(dir.path())).unwrap();
        let begun = a.begin(dir.path()).unwrap();
        assert_eq!(broken_off(dir.path()).unwrap(), []);
        // Who may open it may lock it.
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&begun.path), 0o600);
        assert_eq!(mode(&begun_folder(dir.path())), 0o700);
        drop(begun);
        assert_eq!(broken_off(dir.path()).unwrap(), []);
        let mut begun = a.begin(dir.path()).unwrap();
        // As the kernel does it.
        begun._lock = File::open(dir.path()).unwrap();
        assert_eq!(broken_off(dir.path()).unwrap(), [a]);
        std::mem::forget(begun);
        forget(dir.path(), "a", "eth0").unwrap();
        assert_eq!(broken_off(dir.path()).unwrap(), []);
        assert_eq!(list(dir.path()).unwrap(), []);
    }

    #[test]
    fn names_of_ports_are_names_and_differ() {
        let names = [("a", "eth0"), ("a", "eth1"), ("b", "eth0")].map(|(a, b)| port_name(a, b));
        assert!(names.iter().all(|name| name.len() == 15), "{names:?}");
        assert!(names[0] != names[1] && names[0] != names[2]);
    }

    #[test]
    fn port_is_the_link_of_its_index_and_name() {
        let port = attachment("a", 7).port;
        let mut host = Host::default();
        assert!(!port.is_there(&host));
        host.links.insert(7, Link::ethernet(7, "other"));
        assert!(!port.is_there(&host));
        host.links.insert(7, Link::ethernet(7, &port.name));
        assert!(port.is_there(&host));
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read_or_named(
            value in crate::mangled::json(serde_json::to_value(attachment("a", 9)).unwrap()),
        ) {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(folder(dir.path())).unwrap();
            let path = file(dir.path(), "a", "eth0");
            fs::write(&path, value.to_string()).unwrap();
            match list(dir.path()) {
                Ok(found) => {
                    for one in found {
                        let _ = (one.target().arg("IP"), one.port.is_there(&Host::default()));
                    }
                }
                Err(problem) => {
                    let text = problem.to_string();
                    proptest::prop_assert!(text.contains(&path.display().to_string()), "{text}");
                }
            }
        }
    }
}
