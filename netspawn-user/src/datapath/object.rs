//! The BPF object that the loader carries: loading it, with its maps pinned or
//! adopted.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapInfo},
    programs::{Program, SchedClassifier, Xdp},
};
use netspawn_ebpf::{
    abi::{self, KernelFields, Key, global, map, program},
    verdict::{Kind, Reason},
};

use super::{hidden, kernel_fields};

use super::attach::bpf;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NETSPAWN_BPF_OBJECT"));

/// The buffer of what programs say.
const LOGS: &str = "AYA_LOGS";

/// How large the maps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Endpoints.
    pub machines: u32,
    /// Entries of each address map.
    pub addresses: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes {
            machines: abi::DEFAULT_MAX_MACHINES,
            addresses: abi::DEFAULT_MAX_ADDRESSES,
        }
    }
}

/// Entries of [`map::DROPS`] for each machine: one for each reason to drop, so that no
/// machine takes the room of another. They take memory when they are used; what each
/// costs from the start is a bucket of 16 bytes.
const REASONS_EACH: u32 = {
    let (mut reasons, mut at) = (0, 0);
    while at < Reason::ALL.len() {
        reasons += matches!(Reason::ALL[at].kind(), Kind::Drop) as u32;
        at += 1;
    }
    reasons
};

impl Sizes {
    /// The maps whose size is a choice, with it.
    fn by_map(self) -> [(&'static str, u32); 11] {
        [
            (map::ADDRS4, self.addresses),
            (map::ADDRS6, self.addresses),
            (map::PREFIXES4, self.addresses),
            (map::PREFIXES6, self.addresses),
            (map::SOURCES4, self.addresses),
            (map::SOURCES6, self.addresses),
            (map::ENDPOINTS, self.machines),
            // Machines' ports, and of other interfaces two kinds.
            (
                map::PORTS,
                self.machines.saturating_add(2 * abi::MAX_CLOSED),
            ),
            (map::TRAFFIC, self.machines),
            (map::BUDGETS, self.machines),
            (map::DROPS, self.machines.saturating_mul(REASONS_EACH)),
        ]
    }

    /// The sizes that the maps pinned in `folder` were made with; `None` when not all of
    /// them are there.
    ///
    /// # Errors
    /// When one cannot be opened: it may be in use, and is not to be taken for absent.
    pub fn pinned(folder: &Path) -> Result<Option<Sizes>> {
        let mut sizes = Sizes::default();
        for name in map::ALL {
            let Some(info) = info(&folder.join(name))? else {
                return Ok(None);
            };
            match name {
                map::ENDPOINTS => sizes.machines = info.max_entries(),
                map::ADDRS4 => sizes.addresses = info.max_entries(),
                _ => {}
            }
        }
        Ok(Some(sizes))
    }

    /// The sizes that another version's maps in `directory` were made with, if these two
    /// are there.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn of_other(directory: &Path) -> Result<Option<Sizes>> {
        let machines = info(&directory.join(map::ENDPOINTS))?;
        let addresses = info(&directory.join(map::ADDRS4))?;
        Ok(machines.zip(addresses).map(|(machines, addresses)| Sizes {
            machines: machines.max_entries(),
            addresses: addresses.max_entries(),
        }))
    }

    /// Whether the maps pinned in `folder` have these sizes.
    ///
    /// # Errors
    /// When one is not there or cannot be opened.
    pub fn fit(self, folder: &Path) -> Result<bool> {
        for (name, entries) in self.by_map() {
            let path = folder.join(name);
            let info = info(&path)?.with_context(|| format!("{} is gone", path.display()))?;
            if info.max_entries() != entries {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What a pinned map is; `None` when there is nothing at the path.
fn info(path: &Path) -> Result<Option<MapInfo>> {
    let cannot = || format!("cannot open the pinned map {}", path.display());
    let Some(fd) = bpf::open_pin(path).with_context(cannot)? else {
        return Ok(None);
    };
    let data = MapData::from_fd(fd).with_context(cannot)?;
    data.info().with_context(cannot).map(Some)
}

/// What programs have from when they are loaded, besides their maps.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    /// The data plane's key.
    pub key: Key,
    /// Where the kernel has what programs read of its structures.
    pub fields: KernelFields,
}

impl Constants {
    /// Of programs that are not part of a data plane.
    pub const NONE: Constants = Constants {
        key: Key::NONE,
        fields: KernelFields {
            skb_dev: 0,
            skb_sk: 0,
            skb_dst: 0,
            skb_mac_len: 0,
            dst_dev: 0,
            dev_net: 0,
            sock_net: 0,
            known: 0,
        },
    };

    /// With that key, for the kernel that runs. Where the kernel's memory cannot be read,
    /// a warning says what is missing.
    #[expect(
        clippy::disallowed_methods,
        reason = "the failure is logged, and the programs have another way"
    )]
    pub fn of_kernel(key: Key) -> Self {
        let fields = kernel_fields::find().unwrap_or_else(|error| {
            tracing::warn!(
                "{error:#}: machines' addresses are not protected from devices on top of an \
                 uplink (macvlan, ipvlan, VLAN) in other network namespaces"
            );
            KernelFields::default()
        });
        Constants { key, fields }
    }
}

/// A key that nobody knows.
///
/// # Errors
/// When the kernel has no random numbers.
pub fn random_key() -> io::Result<Key> {
    loop {
        let mut bytes = [0_u8; 8];
        // SAFETY: the buffer is as long as said.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        let [a, b, c, d, e, f, g, h] = bytes;
        let key = Key {
            mark: u32::from_ne_bytes([a, b, c, d]),
            priority: u32::from_ne_bytes([e, f, g, h]),
        };
        if got == 8 && key.is_made() {
            return Ok(key);
        }
    }
}

/// Loads maps and programs. With `pins`, maps already pinned there are used and
/// the others are pinned there.
///
/// # Errors
/// Without the capabilities (CAP_BPF, CAP_NET_ADMIN), on a file system that is
/// not a bpffs, or when the kernel refuses a program: the verifier's last words
/// are in the error.
#[expect(
    clippy::disallowed_methods,
    reason = "the programs have another way, which `attach` tells of"
)]
pub fn load(pins: Option<&Path>, sizes: Sizes) -> Result<Ebpf> {
    let constants = Constants {
        // Without them the programs have another way, which `attach` tells of.
        fields: kernel_fields::find().unwrap_or_default(),
        ..Constants::NONE
    };
    load_logging(pins, sizes, constants, false)
}

