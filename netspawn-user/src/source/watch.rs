//! Waiting until folders change.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{
    io::{Interest as Readiness, unix::AsyncFd},
    time::{Instant, timeout_at},
};

/// How long nothing has to happen before a change is told: editors and
/// scripts make several at once, and some remove a file before they write it
/// anew.
const QUIET: Duration = Duration::from_millis(30);
/// How long a change is held back at most while others follow.
const HELD_BACK: Duration = Duration::from_millis(300);
/// How often folders that cannot be watched are taken as changed.
const POLL: Duration = Duration::from_secs(2);

/// What counts in a watched folder.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Interest {
    /// Everything in it.
    All,
    /// These entries, which lead to folders of interest.
    Entries(BTreeSet<OsString>),
}

/// The event queue, as `AsyncFd` wants it.
#[derive(Debug)]
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches folders that may not exist yet, or be deleted and made again.
///
/// Every folder on the way from the root to each of them is watched, for the
/// next folder on that way. A signal says only that something may differ: the
/// reader reads everything. What happens behind symbolic links to files stays
/// unseen.
#[derive(Debug)]
pub struct Watcher {
    folders: Vec<PathBuf>,
    inotify: AsyncFd<Queue>,
    watches: BTreeMap<WatchDescriptor, Interest>,
    /// Some folder cannot be watched, and why was said.
    blind: bool,
    /// When the first change came that is not told yet.
    changed_since: Option<Instant>,
}

impl Watcher {
    /// Starts to watch; what changes from now on is told.
    ///
    /// # Errors
    /// When the kernel has no inotify instance left
    /// (`fs.inotify.max_user_instances`).
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        let queue = Queue(Inotify::init(
            InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC,
        )?);
        // SAFETY: the queue owns its descriptor, closes it only when dropped,
        // and always gives the same one.
        let inotify = unsafe { AsyncFd::register_with_interest(queue, Readiness::READABLE)? };
        let mut watcher = Watcher {
            folders: folders
                .into_iter()
                .map(std::path::absolute)
                .collect::<io::Result<_>>()?,
            inotify,
            watches: BTreeMap::new(),
            blind: false,
            changed_since: None,
        };
        watcher.arm();
        Ok(watcher)
    }

    /// Waits for a change. What happened since the last call is told at once,
    /// so that nothing is lost between reading and waiting, nor when the call
    /// is cancelled.
    ///
    /// # Errors
    /// When inotify itself fails.
    pub async fn changed(&mut self) -> io::Result<()> {
        let since = loop {
            if let Some(since) = self.changed_since {
                break since;
            }
            let relevant = if self.blind {
                match timeout_at(Instant::now() + POLL, self.relevant()).await {
                    Ok(relevant) => relevant?,
                    Err(_) => true,
                }
            } else {
                self.relevant().await?
            };
            if relevant {
                self.changed_since = Some(Instant::now());
            }
        };
        let latest = since + HELD_BACK;
        loop {
            let quiet = latest.min(Instant::now() + QUIET);
            match timeout_at(quiet, self.relevant()).await {
                // A busy neighbor of the folder never times out.
                Ok(more) if Instant::now() < latest => {
                    more?;
                }
                Ok(_) | Err(_) => break,
            }
        }
        self.changed_since = None;
        self.arm();
        Ok(())
    }

    /// Waits for events; whether one of them matters.
    async fn relevant(&self) -> io::Result<bool> {
        let mut ready = self.inotify.readable().await?;
        let events = match ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?)) {
            Ok(events) => events?,
            Err(_would_block) => return Ok(false),
        };
        Ok(events.iter().any(|event| self.matters(event)))
    }

    fn matters(&self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        match self.watches.get(&event.wd) {
            // Of a watch that was given up.
            None => false,
            Some(Interest::All) => true,
            Some(Interest::Entries(entries)) => match &event.name {
                Some(name) => entries.contains(name),
                None => true,
            },
        }
    }

    /// Watches what exists now, and gives up what is on no way any more.
    fn arm(&mut self) {
        let mut watches: BTreeMap<WatchDescriptor, Interest> = BTreeMap::new();
        let mut failure = None;
        for folder in &self.folders {
            let mut ways: Vec<(&Path, Option<&OsStr>)> = vec![(folder, None)];
            let mut below = folder.as_path();
            while let (Some(parent), Some(name)) = (below.parent(), below.file_name()) {
                ways.push((parent, Some(name)));
                below = parent;
            }
            // From the root down: a folder made meanwhile is found below, or
            // its making is an event.
            for (path, entry) in ways.into_iter().rev() {
                match self.inotify.get_ref().0.add_watch(path, flags()) {
                    Ok(watch) => add(&mut watches, watch, entry),
                    Err(Errno::ENOENT | Errno::ENOTDIR) => break,
                    Err(error) => failure = Some((path.to_owned(), error)),
                }
            }
        }
        for watch in self.watches.keys() {
            if !watches.contains_key(watch) {
                // Fails when the folder is gone, and the watch with it.
                let _ = self.inotify.get_ref().0.rm_watch(*watch);
            }
        }
        self.watches = watches;
        if let (Some((path, error)), false) = (&failure, self.blind) {
            tracing::warn!(
                "cannot watch {}: {error}; looking every {} s instead (see \
                 fs.inotify.max_user_watches)",
                path.display(),
                POLL.as_secs()
            );
        }
        self.blind = failure.is_some();
    }
}

