//! What commands ask of the agent.

use anyhow::Result;

use super::{Agent, ready_line, socket::Answer};
use crate::{
    cli::Mode,
    control::{Agent as AgentInfo, Request, Response},
    datapath::{attach::uplink_check, plane::Wanted},
    event::Filter,
    problem,
    registry::Desired,
};

impl Agent {
    /// Carries out a request.
    #[expect(clippy::disallowed_methods, reason = "the error is the answer")]
    pub(super) fn answer(&mut self, request: Request) -> Answer {
        self.carry_out(request)
            .unwrap_or_else(|error| Answer::refusal(format!("{error:#}")))
    }

    fn carry_out(&mut self, request: Request) -> Result<Answer> {
        let mut response = Response::default();
        match request {
            Request::Status => {
                response.agent = Some(AgentInfo {
                    pid: std::process::id(),
                    since: self.since,
                    last_sync: self.last_sync,
                    registered: self.snapshot.registered.clone(),
                    troubles: self.told.troubles(),
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
                self.tell(&desired);
                let problems = self.snapshot.problems.iter().chain(&desired.problems);
                response.failed = problems.map(ToString::to_string).collect();
                let metrics = self.metrics.as_ref();
                response.metrics = metrics.map(|metrics| metrics.address().clone());
            }
            Request::Detach { uplinks } => {
                self.refresh()?;
                response.failed = self.plane.detach(
                    &uplinks,
                    &Wanted {
                        snapshot: &self.snapshot,
                        host: self.observer.host(),
                        policy: &self.policy,
                        deadline: self.deadline,
                    },
                )?;
                self.tell_uplinks();
                if self.plane.uplink_names()?.is_empty() {
                    // Their socket may be in there.
                    self.metrics = None;
                    self.engines = None;
                    self.docker = None;
                    self.run_dir.clear();
                    self.end = Some("its last uplink was detached");
                }
            }
            Request::Monitor(filter) => return self.follow(filter),
        }
        Ok(Answer {
            response,
            events: None,
        })
    }

    fn follow(&mut self, filter: Filter) -> Result<Answer> {
        let known: Vec<&str> = self.known.machines().collect();
        let unknown = |name: &&String| !known.contains(&name.as_str());
        if let Some(name) = filter.machines.iter().find(unknown) {
            let remedy = match problem::nearest(name, &known) {
                Some(near) => format!("did you mean {near}?"),
                None => "`netspawn-xdp list` shows those that are".to_owned(),
            };
            let mut answer = Answer::refusal(format!("no machine {name} is declared; {remedy}"));
            answer.response.usage = true;
            return Ok(answer);
        }
        let mut response = Response::default();
        if self.events.is_none() {
            response.failed = vec![
                "what the programs report is not told, because their buffer cannot be read; \
                 the agent's log says why"
                    .to_owned(),
            ];
        }
        Ok(Answer {
            response,
            events: Some((self.monitors.join(self.plane.maps())?, filter)),
        })
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
                policy: &self.policy,
                deadline: self.deadline,
            },
        )?;
        // All ports are seen to again; none of them is new.
        self.plane.take_newly_guarded();
        Ok(desired)
    }
}
