//! A terminal that tests see and type into: tmux, with a server of its own.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cmd::{Cmd, Process},
    lab::Lab,
    ns::Ns,
    wait_until,
};

/// How long the screen may take to look as it is waited for.
const SOON: Duration = Duration::from_secs(15);

/// A terminal of a given size in a namespace, with a shell in it. The server, and with
/// it all that runs in the terminal, ends with the value.
pub struct Tmux<'a> {
    ns: &'a Ns,
    socket: PathBuf,
    _server: Process,
}

impl<'a> Tmux<'a> {
    /// Starts one in the lab's host. The prompt of its shell is `$ `.
    pub fn start(lab: &'a Lab, columns: u16, lines: u16) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = lab.dir().join(format!("tmux-{number}"));
        let server = cmd(&lab.host, &socket)
            .args(["-f", "/dev/null", "-D"])
            .start()?;
        ensure!(wait_until(SOON, || socket.exists()), "tmux does not start");
        let tmux = Tmux {
            ns: &lab.host,
            socket,
            _server: server,
        };
        tmux.run(&[
            "new-session",
            "-d",
            "-x",
            &columns.to_string(),
            "-y",
            &lines.to_string(),
            "env PS1='$ ' ENV= TERM=screen-256color LANG=C.UTF-8 sh",
        ])?;
        // The size is the window's, not that of who looks at it.
        tmux.run(&["set-option", "-g", "window-size", "manual"])?;
        tmux.run(&["set-option", "-g", "status", "off"])?;
        tmux.resize(columns, lines)?;
        tmux.wait(|screen| screen.starts_with('$'))?;
        Ok(tmux)
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        cmd(self.ns, &self.socket).args(args).text()
    }

    /// Gives the terminal another size.
    pub fn resize(&self, columns: u16, lines: u16) -> Result<()> {
        let (columns, lines) = (columns.to_string(), lines.to_string());
        self.run(&["resize-window", "-x", &columns, "-y", &lines])
            .map(drop)
    }

    /// Types text as it is.
    pub fn text(&self, text: &str) -> Result<()> {
        self.run(&["send-keys", "-l", text]).map(drop)
    }

    /// Presses keys by tmux's names: `Enter`, `Down`, `C-c`.
    pub fn keys(&self, keys: &[&str]) -> Result<()> {
        let mut args = vec!["send-keys"];
        args.extend(keys);
        self.run(&args).map(drop)
    }

    /// Types a line and Enter.
    pub fn line(&self, line: &str) -> Result<()> {
        self.text(line)?;
        self.keys(&["Enter"])
    }

    /// What is on the screen, without trailing blanks.
    pub fn screen(&self) -> Result<String> {
        self.run(&["capture-pane", "-p"])
    }

    /// What is on the screen, with its colours as escape sequences.
    pub fn coloured(&self) -> Result<String> {
        self.run(&["capture-pane", "-p", "-e"])
    }

    /// Waits until the screen is as wanted, and returns it.
    pub fn wait(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut screen = String::new();
        let seen = wait_until(SOON, || match self.screen() {
            Ok(text) => {
                screen = text;
                wanted(&screen)
            }
            Err(_) => false,
        });
        ensure!(
            seen,
            "the screen did not become what was waited for:\n{screen}"
        );
        Ok(screen)
    }

    /// A setting of the terminal, as tmux's formats name it.
    pub fn ask(&self, format: &str) -> Result<String> {
        let text = self.run(&["display-message", "-p", format])?;
        Ok(text.trim_end().to_owned())
    }

    /// Process id of what runs in the shell.
    pub fn child(&self) -> Result<i32> {
        let shell = self.ask("#{pane_pid}")?;
        let children = self.ns.run(&format!("pgrep -P {shell}"))?;
        let child = children
            .lines()
            .next()
            .context("nothing runs in the shell")?;
        Ok(child.trim().parse()?)
    }
}

fn cmd(ns: &Ns, socket: &Path) -> Cmd {
    ns.cmd("tmux")
        .args(["-u", "-S"])
        .arg(socket)
        // Not one within the other.
        .env("TMUX", "")
        .env("LANG", "C.UTF-8")
}
