//! Many links at once.

use std::{fmt::Write as _, net::UdpSocket, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use netspawn_tests::Ns;

/// Runs lines through one process of `ip`, `tc` or `bridge` in batch mode.
pub fn batch(ns: &Ns, program: &str, lines: impl IntoIterator<Item = String>) -> Result<()> {
    let mut input = String::new();
    for line in lines {
        writeln!(input, "{line}")?;
    }
    if input.is_empty() {
        return Ok(());
    }
    ns.cmd(program)
        .args(["-batch", "-"])
        .input(input)
        .limit(std::time::Duration::from_secs(300))
        .text()
        .with_context(|| format!("{program} -batch in {}", ns.name()))?;
    Ok(())
}

/// Switches generic receive offload on, which makes a veth take frames that XDP sends
/// (`veth_xdp_xmit` wants its peer's NAPI).
pub fn receive_offload(ns: &Ns, interfaces: &[String]) -> Result<()> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_SGRO: u32 = 0x2c;
    ns.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").context("no socket for ethtool")?;
        for interface in interfaces {
            let mut value = Value {
                command: ETHTOOL_SGRO,
                data: 1,
            };
            // SAFETY: `ifreq` is plain bytes; the kernel reads and writes the value that
            // it points at, which outlives the call.
            let result = unsafe {
                let mut request: libc::ifreq = std::mem::zeroed();
                for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
                    *to = from as libc::c_char;
                }
                request.ifr_ifru.ifru_data = (&raw mut value).cast();
                libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request)
            };
            if result < 0 {
                return Err(std::io::Error::last_os_error())
                    .with_context(|| format!("cannot switch on GRO of {interface}"));
            }
        }
        Ok(())
    })
}
