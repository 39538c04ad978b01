//! Traffic in bulk whose every byte is compared, both ways, by calls that a virtual
//! machine can take part in.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{Ns, pattern};

/// How long a transfer may stand still.
const STALL: Duration = Duration::from_secs(20);

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    Tcp,
    Sctp,
    /// A datagram at a time.
    Udp,
    /// Many datagrams in one call (`UDP_SEGMENT`), received likewise (`UDP_GRO`).
    UdpSegments,
}

impl Traffic {
    pub const fn name(self) -> &'static str {
        match self {
            Traffic::Tcp => "TCP",
            Traffic::Sctp => "SCTP",
            Traffic::Udp => "UDP",
            Traffic::UdpSegments => "UDP, segments",
        }
    }

    /// Whether this kernel has it.
    pub fn exists(self) -> bool {
        self != Traffic::Sctp || stream_socket(true, IPPROTO_SCTP).is_ok()
    }
}

const IPPROTO_SCTP: i32 = 132;
/// Of include/uapi/linux/udp.h.
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;

fn stream_socket(v4: bool, protocol: i32) -> io::Result<OwnedFd> {
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: the call takes no pointers; a non-negative result is a new descriptor.
    unsafe {
        match libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn option(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: i32) -> Result<()> {
    // SAFETY: the value is an int of the length said.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value).try_into()?,
        )
    };
    ensure!(
        done == 0,
        "option {name} of a socket: {}",
        io::Error::last_os_error()
    );
    Ok(())
}

/// The address as the kernel takes it.
fn raw(address: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_in6, in which a sockaddr_in has room.
    let mut storage: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    match address {
        SocketAddr::V4(v4) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*v4.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: the storage is larger, and aligned for it.
            unsafe {
                (&raw mut storage)
                    .cast::<libc::sockaddr_in>()
                    .write(address)
            };
            (storage, size_of::<libc::sockaddr_in>() as u32)
        }
        SocketAddr::V6(v6) => {
            storage.sin6_family = libc::AF_INET6 as u16;
            storage.sin6_port = v6.port().to_be();
            storage.sin6_addr.s6_addr = v6.ip().octets();
            (storage, size_of::<libc::sockaddr_in6>() as u32)
        }
    }
}

/// The address as the kernel gives it.
fn cooked(storage: &libc::sockaddr_in6) -> SocketAddr {
    if i32::from(storage.sin6_family) == libc::AF_INET {
        // SAFETY: the kernel says that it wrote a sockaddr_in, which is smaller.
        let v4 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
        let address = u32::from_be(v4.sin_addr.s_addr);
        (Ipv4Addr::from(address), u16::from_be(v4.sin_port)).into()
    } else {
        let address = Ipv6Addr::from(storage.sin6_addr.s6_addr);
        (address, u16::from_be(storage.sin6_port)).into()
    }
}

/// A listener for TCP or SCTP, whose calls are the same.
pub fn listen(traffic: Traffic, address: SocketAddr) -> Result<TcpListener> {
    if traffic == Traffic::Tcp {
        return Ok(TcpListener::bind(address)?);
    }
    let socket = stream_socket(address.is_ipv4(), IPPROTO_SCTP)?;
    let (storage, length) = raw(address);
    // SAFETY: the address is of the length said.
    let done = unsafe {
        let bound = libc::bind(socket.as_raw_fd(), (&raw const storage).cast(), length);
        if bound == 0 {
            libc::listen(socket.as_raw_fd(), 8)
        } else {
            bound
        }
    };
    ensure!(
        done == 0,
        "cannot listen by SCTP: {}",
        io::Error::last_os_error()
    );
    Ok(socket.into())
}

fn connect(traffic: Traffic, address: SocketAddr) -> Result<TcpStream> {
    if traffic == Traffic::Tcp {
        return Ok(TcpStream::connect_timeout(&address, STALL)?);
    }
    let socket = stream_socket(address.is_ipv4(), IPPROTO_SCTP)?;
    let (storage, length) = raw(address);
    // SAFETY: the address is of the length said.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const storage).cast(), length) };
    ensure!(
        done == 0,
        "cannot connect by SCTP: {}",
        io::Error::last_os_error()
    );
    Ok(socket.into())
}

const CHUNK: usize = 1 << 16;

