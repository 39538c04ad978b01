//! Traffic between namespaces whose every byte is checked.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    lab::{DELEGATED, FAR4, FAR6, HOST4, HOST6, INSIDE, Lab, Machine},
    ns::Ns,
};

/// How long a connection may stand still before a transfer has failed.
pub const STALL: Duration = Duration::from_secs(5);

/// Sends one echo request to `address` and waits at most a second for the answer.
pub fn ping(from: &Ns, address: impl Into<IpAddr>) -> Result<()> {
    ping_sized(from, address, 56)
}

/// As [`ping`], with `size` bytes of payload; more than the MTU holds goes in fragments.
pub fn ping_sized(from: &Ns, address: impl Into<IpAddr>, size: u32) -> Result<()> {
    let address = address.into();
    from.run(&format!("ping -n -c 1 -W 4 -s {size} {address}"))
        .map(drop)
}

/// Pings until an answer comes, at most `limit`.
pub fn wait_ping(from: &Ns, address: impl Into<IpAddr>, limit: Duration) -> Result<()> {
    let address = address.into();
    let deadline = Instant::now() + limit;
    loop {
        // An attempt ends at once where the address is refused, and after 0.2 s where
        // nothing answers.
        let output = from
            .run(&format!("ping -n -c 1 -W 0.2 {address}"))
            .map(drop);
        match output {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("no answer within {limit:?}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Fails if `address` answers one of three pings.
pub fn unreachable(from: &Ns, address: impl Into<IpAddr>) -> Result<()> {
    let address = address.into();
    let output = from
        .cmd("ping")
        .args(["-n", "-c", "3", "-i", "0.05", "-W", "0.2"])
        .arg(address.to_string())
        .output()?;
    ensure!(
        output.code() != 0,
        "{address} answers {} although it must not\n{}",
        from.name(),
        output.stdout
    );
    Ok(())
}

/// Fails unless everything reaches everything, by ping and by TCP, over IPv4 and IPv6:
/// the outside and the host each machine, each machine the outside, the host and the
/// other machines; and any address of the delegated prefix, if `web` is there.
pub fn all_reachable(lab: &Lab) -> Result<()> {
    const BYTES: usize = 200_000;
    let address = |machine: &Machine| -> [IpAddr; 2] { [machine.v4().into(), machine.v6().into()] };
    for machine in lab.machines() {
        for own in address(machine) {
            for (outer, outer4, outer6) in [(&lab.net, FAR4, FAR6), (&lab.host, HOST4, HOST6)] {
                let other: IpAddr = if own.is_ipv4() {
                    outer4.into()
                } else {
                    outer6.into()
                };
                ping(outer, own)?;
                tcp(outer, &machine.ns, own, BYTES)?;
                ping(&machine.ns, other)?;
                tcp(&machine.ns, outer, other, BYTES)?;
            }
        }
        for other in lab
            .machines()
            .iter()
            .filter(|other| other.name() != machine.name())
        {
            for to in address(other) {
                ping(&machine.ns, to)?;
                tcp(&machine.ns, &other.ns, to, BYTES)?;
            }
        }
        if machine.addresses().iter().any(|own| own == DELEGATED) {
            ping(&lab.net, INSIDE)?;
            tcp(&lab.net, &machine.ns, INSIDE, BYTES)?;
        }
    }
    Ok(())
}

/// Sends `bytes` bytes by TCP from `client` to a listener at `address` in `server`, the
/// same amount back, and compares all of it. Returns how long that took.
pub fn tcp(client: &Ns, server: &Ns, address: impl Into<IpAddr>, bytes: usize) -> Result<Duration> {
    let address = address.into();
    let words = || format!("TCP from {} to {address}", client.name());
    let listener = server
        .enter(|| Ok(TcpListener::bind((address, 0))?))
        .with_context(words)?;
    let port = listener.local_addr()?.port();
    let start = Instant::now();
    thread::scope(|scope| {
        let answering = scope.spawn(|| -> Result<()> {
            // A connection that never comes must not hold the test.
            listener.set_nonblocking(true)?;
            let accepted = || listener.accept().ok();
            let Some((mut stream, _)) = poll(STALL, accepted) else {
                bail!("no connection arrived");
            };
            stream.set_nonblocking(false)?;
            receive(&mut stream, bytes)?;
            send(&mut stream, bytes)
        });
        let asked = client.enter(|| {
            let mut stream = TcpStream::connect_timeout(&(address, port).into(), STALL)?;
            send(&mut stream, bytes)?;
            receive(&mut stream, bytes)
        });
        let answered = answering
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        asked.context("the connecting side").with_context(words)?;
        answered.context("the listening side").with_context(words)
    })?;
    Ok(start.elapsed())
}

/// Sends a datagram of `size` bytes of payload to an echo server at `address` and
/// compares what comes back.
pub fn udp(client: &Ns, server: &Ns, address: impl Into<IpAddr>, size: usize) -> Result<()> {
    let address = address.into();
    let words = || format!("UDP with {size} bytes from {} to {address}", client.name());
    let echo = server
        .enter(|| Ok(UdpSocket::bind((address, 0))?))
        .with_context(words)?;
    echo.set_read_timeout(Some(STALL))?;
    let port = echo.local_addr()?.port();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 16];
            let (length, peer) = echo.recv_from(&mut buffer)?;
            echo.send_to(&buffer[..length], peer)
        });
        client.enter(|| {
            let any: IpAddr = match address {
                IpAddr::V4(_) => [0, 0, 0, 0].into(),
                IpAddr::V6(_) => [0; 16].into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect((address, port))?;
            socket.set_read_timeout(Some(STALL))?;
            let payload = pattern(0, size);
            socket.send(&payload)?;
            let mut buffer = vec![0; 1 << 16];
            let length = socket.recv(&mut buffer).context("no answer")?;
            ensure!(buffer[..length] == payload, "another payload came back");
            Ok(())
        })
    })
    .with_context(words)
}

