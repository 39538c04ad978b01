//! The file that a writer holds locked, and who that is.
//!
//! Whoever may open a file may lock it (`flock(2)` asks for no rights), so nobody but root may
//! open this one. One that could be opened by others once may still be open at theirs: it is
//! replaced by whoever has it.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
    unistd::geteuid,
};

/// Rights of the file.
const MODE: u32 = 0o600;
/// The same with a mark that others could open it once.
const EXPOSED: u32 = 0o1600;

/// Takes the lock, unless somebody has it. `overdue`: its holder ought to be done, so
/// that one whom this file lets in for what it was once is passed by.
///
/// # Errors
/// When the file cannot be made or locked.
pub fn attempt(path: &Path, overdue: bool) -> io::Result<Option<File>> {
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(MODE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let exposed = is_exposed(&file)?;
        match file.try_lock() {
            // Detach may have removed the file that was just locked, or another replaced it.
            Ok(()) if !is_at(&file, path)? => {}
            Ok(()) if !exposed => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if !(exposed && overdue) => return Ok(None),
            // One of ours is no stranger, however long it takes.
            Err(TryLockError::WouldBlock) if Holder::find(path)?.is_some() => return Ok(None),
            Ok(()) | Err(TryLockError::WouldBlock) => {
                if let Some(fresh) = replace(&file, path)? {
                    return Ok(Some(fresh));
                }
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Whether others than root may have opened it. Nobody may from now on.
fn is_exposed(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let mode = metadata.mode() & 0o7777;
    if mode == MODE && metadata.uid() == geteuid().as_raw() {
        return Ok(false);
    }
    if mode != EXPOSED {
        file.set_permissions(Permissions::from_mode(EXPOSED))?;
    }
    Ok(true)
}

/// Puts a new file, which is locked, in the place of this one; `None` when another was
/// faster.
fn replace(file: &File, path: &Path) -> io::Result<Option<File>> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // Its rights are MODE.
    let fresh = tempfile::NamedTempFile::new_in(folder)?;
    fresh.as_file().lock()?;
    let exchange = || {
        renameat2(
            AT_FDCWD,
            fresh.path(),
            AT_FDCWD,
            path,
            RenameFlags::RENAME_EXCHANGE,
        )
    };
    match exchange() {
        Err(nix::Error::ENOENT) => return Ok(None),
        exchanged => exchanged?,
    }
    if is_at(file, fresh.path())? {
        let (fresh, old) = fresh.into_parts();
        old.close()?;
        return Ok(Some(fresh));
    }
    // That of somebody who was here in between, and has it locked.
    exchange()?;
    Ok(None)
}

/// Waits until nobody has it locked. Takes it from nobody.
///
/// # Errors
/// When the kernel refuses.
pub fn wait(path: &Path) -> io::Result<()> {
    /// How often a file is looked at that may be replaced.
    const PERIOD: Duration = Duration::from_millis(200);
    let file = match File::open(path) {
        // Everything was detached.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    if !is_exposed(&file)? {
        return file.lock();
    }
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if is_at(&file, path)? => std::thread::sleep(PERIOD),
            Err(TryLockError::Error(error)) => return Err(error),
            _ => return Ok(()),
        }
    }
}

/// Whether it is that file that is at a path.
///
/// # Errors
/// When one of them cannot be examined.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((open.dev(), open.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A process of this program that has the file locked, as far as /proc says: its
/// executable is this one, it runs as this user, and one of its descriptors has the lock.
#[derive(Debug)]
pub struct Holder {
    pid: u32,
    /// Refers to this process, whoever has its number later.
    pidfd: OwnedFd,
}

impl Holder {
    /// Looks for it. A lock whose descriptor is only inherited by another program, or was
    /// opened by somebody else, is nobody's here.
    ///
    /// # Errors
    /// When /proc, or this process itself, cannot be examined.
    #[expect(
        clippy::disallowed_methods,
        reason = "each entry is taken with its error; what is no number is no process"
    )]
    pub fn find(path: &Path) -> io::Result<Option<Holder>> {
        let file = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let own = Executable::of(std::process::id())?;
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // The first process and this one are never ended.
            if pid <= 1 || pid == std::process::id() {
                continue;
            }
            match Holder::verified(pid, &own, (file.dev(), file.ino())) {
                Ok(None) => {}
                Ok(holder) => return Ok(holder),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The process of that number, if it is one. All that is read of it is of one process:
    /// its start is the same before and after, and it still runs then.
    fn verified(pid: u32, own: &Executable, file: (u64, u64)) -> io::Result<Option<Holder>> {
        if !Executable::of(pid)?.is(own) {
            return Ok(None);
        }
        let started = start_of(pid)?;
        let pidfd = pidfd_open(pid)?;
        let is_ours = Executable::of(pid)?.is(own)
            && effective_user(pid)? == geteuid().as_raw()
            && has_locked(pid, file)?
            && start_of(pid)? == started;
        let holder = Holder { pid, pidfd };
        Ok((is_ours && !holder.has_ended(Duration::ZERO)?).then_some(holder))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal; one that has ended gets none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and no structure is passed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                no_info,
                0,
            )
        };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }

    /// Waits for its end, at most so long; whether it has ended.
    ///
    /// # Errors
    /// When it cannot be waited for.
    #[expect(
        clippy::disallowed_methods,
        reason = "a limit that poll cannot take is its longest"
    )]
    pub fn has_ended(&self, limit: Duration) -> io::Result<bool> {
        use std::os::fd::AsFd as _;
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut events = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut events, limit)? > 0)
    }
}