fn send(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    for start in (0..bytes).step_by(CHUNK) {
        stream.write_all(&pattern(start, CHUNK.min(bytes - start)))?;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, bytes: usize) -> Result<()> {
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
    Ok(())
}

/// The answering side of one transfer over a connection: its first eight bytes say how
/// many bytes follow, which come back.
pub fn answer(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + STALL;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    answer_stream(&mut stream)
}

/// As [`answer`], on a connection that is there.
pub fn answer_stream(stream: &mut TcpStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    let bytes = u64::from_be_bytes(head).try_into()?;
    receive(stream, bytes)?;
    send(stream, bytes)?;
    // So that the end of the connection cuts nothing off.
    match stream.read(&mut head) {
        Ok(0) => Ok(()),
        Ok(_) => bail!("more bytes came than were sent"),
        Err(error) => Err(error).context("the connection's end"),
    }
}

/// The asking side: so many bytes there, and back.
pub fn ask(traffic: Traffic, address: SocketAddr, bytes: usize) -> Result<()> {
    ask_stream(&mut connect(traffic, address)?, bytes)
}

/// As [`ask`], on a connection that is there.
pub fn ask_stream(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    stream.write_all(&(bytes as u64).to_be_bytes())?;
    send(stream, bytes)?;
    receive(stream, bytes)
}

/// Payload of a datagram, which fits tunnels in tunnels.
const DATAGRAM: usize = 1200;
/// Bytes of a datagram that say what it is: kind, transfer, number.
const HEAD: usize = 9;
/// Datagrams of one call.
const AT_ONCE: usize = 40;
/// Numbers in a list of what is missing.
const LISTED: usize = 250;

/// A socket for datagrams.
pub struct Datagrams {
    socket: UdpSocket,
    segments: bool,
}

impl Datagrams {
    pub fn bind(address: SocketAddr, segments: bool) -> Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        for name in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            option(&socket, libc::SOL_SOCKET, name, 16 << 20)?;
        }
        if segments {
            option(&socket, libc::IPPROTO_UDP, UDP_GRO, 1)?;
        }
        Ok(Datagrams { socket, segments })
    }

    pub fn port(&self) -> Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Sends the datagrams with these numbers.
    fn send(&self, to: SocketAddr, transfer: u32, numbers: &[u32]) -> Result<()> {
        let datagram = |number: u32| {
            let mut bytes = vec![b'd'];
            bytes.extend(transfer.to_be_bytes());
            bytes.extend(number.to_be_bytes());
            bytes.extend(pattern(number as usize * DATAGRAM, DATAGRAM - HEAD));
            bytes
        };
        if !self.segments {
            for number in numbers {
                self.socket.send_to(&datagram(*number), to)?;
            }
            return Ok(());
        }
        option(
            &self.socket,
            libc::IPPROTO_UDP,
            UDP_SEGMENT,
            DATAGRAM as i32,
        )?;
        for part in numbers.chunks(AT_ONCE) {
            let all: Vec<u8> = part.iter().flat_map(|number| datagram(*number)).collect();
            self.socket.send_to(&all, to)?;
        }
        option(&self.socket, libc::IPPROTO_UDP, UDP_SEGMENT, 0)
    }

    /// The datagrams of one call, or none for a while.
    fn receive(&self) -> Result<Vec<(SocketAddr, Vec<u8>)>> {
        let mut buffer = vec![0_u8; 1 << 16];
        let mut control = [0_u64; 8];
        // SAFETY: all-zero is a valid sockaddr_in6.
        let mut from: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message points at buffers of the lengths that it says.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(Vec::new()),
                _ => Err(error).context("a datagram's receiver"),
            };
        };
        // SAFETY: the kernel filled the message, whose control area is still in scope.
        let joined = unsafe {
            libc::CMSG_FIRSTHDR(&raw const message)
                .as_ref()
                .filter(|header| header.cmsg_level == libc::IPPROTO_UDP)
                .map(|header| libc::CMSG_DATA(header).cast::<i32>().read_unaligned())
        };
        let size = match joined {
            Some(size) => size.try_into()?,
            None => length.max(1),
        };
        let from = cooked(&from);
        Ok(buffer[..length]
            .chunks(size)
            .map(|part| (from, part.to_vec()))
            .collect())
    }

    /// Answers one transfer: takes datagrams, says which are missing, sends as many back.
    /// Ends when told so, or after a while in which nothing came.
    pub fn answer(&self) -> Result<()> {
        let mut got = BTreeSet::new();
        let mut last = Instant::now();
        let mut wrong = 0_u32;
        let mut sent = false;
        while last.elapsed() < STALL {
            for (from, datagram) in self.receive()? {
                last = Instant::now();
                let Some((kind, transfer, number)) = head(&datagram) else {
                    bail!("a strange datagram of {} bytes", datagram.len());
                };
                match kind {
                    b'd' if is_right(&datagram, number) => drop(got.insert(number)),
                    b'd' => wrong += 1,
                    // Which of so many are missing?
                    b'q' => {
                        let missing = (0..number).filter(|n| !got.contains(n)).take(LISTED);
                        let mut list = vec![b'm'];
                        list.extend(transfer.to_be_bytes());
                        list.extend(wrong.to_be_bytes());
                        list.extend(missing.flat_map(u32::to_be_bytes));
                        self.socket.send_to(&list, from)?;
                    }
                    // Send these.
                    b'g' => {
                        self.send(from, transfer, &numbers(&datagram))?;
                        sent = true;
                    }
                    _ => return Ok(()),
                }
            }
        }
        // Its end may have been lost.
        ensure!(sent, "no transfer by UDP came");
        Ok(())
    }

    /// Asks for one transfer there and back.
    pub fn ask(&self, to: SocketAddr, bytes: usize) -> Result<()> {
        const TRIES: usize = 60;
        let transfer = u32::from(self.port()?);
        let count = bytes.div_ceil(DATAGRAM) as u32;
        let all: Vec<u32> = (0..count).collect();
        let message = |kind: u8, number: u32, list: &[u32]| {
            let mut bytes = vec![kind];
            bytes.extend(transfer.to_be_bytes());
            bytes.extend(number.to_be_bytes());
            bytes.extend(list.iter().flat_map(|number| number.to_be_bytes()));
            bytes
        };
        let mut missing = all.clone();
        for tries in 0.. {
            ensure!(
                tries < TRIES,
                "{} datagrams do not get there",
                missing.len()
            );
            self.send(to, transfer, &missing)?;
            self.socket.send_to(&message(b'q', count, &[]), to)?;
            let list =
                self.receive()?
                    .into_iter()
                    .find_map(|(_, datagram)| match head(&datagram) {
                        Some((b'm', _, wrong)) => Some((wrong, numbers(&datagram))),
                        _ => None,
                    });
            if let Some((wrong, list)) = list {
                ensure!(
                    wrong == 0,
                    "{wrong} datagrams hold other bytes than were sent"
                );
                missing = list;
                if missing.is_empty() {
                    break;
                }
            }
        }
        let mut got = BTreeSet::new();
        for tries in 0.. {
            let missing: Vec<u32> = (0..count).filter(|n| !got.contains(n)).collect();
            if missing.is_empty() {
                break;
            }
            ensure!(
                tries < TRIES,
                "{} datagrams do not come back",
                missing.len()
            );
            for part in missing.chunks(LISTED) {
                self.socket.send_to(&message(b'g', 0, part), to)?;
            }
            let before = got.len();
            while got.len() < count as usize {
                let datagrams = self.receive()?;
                if datagrams.is_empty() {
                    break;
                }
                for (_, datagram) in datagrams {
                    if let Some((b'd', _, number)) = head(&datagram) {
                        ensure!(
                            is_right(&datagram, number),
                            "datagram {number} holds other bytes than were sent"
                        );
                        got.insert(number);
                    }
                }
                if got.len() - before >= missing.len() {
                    break;
                }
            }
        }
        self.socket.send_to(&message(b'e', 0, &[]), to)?;
        Ok(())
    }
}

