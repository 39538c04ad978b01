//! `BPF_MAP_UPDATE_BATCH`, which aya lacks: 100,000 addresses in one call
//! rather than as many.

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

/// `ENOTSUPP`, which the kernel returns although it is not of the user's errno
/// range.
const NOT_SUPPORTED: i32 = 524;
