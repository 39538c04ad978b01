//! Pings without a process for each.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{MsgFlags, SockaddrStorage, recvfrom, sendto};

use crate::ns::Ns;

/// Time between two questions to who has not answered.
const AGAIN: Duration = Duration::from_millis(100);

/// Pings addresses until each has answered or `limit` is over. Returns those that have not.
pub fn silent(
    from: &Ns,
    addresses: impl IntoIterator<Item = IpAddr>,
    limit: Duration,
) -> Result<Vec<IpAddr>> {
    let mut waiting: BTreeSet<IpAddr> = addresses.into_iter().collect();
    from.enter(|| {
        let (v4, v6) = (Echo::open(false)?, Echo::open(true)?);
        let deadline = Instant::now() + limit;
        loop {
            for address in &waiting {
                let socket = if address.is_ipv4() { &v4 } else { &v6 };
                socket.ask(*address)?;
            }
            let asked = Instant::now();
            while asked.elapsed() < AGAIN {
                for socket in [&v4, &v6] {
                    while let Some(address) = socket.answer()? {
                        waiting.remove(&address);
                    }
                }
                if waiting.is_empty() || Instant::now() >= deadline {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
    })?;
    Ok(waiting.into_iter().collect())
}

/// A raw socket that sends echo requests.
struct Echo {
    socket: OwnedFd,
    v6: bool,
}

impl Echo {
    fn open(v6: bool) -> Result<Self> {
        let (family, protocol) = match v6 {
            false => (libc::AF_INET, libc::IPPROTO_ICMP),
            true => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
        };
        // SAFETY: the call takes no pointer; the descriptor that it returns is nobody else's.
        let socket = unsafe {
            match libc::socket(
                family,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                protocol,
            ) {
                -1 => return Err(io::Error::last_os_error()).context("no raw socket"),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        Ok(Echo { socket, v6 })
    }

    fn ask(&self, address: IpAddr) -> Result<()> {
        // Type, code, checksum, identifier, number; the kernel sums for IPv6.
        let request: [u8; 8] = match self.v6 {
            false => [8, 0, 0xf7, 0xff, 0, 0, 0, 0],
            true => [128, 0, 0, 0, 0, 0, 0, 0],
        };
        let to = SockaddrStorage::from(SocketAddr::new(address, 0));
        let flags = MsgFlags::empty();
        match sendto(self.socket.as_raw_fd(), &request, &to, flags) {
            // Queues are full, or the neighbor failed before: it is asked again.
            Ok(_) | Err(nix::Error::EAGAIN | nix::Error::ENOBUFS | nix::Error::EHOSTUNREACH) => {
                Ok(())
            }
            Err(error) => Err(error).with_context(|| format!("cannot ping {address}")),
        }
    }

    /// Who has answered, if there is another one.
    fn answer(&self) -> Result<Option<IpAddr>> {
        let mut packet = [0; 256];
        loop {
            let received = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut packet);
            let (length, from) = match received {
                Ok(received) => received,
                Err(nix::Error::EAGAIN) => return Ok(None),
                // What an ICMP error says of an earlier request.
                Err(_) => continue,
            };
            // A raw socket of IPv4 has the IP header before it.
            let (kind, reply) = match self.v6 {
                false => (packet[..length].get(20), 0),
                true => (packet[..length].first(), 129),
            };
            if kind != Some(&reply) {
                continue;
            }
            let from = from.context("a packet without a sender")?;
            let address = match self.v6 {
                false => from.as_sockaddr_in().map(|from| IpAddr::V4(from.ip())),
                true => from.as_sockaddr_in6().map(|from| IpAddr::V6(from.ip())),
            };
            return Ok(address);
        }
    }
}
