//! Where the running kernel has the fields that the programs read of its own structures,
//! see `netspawn_ebpf::decide::past`.

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use netspawn_ebpf::abi::KernelFields;

use super::hidden::btf::{Btf, Kind};

/// Finds the fields.
///
/// # Errors
/// When the kernel has no type information or does not let programs read its memory
/// (lockdown=confidentiality).
pub fn find() -> Result<KernelFields> {
    let may_read = is_helper_supported(
        ProgramType::SchedClassifier,
        BpfHelper::BPF_FUNC_probe_read_kernel,
    )
    .context("cannot find out whether programs may read the kernel's memory")?;
    ensure!(
        may_read,
        "the kernel does not let programs read its memory (lockdown=confidentiality)"
    );
    let btf = Btf::of_kernel()?.context("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")?;
    const STRUCTS: [&str; 5] = ["sk_buff", "dst_entry", "net_device", "sock", "sock_common"];
    let numbers = btf.numbers(&STRUCTS.map(|name| (name, Kind::Struct)))?;
    let offset = |of: &str, name: &str| -> Result<u32> {
        let number = numbers.get(of);
        let number = number.with_context(|| format!("the kernel's BTF has no struct {of}"))?;
        let member = btf.member(*number, name)?;
        ensure!(
            member.bit % 8 == 0 && member.bits == 0,
            "the kernel's {name} is not whole bytes"
        );
        Ok(member.bit / 8)
    };
    Ok(KernelFields {
        skb_dev: offset("sk_buff", "dev")?,
        skb_sk: offset("sk_buff", "sk")?,
        skb_dst: offset("sk_buff", "_skb_refdst")?,
        skb_mac_len: offset("sk_buff", "mac_len")?,
        dst_dev: offset("dst_entry", "dev")?,
        // Structures whose only member is the pointer.
        dev_net: offset("net_device", "nd_net")?,
        sock_net: offset("sock", "__sk_common")? + offset("sock_common", "skc_net")?,
        known: 1,
    })
}
