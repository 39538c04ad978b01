//! `top`: the machines' traffic as it goes, on the whole terminal.
//!
//! Only reads the pinned maps, so that it works without an agent.

mod draw;
mod machines;

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use nix::net::if_::if_indextoname;
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_stream::StreamExt as _;

use self::machines::{Column, Machines};
use crate::{
    cli::{Global, TopArgs},
    control::RunDir,
    datapath::meter::Meter,
    outcome::{Outcome, Usage},
};

/// How often what seldom changes is read again: addresses, tenants.
const DESCRIBE: Duration = Duration::from_secs(10);
/// How often the agent is asked whether it is there.
const ASK: Duration = Duration::from_secs(5);

/// Shows the machines until told to end.
///
/// # Errors
/// When there is no terminal, nothing is attached, or the maps cannot be opened.
pub fn run(global: &Global, args: &TopArgs) -> Result<Outcome> {
    if global.json {
        let instead = "`netspawn-xdp list --json --watch` prints the same for programs";
        return Err(Usage(format!("top has no JSON; {instead}")).into());
    }
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if dumb || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!(
            "top needs a terminal that can be written to at any place; `netspawn-xdp list \
             --watch` prints the same to files and pipes"
        );
    }
    let run_dir = RunDir::new(&global.run_dir);
    run_dir.check_namespace()?;
    let Some(meter) = Meter::open(&global.bpf_dir)? else {
        bail!("nothing is attached, so there is nothing to show; see `netspawn-xdp status`");
    };
    let mut top = Top::new(&global.bpf_dir, args.interval, meter);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot wait for events")?;
    // Restores the terminal in a panic, too.
    let mut terminal = ratatui::try_init().context("cannot set the terminal up")?;
    let result = runtime.block_on(top.follow(&mut terminal, ask(run_dir)));
    ratatui::restore();
    result.map(|()| Outcome::Done)
}

/// Keeps the process id of the agent. On a thread of its own, because an agent
/// that hangs must not hold the screen up.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be shown is left out of the screen, until the next time"
)]
fn ask(run_dir: RunDir) -> watch::Receiver<Option<u32>> {
    let (tell, told) = watch::channel(None);
    thread::spawn(move || {
        while !tell.is_closed() {
            // One that does not answer is as good as none to who watches.
            let pid = run_dir.agent().ok().flatten().map(|agent| agent.pid);
            tell.send_if_modified(|known| std::mem::replace(known, pid) != pid);
            thread::sleep(ASK);
        }
    });
    told
}

/// What is on the screen.
struct Top<'a> {
    bpf_dir: &'a Path,
    interval: Duration,
    meter: Option<Meter>,
    machines: Machines,
    uplinks: Vec<String>,
    agent: Option<u32>,
    /// When the counts were read last, and everything else.
    read: Option<Instant>,
    described: Option<Instant>,
    /// Why there is nothing new.
    problem: Option<String>,
    /// The machine chosen; without, that of the first row.
    chosen: Option<u32>,
    /// The first row shown, and how many there are.
    from: usize,
    rows: usize,
    /// A filter that is being written.
    typed: Option<String>,
    help: bool,
}

impl<'a> Top<'a> {
    fn new(bpf_dir: &'a Path, interval: Duration, meter: Meter) -> Self {
        Top {
            bpf_dir,
            interval,
            meter: Some(meter),
            machines: Machines::default(),
            uplinks: Vec::new(),
            agent: None,
            read: None,
            described: None,
            problem: None,
            chosen: None,
            from: 0,
            rows: 0,
            typed: None,
            help: false,
        }
    }

