//! Links that engines say are somebody's.

use super::*;
use crate::source::engine::User;

const USERS: &str = "incus container u1 of project acme";

/// A link that a user has named.
fn of_user() -> Maker {
    Maker {
        user: Some(User {
            origin: USERS.to_owned(),
            machine: None,
        }),
        ..Maker::default()
    }
}

fn unsaid(overdue: bool) -> Maker {
    Maker {
        unsaid: Some(Unsaid {
            by: Source::Incus,
            overdue,
        }),
        ..Maker::default()
    }
}

fn of_machine(name: &str) -> Maker {
    Maker {
        machine: Some(name.to_owned()),
        ..Maker::default()
    }
}

fn wanted() -> Maker {
    Maker {
        wanted: Some(USERS.to_owned()),
        ..Maker::default()
    }
}

/// The ways in which a declaration finds a link by a name. The link has number 7.
fn by_name() -> Vec<(&'static str, World)> {
    let with = |what, name: &str, change: &dyn Fn(&mut World)| {
        let mut world = World::new();
        world.declare("web", &["203.0.113.1"]);
        world.link(7, name);
        world.snapshot.registered.told = true;
        change(&mut world);
        (what, world)
    };
    let declared = |world: &mut World, change: &dyn Fn(&mut Declaration)| {
        change(world.snapshot.declarations.get_mut("web").unwrap());
    };
    let named = |world: &mut World, source| {
        declared(world, &|web| {
            web.interface = Some("port".to_owned());
            web.source = source;
        });
    };
    vec![
        with("ve-", "ve-web", &|_| {}),
        with("vb-", "vb-web", &|_| {}),
        with("alternative name", "x", &|world| {
            world.link(7, "x").alt_names = vec!["ve-web".to_owned()];
        }),
        with(".nspawn", "ve-web", &|world| {
            declared(world, &|web| web.source = SourceKind::Nspawn);
        }),
        with("interface", "port", &|world| {
            named(world, SourceKind::Config)
        }),
        with("run", "port", &|world| named(world, SourceKind::Run)),
        with("route", "port", &|world| named(world, SourceKind::Kernel)),
        with("record of an engine", "port", &|world| {
            let placed = Placed {
                ifindex: 7,
                by_name: true,
            };
            world.snapshot.placed.insert("web".to_owned(), Some(placed));
        }),
    ]
}

#[test]
fn link_that_a_user_has_named_is_nobody_elses_port() {
    for (what, mut world) in by_name() {
        assert_eq!(world.settle().machine("web").ifindex, Some(7), "{what}");
        world.snapshot.makers.set(7, of_user());
        // Not even of whom it was before that was known.
        let desired = world.settle();
        assert_eq!(desired.machine("web").ifindex, None, "{what}");
        assert_eq!(desired.machine("web").state, MachineState::Waiting);
        assert!(desired.state.ports.is_empty(), "{what}");
        let problems = desired.problems();
        assert!(
            problems[0].contains("it is that of incus container u1 of project acme"),
            "{what}: {problems:?}"
        );
    }
}

#[test]
fn link_is_nobodys_port_before_its_engine_has_said() {
    for (what, mut world) in by_name() {
        world.snapshot.makers.set(7, unsaid(false));
        let desired = world.resolve();
        assert_eq!(desired.machine("web").ifindex, None, "{what}");
        assert_eq!(desired.unsaid, [(7, Source::Incus)].into(), "{what}");
        assert!(desired.problems.is_empty(), "{what}");
        world.snapshot.makers.set(7, unsaid(true));
        let problems = world.resolve().problems();
        assert!(problems[0].contains("has not said"), "{what}: {problems:?}");
        // What was found before stays, whoever asks anew.
        world.snapshot.makers = Default::default();
        world.settle();
        world.snapshot.makers.set(7, unsaid(true));
        let desired = world.settle();
        assert_eq!(desired.machine("web").ifindex, Some(7), "{what}");
        assert_eq!(desired.unsaid, [].into(), "{what}");
        // A link that replaces it is another.
        let mut other = world.host.links.remove(&7).unwrap();
        other.ifindex = 8;
        world.host.links.insert(8, other);
        world.snapshot.makers.set(8, unsaid(false));
        if let Some(placed) = world.snapshot.placed.get_mut("web") {
            placed.as_mut().unwrap().ifindex = 8;
        }
        assert_eq!(world.settle().machine("web").ifindex, None, "{what}");
    }
}

