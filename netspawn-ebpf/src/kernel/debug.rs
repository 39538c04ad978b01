//! What the programs say of frames to whoever debugs them. Unless the loader asks for it,
//! the verifier finds that nothing here is reached, and takes it out.
//!
//! Frames that are forwarded at once (`decide::express`) are not told of: a look at the
//! level costs two instructions even where nothing comes of it.

use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use netspawn_ebpf::{abi::Owner, verdict::Reason};

/// Says what becomes of a frame.
#[inline(always)]
pub fn verdict(reason: Reason, id: Owner, ifindex: u32, length: u32) {
    if level_enabled(Level::Debug) {
        debug_frame(reason as u32, id, ifindex, length);
    }
}

/// A global function, which the verifier walks once, rather than for each way that leads
/// here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn debug_frame(reason: u32, id: Owner, ifindex: u32, length: u32) -> u32 {
    // What reads it is `datapath::log` of the loader.
    debug!((), "{} {} {} {}", reason, id, ifindex, length);
    0
}
