//! Whole frames through the programs as the kernel has loaded and verified them
//! (`BPF_PROG_TEST_RUN`): the rows of the protocol at tc and XDP, compared byte for byte
//! with what etherparse builds, and the counters with them.

#[path = "../../../netspawn-ebpf/tests/rows/mod.rs"]
mod rows;

mod rig;
mod tags;

use std::{collections::BTreeMap, io::Write as _, sync::MutexGuard};

use netspawn_bench::{
    cost,
    programs::{Context, Hook},
};
use netspawn_ebpf::{
    abi::{MARK, NOBODY, endpoint_flag},
    decide::offload::surplus,
    verdict::{Kind, Reason},
};

use netspawn_tests::{Mode, protocol};

use rig::{Case, Rig, TC_NEXT, TC_REDIRECT, TC_SHOT, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use rows::{At, Row, build, world};

fn rig() -> MutexGuard<'static, Rig> {
    rig::RIG
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What a row is at tc.
fn at_tc(row: &Row) -> Case {
    let hook = match row.at {
        At::Uplink => Hook::UplinkIngress,
        At::Host => Hook::UplinkEgress,
        At::Port(_) => Hook::PortIngress,
    };
    let code = match row.reason.kind() {
        Kind::Pass => TC_NEXT,
        Kind::Drop if row.is_told() => TC_REDIRECT,
        Kind::Drop => TC_SHOT,
        Kind::Answer | Kind::Forward => TC_REDIRECT,
    };
    let forwards = row.reason.kind() == Kind::Forward;
    // What comes back through another hook of ours is known by its mark; there is none at
    // the egress of a port.
    let answers = row.reason.kind() == Kind::Answer || row.is_told();
    let marked = answers && !matches!(row.at, At::Port(_)) || forwards && row.machine == NOBODY;
    let mut case = Case::new(row, hook, code);
    case.mark = if marked { MARK } else { 0 };
    case.received = (forwards && row.machine != NOBODY).then_some(row.machine);
    case.sent = match row.at {
        At::Port(id) if row.sent => Some(id),
        _ => None,
    };
    case
}

/// What a row of the uplink is at XDP: what is passed is left to tc to be counted, and so
/// is what a veth would have to take without its offloads.
fn at_xdp(row: &Row) -> Case {
    // The tag is in the frame here, where nothing of it is known: tc answers.
    if let Some(vlan) = row.vlan {
        let mut row = row.clone();
        row.frame = build::tagged(&row.frame, vlan);
        row.out = Some(row.frame.clone());
        let mut case = Case::new(&row, Hook::UplinkXdp, XDP_PASS);
        case.counted = BTreeMap::new();
        case.charged = None;
        return case;
    }
    let code = match row.reason.kind() {
        Kind::Pass => XDP_PASS,
        Kind::Drop => XDP_DROP,
        Kind::Answer => XDP_TX,
        Kind::Forward => XDP_REDIRECT,
    };
    // Only an skb can be made an error, and whether one is due is seen at tc.
    if row.is_told() || row.reason == Reason::TtlExceeded {
        let mut case = Case::new(row, Hook::UplinkXdp, XDP_PASS);
        case.out = Some(row.frame.clone());
        case.counted = BTreeMap::new();
        case.charged = None;
        return case;
    }
    let mut case = Case::new(row, Hook::UplinkXdp, code);
    if row.reason.kind() == Kind::Pass {
        case.counted = BTreeMap::new();
    }
    if row.reason.kind() == Kind::Forward {
        let tcp = match row.frame[12..14] {
            [8, 0] => row.frame[23] == 6,
            _ => row.frame[20] == 6,
        };
        let flags = world::endpoint(row.machine, 0).flags;
        // tc cuts off what follows the packet.
        let long = surplus(&row.frame[..], row.frame.len() as u32, true).is_some();
        if tcp || long || flags & endpoint_flag::XDP == 0 {
            case.code = XDP_PASS;
            case.out = Some(row.frame.clone());
            case.counted = BTreeMap::new();
        } else {
            case.received = Some(row.machine);
        }
    }
    case
}

/// Whether `BPF_PROG_TEST_RUN` refuses the frame for an skb: cut within its IP header
/// (net/bpf/test_run.c). XDP and the host's tests have those rows.
fn refused_by_test_run(row: &Row) -> bool {
    let header = match row.frame[12..14] {
        [8, 0] => 20,
        [0x86, 0xdd] => 40,
        _ => 0,
    };
    row.frame.len() < 14 + header
}

fn tc(test: &str, rows: Vec<Row>) {
    let rows = rows
        .iter()
        .filter(|row| row.can_be_run() && !refused_by_test_run(row));
    rig().check_rows(test, rows.map(at_tc));
}

fn xdp(test: &str, rows: Vec<Row>) {
    let rows = rows
        .iter()
        // XDP sees no super-packets.
        .filter(|row| row.at == At::Uplink && row.said.gso_size == 0 && row.can_be_run());
    rig().check_rows(test, rows.map(at_xdp));
}

#[test]
fn arp_rows_hold_at_tc() {
    tc("arp_rows_hold_at_tc", rows::arp::rows());
}

#[test]
fn arp_rows_hold_at_xdp() {
    xdp("arp_rows_hold_at_xdp", rows::arp::rows());
}

/// What can be said of a frame in a run: the rest of these rows is the host's.
#[test]
fn offload_rows_hold_at_tc() {
    tc("offload_rows_hold_at_tc", rows::offload::rows());
}

#[test]
fn offload_rows_hold_at_xdp() {
    xdp("offload_rows_hold_at_xdp", rows::offload::rows());
}

#[test]
fn neighbor_discovery_rows_hold_at_tc() {
    tc("neighbor_discovery_rows_hold_at_tc", rows::ndp::rows());
}

#[test]
fn neighbor_discovery_rows_hold_at_xdp() {
    xdp("neighbor_discovery_rows_hold_at_xdp", rows::ndp::rows());
}

#[test]
fn forwarding_rows_hold_at_tc() {
    tc("forwarding_rows_hold_at_tc", rows::forward::rows());
}

#[test]
fn forwarding_rows_hold_at_xdp() {
    xdp("forwarding_rows_hold_at_xdp", rows::forward::rows());
}

#[test]
fn error_rows_hold_at_tc() {
    tc("error_rows_hold_at_tc", rows::errors::rows());
}

#[test]
fn error_rows_hold_at_xdp() {
    xdp("error_rows_hold_at_xdp", rows::errors::rows());
}

#[test]
fn guard_rows_hold_at_tc() {
    tc("guard_rows_hold_at_tc", rows::guard::rows());
}

/// The host's own answer or a machine's packet to the host, on its second way through.
#[test]
fn handed_frames_pass_unchanged_without_their_mark() {
    let frame = build::packet(
        world::ASKER,
        world::UPLINK,
        world::ASKER4,
        world::ip4(world::WEB),
    );
    for (at, hook) in [
        (At::Uplink, Hook::UplinkIngress),
        (At::Host, Hook::UplinkEgress),
    ] {
        let row = Row::pass("handed over", at, frame.frame(), Reason::Handed);
        let mut case = Case::new(&row, hook, TC_NEXT);
        case.mark_in = MARK;
        rig().check([case]);
    }
}

/// A program of someone else may have set a mark, which is left alone.
#[test]
fn marks_of_others_are_kept() {
    let frame = build::packet(world::ASKER, world::UPLINK, world::ASKER4, world::FREE4);
    let row = Row::pass("marked", At::Uplink, frame.frame(), Reason::NotOwned);
    let mut case = Case::new(&row, Hook::UplinkIngress, TC_NEXT);
    case.mark_in = 0x1234;
    case.mark = 0x1234;
    rig().check([case]);
}

/// Which class of the uplink's queueing discipline a packet is in, and when it leaves, is
/// not the machine's to say (S5): neither of what goes to the stack, nor of what is sent on.
#[test]
fn what_a_machine_sets_beside_a_frame_is_forgotten() {
    let _row = protocol::holds("frames::forgotten", Some(Mode::Tc), &["S5"]);
    let rows = rows::guard::rows().into_iter().filter(|row| {
        row.can_be_run()
            && row.vlan.is_none()
            && row.policy == 0
            && !matches!(row.reason.kind(), Kind::Drop | Kind::Answer)
    });
    let said = Context {
        mark: 0x1234,
        priority: 0x1_0001,
        tstamp: u64::MAX >> 1,
        ..Context::default()
    };
    let mut ran = 0;
    for row in rows {
        let run = rig().run(&row, Hook::PortIngress, said).expect("it runs");
        // What is sent on carries the key of the data plane in mark and priority.
        let passed = run.code == TC_NEXT;
        assert!(run.tstamp == 0, "{}: tstamp {}", row.name, run.tstamp);
        assert!(
            !passed || (run.mark, run.priority) == (0, 0),
            "{}: mark {:#x}, priority {:#x}",
            row.name,
            run.mark,
            run.priority
        );
        assert!(run.priority != said.priority, "{}", row.name);
        ran += 1;
    }
    assert!(ran > 10, "{ran} rows");
}

/// Frames that somebody should not have sent, with whom they concern.
fn told() -> Vec<(Row, Hook)> {
    let rows = [rows::arp::rows(), rows::ndp::rows(), rows::guard::rows()].concat();
    let rows = rows.into_iter().filter(|row| row.reason.is_told());
    rows.filter(|row| row.machine != NOBODY && row.policy == 0 && row.vlan.is_none())
        .flat_map(|row| match row.at {
            At::Uplink => vec![(row.clone(), Hook::UplinkIngress), (row, Hook::UplinkXdp)],
            At::Host => vec![(row, Hook::UplinkEgress)],
            At::Port(_) => vec![(row, Hook::PortIngress)],
        })
        // What XDP passes is told by tc.
        .filter(|(row, hook)| *hook != Hook::UplinkXdp || row.reason.kind() == Kind::Drop)
        .filter(|(row, _)| !refused_by_test_run(row))
        .collect()
}

#[test]
fn what_should_not_be_sent_is_told_once() {
    let cases = told();
    assert!(cases.len() > 20, "{}", cases.len());
    for (row, hook) in cases {
        let reports = rig().reports(&row, hook, 1);
        let [report] = &reports[..] else {
            panic!("{} ({}): {reports:?}", row.name, hook.name());
        };
        assert_eq!(report.reason, row.reason, "{}", row.name);
        assert_eq!(report.endpoint, row.machine, "{}", row.name);
        assert_eq!(report.mac[..], row.frame[6..12], "{}", row.name);
    }
}

#[test]
fn flood_is_told_fifty_times_at_once() {
    let (row, hook) = told().pop().expect("there are some");
    let reports = rig().reports(&row, hook, 400).len();
    // A token comes back every 10 ms while the flood lasts.
    assert!((50..100).contains(&reports), "{reports}");
}

#[test]
fn what_may_be_sent_is_not_told() {
    let rows = [rows::arp::rows(), rows::forward::rows()].concat();
    let row = rows
        .iter()
        .find(|row| row.name.starts_with("F1"))
        .expect("there is one");
    assert_eq!(rig().reports(row, Hook::UplinkIngress, 1), []);
}

/// Errors of one kind leave those of the others alone.
#[test]
fn flood_of_one_error_does_not_keep_others_back() {
    let row = |rows: Vec<Row>, name: &str| {
        let found = rows.into_iter().find(|row| row.name == name);
        found.unwrap_or_else(|| panic!("no row {name}")).frame
    };
    let floods = [
        row(rows::guard::rows(), "G8 TTL 1"),
        row(rows::guard::rows(), "G8 larger than the path's MTU, IPv4"),
        row(rows::guard::rows(), "G7 a route that refuses, IPv6"),
    ];
    for flood in &floods {
        let others = floods.iter().filter(|other| *other != flood);
        let frames = std::iter::repeat_n(flood, 400).chain(others);
        let hook = Hook::PortIngress;
        let actions = rig().actions(Some(world::WEB), frames.map(|frame| (hook, frame)));
        let (flood, others) = actions.split_at(400);
        let told = flood.iter().filter(|code| **code == TC_REDIRECT).count();
        assert!((50..100).contains(&told), "{told} of a flood");
        assert_eq!(others, [TC_REDIRECT; 2], "the others are told");
    }
}

/// Packets of `WEB` for so many addresses on a link without a router.
fn to_neighbors(number: std::ops::Range<u8>) -> Vec<Vec<u8>> {
    let frame = |last| {
        let mut destination = world::NEIGHBOR6;
        destination[15] = last;
        let (own, port) = (world::mac(world::WEB), world::port_mac(world::WEB));
        build::packet(own, port, world::ip6(world::WEB), destination).frame()
    };
    number.map(frame).collect()
}

#[test]
fn addresses_on_the_link_cost_a_budget_and_packets_do_not() {
    let frames = to_neighbors(10..60);
    let port = |frames: &'static [Vec<u8>]| frames.iter().map(|frame| (Hook::PortIngress, frame));
    let frames: &'static [Vec<u8>] = frames.leak();
    let mut rig = rig();
    let actions = rig.actions(Some(world::WEB), port(frames));
    let sent = actions.iter().filter(|code| **code == TC_REDIRECT).count();
    let dropped = actions.iter().filter(|code| **code == TC_SHOT).count();
    // One comes back every 250 ms.
    assert!((16..20).contains(&sent), "{sent} sent");
    assert_eq!(sent + dropped, 50);
    assert_eq!(actions[..16], [TC_REDIRECT; 16], "the first ones are sent");
    let again = std::iter::repeat_n(port(&frames[..16]), 100).flatten();
    let actions = rig.actions(Some(world::WEB), again);
    assert!(
        actions.iter().all(|code| *code == TC_REDIRECT),
        "those that were paid for are free"
    );
}

#[test]
fn stations_that_were_heard_cost_nothing() {
    let frames: &'static [Vec<u8>] = to_neighbors(100..200).leak();
    let mut rig = rig();
    for (number, hook) in [(100, Hook::UplinkIngress), (150, Hook::UplinkXdp)] {
        let ask = |last: u8| {
            let mut source = world::NEIGHBOR6;
            source[15] = last;
            let option = build::option(1, world::ASKER);
            build::solicitation(world::ip6(world::WEB), source, world::ASKER, &option).frame()
        };
        let questions: Vec<_> = (number..number + 50).map(ask).collect();
        let actions = rig.actions(None, questions.iter().map(|frame| (hook, frame)));
        let answered = if hook == Hook::UplinkXdp {
            XDP_TX
        } else {
            TC_REDIRECT
        };
        assert!(actions.iter().all(|code| *code == answered), "{actions:?}");
    }
    // They were heard on the interface that runs are on, which is the uplink of that
    // next hop for as long.
    let actions = rig.through(|rig| {
        rig.actions(
            Some(world::WEB),
            frames.iter().map(|frame| (Hook::PortIngress, frame)),
        )
    });
    assert!(
        actions.iter().all(|code| *code == TC_REDIRECT),
        "{actions:?}"
    );
}

/// An interface that is no uplink (any more) is none of ours.
#[test]
fn frames_on_other_interfaces_pass_uncounted() {
    let row = Row::pass(
        "no uplink",
        At::Uplink,
        build::Arp::who_has(world::ip4(world::WEB), world::ASKER, world::ASKER4).padded(0),
        Reason::NotOwned,
    );
    let mut rig = rig();
    rig.without_uplink(|rig| {
        for (hook, code) in [(Hook::UplinkIngress, TC_NEXT), (Hook::UplinkXdp, XDP_PASS)] {
            let mut case = Case::new(&row, hook, code);
            case.counted = BTreeMap::new();
            rig.check([case]);
        }
    });
}

/// Printed, not asserted: what the verifier walked, for the table of kernels.
#[test]
fn instructions_verified_are_printed() {
    let mut lines = String::from("\n");
    for (program, instructions) in rig().verified() {
        lines += &format!("verified-{program}={instructions}\n");
    }
    // The harness hides what `eprintln` says of tests that pass.
    write!(std::io::stderr(), "{lines}").expect("standard error is open");
}

/// Printed, not asserted: `cargo xtask bench prog` does it at length.
#[test]
fn cost_of_a_frame_is_printed() {
    // The programs of the rows are of no use here, and both take memory.
    let options = cost::Options {
        repeat: 100_000,
        rounds: 3,
        addresses: vec![1, 1_000, 100_000],
        prefixes: 0,
        hooks: vec![Hook::UplinkIngress],
    };
    let table = cost::measure(&options, |_| Ok(())).expect("the programs run");
    // The harness hides what `eprintln` says of tests that pass.
    writeln!(std::io::stderr(), "\n{table}").expect("standard error is open");
}
