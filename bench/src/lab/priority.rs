//! Before whatever else runs on the machine.

use std::fs;

use anyhow::{Context as _, Result};

const AUTOGROUP: &str = "/proc/self/autogroup";

/// As long as it lives, this thread, and what it starts, comes before other processes.
///
/// Where the scheduler groups processes by session (`sched(7)`, autogroup), the session as
/// a whole does.
pub struct Foremost {
    autogroup: Option<String>,
}

impl Foremost {
    /// From now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        nice(-20)?;
        let autogroup = fs::read_to_string(AUTOGROUP).ok();
        let autogroup = autogroup.and_then(|text| Some(text.split_once(" nice ")?.1.to_owned()));
        if autogroup.is_some() {
            fs::write(AUTOGROUP, "-20").context("cannot put the session before others")?;
        }
        Ok(Foremost { autogroup })
    }
}

impl Drop for Foremost {
    fn drop(&mut self) {
        let _ = nice(0);
        if let Some(before) = &self.autogroup {
            let _ = fs::write(AUTOGROUP, before);
        }
    }
}

fn nice(value: libc::c_int) -> Result<()> {
    // SAFETY: a system call about this thread, with numbers only.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot set the priority");
    }
    Ok(())
}