fn flags() -> AddWatchFlags {
    AddWatchFlags::IN_ONLYDIR
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
}

fn add(
    watches: &mut BTreeMap<WatchDescriptor, Interest>,
    watch: WatchDescriptor,
    entry: Option<&OsStr>,
) {
    let interest = watches
        .entry(watch)
        .or_insert_with(|| Interest::Entries(BTreeSet::new()));
    match (interest, entry) {
        (interest, None) => *interest = Interest::All,
        (Interest::Entries(entries), Some(entry)) => {
            entries.insert(entry.to_owned());
        }
        (Interest::All, Some(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    async fn told(watcher: &mut Watcher) -> bool {
        timeout(Duration::from_secs(2), watcher.changed())
            .await
            .is_ok_and(|result| result.is_ok())
    }

    async fn silent(watcher: &mut Watcher) -> bool {
        timeout(Duration::from_millis(150), watcher.changed())
            .await
            .is_err()
    }

    #[tokio::test]
    async fn files_are_told_however_they_are_written() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("machines");
        fs::create_dir(&folder).unwrap();
        let mut watcher = Watcher::new([folder.clone()]).unwrap();
        assert!(silent(&mut watcher).await);
        fs::write(folder.join("a.toml"), "x").unwrap();
        assert!(told(&mut watcher).await);
        assert!(silent(&mut watcher).await, "several changes are one");
        fs::write(root.path().join("draft"), "y").unwrap();
        assert!(silent(&mut watcher).await, "outside of the folder");
        fs::rename(root.path().join("draft"), folder.join("a.toml")).unwrap();
        assert!(told(&mut watcher).await);
        fs::remove_file(folder.join("a.toml")).unwrap();
        assert!(told(&mut watcher).await);
    }

    #[tokio::test]
    async fn change_before_the_wait_is_told() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new([root.path().to_owned()]).unwrap();
        fs::write(root.path().join("a"), "x").unwrap();
        assert!(told(&mut watcher).await);
    }

    #[tokio::test]
    async fn cancelled_wait_loses_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new([root.path().to_owned()]).unwrap();
        fs::write(root.path().join("a"), "x").unwrap();
        for _ in 0..20 {
            // On a busy machine both times are over at once, and the change is told.
            let short = timeout(Duration::from_millis(1), watcher.changed()).await;
            if short.is_ok() {
                return;
            }
        }
        assert!(told(&mut watcher).await);
    }

    #[tokio::test]
    async fn folder_may_come_go_and_come_again() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("etc");
        let folder = top.join("netspawn/machines");
        let mut watcher = Watcher::new([folder.clone(), root.path().join("run/machines")]).unwrap();
        for _ in 0..2 {
            fs::create_dir_all(&folder).unwrap();
            assert!(told(&mut watcher).await);
            fs::write(folder.join("a.toml"), "x").unwrap();
            assert!(told(&mut watcher).await);
            fs::remove_dir_all(&top).unwrap();
            assert!(told(&mut watcher).await);
        }
        fs::create_dir_all(&folder).unwrap();
        assert!(told(&mut watcher).await);
        fs::rename(&top, root.path().join("old")).unwrap();
        assert!(told(&mut watcher).await, "an ancestor is renamed");
        fs::write(root.path().join("old/netspawn/machines/a.toml"), "x").unwrap();
        assert!(
            silent(&mut watcher).await,
            "the old folder is of no interest"
        );
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("a.toml"), "x").unwrap();
        assert!(told(&mut watcher).await);
    }
}
