//! What the programs say of frames, where they were loaded for it (`attach
//! --log-programs`).

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use netspawn_ebpf::{abi::NOBODY, verdict::Reason};

/// How often what they have said is read. What does not fit into the buffer meanwhile is
/// lost: they never wait.
const PERIOD: Duration = Duration::from_millis(50);

/// Logs what the programs say, from now on, for as long as the process lives.
///
/// # Errors
/// When the buffer is not in the object, or no thread can be had.
pub fn follow(ebpf: &mut Ebpf) -> Result<()> {
    let mut log =
        EbpfLogger::init_with_logger(ebpf, Frames).context("cannot read what the programs say")?;
    // Not in the agent's loop: there may be more to read than there is time.
    thread::Builder::new()
        .name("log-programs".to_owned())
        .spawn(move || {
            loop {
                log.flush();
                thread::sleep(PERIOD);
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Gives numbers their names.
struct Frames;

impl log::Log for Frames {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let numbers: Vec<u32> = text
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let [reason, id, ifindex, length] = numbers[..] else {
            tracing::warn!("the programs say {text}, which this version does not understand");
            return;
        };
        let reason = Reason::ALL
            .get(reason as usize)
            .map_or("?", |reason| reason.name());
        let endpoint = match id {
            NOBODY => "no endpoint".to_owned(),
            id => format!("endpoint {id}"),
        };
        tracing::info!(
            reason,
            "frame of {length} bytes on interface {ifindex}: {reason}, {endpoint}"
        );
    }

    fn flush(&self) {}
}
