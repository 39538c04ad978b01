//! Every row of the protocol, decided and carried out on the host.

mod host;
mod past;
mod rows;

use netspawn_ebpf::{
    abi::NOBODY,
    verdict::{Action, Kind, Reason},
};

use host::{World, carry_out, decide, parser};
use rows::{At, Row};

/// What is wrong with the outcome of a row.
fn faults(row: &Row) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |what: &str, got: &dyn std::fmt::Debug, wanted: &dyn std::fmt::Debug| {
        let (got, wanted) = (format!("{got:?}"), format!("{wanted:?}"));
        if got != wanted {
            faults.push(format!("{what} is {got}, not {wanted}"));
        }
    };
    let world = World::new(row.policy);
    let Some(verdict) = decide(&world, row.at, &row.frame, &row.meta(), &row.said) else {
        expect("the reason", &Reason::UnknownPort, &row.reason);
        return faults;
    };
    expect("the reason", &verdict.reason, &row.reason);
    expect(
        "a second reason",
        &verdict.source_differs.then_some(Reason::ArpSourceDiffers),
        &row.also.filter(|_| !row.is_told()),
    );
    expect("the machine", &verdict.id, &row.machine);
    let sender = match row.at {
        At::Port(id) if row.sent => id,
        _ => NOBODY,
    };
    expect("the sender", &verdict.from, &sender);
    let out = carry_out(&world, row.at, &verdict, &row.frame, row.said.gso_size == 0);
    expect("the frame", &out, &Ok::<_, ()>(row.out.clone()));
    if let Ok(Some(frame)) = out
        && verdict.action != Action::Pass
        && row.said.gso_size == 0
        && !row.said.open.somewhere
        && let Err(error) = parser::read(&frame)
    {
        faults.push(format!("smoltcp refuses the frame: {error}"));
    }
    faults
}

fn check(rows: Vec<Row>) {
    let mut failed = 0;
    for row in &rows {
        for fault in faults(row) {
            failed += 1;
            eprintln!("{} ({:?}): {fault}", row.name, row.at);
        }
    }
    assert_eq!(failed, 0, "of {} rows", rows.len());
}

#[test]
fn arp_rows_hold() {
    check(rows::arp::rows());
}

#[test]
fn neighbor_discovery_rows_hold() {
    check(rows::ndp::rows());
}

#[test]
fn forwarding_rows_hold() {
    check(rows::forward::rows());
}

#[test]
fn offload_rows_hold() {
    check(rows::offload::rows());
}

#[test]
fn error_rows_hold() {
    check(rows::errors::rows());
}

#[test]
fn guard_rows_hold() {
    check(rows::guard::rows());
}

/// Reasons that only programs and the kernel have.
const NOT_DECIDED: [Reason; 5] = [
    Reason::Handed,
    Reason::HelperFailed,
    // Depends on what was sent before.
    Reason::NeighborBudget,
    // Counted beside another.
    Reason::ArpSourceDiffers,
    Reason::AnsweredError,
];

#[test]
fn every_reason_has_a_row() {
    let rows = host::all_rows();
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !NOT_DECIDED.contains(reason))
        .filter(|reason| rows.iter().all(|row| row.reason != **reason))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_is_passed_is_unchanged() {
    for row in host::all_rows() {
        // DHCP goes on under the host's link-layer address.
        if row.reason.kind() == Kind::Pass && row.reason != Reason::DhcpClient {
            assert_eq!(row.out.as_ref(), Some(&row.frame), "{}", row.name);
        }
    }
}
