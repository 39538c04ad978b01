//! Readers, writers and checksums.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netspawn_ebpf_fuzz::wire(input));
