//! Honest traffic with every offload on and off: whole, and with right checksums.
//!
//! `NETSPAWN_OFFLOADS_BYTES` makes it longer; what the kernel here has not (802.1Q, SCTP,
//! most tunnels) is shown by the suite `kernels`, in guests.

mod bulk;
mod guest;
mod matrix;

use anyhow::Result;
use netspawn_tests::{Mode, in_each_mode, protocol};

fn traffic_is_whole_with_every_offload_on_and_off(mode: Mode) -> Result<()> {
    let _rows = protocol::holds(
        "traffic_is_whole_with_every_offload_on_and_off",
        Some(mode),
        &["F1", "F5", "G3", "G5", "G6", "S1", "S2"],
    );
    matrix::run(mode)
}

in_each_mode! {
    traffic_is_whole_with_every_offload_on_and_off
}

#[test]
fn traffic_of_a_virtio_guest_is_whole() -> Result<()> {
    guest::run_with(Mode::Tc)
}

/// What the guest runs.
#[test]
#[ignore = "it is the other end of traffic_of_a_virtio_guest_is_whole"]
fn side_of_the_guest() -> Result<()> {
    guest::serve()
}
