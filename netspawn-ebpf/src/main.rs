//! The BPF programs: they check bounds, ask [`netspawn_ebpf::decide`], and turn
//! its verdict into an action.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// The object is built with `RUSTC_BOOTSTRAP` in any case, for `core`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a BPF program: build it with `cargo xtask build`");
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
