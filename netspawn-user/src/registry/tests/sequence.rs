//! Sequences of events, some of which are lost, doubled or seen late, held against a
//! model that knows nothing of maps.

use netspawn_ebpf::abi::Owner;

use super::*;

/// Machines that there may be.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What happens on the host.
#[derive(Clone, Debug)]
enum Event {
    /// A file is written: with a source of higher or lower rank, and what it declares.
    Declare(usize, bool, Vec<u8>),
    /// It is deleted.
    Withdraw(usize),
    /// The machine starts: its link is there, with a number never used before.
    Start(usize, bool),
    /// Its link goes.
    Stop(usize),
    /// Its link gets or loses carrier.
    Carrier(usize, bool),
    /// It is said to have ended, and its link is still there.
    End(usize),
}

/// How the agent learns of it.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Not,
    Once,
    Twice,
    /// With the declarations, or the links, as they were so many events ago.
    Late(bool, usize),
}

fn event() -> impl Strategy<Value = Event> {
    let name = 0..NAMES.len();
    prop_oneof![
        3 => (name.clone(), any::<bool>(), prop::collection::vec(0u8..5, 1..3))
            .prop_map(|(name, run, prefixes)| Event::Declare(name, run, prefixes)),
        1 => name.clone().prop_map(Event::Withdraw),
        3 => (name.clone(), any::<bool>()).prop_map(|(name, up)| Event::Start(name, up)),
        1 => name.clone().prop_map(Event::Stop),
        2 => (name.clone(), any::<bool>()).prop_map(|(name, up)| Event::Carrier(name, up)),
        1 => name.prop_map(Event::End),
    ]
}

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![
        1 => Just(Seen::Not),
        3 => Just(Seen::Once),
        1 => Just(Seen::Twice),
        2 => (any::<bool>(), 1usize..4).prop_map(|(which, ago)| Seen::Late(which, ago)),
    ]
}

fn prefix(n: u8) -> IpNet {
    match n % 2 {
        0 => net(&format!("203.0.113.{n}")),
        _ => net(&format!("2001:db8:{n}::/64")),
    }
}

/// Everything that the sources would say, as it really is.
#[derive(Clone)]
struct Truth {
    snapshot: Snapshot,
    host: Host,
    next: u32,
}

impl Truth {
    fn link_of(&mut self, name: usize) -> Option<&mut Link> {
        let port = format!("ve-{}", NAMES[name]);
        self.host.links.values_mut().find(|link| link.name == port)
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Declare(name, run, prefixes) => {
                let mut world = World::new();
                let declaration = world.declare(NAMES[*name], &[]);
                let prefixes: BTreeSet<IpNet> = prefixes.iter().map(|n| prefix(*n)).collect();
                declaration.addresses = prefixes.into_iter().collect();
                if *run {
                    declaration.source = SourceKind::Run;
                }
                self.snapshot
                    .declarations
                    .extend(world.snapshot.declarations);
            }
            Event::Withdraw(name) => {
                self.snapshot.declarations.remove(NAMES[*name]);
            }
            Event::Start(name, up) => {
                self.happens(&Event::Stop(*name));
                let mut port = link(self.next, &format!("ve-{}", NAMES[*name]));
                port.carrier = *up;
                self.host.links.insert(self.next, port);
                self.next += 1;
            }
            Event::Stop(name) => {
                if let Some(ifindex) = self.link_of(*name).map(|link| link.ifindex) {
                    self.host.links.remove(&ifindex);
                }
            }
            Event::Carrier(name, up) => {
                if let Some(link) = self.link_of(*name) {
                    link.carrier = *up;
                }
            }
            Event::End(name) => {
                let ifindex = self.link_of(*name).map(|link| link.ifindex);
                self.snapshot.registered.ended.extend(ifindex);
            }
        }
    }
}

/// Who should have what, by the rules alone.
#[derive(Default)]
struct Model {
    holders: BTreeMap<IpNet, String>,
}

impl Model {
    fn learn(&mut self, snapshot: &Snapshot) {
        let mut holders = BTreeMap::new();
        let wanted = snapshot.declarations.values().flat_map(|d| &d.addresses);
        for prefix in wanted {
            let claimants = snapshot
                .declarations
                .values()
                .filter(|d| d.addresses.contains(prefix));
            let holder = self.holders.get(prefix);
            let winner = claimants.min_by_key(|d| (Some(&d.name) != holder, d.source, &d.name));
            holders.extend(winner.map(|d| (*prefix, d.name.clone())));
        }
        self.holders = holders;
    }
}

