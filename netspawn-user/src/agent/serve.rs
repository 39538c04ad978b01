//! The agent's socket: what commands ask of it.

use std::{io, path::Path};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{Agent, RETRY, ready_line};
use crate::{
    cli::Mode,
    control::{Agent as AgentInfo, MAX_LINE, Request, Response},
    datapath::{attach::uplink_check, plane::Wanted},
    registry::Desired,
};

impl Agent {
    /// Answers one request; whether the agent has nothing left to do.
    pub(super) async fn serve(&mut self, stream: UnixStream) -> bool {
        let (reader, mut writer) = stream.into_split();
        let mut line = String::new();
        let mut reader = BufReader::new(reader.take(MAX_LINE));
        let read = reader.read_line(&mut line);
        // A client that does not speak must not hold the agent up.
        if !matches!(tokio::time::timeout(RETRY, read).await, Ok(Ok(_))) {
            return false;
        }
        let (response, ends) = match serde_json::from_str(&line) {
            Ok(request) => self.answer(request),
            Err(error) => (refusal(format!("request not understood: {error}")), false),
        };
        if let Ok(mut text) = serde_json::to_string(&response) {
            text.push('\n');
            let _ = writer.write_all(text.as_bytes()).await;
        }
        ends
    }

    fn answer(&mut self, request: Request) -> (Response, bool) {
        match self.carry_out(request) {
            Ok((response, ends)) => (response, ends),
            Err(error) => (refusal(format!("{error:#}")), false),
        }
    }

    fn carry_out(&mut self, request: Request) -> Result<(Response, bool)> {
        let mut response = Response::default();
        match request {
            Request::Status => {
                response.agent = Some(AgentInfo {
                    pid: std::process::id(),
                    since: self.since,
                    last_sync: self.last_sync,
                    registered: self.snapshot.registered.clone(),
                });
            }
            Request::Sync => {
                self.refresh()?;
                self.sync()?;
            }
            Request::Attach { uplinks, mode } => {
                self.refresh()?;
                let desired = self.attach(&uplinks, mode)?;
                response.ready = Some(ready_line(&mut self.plane, &desired, self.observer.host())?);
            }
            Request::Detach { uplinks } => {
                self.refresh()?;
                response.failed = self.plane.detach(
                    &uplinks,
                    &Wanted {
                        snapshot: &self.snapshot,
                        host: self.observer.host(),
                        policy: self.policy,
                        deadline: self.deadline,
                    },
                )?;
                let ends = self.plane.uplink_names().is_empty();
                if ends {
                    self.run_dir.clear();
                }
                return Ok((response, ends));
            }
        }
        Ok((response, false))
    }

    fn attach(&mut self, uplinks: &[String], mode: Mode) -> Result<Desired> {
        let host = self.observer.host();
        let mut new = Vec::new();
        for name in uplinks {
            new.push((uplink_check(host, name)?, mode));
        }
        let desired = self.plane.attach(
            &new,
            &Wanted {
                snapshot: &self.snapshot,
                host,
                policy: self.policy,
                deadline: self.deadline,
            },
        )?;
        // All ports are seen to again; none of them is new.
        self.plane.take_newly_guarded();
        Ok(desired)
    }
}

fn refusal(error: String) -> Response {
    Response {
        error: Some(error),
        ..Response::default()
    }
}

/// The caller holds the lock, so that a socket that is there is a dead agent's.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode)
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(listener)
}
