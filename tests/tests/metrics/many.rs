//! Very many machines.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_bench::lab::{Guests, Way, World, declare};

use super::{
    ADDRESS,
    page::{check, get, samples},
};

/// Machines; another number by hand.
fn machines() -> Result<u32> {
    match std::env::var("NETSPAWN_MACHINES") {
        Ok(number) => number.parse().context("NETSPAWN_MACHINES is no number"),
        Err(_) => Ok(1_200),
    }
}

#[test]
fn thousand_machines_are_served_and_the_agent_goes_on() -> Result<()> {
    let machines = machines()?;
    let mut world = World::unattached(Way::Tc, machines, Guests::Together)?;
    fs::write(
        world.file("etc/netspawn.toml"),
        format!("[attach]\nmetrics = \"{ADDRESS}\"\n"),
    )?;
    world.attach()?;
    let mut pages = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let page = get(&world.host)?;
        pages.push((start.elapsed(), page));
        thread::sleep(Duration::from_millis(1_100));
    }
    pages.sort_by_key(|(took, _)| *took);
    let (median, page) = &pages[2];
    println!(
        "{machines} machines: a page of {} kB in {median:.1?} (fastest {:.1?}, slowest {:.1?})",
        page.len() / 1_000,
        pages[0].0,
        pages[4].0,
    );
    ensure!(*median < Duration::from_secs(3), "{median:?}");
    check(&world.host, page)?;
    let samples = samples(page)?;
    let expect = |name: &str, value: u32| {
        assert_eq!(samples.get(name).copied(), Some(f64::from(value)), "{name}");
    };
    expect("netspawn_machines{state=\"up\"}", machines);
    expect("netspawn_programmed_entries{kind=\"endpoints\"}", machines);
    expect("netspawn_programmed_entries{kind=\"ports\"}", machines);
    expect(
        "netspawn_programmed_entries{kind=\"prefixes\"}",
        2 * machines,
    );
    expect("netspawn_wanted_entries{kind=\"prefixes\"}", 2 * machines);
    expect("netspawn_map_entries{map=\"endpoints\"}", machines);
    let series = |metric: &str| {
        samples
            .keys()
            .filter(|name| name.starts_with(metric))
            .count()
    };
    for metric in [
        "netspawn_machine_receive_bytes_total{",
        "netspawn_machine_state{",
    ] {
        assert_eq!(series(metric), machines as usize, "{metric}");
    }

    // The agent follows while pages are asked for all the time.
    let follow = |number: u32| -> Result<Duration> {
        let file = world.file(&format!("etc/machines/m{number}.toml"));
        let start = Instant::now();
        fs::remove_file(&file)?;
        world
            .xdp([
                "add",
                "extra",
                "--interface",
                "none0",
                "--address",
                "10.9.9.9",
            ])?
            .text()?;
        world.xdp(["remove", "extra"])?.text()?;
        let took = start.elapsed();
        declare(&world.file("etc/machines"), number)?;
        Ok(took)
    };
    let alone = follow(7)?;
    let asking = AtomicBool::new(true);
    let busy = thread::scope(|scope| -> Result<Duration> {
        let (flag, host) = (&asking, &world.host);
        let asker = scope.spawn(move || {
            let mut count = 0;
            while flag.load(Ordering::Relaxed) {
                count += usize::from(get(host).is_ok());
            }
            count
        });
        let busy = follow(8);
        asking.store(false, Ordering::Relaxed);
        let count = asker
            .join()
            .map_err(|_| anyhow::anyhow!("the asker failed"))?;
        println!("{count} pages meanwhile");
        ensure!(count > 0, "no page was served meanwhile");
        busy
    })?;
    println!("two changes: {alone:.1?} alone, {busy:.1?} while pages are asked for");
    ensure!(busy < alone * 4 + Duration::from_secs(2));
    Ok(())
}