/// What a process runs.
#[derive(Debug)]
struct Executable {
    file: (u64, u64),
    /// As the kernel has it: an update leaves ` (deleted)` behind it.
    path: PathBuf,
}

impl Executable {
    fn of(pid: u32) -> io::Result<Self> {
        let exe = format!("/proc/{pid}/exe");
        let metadata = fs::metadata(&exe)?;
        let path = fs::read_link(&exe)?;
        let text = path.to_string_lossy();
        Ok(Executable {
            file: (metadata.dev(), metadata.ino()),
            path: text.trim_end_matches(" (deleted)").into(),
        })
    }

    /// Whether they are the same program, of whatever version.
    fn is(&self, other: &Executable) -> bool {
        self.file == other.file || self.path == other.path
    }
}

/// When a process was started, in ticks since the machine was: field 22 of
/// /proc/PID/stat.
#[expect(
    clippy::disallowed_methods,
    reason = "what is no number is reported below"
)]
fn start_of(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may have anything in it.
    let rest = text.rsplit_once(')').map(|(_, rest)| rest);
    rest.and_then(|rest| rest.split_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood: {text}")))
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is no number is reported below"
)]
fn effective_user(pid: u32) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|users| users.split_whitespace().nth(1)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has no user")))
}

/// Whether one of a process's descriptors has that file locked for itself alone.
#[expect(
    clippy::disallowed_methods,
    reason = "each entry is taken with its error"
)]
fn has_locked(pid: u32, file: (u64, u64)) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let metadata = match fs::metadata(entry.path()) {
            Ok(metadata) => metadata,
            // Closed meanwhile, or the process has ended, which is seen in the end.
            Err(error) if is_gone(&error) => continue,
            // What has no file of its own cannot always be examined.
            Err(_) => continue,
        };
        if (metadata.dev(), metadata.ino()) != file {
            continue;
        }
        let name = entry.file_name();
        let info = format!("/proc/{pid}/fdinfo/{}", name.to_string_lossy());
        // `__show_fd_locks` in fs/locks.c.
        let locked = |line: &str| {
            line.starts_with("lock:") && line.contains(" FLOCK ") && line.contains(" WRITE ")
        };
        match fs::read_to_string(info) {
            Ok(text) if text.lines().any(locked) => return Ok(true),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers alone, and returns a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Folder(tempfile::tempdir().unwrap())
        }

        fn lock(&self) -> PathBuf {
            self.0.path().join("lock")
        }

        fn old(&self, mode: u32) -> File {
            fs::write(self.lock(), "").unwrap();
            fs::set_permissions(self.lock(), Permissions::from_mode(mode)).unwrap();
            File::open(self.lock()).unwrap()
        }

        fn mode(&self) -> u32 {
            fs::metadata(self.lock()).unwrap().mode() & 0o7777
        }

        /// Nothing but the lock is left.
        fn is_tidy(&self) -> bool {
            fs::read_dir(self.0.path()).unwrap().count() == 1
        }
    }

    /// A process that has the file locked until it is dropped: another program.
    struct Other(Child);

    impl Other {
        fn start(path: &Path) -> Self {
            let mut child = Command::new("flock")
                .arg("--no-fork")
                .arg(path)
                .args(["sh", "-c", "echo locked; exec sleep 1000"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            let mut out = BufReader::new(child.stdout.take().unwrap());
            out.read_line(&mut line).unwrap();
            assert_eq!(line, "locked\n");
            Other(child)
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn root_alone_may_open_it_whatever_the_umask() {
        let folder = Folder::new();
        let _lock = attempt(&folder.lock(), false).unwrap().unwrap();
        assert_eq!(folder.mode(), MODE);
        assert!(attempt(&folder.lock(), false).unwrap().is_none());
    }

    #[test]
    fn file_that_others_could_open_is_replaced() {
        for mode in [0o644, 0o666, 0o640, EXPOSED] {
            let folder = Folder::new();
            let theirs = folder.old(mode);
            let lock = attempt(&folder.lock(), false).unwrap().unwrap();
            assert_eq!(folder.mode(), MODE);
            assert!(folder.is_tidy());
            // Theirs is another one by now.
            theirs.try_lock().unwrap();
            assert!(attempt(&folder.lock(), true).unwrap().is_none());
            drop(lock);
            assert!(attempt(&folder.lock(), false).unwrap().is_some());
        }
    }

    #[test]
    fn stranger_who_had_it_open_is_passed_by_in_the_end() {
        let folder = Folder::new();
        let theirs = folder.old(0o644);
        theirs.lock().unwrap();
        assert!(attempt(&folder.lock(), false).unwrap().is_none());
        assert_eq!(folder.mode(), EXPOSED, "nobody else opens it");
        let lock = attempt(&folder.lock(), true).unwrap().unwrap();
        assert_eq!(folder.mode(), MODE);
        assert!(is_at(&lock, &folder.lock()).unwrap());
        assert!(folder.is_tidy());
        // Two who come late do not both get it.
        assert!(attempt(&folder.lock(), true).unwrap().is_none());
    }

    #[test]
    fn one_who_was_faster_keeps_it() {
        let folder = Folder::new();
        let theirs = folder.old(0o644);
        theirs.lock().unwrap();
        let winner = attempt(&folder.lock(), true).unwrap().unwrap();
        assert!(replace(&theirs, &folder.lock()).unwrap().is_none());
        assert!(is_at(&winner, &folder.lock()).unwrap());
        assert!(folder.is_tidy());
        fs::remove_file(folder.lock()).unwrap();
        assert!(replace(&theirs, &folder.lock()).unwrap().is_none());
    }

    #[test]
    fn nobody_is_ended_for_a_lock_of_others() {
        let folder = Folder::new();
        assert!(Holder::find(&folder.lock()).unwrap().is_none(), "no file");
        let file = folder.old(0o600);
        assert!(Holder::find(&folder.lock()).unwrap().is_none(), "no lock");
        // This process is none that is ended, and that of another program neither.
        file.lock().unwrap();
        assert!(Holder::find(&folder.lock()).unwrap().is_none());
        drop(file);
        let _other = Other::start(&folder.lock());
        assert!(Holder::find(&folder.lock()).unwrap().is_none());
    }

    #[test]
    fn holder_is_verified_and_ended_as_that_process() {
        let folder = Folder::new();
        folder.old(0o600);
        // This program once more, with the lock that it inherits: only its own copy has it.
        let file = File::options().write(true).open(folder.lock()).unwrap();
        file.lock().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "lock::tests::sleeps"])
            .env("NETSPAWN_SLEEPS", "1")
            .stdin(file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let found = loop {
            if let Some(holder) = Holder::find(&folder.lock()).unwrap() {
                break holder;
            }
            assert!(child.try_wait().unwrap().is_none());
        };
        assert_eq!(found.pid(), child.id());
        assert!(!found.has_ended(Duration::ZERO).unwrap());
        found.signal(Signal::SIGKILL).unwrap();
        assert!(found.has_ended(Duration::from_secs(20)).unwrap());
        child.wait().unwrap();
        found.signal(Signal::SIGKILL).unwrap();
        assert!(Holder::find(&folder.lock()).unwrap().is_none());
        // Without the lock, or as somebody else, it is none.
        let own = Executable::of(std::process::id()).unwrap();
        let file = fs::metadata(folder.lock()).unwrap();
        let id = (file.dev(), file.ino());
        let verified = Holder::verified(std::process::id(), &own, id).unwrap();
        assert!(verified.is_none());
    }

    #[test]
    #[ignore = "started by another"]
    fn sleeps() {
        if std::env::var_os("NETSPAWN_SLEEPS").is_some() {
            std::thread::sleep(Duration::from_secs(100));
        }
    }

    #[test]
    fn waiting_ends_with_the_lock_or_the_file() {
        let folder = Folder::new();
        wait(&folder.lock()).unwrap();
        let theirs = folder.old(0o644);
        theirs.lock().unwrap();
        let path = folder.lock();
        let waiting = std::thread::spawn(move || wait(&path));
        // It has it open.
        while folder.mode() != EXPOSED {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _lock = attempt(&folder.lock(), true).unwrap().unwrap();
        waiting.join().unwrap().unwrap();
    }
}