#[test]
fn name_that_a_user_asks_for_stops_files_and_nothing_that_is_served() {
    for (what, mut world) in by_name() {
        world.snapshot.makers.set(7, wanted());
        let fresh = world.resolve().machine("web").ifindex;
        // The engine that has just listed the link as its machine's knows it.
        let record = world.snapshot.placed.contains_key("web");
        assert_eq!(fresh, record.then_some(7), "{what}");
        world.snapshot.makers = Default::default();
        world.settle();
        world.snapshot.makers.set(7, wanted());
        assert_eq!(world.settle().machine("web").ifindex, Some(7), "{what}");
        world.held = State::default();
        let ports = &mut world.snapshot.registered.ports;
        ports.insert("web".to_owned(), 7);
        let told = world.resolve().machine("web").ifindex;
        assert_eq!(told, Some(7), "{what}: machined has it");
    }
}

#[test]
fn what_is_known_by_its_index_needs_no_name() {
    let mut world = World::new();
    world.declare("web", &["203.0.113.1"]);
    world.link(7, "ve-web");
    let ports = &mut world.snapshot.registered.ports;
    ports.insert("web".to_owned(), 7);
    for maker in [unsaid(true), wanted(), of_machine("web")] {
        world.snapshot.makers.set(7, maker);
        let desired = world.resolve();
        assert_eq!(desired.machine("web").ifindex, Some(7));
        assert!(desired.problems.is_empty());
    }
    // Through its namespace.
    world.snapshot.registered.ports.clear();
    let placed = Placed {
        ifindex: 7,
        by_name: false,
    };
    world.snapshot.placed.insert("web".to_owned(), Some(placed));
    world.snapshot.makers.set(7, unsaid(true));
    assert_eq!(world.resolve().machine("web").ifindex, Some(7));
    // A file that gives the name of that link as well.
    let web = world.snapshot.declarations.get_mut("web").unwrap();
    web.interface = Some("ve-web".to_owned());
    assert_eq!(world.resolve().machine("web").ifindex, Some(7));
}

#[test]
fn users_machine_has_the_link_that_is_its_own() {
    let mut world = World::new();
    let own = world.declare("u1.acme", &["203.0.113.1"]);
    own.source = SourceKind::Incus;
    world.link(7, "veth0123abcd");
    let placed = Placed {
        ifindex: 7,
        by_name: true,
    };
    world
        .snapshot
        .placed
        .insert("u1.acme".to_owned(), Some(placed));
    let mut maker = of_machine("u1.acme");
    maker.user = Some(User {
        origin: USERS.to_owned(),
        machine: Some("u1.acme".to_owned()),
    });
    world.snapshot.makers.set(7, maker);
    assert_eq!(world.resolve().machine("u1.acme").ifindex, Some(7));
    // A host route over that link, which the user's address has made, gives it nothing.
    let routed = world.declare("veth0123abcd", &["203.0.113.9"]);
    routed.source = SourceKind::Kernel;
    routed.interface = Some("veth0123abcd".to_owned());
    let desired = world.resolve();
    assert_eq!(desired.machine("u1.acme").ifindex, Some(7));
    assert_eq!(desired.machine("veth0123abcd").ifindex, None);
}

#[test]
fn engines_machine_keeps_its_link_from_files_of_other_names() {
    let mut world = World::new();
    world.declare("web", &["203.0.113.1"]);
    world.link(7, "ve-web");
    world.snapshot.makers.set(7, of_machine("guest"));
    // A default name says nothing against a record.
    let desired = world.resolve();
    assert_eq!(desired.machine("web").ifindex, None);
    assert!(desired.problems()[0].contains("it is that of machine guest"));
    // Nor does that of a machine which machined knows.
    world.snapshot.makers = Default::default();
    let ports = &mut world.snapshot.registered.ports;
    ports.insert("webserver".to_owned(), 7);
    assert_eq!(world.resolve().machine("web").ifindex, None);
    world.snapshot.registered.ports.clear();
    // Root names the link of a machine of which nobody says anything else.
    world.snapshot.makers.set(7, of_machine("guest"));
    let web = world.snapshot.declarations.get_mut("web").unwrap();
    web.interface = Some("ve-web".to_owned());
    assert_eq!(world.resolve().machine("web").ifindex, Some(7));
    world.declare("guest", &["203.0.113.2"]).source = SourceKind::Libvirt;
    assert_eq!(world.resolve().machine("web").ifindex, None);
}

