//! `BPF_MAP_LOOKUP_BATCH`, which aya lacks: thousands of entries in a call rather
//! than one.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::{maps::MapInfo, util::nr_cpus};
use aya_obj::generated::bpf_cmd;

use super::attach::bpf::{bpf, empty};

/// Bytes of values that one call asks for, about.
const CHUNK: usize = 1 << 20;
/// Entries that one call asks for at least: those of a hash map come by buckets, of
/// which the largest has to fit.
const LEAST: usize = 64;
/// How often an entry may be removed while it is looked at.
const TRIES: u32 = 100;

/// What a map's entries look like to a reader.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    key: usize,
    value: usize,
    /// Entries that there is room for.
    pub entries: u32,
}

impl Shape {
    /// Of a map whose values are of all CPUs together.
    pub fn new(info: &MapInfo) -> Self {
        Shape {
            key: info.key_size() as usize,
            value: info.value_size() as usize,
            entries: info.max_entries(),
        }
    }

    /// Of a map that has a value for each CPU: a read gives all of them, each
    /// filled up to eight bytes.
    ///
    /// # Errors
    /// When the number of possible CPUs cannot be read.
    pub fn per_cpu(info: &MapInfo) -> io::Result<Self> {
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        let shape = Shape::new(info);
        Ok(Shape {
            value: shape.value.next_multiple_of(8) * cpus,
            ..shape
        })
    }
}

/// Calls `found` with key and value of each entry, of an array with those below `most`
/// alone. Entries that are added or removed meanwhile may be met or not.
///
/// # Errors
/// The kernel's.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn each(
    map: BorrowedFd<'_>,
    shape: Shape,
    most: u32,
    mut found: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut count = (CHUNK / shape.value.max(1)).max(LEAST);
    let mut left = most as usize;
    // A bucket's number, or a key.
    let mut place = vec![0_u8; shape.key.max(4)];
    let mut first = true;
    let mut tries = TRIES;
    while left > 0 {
        let asked = count.min(left);
        let mut keys = vec![0_u8; asked * shape.key];
        let mut values = vec![0_u8; asked * shape.value];
        let before = place.clone();
        let mut attr = empty();
        attr.batch.in_batch = if first { 0 } else { before.as_ptr() as u64 };
        attr.batch.out_batch = place.as_mut_ptr() as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = u32::try_from(asked).unwrap_or(u32::MAX);
        attr.batch.map_fd = map.as_raw_fd().cast_unsigned();
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        // SAFETY: the kernel has written the number of entries.
        let got = (unsafe { attr.batch.count } as usize).min(asked);
        let last = match result {
            Ok(_) => got == 0,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                Some(libc::EINTR) if tries > 0 => {
                    tries -= 1;
                    false
                }
                // The next bucket has more entries than were asked for.
                Some(libc::ENOSPC) if count < shape.entries as usize => {
                    count *= 2;
                    place = before;
                    continue;
                }
                _ => return Err(error),
            },
        };
        for (key, value) in keys
            .chunks_exact(shape.key)
            .zip(values.chunks_exact(shape.value))
            .take(got)
        {
            found(key, value);
        }
        if last {
            break;
        }
        // Without an entry there is no new place to go on from.
        if got > 0 {
            left = left.saturating_sub(got);
            first = false;
        }
    }
    Ok(())
}
