//! Egress of an uplink: what the host itself sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netspawn_ebpf_fuzz::egress(input));
