//! A user's link against a file's machine, with the agent's readings at any moment.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::{
    Answers, Users,
    makers::{Known, OfUsers},
};
use super::*;
use crate::{
    model::{Declaration, Link},
    plan::State,
    registry::{self, Inputs, Limits},
    source::Snapshot,
};

const LINK: &str = "ve-web";

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The user gives the device that name, or takes it away; not while it starts.
    Configure(bool),
    /// The engine makes the link. It notes that only later.
    Make,
    Note,
    Run,
    /// The instance ends, with its link.
    End,
    /// The daemon ends, or is back.
    Daemon(bool),
    /// Root's machine starts and stops.
    Start,
    Stop,
    /// The agent begins to ask, has its answer, reads what is kept, and looks at links.
    Ask,
    Answer,
    Read,
    Look,
    /// The agent is started anew.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => any::<bool>().prop_map(Step::Configure),
        1 => Just(Step::Make),
        1 => Just(Step::Note),
        1 => Just(Step::Run),
        1 => Just(Step::End),
        1 => any::<bool>().prop_map(Step::Daemon),
        1 => Just(Step::Start),
        1 => Just(Step::Stop),
        2 => Just(Step::Ask),
        2 => Just(Step::Answer),
        2 => Just(Step::Read),
        3 => Just(Step::Look),
        1 => Just(Step::Restart),
    ]
}

/// The instance, the host and the agent.
struct World {
    clock: Instant,
    configured: bool,
    making: bool,
    noted: bool,
    running: bool,
    daemon: bool,
    /// The link, and whether it is the user's.
    link: Option<(u32, bool)>,
    next: u32,
    asked: Option<(Instant, Users)>,
    /// What the agent has kept in its file.
    kept: Option<Users>,
    answers: Answers,
    known: Known,
    held: State,
    /// Whether the agent that runs has ever had an answer.
    heard: bool,
}

impl World {
    fn new() -> Self {
        World {
            clock: Instant::now(),
            configured: false,
            making: false,
            noted: false,
            running: false,
            daemon: true,
            link: None,
            next: 7,
            asked: None,
            kept: None,
            answers: Answers::default(),
            known: Known::asking(true),
            held: State::default(),
            heard: false,
        }
    }

    /// As `named_by_users` reads what the engine lists.
    fn users(&self) -> Users {
        let mut users = Users {
            any: true,
            ..Users::default()
        };
        let made = self.noted && self.running;
        if self.configured || self.noted {
            let origin = "container u1".to_owned();
            users.links.insert(LINK.to_owned(), Named { origin, made });
        }
        users
    }

    fn host(&self) -> Host {
        let mut host = Host::default();
        if let Some((ifindex, _)) = self.link {
            let mut link = Link::ethernet(ifindex, LINK);
            link.kind = Some("veth".to_owned());
            host.links.insert(ifindex, link);
        }
        host
    }

    fn read(&mut self) {
        let answered = self.answers.now();
        let record = self.kept.clone().map_or(OfUsers::Nothing, OfUsers::Said);
        self.known.learn(answered, [(Source::Incus, record)].into());
    }

    /// The port that the agent gives to the file's machine.
    fn look(&mut self) -> Option<u32> {
        let host = self.host();
        self.known.there = Some(self.daemon);
        let makers = self.known.makers(&host, std::iter::empty(), self.clock);
        let web = Declaration {
            name: "web".to_owned(),
            source: SourceKind::Config,
            path: "web.toml".into(),
            interface: Some(LINK.to_owned()),
            addresses: vec!["203.0.113.9/32".parse().unwrap()],
            tenant: None,
            mac: None,
            vlan: None,
            any_mac: false,
            sources: Vec::new(),
        };
        let mut snapshot = Snapshot {
            makers,
            ..Snapshot::default()
        };
        snapshot.declarations.insert("web".to_owned(), web);
        let desired = registry::resolve(&Inputs {
            snapshot: &snapshot,
            host: &host,
            uplinks: &BTreeSet::new(),
            xdp_ports: &BTreeSet::new(),
            policy: &crate::config::Policy::default(),
            held: &self.held,
            limits: Limits {
                max_machines: 8,
                max_addresses: 8,
            },
            deadline: 0,
        });
        self.held = desired.state;
        desired.machines[0].ifindex
    }

    fn ask(&mut self) {
        self.asked = self.daemon.then(|| (self.clock, self.users()));
        if !self.daemon {
            self.answers.absent(Source::Incus, self.clock);
        }
    }

    fn answer(&mut self) {
        if let Some((asked, users)) = self.asked.take() {
            self.kept = Some(users);
            self.heard = true;
            self.answers.listed(Source::Incus, asked, true);
        }
    }

    fn step(&mut self, step: Step) {
        self.clock += Duration::from_millis(1);
        match step {
            Step::Configure(on) if !self.making && self.daemon => self.configured = on,
            Step::Make if self.configured && self.link.is_none() && self.daemon => {
                self.making = true;
                self.link = Some((self.next, true));
                self.next += 1;
            }
            Step::Note if self.making => self.noted = true,
            Step::Run if self.making && self.noted => {
                self.making = false;
                self.running = true;
            }
            Step::End if self.running => {
                self.link = None;
                self.running = false;
                self.noted = false;
            }
            // One that ends while it makes a link takes it away again.
            // One that ends before this agent was ever answered leaves it what is kept, as
            // one that is away when the agent starts.
            Step::Daemon(on) if !self.making && (on || self.heard) => self.daemon = on,
            Step::Start if self.link.is_none() => {
                self.link = Some((self.next, false));
                self.next += 1;
            }
            Step::Stop if self.link.is_some_and(|(_, users)| !users) => self.link = None,
            Step::Ask => self.ask(),
            Step::Answer => self.answer(),
            Step::Read => self.read(),
            // While the engine is away, a new agent takes what is kept for all there was.
            Step::Restart if self.daemon => {
                self.asked = None;
                self.heard = false;
                self.answers = Answers::default();
                self.known = Known::asking(true);
                self.known.see(&self.host(), self.clock);
                self.read();
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn users_link_is_never_that_of_a_files_machine(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        // A daemon that has answered once: before that see below.
        world.ask();
        world.answer();
        world.read();
        for step in steps {
            world.step(step);
            let port = matches!(step, Step::Look).then(|| world.look()).flatten();
            if let Some((ifindex, users)) = world.link {
                prop_assert!(!users || port != Some(ifindex));
            }
        }
        // In the end the machine is served, when nobody asks for the name.
        if world.link.is_some_and(|(_, users)| !users) {
            world.step(Step::Daemon(true));
            world.step(Step::Configure(false));
            world.look();
            for step in [Step::Ask, Step::Answer, Step::Read] {
                world.step(step);
            }
            prop_assert_eq!(world.look(), world.link.map(|(ifindex, _)| ifindex));
        }
    }

    #[test]
    fn nor_before_the_engine_has_ever_answered(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new();
        for step in steps {
            // An engine that ends before it was ever asked leaves nothing to know it by.
            if matches!(step, Step::Daemon(_)) {
                continue;
            }
            world.step(step);
            let port = matches!(step, Step::Look).then(|| world.look()).flatten();
            if let Some((ifindex, users)) = world.link {
                prop_assert!(!users || port != Some(ifindex));
            }
        }
    }
}

#[test]
fn file_machine_waits_for_nobody_where_no_such_engine_is() {
    let mut world = World::new();
    world.daemon = false;
    world.step(Step::Start);
    assert_eq!(world.look(), Some(7));
}
