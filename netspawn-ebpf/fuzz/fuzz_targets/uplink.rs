//! Ingress of an uplink, at tc and XDP.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netspawn_ebpf_fuzz::uplink(input));
