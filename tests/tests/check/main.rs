//! `check`: each of its findings provoked, mended by the commands that it prints, and seen
//! to be gone.

mod cases;
mod facts;
mod networkd;
mod stage;

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use netspawn_tests::{Agent, Lab, Mode, Snapshot, UPLINK, all_reachable, ready_for};
use netspawn_user::check::rules;

use stage::{Stage, machines, plain, severities};

#[test]
fn every_finding_has_a_test_that_provokes_it() {
    let provoked: BTreeSet<&str> = [cases::PROVOKED, facts::PROVOKED, networkd::PROVOKED]
        .into_iter()
        .flatten()
        .copied()
        .collect();
    let ids: BTreeSet<&str> = rules::ALL.iter().map(|rule| rule.id).collect();
    assert_eq!(ids, provoked);
}

#[test]
fn healthy_host_is_well_before_and_after_attach() -> Result<()> {
    let stage = Stage::new(machines().build()?)?;
    let well = |words: &str| -> Result<()> {
        let (text, code) = stage.text(words)?;
        ensure!(
            code == 0 && text.starts_with("check: all well (") && text.lines().count() == 1,
            "{code}: {text}"
        );
        Ok(())
    };
    well(UPLINK)?;
    // By the default route.
    well("")?;
    let agent = Agent::start(&stage.lab, UPLINK)?;
    well("")?;
    well(UPLINK)?;
    agent.kill()?;
    well("")
}

#[test]
fn usual_hosts_have_nothing_above_info() -> Result<()> {
    for rp_filter in [0, 1, 2] {
        let lab = Lab::builder().usual_machines().rp_filter(rp_filter);
        let stage = Stage::new(lab.build()?)?;
        let found = stage.check()?;
        ensure!(severities(&found).is_empty(), "{found:#?}");
        stage.lab.run("attach eth0 --once")?;
        let found = stage.check()?;
        ensure!(severities(&found).is_empty(), "{found:#?}");
    }
    Ok(())
}

#[test]
fn xdp_on_a_veth_is_the_only_warning_of_the_lab() -> Result<()> {
    let stage = Stage::new(plain()?)?;
    ready_for(&stage.lab, Mode::Xdp)?;
    stage.lab.run("attach eth0 --mode xdp --once")?;
    let found = stage.check()?;
    let ids: Vec<&str> = found.iter().filter_map(|one| one["id"].as_str()).collect();
    assert_eq!(ids, ["xdp-veth"]);
    Ok(())
}

#[test]
fn check_changes_nothing() -> Result<()> {
    let stage = Stage::new(Lab::usual()?)?;
    let _agent = Agent::start(&stage.lab, UPLINK)?;
    let first = &stage.lab.machines()[0];
    netspawn_tests::ping(&stage.lab.net, first.v4())?;
    let before = Snapshot::host(&stage.lab)?;
    stage.check()?;
    before.same(&Snapshot::host(&stage.lab)?)?;
    all_reachable(&stage.lab)
}

#[test]
fn worst_comes_first_and_many_are_summed_up() -> Result<()> {
    let stage = Stage::new(plain()?)?;
    for number in 0..40 {
        let text = format!("addresses = [\"203.0.113.{}\"]\n", 100 + number);
        stage.lab.declare(&format!("m{number}"), &text)?;
    }
    stage.host(&[
        "ip link set eth0 down",
        "sysctl -w net.ipv4.conf.eth0.proxy_arp=1",
    ])?;
    let (text, code) = stage.text("eth0")?;
    assert_eq!(code, 1);
    ensure!(
        text.contains("without a port: m0, m1, m10 and 37 more"),
        "{text}"
    );
    let order: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| ["error", "warning", "info"].contains(word))
        .collect();
    let mut sorted = order.clone();
    sorted.sort_by_key(|word| {
        ["error", "warning", "info"]
            .iter()
            .position(|one| one == word)
    });
    assert_eq!(order, sorted);
    // Not a terminal.
    ensure!(!text.contains('\u{1b}'), "{text:?}");
    Ok(())
}