/// Serves `text` by HTTP on port 80 of all addresses of a namespace, until the process ends.
pub fn serve(at: &Ns, text: &str) -> Result<()> {
    let listener = at.enter(|| Ok(TcpListener::bind(("::", 80))?))?;
    let page = format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n{text}");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A client that goes away has its own error to report.
            let _ = stream
                .set_read_timeout(Some(STALL))
                .and_then(|()| stream.read(&mut [0; 4096]))
                .and_then(|_| stream.write_all(page.as_bytes()));
        }
    });
    Ok(())
}

/// Fetches the page that `address` serves at port 80.
pub fn fetch(from: &Ns, address: impl Into<IpAddr>) -> Result<String> {
    let address = address.into();
    let page = from
        .enter(|| {
            let mut stream = TcpStream::connect_timeout(&(address, 80).into(), STALL)?;
            stream.set_read_timeout(Some(STALL))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        })
        .with_context(|| format!("HTTP from {} to {address}", from.name()))?;
    let Some((head, body)) = page.split_once("\r\n\r\n") else {
        bail!("{address} answered without a header: {page}");
    };
    ensure!(head.contains(" 200 "), "{address} answered {head}");
    Ok(body.to_owned())
}

fn poll<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            result => return result,
        }
    }
}

const CHUNK: usize = 1 << 16;

fn send(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    stream.set_write_timeout(Some(STALL))?;
    for start in (0..bytes).step_by(CHUNK) {
        stream.write_all(&pattern(start, CHUNK.min(bytes - start)))?;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

fn receive(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    let mut buffer = vec![0; CHUNK];
    for start in (0..bytes).step_by(CHUNK) {
        let part = &mut buffer[..CHUNK.min(bytes - start)];
        stream
            .read_exact(part)
            .with_context(|| format!("within {CHUNK} bytes after byte {start} of {bytes}"))?;
        ensure!(
            part == pattern(start, part.len()),
            "other bytes than were sent, within {CHUNK} after byte {start}"
        );
    }
    ensure!(
        stream.read(&mut buffer)? == 0,
        "more bytes came than were sent"
    );
    Ok(())
}

/// Bytes that repeat nowhere within a transfer, so that a lost or doubled piece shows.
pub fn pattern(start: usize, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut word = start as u64 / 8;
    while bytes.len() < length {
        let mixed = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        bytes.extend_from_slice(&mixed.to_ne_bytes());
        word += 1;
    }
    bytes.truncate(length);
    bytes
}