/// Whether a machine's link is there, as a view has it.
fn present(snapshot: &Snapshot, host: &Host, name: &str, ifindex: u32) -> bool {
    host.links.get(&ifindex).is_some_and(|link| {
        link.name == format!("ve-{name}")
            && link.carrier
            && !snapshot.registered.ended.contains(&ifindex)
    })
}

/// Machines that are answered for: name and ifindex.
fn answered(state: &State) -> BTreeSet<(String, u32)> {
    let owners: BTreeSet<Owner> = state.addresses.values().copied().collect();
    let up = |id: &Owner| {
        let entry = state.endpoints.get(id)?;
        let up = entry.forward.flags & endpoint_flag::UP != 0;
        up.then(|| (plan::text(&entry.name), entry.forward.ifindex))
    };
    owners.iter().filter_map(up).collect()
}

/// An agent that knows what it is shown.
struct Agent {
    world: World,
    model: Model,
}

impl Agent {
    /// Syncs with a view, step by step.
    fn sync(&mut self, snapshot: &Snapshot, host: &Host) -> Result<(), TestCaseError> {
        let before = (
            std::mem::replace(&mut self.world.snapshot, snapshot.clone()),
            std::mem::replace(&mut self.world.host, host.clone()),
        );
        self.model.learn(snapshot);
        let desired = self.world.resolve();
        for op in plan::plan(&self.world.held, &desired.state) {
            self.world.held.apply(&op);
            for (name, ifindex) in answered(&self.world.held) {
                prop_assert!(
                    present(snapshot, host, &name, ifindex)
                        || present(&before.0, &before.1, &name, ifindex),
                    "{} is answered for on interface {} after {}",
                    name,
                    ifindex,
                    op
                );
            }
        }
        prop_assert_eq!(&self.world.held, &desired.state);
        for (name, ifindex) in answered(&self.world.held) {
            prop_assert!(
                present(snapshot, host, &name, ifindex),
                "{} is not there",
                name
            );
        }
        let owners: BTreeMap<IpNet, String> = self
            .world
            .held
            .addresses
            .iter()
            .filter_map(|(prefix, id)| {
                let entry = self.world.held.endpoints.get(id)?;
                Some((*prefix, plan::text(&entry.name)))
            })
            .collect();
        prop_assert_eq!(&owners, &self.model.holders);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn maps_follow_whatever_is_lost_doubled_or_late(
        events in prop::collection::vec((event(), seen()), 1..40),
    ) {
        let world = World::new();
        let mut truth = Truth {
            snapshot: world.snapshot.clone(),
            host: world.host.clone(),
            next: 100,
        };
        let mut agent = Agent { world, model: Model::default() };
        let mut history = vec![truth.clone()];
        for (event, seen) in &events {
            truth.happens(event);
            history.push(truth.clone());
            let ago = |n: usize| &history[history.len().saturating_sub(n + 1)];
            match *seen {
                Seen::Not => {}
                Seen::Once => agent.sync(&truth.snapshot, &truth.host)?,
                Seen::Twice => {
                    agent.sync(&truth.snapshot, &truth.host)?;
                    let steps = plan::plan(&agent.world.held, &agent.world.resolve().state);
                    prop_assert_eq!(steps, vec![]);
                }
                Seen::Late(true, n) => agent.sync(&ago(n).snapshot, &truth.host)?,
                Seen::Late(false, n) => agent.sync(&truth.snapshot, &ago(n).host)?,
            }
        }
        agent.sync(&truth.snapshot, &truth.host)?;

        // A machine is answered for if it has a link that works and an address.
        let mut expected = BTreeSet::new();
        for name in agent.model.holders.values() {
            let port = format!("ve-{name}");
            let link = truth.host.links.values().find(|link| link.name == port);
            if let Some(link) = link
                && present(&truth.snapshot, &truth.host, name, link.ifindex)
            {
                expected.insert((name.clone(), link.ifindex));
            }
        }
        prop_assert_eq!(answered(&agent.world.held), expected);
    }
}
