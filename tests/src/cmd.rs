//! Commands inside a namespace, with a time limit, and processes that end with the test.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader, Read, Write as _},
    os::{
        fd::AsFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

use crate::ns::Ns;

/// How long a command may take unless [`Cmd::limit`] says otherwise.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A command that runs in a namespace, ends when the thread that started it ends,
/// and is killed when it takes too long.
pub struct Cmd {
    command: Command,
    place: String,
    input: Option<Vec<u8>>,
    limit: Duration,
}

impl Cmd {
    pub(crate) fn new(ns: &Ns, program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        let fd = ns
            .as_fd()
            .try_clone_to_owned()
            .expect("a file descriptor is free");
        // SAFETY: between fork and exec only system calls are made, no memory is allocated.
        unsafe {
            command.pre_exec(move || {
                setns(&fd, CloneFlags::CLONE_NEWNET)?;
                set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        Cmd {
            command,
            place: ns.name().to_owned(),
            input: None,
            limit: LIMIT,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// What the command reads on its standard input; nothing otherwise.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// The signal it gets when the thread that started it ends, instead of SIGKILL.
    pub fn farewell(mut self, signal: Signal) -> Self {
        // SAFETY: a system call and nothing else is made between fork and exec.
        unsafe {
            self.command.pre_exec(move || Ok(set_pdeathsig(signal)?));
        }
        self
    }

    /// How long it may take.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end. Fails only if it cannot start or takes too long.
    pub fn output(self) -> Result<Output> {
        let limit = self.limit;
        let mut process = self.start()?;
        let Some(status) = process.wait(limit)? else {
            process.kill();
            bail!(
                "{} had no result after {limit:?}\n{}{}",
                process.line,
                process.out(),
                process.err()
            );
        };
        process.finish_reading();
        Ok(Output {
            line: process.line.clone(),
            status,
            stdout: process.out(),
            stderr: process.err(),
        })
    }

    /// Runs it to its end and returns its standard output. Fails if it fails.
    pub fn text(self) -> Result<String> {
        self.output()?.success()
    }

    /// Starts it; it is killed when the value is dropped.
    pub fn start(mut self) -> Result<Process> {
        let line = self.line();
        let stdin = match self.input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        };
        let mut child = self
            .command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What it starts goes with it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {line}"))?;
        let (tell, news) = mpsc::channel();
        let (out, out_reader) = collect(child.stdout.take().context("no pipe")?, tell.clone());
        let (err, err_reader) = collect(child.stderr.take().context("no pipe")?, tell);
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), self.input) {
            thread::spawn(move || stdin.write_all(&input));
        }
        Ok(Process {
            line,
            child,
            out,
            err,
            news,
            readers: vec![out_reader, err_reader],
        })
    }

    /// Runs it with this process's terminal, as a shell needs, for as long as it takes.
    pub fn interactive(mut self) -> Result<ExitStatus> {
        let line = self.line();
        self.command
            .status()
            .with_context(|| format!("cannot start {line}"))
    }

    fn line(&self) -> String {
        let words: Vec<OsString> = std::iter::once(self.command.get_program())
            .chain(self.command.get_args())
            .map(OsStr::to_owned)
            .collect();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        format!("`{}` in {}", words.join(" "), self.place)
    }
}

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// The command, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The exit code; 128 and the signal's number after a signal, as in a shell.
    pub fn code(&self) -> i32 {
        let by_signal = || self.status.signal().map(|signal| 128 + signal);
        self.status.code().or_else(by_signal).unwrap_or(-1)
    }

    /// The standard output, or an error with everything if the command failed.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!(
                "{} ended with code {}\n{}{}",
                self.line,
                self.code(),
                self.stdout,
                self.stderr
            );
        }
        Ok(self.stdout)
    }
}

/// A running command. Killed, with what it started, when dropped.
pub struct Process {
    line: String,
    child: Child,
    out: Arc<Mutex<Vec<u8>>>,
    err: Arc<Mutex<Vec<u8>>>,
    news: mpsc::Receiver<()>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output so far.
    pub fn out(&self) -> String {
        text(&self.out)
    }

    /// Its standard error so far.
    pub fn err(&self) -> String {
        text(&self.err)
    }

    /// Waits for a line on its standard output or error that `wanted` accepts.
    pub fn wait_line(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            // What is there is looked through once, however many lines came.
            while self.news.try_recv().is_ok() {}
            let all = self.out() + &self.err();
            if let Some(line) = all.lines().find(|line| wanted(line)) {
                return Ok(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.news.recv_timeout(left) {
                Ok(()) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => bail!(
                    "{} did not print the line waited for within {limit:?}\n{all}",
                    self.line
                ),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let all = self.out() + &self.err();
                    if let Some(line) = all.lines().find(|line| wanted(line)) {
                        return Ok(line.to_owned());
                    }
                    let status = self.child.wait()?;
                    bail!("{} ended early with {status}\n{all}", self.line);
                }
            }
        }
    }

    /// How it ended, or `None` if it has not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// True until it has ended.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        nix::sys::signal::kill(self.pid(), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.line))
    }

    /// Sends a signal, waits for the end, and returns the exit code
    /// (128 and the signal's number if the signal ended it).
    pub fn end(mut self, signal: Signal, limit: Duration) -> Result<Output> {
        self.signal(signal)?;
        let Some(status) = self.wait(limit)? else {
            let words = self.out() + &self.err();
            bail!(
                "{} went on for {limit:?} after {signal}\n{words}",
                self.line
            );
        };
        self.finish_reading();
        Ok(Output {
            line: self.line.clone(),
            status,
            stdout: self.out(),
            stderr: self.err(),
        })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn kill(&mut self) {
        // Once reaped, its number may belong to someone else.
        if self.running() {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }

    fn finish_reading(&mut self) {
        // A grandchild may hold the pipe open; what it prints later is nobody's business.
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn collect(
    pipe: impl Read + Send + 'static,
    tell: mpsc::Sender<()>,
) -> (Arc<Mutex<Vec<u8>>>, JoinHandle<()>) {
    let all = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&all);
    let reader = thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            kept.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(&mut line);
            let _ = tell.send(());
        }
    });
    (all, reader)
}

fn text(bytes: &Mutex<Vec<u8>>) -> String {
    let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&bytes).into_owned()
}
