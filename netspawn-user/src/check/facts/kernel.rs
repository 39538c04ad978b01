//! What the kernel has of BPF, found out by trying.

use std::{fs, io, os::fd::AsFd as _};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use netspawn_ebpf::abi::program;

use crate::{
    datapath::{
        attach::{bpf, trial},
        hidden,
        object::{self, Sizes},
    },
    outcome,
};

const PROGRAMS: [(ProgramType, &str); 2] = [
    (ProgramType::SchedClassifier, "programs for tc"),
    (ProgramType::Xdp, "programs for XDP"),
];
const MAPS: [(MapType, &str); 7] = [
    (MapType::Hash, "hash maps"),
    (MapType::LpmTrie, "LPM tries"),
    (MapType::Array, "arrays"),
    (MapType::PerCpuArray, "per-CPU arrays"),
    (MapType::PerCpuHash, "per-CPU hash maps"),
    (MapType::RingBuf, "ring buffers"),
    (MapType::DevMapHash, "devmaps"),
];
const HELPERS: [(BpfHelper, &str); 5] = [
    (BpfHelper::BPF_FUNC_redirect_peer, "bpf_redirect_peer"),
    (BpfHelper::BPF_FUNC_redirect_neigh, "bpf_redirect_neigh"),
    (BpfHelper::BPF_FUNC_csum_level, "bpf_csum_level"),
    (
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        "bpf_ktime_get_coarse_ns",
    ),
    (BpfHelper::BPF_FUNC_ringbuf_output, "bpf_ringbuf_output"),
];

/// Why programs or maps are not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kernel's words.
    pub text: String,
    /// Whether it is a matter of permission (`EPERM`).
    pub denied: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Why all of it is refused.
    pub refusal: Option<Refusal>,
    /// What of the kernel is lacking; looked for only after a refusal.
    pub missing: Vec<&'static str>,
    /// What traffic control refuses: what was tried, and the reason.
    pub traffic_control: Option<(&'static str, String)>,
    /// Whether this process has the capability that BPF asks for.
    pub capable: bool,
    /// Whether it has tcx.
    pub tcx: bool,
    /// Whether it has BTF.
    pub btf: bool,
    /// Why programs cannot see what `__sk_buff` hides; `None` where they can, or could not
    /// be tried.
    pub unseen: Option<String>,
    /// Whether programs are compiled; `None` when none was loaded.
    pub jit: Option<bool>,
    /// Locked memory that this process may have, in bytes; `None` when not limited.
    pub memlock: Option<u64>,
}

/// Tries.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
pub fn read() -> Kernel {
    const SMALL: Sizes = Sizes {
        machines: 16,
        addresses: 16,
    };
    let mut kernel = Kernel {
        tcx: bpf::has_tcx(),
        capable: is_capable(),
        btf: fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false),
        memlock: memlock(),
        ..Kernel::default()
    };
    let mut ebpf = match object::load(None, SMALL) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            kernel.missing = missing();
            kernel.refusal = Some(Refusal {
                denied: error.chain().any(is_denied),
                text: outcome::lines(&error).join("; "),
            });
            return kernel;
        }
    };
    kernel.unseen.clone_from(&hidden::found().why);
    let loaded = object::classifier(&mut ebpf, program::PORT_INGRESS);
    if let Ok(fd) = loaded.and_then(|program| Ok(program.fd()?.as_fd().try_clone_to_owned()?)) {
        kernel.jit = bpf::is_jited(fd.as_fd()).ok();
        let tried = trial::traffic_control(fd.as_fd());
        kernel.traffic_control = tried.err().map(|(what, error)| (what, error.to_string()));
    }
    kernel
}

fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

/// What is surely not there; what cannot be tried is not named.
fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    for (kind, name) in PROGRAMS {
        if matches!(is_program_supported(kind), Ok(false)) {
            missing.push(name);
        }
    }
    for (kind, name) in MAPS {
        if matches!(is_map_supported(kind), Ok(false)) {
            missing.push(name);
        }
    }
    for (helper, name) in HELPERS {
        if matches!(
            is_helper_supported(ProgramType::SchedClassifier, helper),
            Ok(false)
        ) {
            missing.push(name);
        }
    }
    missing
}

#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn memlock() -> Option<u64> {
    let (soft, _) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != libc::RLIM_INFINITY).then_some(soft)
}

/// Whether CAP_BPF or CAP_SYS_ADMIN is effective.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn is_capable() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_BPF: u32 = 39;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mut lines = status.lines();
    let effective = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << CAP_SYS_ADMIN | 1 << CAP_BPF) != 0)
}
