//! Streams of numbered packets that go on while something happens, each of which is
//! answered: what is lost is counted, with the time.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::ns::Ns;

/// How long an answer may take before its packet counts as lost: as long as a machine
/// that others work on may stand still.
const GRACE: Duration = Duration::from_secs(5);
/// Packets of a socket that wait for this thread to be scheduled.
const BUFFER: libc::c_int = 8 << 20;
/// A thread that has not run for so long has not taken answers either: that time does not
/// count as time without an answer.
const STOOD_STILL: Duration = Duration::from_millis(500);
/// How many losses are described.
const DESCRIBED: usize = 20;

/// A stream to be: numbered UDP packets to an address in a namespace, which echoes them.
pub struct Stream {
    name: String,
    asking: UdpSocket,
    answering: UdpSocket,
}

impl Stream {
    /// From a namespace to an address of another.
    pub fn new(from: &Ns, to: &Ns, address: impl Into<IpAddr>) -> Result<Self> {
        let address = address.into();
        let name = format!("{} to {} at {address}", from.name(), to.name());
        let make = |ns: &Ns, at: IpAddr| -> Result<UdpSocket> {
            let socket = ns
                .enter(|| Ok(UdpSocket::bind((at, 0))?))
                .with_context(|| format!("no socket for a stream from {name}"))?;
            socket.set_nonblocking(true)?;
            deepen(&socket)?;
            Ok(socket)
        };
        let answering = make(to, address)?;
        let any = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let asking = make(from, any)?;
        asking.connect((address, answering.local_addr()?.port()))?;
        Ok(Stream {
            name,
            asking,
            answering,
        })
    }
}

/// Sets a receive buffer beyond the machine's limit, where that is allowed.
fn deepen(socket: &UdpSocket) -> Result<()> {
    let bytes = BUFFER;
    // SAFETY: the option's value is an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of_val(&bytes).try_into()?,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("cannot set a receive buffer");
    }
    Ok(())
}

/// What became of the packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets sent.
    pub sent: u64,
    /// Packets without an answer, those included that could not be sent.
    pub lost: u64,
    /// The first of those, with stream and time since the start.
    pub words: Vec<String>,
}

/// What the thread tells of.
#[derive(Default)]
struct Shared {
    tally: Tally,
    /// When the oldest packet was sent that has no answer yet.
    oldest: Option<Instant>,
    turned: Option<Instant>,
}

/// Running streams; they end with the value.
pub struct Canaries {
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Canaries {
    /// Starts all of them, with a packet of each every `interval`. On return each has had
    /// its first answer.
    pub fn start(streams: Vec<Stream>, interval: Duration) -> Result<Self> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut running: Vec<_> = streams.into_iter().map(Running::new).collect();
        for stream in &mut running {
            stream.first()?;
        }
        let (news, told) = (Arc::clone(&shared), Arc::clone(&stop));
        let start = Instant::now();
        let thread = thread::spawn(move || {
            let mut asking = true;
            loop {
                let mut shared = lock(&news);
                // Answers are taken before the packets of this turn are sent.
                shared.turned = Some(Instant::now());
                for stream in &mut running {
                    stream.turn(asking, start, &mut shared.tally);
                }
                let oldest = |stream: &Running| Some(stream.waiting.front()?.1);
                shared.oldest = running.iter().filter_map(oldest).min();
                drop(shared);
                if !asking && running.iter().all(|stream| stream.waiting.is_empty()) {
                    break;
                }
                asking = !told.load(Ordering::Relaxed);
                thread::sleep(if asking {
                    interval
                } else {
                    PAUSE.min(interval)
                });
            }
        });
        Ok(Canaries {
            shared,
            stop,
            thread: Some(thread),
        })
    }

    /// What has become of the packets so far. The last of them may still be answered.
    pub fn so_far(&self) -> Tally {
        lock(&self.shared).tally.clone()
    }

    /// What has become of all packets sent until now: waits until each has its answer or
    /// is lost.
    pub fn caught_up(&self) -> Tally {
        let now = Instant::now();
        loop {
            let shared = lock(&self.shared);
            let turned = shared.turned.is_some_and(|turned| turned > now);
            if turned && shared.oldest.is_none_or(|oldest| oldest > now) {
                return shared.tally.clone();
            }
            drop(shared);
            thread::sleep(PAUSE);
        }
    }

    /// Stops asking, waits for the answers that are due, and says what is lost.
    pub fn finish(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            bail!("the thread of the streams panicked");
        }
        Ok(self.so_far())
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

const PAUSE: Duration = Duration::from_millis(2);

struct Running {
    stream: Stream,
    next: u64,
    waiting: VecDeque<(u64, Instant)>,
    turned: Option<Instant>,
}

impl Running {
    fn new(stream: Stream) -> Self {
        Running {
            stream,
            next: 1,
            waiting: VecDeque::new(),
            turned: None,
        }
    }

    /// Asks until there is an answer: neighbors are resolved then.
    fn first(&mut self) -> Result<()> {
        let deadline = Instant::now() + GRACE;
        loop {
            // What cannot be sent now is asked again.
            let _ = self.stream.asking.send(&0_u64.to_ne_bytes());
            thread::sleep(PAUSE);
            self.echo();
            thread::sleep(PAUSE);
            if self.stream.asking.recv(&mut [0; 8]).is_ok() {
                // Answers to the others count for nothing.
                thread::sleep(5 * PAUSE);
                self.echo();
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{}: no answer within {GRACE:?}", self.stream.name);
            }
        }
    }

    fn turn(&mut self, asking: bool, start: Instant, tally: &mut Tally) {
        if let Some(turned) = self.turned.replace(Instant::now()) {
            let gap = turned.elapsed();
            if gap > STOOD_STILL {
                for (_, sent) in &mut self.waiting {
                    *sent += gap;
                }
            }
        }
        self.echo();
        let mut number = [0; 8];
        loop {
            match self.stream.asking.recv(&mut number) {
                Ok(_) => {
                    let number = u64::from_ne_bytes(number);
                    // An answer that overtook others is as good.
                    self.waiting.retain(|(waiting, _)| *waiting != number);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error about a packet that was sent, which will have no answer.
                Err(_) => {}
            }
        }
        let now = Instant::now();
        let lost = |tally: &mut Tally, number: u64, why: &str| {
            tally.lost += 1;
            if tally.words.len() < DESCRIBED {
                let at = now.duration_since(start).as_secs_f64();
                let name = &self.stream.name;
                tally.words.push(format!(
                    "{name}: packet {number} {why}, {at:.1} s after the start"
                ));
            }
        };
        while let Some((number, _)) = self
            .waiting
            .pop_front_if(|(_, sent)| now.duration_since(*sent) > GRACE)
        {
            lost(tally, number, &format!("had no answer within {GRACE:?}"));
        }
        if asking {
            tally.sent += 1;
            match self.stream.asking.send(&self.next.to_ne_bytes()) {
                Ok(_) => self.waiting.push_back((self.next, now)),
                Err(error) => lost(tally, self.next, &format!("was not sent: {error}")),
            }
            self.next += 1;
        }
    }

    fn echo(&self) {
        let mut number = [0; 8];
        while let Ok((length, from)) = self.stream.answering.recv_from(&mut number) {
            // What cannot be sent is missed by who asked.
            let _ = self.stream.answering.send_to(&number[..length], from);
        }
    }
}