#[test]
fn device_that_a_machine_may_have_renamed_is_not_found_by_default() {
    let mut world = World::new();
    world.declare("web", &["203.0.113.1"]);
    world.link(7, "ve-web").kind = None;
    assert_eq!(world.resolve().machine("web").ifindex, None);
    let web = world.snapshot.declarations.get_mut("web").unwrap();
    web.interface = Some("ve-web".to_owned());
    assert_eq!(world.resolve().machine("web").ifindex, Some(7));
}

fn maker() -> impl Strategy<Value = Maker> {
    let name = || prop::option::of(prop::sample::select(vec!["a", "b", "u"]));
    let user = prop::option::of(name());
    let unsaid = prop::option::of(any::<bool>());
    (name(), user, any::<bool>(), unsaid).prop_map(|(machine, user, wanted, overdue)| Maker {
        machine: machine.map(str::to_owned),
        user: user.map(|machine| User {
            origin: USERS.to_owned(),
            machine: machine.map(str::to_owned),
        }),
        wanted: wanted.then(|| USERS.to_owned()),
        unsaid: overdue.map(|overdue| Unsaid {
            by: Source::Incus,
            overdue,
        }),
    })
}

proptest! {
    #[test]
    fn no_users_link_is_anothers_port(
        makers in prop::collection::vec(prop::option::of(maker()), 3),
        given in prop::collection::vec(prop::option::of(0u32..3), 3),
        placed in prop::collection::vec(prop::option::of(0u32..3), 3),
        kinds in prop::collection::vec(0usize..4, 3),
        held in prop::option::of(0u32..3),
    ) {
        const NAMES: [&str; 3] = ["a", "b", "u"];
        let kind = |n: usize| {
            [SourceKind::Run, SourceKind::Config, SourceKind::Nspawn, SourceKind::Kernel][n]
        };
        let mut world = World::new();
        for (n, name) in (0u32..).zip(NAMES) {
            world.link(7 + n, &format!("ve-{name}"));
            let interface = given[n as usize].map(|n| format!("ve-{}", NAMES[n as usize]));
            let machine = world.declare(name, &[&format!("203.0.113.{}", 1 + n)]);
            machine.interface = interface;
            machine.source = kind(kinds[n as usize]);
            if let Some(n) = placed[n as usize] {
                let placed = Placed { ifindex: 7 + n, by_name: true };
                world.snapshot.placed.insert(name.to_owned(), Some(placed));
            }
        }
        if let Some(n) = held {
            // Served already, by whatever name.
            let mut before = world.clone();
            let first = before.snapshot.declarations.get_mut("a").unwrap();
            first.interface = Some(format!("ve-{}", NAMES[n as usize]));
            world.held = before.settle().state;
        }
        let before = world.held.clone();
        for (n, maker) in (0u32..).zip(&makers) {
            if let Some(maker) = maker {
                world.snapshot.makers.set(7 + n, maker.clone());
            }
        }
        let desired = world.resolve();
        for machine in &desired.machines {
            let Some(ifindex) = machine.ifindex else { continue };
            let Some(maker) = &makers[ifindex as usize - 7] else { continue };
            let name = &machine.name;
            let recorded = world.snapshot.placed.contains_key(name)
                && world.snapshot.declarations[name].interface.is_none();
            if let Some(user) = &maker.user {
                prop_assert!(recorded && user.machine.as_ref() == Some(name), "{machine:?}");
            }
            let kept = before
                .ports
                .get(&ifindex)
                .is_some_and(|id| plan::text(&before.endpoints[id].name) == *name);
            if maker.unsaid.is_some() {
                prop_assert!(kept, "{machine:?}");
            }
            if maker.wanted.is_some() {
                prop_assert!(kept || recorded, "{machine:?}");
            }
        }
    }
}
