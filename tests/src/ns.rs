//! Network namespaces that vanish with their last user, and what runs in them.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::LazyLock,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::stat::fstat,
};

use crate::{cmd::Cmd, wait_until};

/// Identity of a namespace: device and inode of its file.
type Id = (u64, u64);

/// The namespaces that nothing here may change: the one the process started in and PID 1's.
static FORBIDDEN: LazyLock<Vec<Id>> = LazyLock::new(|| {
    ["/proc/self/ns/net", "/proc/1/ns/net"]
        .iter()
        .filter_map(|path| id(File::open(path).ok()?.as_fd()).ok())
        .collect()
});

fn id(fd: BorrowedFd) -> Result<Id> {
    let stat = fstat(fd).context("a namespace's file cannot be examined")?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Fails while the calling thread is in the machine's own network namespace.
///
/// For code that changes interfaces without going through [`Ns`].
pub fn refuse_root_namespace() -> Result<()> {
    let here = File::open("/proc/thread-self/ns/net").context("/proc is not mounted")?;
    ensure!(
        !FORBIDDEN.contains(&id(here.as_fd())?),
        "this would change the machine's own network: it runs only inside a namespace of a lab"
    );
    Ok(())
}

/// Fails without the rights to raise a lab.
pub fn require_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "a lab of network namespaces needs root: run this as root"
    );
    Ok(())
}

/// A network namespace, never the machine's own.
///
/// It lives as long as this value, a process in it, or a file [`Ns::keep`] made: a
/// killed test leaves no namespace and no interface behind.
pub struct Ns {
    name: String,
    fd: OwnedFd,
}

impl Ns {
    /// A new namespace with only `lo`, up. `name` is for messages.
    ///
    /// IPv6 duplicate address detection is off for interfaces made later, so that
    /// addresses can be used at once.
    pub fn new(name: &str) -> Result<Self> {
        require_root()?;
        LazyLock::force(&FORBIDDEN);
        let made = thread::spawn(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            let fd = File::open("/proc/thread-self/ns/net")?.into();
            // Scenarios make thousands of namespaces: no process is started for one.
            set_loopback_up().context("cannot set lo up")?;
            for key in ["default", "all"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{key}/accept_dad"), "0")
                    .context("cannot switch duplicate address detection off")?;
            }
            Ok(fd)
        });
        let fd = made.join().expect("making a namespace does not panic")?;
        Ns::adopt(name, fd)
    }

    /// The namespace that the file stands for: one of [`Ns::keep`], or `/proc/PID/ns/net`.
    pub fn open(name: &str, file: &Path) -> Result<Self> {
        let fd = File::open(file)
            .with_context(|| format!("no namespace {name} at {}", file.display()))?;
        Ns::adopt(name, fd.into())
    }

    fn adopt(name: &str, fd: OwnedFd) -> Result<Self> {
        if FORBIDDEN.contains(&id(fd.as_fd())?) {
            bail!("{name} is the machine's own network namespace: a lab never touches it");
        }
        Ok(Ns {
            name: name.to_owned(),
            fd,
        })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path for `ip link … netns PATH` and the like, valid while this value lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }

    /// Makes the namespace outlive the process, as `file`, until [`forget`].
    pub fn keep(&self, file: &Path) -> Result<()> {
        File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
        mount(
            Some(&self.path()),
            file,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("cannot keep namespace {} at {}", self.name, file.display()))
    }

    /// A command that will run in this namespace.
    pub fn cmd(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        Cmd::new(self, program)
    }

    /// Runs a command line split at white space (no shell) and returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        self.cmd(program).args(words).text()
    }

    /// Runs `work` on a thread of its own inside this namespace: sockets it makes
    /// belong here for good.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.fd, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("cannot enter namespace {}", self.name))?;
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Value of `/proc/sys/KEY`, as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Ok(text.trim_end().to_owned())
        })
    }

    /// Sets `/proc/sys/KEY`, which must be below `net/`: the rest is the machine's own.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        ensure!(
            key.starts_with("net/") && !key.contains(".."),
            "{key} is not a setting of a network namespace"
        );
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| {
            fs::write(&path, value)
                .with_context(|| format!("cannot set {} to {value}", path.display()))
        })
    }

    /// Waits until an interface that was set up works: the kernel gives it its
    /// link-local address some time after its carrier.
    pub fn settled(&self, interface: &str) -> Result<()> {
        let ready = wait_until(Duration::from_secs(20), || {
            self.run(&format!(
                "ip -6 addr show dev {interface} scope link -tentative"
            ))
            .is_ok_and(|text| text.contains("fe80:"))
        });
        ensure!(
            ready,
            "{interface} in {} has no link-local address after 20 s\n{}",
            self.name,
            self.run(&format!("ip -d addr show dev {interface}"))?
        );
        Ok(())
    }

    /// The link-layer address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let link = self.link(interface)?;
        let text = link["address"].as_str().unwrap_or_default();
        let mut mac = [0; 6];
        for (byte, part) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(part, 16)
                .with_context(|| format!("{interface} has the address `{text}`"))?;
        }
        Ok(mac)
    }

    /// The index of an interface.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        let name = CString::new(interface)?;
        // No process is started: tests ask often.
        self.enter(|| {
            // SAFETY: the name is a string that ends with a zero.
            match unsafe { libc::if_nametoindex(name.as_ptr()) } {
                0 => Err(io::Error::last_os_error())
                    .with_context(|| format!("no interface {interface} in {}", self.name)),
                index => Ok(index),
            }
        })
    }

    fn link(&self, interface: &str) -> Result<serde_json::Value> {
        let text = self
            .cmd("ip")
            .args(["-j", "link", "show", "dev", interface])
            .text()?;
        let mut links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        links
            .pop()
            .with_context(|| format!("no interface {interface} in {}", self.name))
    }
}

impl AsFd for Ns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sets `lo` of this thread's namespace up.
fn set_loopback_up() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all-zero bytes are a valid `ifreq`, which the request reads.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl std::fmt::Debug for Ns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Undoes [`Ns::keep`] or another mount, and removes the file or folder below it.
pub fn forget(mount_point: &Path) -> Result<()> {
    umount2(mount_point, MntFlags::MNT_DETACH)
        .with_context(|| format!("cannot unmount {}", mount_point.display()))?;
    if mount_point.is_dir() {
        fs::remove_dir(mount_point)?;
    } else {
        fs::remove_file(mount_point)?;
    }
    Ok(())
}
