//! One run of the benchmarks: what was asked for, how far it is, whether to stop.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// How much is measured, and where a run is.
#[derive(Debug)]
pub struct Run {
    /// Machines at most, whatever a scenario would like.
    pub machines: u32,
    /// Rounds of each path.
    pub rounds: usize,
    stop: AtomicBool,
    clock: Arc<Mutex<Clock>>,
    /// On a terminal.
    bar: Option<ProgressBar>,
}

/// The user wants the run to end.
#[derive(Debug)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

impl Run {
    /// A run that has not begun, and that says its steps line by line on stderr.
    pub fn new(machines: u32, rounds: usize) -> Self {
        Run {
            machines,
            rounds,
            stop: AtomicBool::new(false),
            clock: Arc::new(Mutex::new(Clock::new(Instant::now()))),
            bar: None,
        }
    }

    /// Shows a bar on stderr in place of lines.
    pub fn with_bar(mut self) -> Self {
        const TEMPLATE: &str = "{elapsed_precise} {bar:24.cyan/dim} {wide_msg} {left:.dim}";
        let clock = Arc::clone(&self.clock);
        let style = ProgressStyle::with_template(TEMPLATE)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━━─")
            .with_key(
                "left",
                move |_: &ProgressState, out: &mut dyn fmt::Write| {
                    let _ = out.write_str(&words(locked(&clock).left(Instant::now())));
                },
            );
        let bar = ProgressBar::new(PARTS).with_style(style);
        bar.enable_steady_tick(Duration::from_secs(1));
        self.bar = Some(bar);
        self
    }

    /// Sizes of a scenario within what was asked for, at least one.
    pub fn sizes(&self, wanted: &[u32]) -> Vec<u32> {
        let mut sizes: Vec<_> = wanted
            .iter()
            .map(|size| *size.min(&self.machines))
            .collect();
        sizes.dedup();
        sizes
    }

    /// Begins a scenario that usually takes so long, as do all those after it together.
    pub fn begin(&self, scenario: &str, usual: Duration, later: Duration) {
        locked(&self.clock).begin(Instant::now(), scenario, usual, later);
    }

    /// Says how many times this scenario calls [`Run::step`], which makes the time left
    /// known better than by how long the scenario usually takes.
    pub fn expect(&self, steps: usize) {
        locked(&self.clock).expected = Some(steps);
    }

    /// Says what is done next, and ends the scenario where the user wants the run to
    /// stop: called before each piece of work of more than a second.
    ///
    /// # Errors
    /// [`Stopped`] when the user wants it to stop.
    pub fn step(&self, what: &str) -> Result<()> {
        if self.stopping() {
            return Err(Stopped.into());
        }
        let now = Instant::now();
        let mut clock = locked(&self.clock);
        clock.steps += 1;
        let (elapsed, left) = (now - clock.start, clock.left(now));
        let line = if clock.scenario.is_empty() {
            what.to_owned()
        } else {
            format!("{}: {what}", clock.scenario)
        };
        drop(clock);
        match &self.bar {
            Some(bar) => {
                let whole = (elapsed + left).as_secs_f64();
                let part = elapsed.as_secs_f64() / whole.max(1e-9) * PARTS as f64;
                bar.set_position(part as u64);
                bar.set_message(line);
            }
            None => eprintln!("[{:4} s] {line} ({})", elapsed.as_secs(), words(left)),
        }
        Ok(())
    }

    /// Says something to the user.
    pub fn say(&self, words: impl fmt::Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{words}")),
            None => eprintln!("{words}"),
        }
    }

    /// Lets the next step be the end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the next step is the end.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Parts of the bar.
const PARTS: u64 = 1000;

/// What the time left is estimated from.
#[derive(Debug)]
struct Clock {
    /// Of the run.
    start: Instant,
    /// Of the scenario.
    since: Instant,
    scenario: String,
    usual: Duration,
    later: Duration,
    /// Steps begun.
    steps: usize,
    expected: Option<usize>,
    /// What the scenarios before took, and usually take.
    past: (Duration, Duration),
}

impl Clock {
    fn new(now: Instant) -> Self {
        Clock {
            start: now,
            since: now,
            scenario: String::new(),
            usual: Duration::ZERO,
            later: Duration::ZERO,
            steps: 0,
            expected: None,
            past: (Duration::ZERO, Duration::ZERO),
        }
    }

    fn begin(&mut self, now: Instant, scenario: &str, usual: Duration, later: Duration) {
        if !self.scenario.is_empty() {
            self.past.0 += now - self.since;
            self.past.1 += self.usual;
        }
        scenario.clone_into(&mut self.scenario);
        (self.since, self.usual, self.later) = (now, usual, later);
        (self.steps, self.expected) = (0, None);
    }

    fn left(&self, now: Instant) -> Duration {
        // This machine, and these options, against what is usual.
        let pace = match self.past {
            (_, Duration::ZERO) => 1.0,
            (took, usual) => took.as_secs_f64() / usual.as_secs_f64(),
        };
        let elapsed = now - self.since;
        let done = self.steps.saturating_sub(1);
        let here = match self.expected {
            Some(steps) if done > 0 => elapsed
                .mul_f64(steps as f64 / done as f64)
                .saturating_sub(elapsed),
            _ => self.usual.mul_f64(pace).saturating_sub(elapsed),
        };
        here + self.later.mul_f64(pace)
    }
}

fn locked(clock: &Mutex<Clock>) -> MutexGuard<'_, Clock> {
    clock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No more exact than an estimate is.
fn words(left: Duration) -> String {
    let mut words = String::from("about ");
    let _ = match left.as_secs() {
        seconds @ ..90 => write!(words, "{} s left", (seconds / 10 + 1) * 10),
        seconds => write!(words, "{} min left", seconds.div_ceil(60)),
    };
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_stopped_run_ends_at_its_next_step() {
        let run = Run::new(10, 1);
        run.step("one").expect("goes on");
        run.stop();
        let error = run.step("two").expect_err("ends").context("round 2");
        assert!(error.is::<Stopped>());
    }

    #[test]
    fn sizes_stay_within_the_machines_asked_for() {
        assert_eq!(Run::new(100, 1).sizes(&[1, 100, 1000, 10_000]), [1, 100]);
        assert_eq!(Run::new(50, 1).sizes(&[100]), [50]);
    }

    #[test]
    fn time_left_follows_the_pace_of_what_is_over() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.begin(start, "arp", seconds(60), seconds(240));
        assert_eq!(clock.left(start + seconds(20)), seconds(40 + 240));
        // It took half as long as usual, so will what comes.
        let next = start + seconds(30);
        clock.begin(next, "ndp", seconds(40), seconds(200));
        assert_eq!(clock.left(next + seconds(5)), seconds(15 + 100));
    }

    #[test]
    fn time_left_follows_the_steps_where_their_number_is_known() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.begin(start, "arp", seconds(1000), seconds(0));
        clock.expected = Some(10);
        // Two are over, the third has begun.
        clock.steps = 3;
        assert_eq!(clock.left(start + seconds(8)), seconds(32));
    }

    #[test]
    fn estimates_are_rounded() {
        assert_eq!(words(seconds(3)), "about 10 s left");
        assert_eq!(words(seconds(89)), "about 90 s left");
        assert_eq!(words(seconds(91)), "about 2 min left");
    }
}
