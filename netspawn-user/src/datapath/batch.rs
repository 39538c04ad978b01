//! `BPF_MAP_UPDATE_BATCH` and `BPF_MAP_LOOKUP_BATCH`, which aya lacks: 100,000
//! addresses in one call rather than as many, counters of 10,000 machines in ten.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya_obj::generated::bpf_cmd;

use super::attach::bpf::{bpf, empty};

/// Entries to be written to one map, keys and values each back to back.
#[derive(Debug, Default)]
pub struct Run {
    keys: Vec<u8>,
    values: Vec<u8>,
    count: u32,
}

impl Run {
    /// Appends a key, or a part of one.
    pub fn key(&mut self, bytes: &[u8]) {
        self.keys.extend_from_slice(bytes);
    }

    /// Appends the value of the key before it.
    pub fn value(&mut self, bytes: &[u8]) {
        self.values.extend_from_slice(bytes);
        self.count += 1;
    }

    /// Writes all entries, one by one where the kernel has no batches for the
    /// map (before Linux 5.6).
    ///
    /// # Errors
    /// The kernel's: `E2BIG` when the map is full. Entries before the one that
    /// failed are written.
    pub fn write(&self, map: BorrowedFd<'_>) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        match self.command(map, bpf_cmd::BPF_MAP_UPDATE_BATCH, 0, self.count) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | NOT_SUPPORTED)) => (0
                ..self.count)
                .try_for_each(|at| self.command(map, bpf_cmd::BPF_MAP_UPDATE_ELEM, at, 1)),
            result => result,
        }
    }

    fn command(
        &self,
        map: BorrowedFd<'_>,
        command: bpf_cmd,
        at: u32,
        count: u32,
    ) -> io::Result<()> {
        let of = |bytes: &[u8]| {
            let size = bytes.len() / self.count as usize;
            bytes[at as usize * size..].as_ptr() as u64
        };
        let fd = map.as_raw_fd().cast_unsigned();
        let mut attr = empty();
        if command == bpf_cmd::BPF_MAP_UPDATE_BATCH {
            attr.batch.map_fd = fd;
            attr.batch.keys = of(&self.keys);
            attr.batch.values = of(&self.values);
            attr.batch.count = count;
        } else {
            // SAFETY: all members of the union are plain numbers.
            let element = unsafe { &mut attr.__bindgen_anon_2 };
            element.map_fd = fd;
            element.key = of(&self.keys);
            element.__bindgen_anon_1.value = of(&self.values);
        }
        bpf(command, &mut attr).map(drop)
    }
}

/// Entries that are read in a call, more where a bucket of a hash map has more.
const ROOM: usize = 1024;
/// Longer than any key, and than what the kernel remembers its place by.
const PLACE: usize = 64;

/// Reads the entries of a map in its own order, and ends early when `each`, which
/// gets key and value, returns false. The value of a per-CPU map is that of every
/// possible CPU, one after the other, each padded to 8 bytes.
///
/// # Errors
/// The kernel's; `EINVAL` or 524 when it has no batches for the map.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn read(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut each: impl FnMut(&[u8], &[u8]) -> bool,
) -> io::Result<()> {
    let (mut room, mut keys, mut values) = (ROOM, Vec::new(), Vec::new());
    let mut place: Option<[u8; PLACE]> = None;
    loop {
        keys.resize(room * key_size, 0);
        values.resize(room * value_size, 0);
        let mut next = [0; PLACE];
        let mut attr = empty();
        attr.batch.map_fd = map.as_raw_fd().cast_unsigned();
        attr.batch.in_batch = place.as_ref().map_or(0, |place| place.as_ptr() as u64);
        attr.batch.out_batch = next.as_mut_ptr() as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = u32::try_from(room).unwrap_or(u32::MAX);
        let result = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        let ends = match result.map_err(|error| (error.raw_os_error(), error)) {
            Ok(_) => false,
            Err((Some(libc::ENOENT), _)) => true,
            Err((Some(libc::ENOSPC), _)) => {
                room *= 2;
                continue;
            }
            // The map has changed on the way.
            Err((Some(libc::EINTR), _)) => continue,
            Err((_, error)) => return Err(error),
        };
        // SAFETY: the kernel has left the number of entries in the same member.
        let count = unsafe { attr.batch.count } as usize;
        let entries = keys.chunks(key_size).zip(values.chunks(value_size));
        for (key, value) in entries.take(count) {
            if !each(key, value) {
                return Ok(());
            }
        }
        if ends {
            return Ok(());
        }
        place = Some(next);
    }
}

/// `ENOTSUPP`, which the kernel returns although it is not of the user's errno
/// range.
const NOT_SUPPORTED: i32 = 524;
