//! Ingress of a port: what a machine sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netspawn_ebpf_fuzz::port(input));