    /// Draws and reads until a key or a signal ends it, or the terminal is gone.
    async fn follow(
        &mut self,
        terminal: &mut DefaultTerminal,
        mut agent: watch::Receiver<Option<u32>>,
    ) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut keys = EventStream::new();
        let mut tick = interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
                event = keys.next() => match event {
                    Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                        if self.press(key) {
                            return Ok(());
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error).context("cannot read the terminal"),
                    None => return Ok(()),
                },
                Ok(()) = agent.changed() => self.agent = *agent.borrow_and_update(),
                _ = tick.tick() => self.look(),
            }
            terminal
                .draw(|frame| self.draw(frame))
                .context("cannot write to the terminal")?;
        }
    }

    /// Reads the counts. What stands in the way is said, and tried again next time.
    fn look(&mut self) {
        if let Err(error) = self.read() {
            self.problem = Some(format!("{error:#}"));
            self.meter = None;
        }
    }

    fn read(&mut self) -> Result<()> {
        if self.meter.is_none() {
            self.meter = Meter::open(self.bpf_dir)?;
            (self.read, self.described) = (None, None);
        }
        let reading = match &self.meter {
            Some(meter) => meter.read()?,
            None => None,
        };
        let (Some(reading), Some(meter)) = (reading, &self.meter) else {
            self.meter = None;
            self.machines.update(Default::default(), None);
            bail!("the data plane was taken away; waiting for `netspawn-xdp attach`");
        };
        let now = Instant::now();
        let seconds = self.read.map(|then| now.duration_since(then).as_secs_f64());
        self.read = Some(now);
        let changed = self.machines.update(reading, seconds);
        let due = self
            .described
            .is_none_or(|at| now.duration_since(at) >= DESCRIBE);
        if changed || due {
            self.machines.describe(&meter.state()?);
            self.uplinks = meter.uplinks()?;
            self.described = Some(now);
        }
        self.problem = None;
        Ok(())
    }

    /// Does what a key asks for; whether that is to end.
    fn press(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c')) {
            return true;
        }
        if let Some(mut text) = self.typed.take() {
            match key.code {
                KeyCode::Enter => return false,
                KeyCode::Esc => text.clear(),
                KeyCode::Backspace if text.is_empty() => return false,
                KeyCode::Backspace => drop(text.pop()),
                KeyCode::Char('u') if control => text.clear(),
                KeyCode::Char(character) if !control => text.push(character),
                _ => {}
            }
            self.machines.filter(&text);
            self.chosen = None;
            if key.code != KeyCode::Esc {
                self.typed = Some(text);
            }
            return false;
        }
        if self.help {
            self.help = false;
            return matches!(key.code, KeyCode::Char('q'));
        }
        let page = self.rows.max(1).cast_signed();
        match key.code {
            KeyCode::Char('q') => return true,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('/') => self.typed = Some(self.machines.filtered_by().to_owned()),
            KeyCode::Esc => self.machines.filter(""),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-page),
            KeyCode::PageDown | KeyCode::Char(' ') => self.step(page),
            KeyCode::Home | KeyCode::Char('g') => self.chosen = None,
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX / 2),
            KeyCode::Char(character) => {
                let mut columns = Column::ALL.into_iter();
                if let Some(column) = columns.find(|column| column.key() == character) {
                    self.machines.sort_by(column);
                }
            }
            _ => {}
        }
        false
    }

    /// Where the machine chosen is.
    fn place(&self) -> usize {
        let place = self.chosen.and_then(|id| self.machines.place(id));
        place.unwrap_or(0)
    }

    /// Chooses another machine, so many rows below. That of the first row is not
    /// followed to where it goes.
    fn step(&mut self, rows: isize) {
        let last = self.machines.shown().saturating_sub(1);
        let place = self.place().saturating_add_signed(rows).min(last);
        let chosen = self.machines.rows(place, 1).next();
        self.chosen = chosen.filter(|_| place > 0).map(|(id, _)| id);
    }
}

/// The name of an interface, `-` without one.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be shown is left out of the screen, until the next time"
)]
fn interface(ifindex: u32) -> String {
    let name = if_indextoname(ifindex).ok();
    let name = name.and_then(|name| name.into_string().ok());
    // nix 0.31 takes the null pointer of a failure for success, with an empty name.
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}