/// As [`load`]. With `log`, programs say what becomes of frames, see
/// [`super::log::follow`]; without, that is not in the code that runs.
///
/// # Errors
/// As [`load`].
pub fn load_logging(
    pins: Option<&Path>,
    sizes: Sizes,
    constants: Constants,
    log: bool,
) -> Result<Ebpf> {
    let pin = |name: &str| pins.map(|folder| folder.join(name));
    let mut ebpf = load_maps(sizes, constants, log, pin)?;
    for name in [
        program::UPLINK_INGRESS,
        program::UPLINK_EGRESS,
        program::PORT_INGRESS,
    ] {
        classifier(&mut ebpf, name)?
            .load()
            .with_context(|| format!("the kernel does not take the program {name}"))?;
    }
    xdp(&mut ebpf)?.load().with_context(|| {
        format!(
            "the kernel does not take the program {}",
            program::UPLINK_XDP
        )
    })?;
    Ok(ebpf)
}

/// The maps that programs write. All others they only read.
pub const WRITTEN: [&str; 9] = [
    map::COUNTS,
    map::TRAFFIC,
    map::DROPS,
    map::BUDGETS,
    map::SHARED,
    map::STATIONS,
    map::ASKED,
    map::HOST_FLOWS,
    map::EVENTS,
];

/// Loads maps, for programs that are to do what those attached do and leave no trace:
/// what programs read is what is pinned in `folder`, what they write is apart. No program
/// is loaded yet.
///
/// # Errors
/// As [`load`].
pub fn load_apart(folder: &Path, sizes: Sizes) -> Result<Ebpf> {
    load_maps(sizes, Constants::NONE, false, |name| {
        (!WRITTEN.contains(&name)).then(|| folder.join(name))
    })
}

fn load_maps(
    sizes: Sizes,
    Constants { key, fields }: Constants,
    log: bool,
    pin: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Ebpf> {
    let key = [key.mark, key.priority];
    let fields = [
        fields.skb_dev,
        fields.skb_sk,
        fields.skb_dst,
        fields.skb_mac_len,
        fields.dst_dev,
        fields.dev_net,
        fields.sock_net,
        fields.known,
    ];
    let mut loader = EbpfLoader::new();
    loader.override_global(global::KEY, &key[..], true);
    loader.override_global(global::KERNEL_FIELDS, &fields[..], true);
    let level = if log { aya_log::Level::Debug as u8 } else { 0 };
    loader.override_global(aya_log::LEVEL, &level, true);
    if !log {
        // Nothing gets into it. It is made a page long, which is the least.
        loader.map_max_entries(LOGS, 1);
    }
    for (name, entries) in sizes.by_map() {
        loader.map_max_entries(name, entries);
    }
    for name in map::ALL {
        if let Some(path) = pin(name) {
            loader.map_pin_path(name, path);
        }
    }
    let object = hidden::fill(OBJECT)?;
    loader.load(object.bytes()).context(
        "the kernel does not take the BPF maps: root (CAP_BPF, CAP_NET_ADMIN) and a mounted, \
         writable bpffs are needed",
    )
}

/// The tc program of that name.
///
/// # Errors
/// When the object has none, which is a fault of the build.
pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    match ebpf.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => bail!("the BPF object has no tc program {name}"),
    }
}

/// The XDP program.
///
/// # Errors
/// When the object has none, which is a fault of the build.
pub fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    match ebpf.program_mut(program::UPLINK_XDP) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => bail!("the BPF object has no XDP program {}", program::UPLINK_XDP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_room_for_every_reason_to_drop() {
        let reasons = Reason::ALL
            .iter()
            .filter(|reason| reason.kind() == Kind::Drop);
        let sizes = Sizes {
            machines: 16,
            addresses: 16,
        };
        let drops = sizes
            .by_map()
            .into_iter()
            .find(|(name, _)| *name == map::DROPS);
        assert_eq!(drops, Some((map::DROPS, 16 * reasons.count() as u32)));
    }
}