fn head(datagram: &[u8]) -> Option<(u8, u32, u32)> {
    let word = |at: usize| {
        Some(u32::from_be_bytes(
            datagram.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    Some((*datagram.first()?, word(1)?, word(5)?))
}

fn is_right(datagram: &[u8], number: u32) -> bool {
    datagram.len() == DATAGRAM
        && datagram[HEAD..] == pattern(number as usize * DATAGRAM, DATAGRAM - HEAD)
}

fn numbers(datagram: &[u8]) -> Vec<u32> {
    let (words, _) = datagram[HEAD..].as_chunks::<4>();
    words.iter().map(|word| u32::from_be_bytes(*word)).collect()
}

/// One transfer there and back between two namespaces.
pub fn transfer(
    traffic: Traffic,
    client: &Ns,
    server: &Ns,
    address: IpAddr,
    bytes: usize,
) -> Result<()> {
    std::thread::scope(|scope| match traffic {
        Traffic::Tcp | Traffic::Sctp => {
            let listener = server.enter(|| listen(traffic, (address, 0).into()))?;
            let to = listener.local_addr()?;
            let answering = scope.spawn(move || answer(&listener));
            let asked = client.enter(|| ask(traffic, to, bytes));
            let answered = answering.join().expect("it does not panic");
            asked.context("the asking side")?;
            answered.context("the answering side")
        }
        Traffic::Udp | Traffic::UdpSegments => {
            let segments = traffic == Traffic::UdpSegments;
            let socket = server.enter(|| Datagrams::bind((address, 0).into(), segments))?;
            let to = (address, socket.port()?).into();
            let answering = scope.spawn(move || socket.answer());
            let asked = client.enter(|| {
                let any: IpAddr = if address.is_ipv4() {
                    [0; 4].into()
                } else {
                    [0; 16].into()
                };
                Datagrams::bind((any, 0).into(), segments)?.ask(to, bytes)
            });
            asked.context("the asking side")?;
            answering
                .join()
                .expect("it does not panic")
                .context("the answering side")
        }
    })
}
