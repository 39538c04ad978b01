//! What the kernel, and the place of the pins, lack.

use super::{Facts, Finding, decide, rules::*, run};
use crate::{datapath::pins::Place, import::quoted};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if !facts.root {
        let remedy = decide("run it as root");
        found.push(Finding::new(
            UNPRIVILEGED,
            "check",
            "not run as root",
            remedy,
        ));
    }
    for text in &facts.other_namespace {
        found.push(Finding::new(
            OTHER_NAMESPACE,
            "data plane",
            text,
            decide("run the command in that namespace, or give this one folders of its own"),
        ));
    }
    if let Some(text) = &facts.unreadable {
        found.push(Finding::new(
            DATA_PLANE_UNREADABLE,
            "data plane",
            text,
            run(["netspawn-xdp detach"]),
        ));
    }
    found.extend(place(facts));
    if let Some(text) = &facts.foreign {
        found.push(Finding::new(
            BPF_DIR_FOREIGN,
            "BPFDIR",
            text,
            decide("see who has made it, and remove it"),
        ));
    }
    found.extend(bpf(facts));
    found
}

fn place(facts: &Facts) -> Option<Finding> {
    let finding = |rule, found: String, command: String| {
        Some(Finding::new(rule, "BPFDIR", found, run([command])))
    };
    match facts.place.as_ref()? {
        Err(error) => Some(Finding::new(
            BPFFS_MISSING,
            "BPFDIR",
            error,
            decide("give a folder on a bpf filesystem with --bpf-dir"),
        )),
        Ok(Place {
            is_bpffs,
            read_only,
            mount_point,
            open,
        }) => {
            let path = mount_point.display();
            let word = quoted(&path.to_string());
            match (is_bpffs, read_only) {
                (false, _) => finding(
                    BPFFS_MISSING,
                    format!("{path} is not on a bpf filesystem"),
                    format!("mount -t bpf bpf {word}"),
                ),
                (true, true) => finding(
                    BPFFS_READ_ONLY,
                    format!("the bpf filesystem of {path} is read-only"),
                    format!("mount -o remount,rw {word}"),
                ),
                (true, false) => {
                    let (path, mode) = open.as_ref()?;
                    finding(
                        BPFFS_OPEN,
                        format!("{} has mode {mode:04o}", path.display()),
                        format!("chmod 0700 {}", quoted(&path.display().to_string())),
                    )
                }
            }
        }
    }
}

fn bpf(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(kernel) = &facts.kernel else {
        return found;
    };
    let mut add = |rule, text: String, remedy| {
        found.push(Finding::new(rule, "kernel", text, remedy));
    };
    if let Some(refusal) = &kernel.refusal {
        match (kernel.missing.is_empty(), kernel.memlock) {
            (false, _) => add(
                BPF_FEATURE_MISSING,
                format!("it has no {}", kernel.missing.join(", no ")),
                decide("boot Linux 6.1 or newer, with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF"),
            ),
            (true, Some(limit)) if refusal.denied && kernel.capable => add(
                MEMLOCK_LIMIT,
                format!("maps are refused, and {limit} bytes may be locked"),
                decide("`ulimit -l unlimited` in this shell, LimitMEMLOCK=infinity in a service"),
            ),
            _ => add(
                BPF_REFUSED,
                refusal.text.clone(),
                decide(
                    "give CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (in a container, to it), and \
                     see `dmesg` and /sys/kernel/security/lockdown",
                ),
            ),
        }
    }
    if let Some((tried, reason)) = &kernel.traffic_control {
        add(
            TRAFFIC_CONTROL_MISSING,
            format!("cannot {tried}: {reason}"),
            run(["modprobe sch_ingress", "modprobe cls_bpf"]),
        );
    }
    if !kernel.tcx && kernel.refusal.is_none() {
        let remedy = decide("nothing has to be done; Linux 6.6 or newer has it");
        add(TCX_MISSING, "it has no tcx".to_owned(), remedy);
    }
    if !kernel.btf {
        let remedy = decide("boot a kernel with CONFIG_DEBUG_INFO_BTF");
        let text = "/sys/kernel/btf/vmlinux is not there";
        add(BTF_MISSING, text.to_owned(), remedy);
    }
    if let Some(why) = &kernel.unseen {
        add(
            OFFLOAD_FIELDS_UNSEEN,
            why.clone(),
            decide(
                "boot Linux 6.2 or newer with BTF and the JIT on, or without lockdown=confidentiality; \
                 until then, keep CAP_NET_RAW from machines, and VMs from offering checksums",
            ),
        );
    }
    if kernel.jit == Some(false) {
        add(
            JIT_OFF,
            "programs are interpreted".to_owned(),
            run(["sysctl -w net.core.bpf_jit_enable=1"]),
        );
    }
    found
}
