//! `top` in a terminal, as a person sees it: tmux is the terminal, the traffic is real.
//!
//! Screens are kept in `snapshots/`; after a change that is meant, `INSTA_UPDATE=always`
//! writes them anew.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use insta::{assert_snapshot, with_settings};
use netspawn_tests::{
    Attached, Lab, Mode, Pinging, Signal, Spec, Tmux, binary, send_frame, wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// `netspawn-xdp` in the terminal, with the lab's folders; what follows is the caller's.
fn line(lab: &Lab, words: &str) -> Result<String> {
    Ok(format!(
        "{} {} {words}",
        binary()?.display(),
        lab.options().join(" ")
    ))
}

/// A terminal with `top` in it, which shows the three machines.
fn started<'a>(on: &'a Attached, columns: u16, lines: u16) -> Result<Tmux<'a>> {
    let tmux = Tmux::start(&on.lab, columns, lines)?;
    tmux.text("clear")?;
    tmux.keys(&["Enter"])?;
    tmux.line(&line(&on.lab, "top --interval 0.2")?)?;
    tmux.wait(|screen| screen.contains("3 of 3 machines up") && names(screen).len() == 3)?;
    Ok(tmux)
}

/// Names of the machines shown, from the first row down.
fn names(screen: &str) -> Vec<&str> {
    const NAMES: [&str; 3] = ["web", "db", "mail"];
    let rows = screen.lines().skip(3).take_while(|line| !line.is_empty());
    rows.filter_map(|line| {
        let name = line.trim_start_matches(['>', ' ']).split(' ').next()?;
        NAMES.contains(&name).then_some(name)
    })
    .collect()
}

/// The name in the row chosen.
fn chosen(screen: &str) -> Option<&str> {
    let row = screen.lines().find(|line| line.starts_with("> "))?;
    row[2..].split(' ').next()
}

/// Without what differs from run to run.
fn still(screen: &str) -> String {
    let mut out = String::new();
    for line in screen.lines() {
        let mut line = line.to_owned();
        if let Some(at) = line.find("pid ") {
            let digits = line[at + 4..]
                .chars()
                .take_while(char::is_ascii_digit)
                .count();
            line.replace_range(at + 4..at + 4 + digits, "#");
            // The pid's length moves what is at the right.
            line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        if let Some(at) = line.find("every ") {
            line.truncate(at + "every 0.2 s".len());
            line += "  [CLOCK]";
        }
        out += line
            .replace(|c: char| "▁▂▃▄▅▆▇█".contains(c), " ")
            .trim_end();
        out.push('\n');
    }
    out.trim_end().to_owned() + "\n"
}

fn kept(name: &str, text: &str) {
    with_settings!({ omit_expression => true }, {
        assert_snapshot!(name, text);
    });
}

#[test]
fn idle_machines_at_80x24_and_200x50() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    // Neighbor discovery of the lab's kernels is over, or does not go on for ever.
    let tmux = started(&on, 80, 24)?;
    let whole = |screen: &str| {
        let foot = screen.lines().last();
        foot.is_some_and(|line| line.starts_with("q end"))
    };
    let quiet = |screen: &str| screen.contains("in 0/s  out 0/s") && screen.contains("dropped 0/s");
    tmux.keys(&["n"])?;
    let screen = tmux.wait(|screen| quiet(screen) && screen.contains("NAME▲"))?;
    ensure!(names(&screen) == ["db", "mail", "web"], "{screen}");
    for line in screen.lines() {
        ensure!(line.chars().count() <= 80, "`{line}` is too wide");
    }
    let table: String = still(&screen)
        .lines()
        .take(6)
        .fold(String::new(), |all, l| all + l + "\n");
    kept("top_80x24", &table);

    tmux.resize(200, 50)?;
    let screen =
        tmux.wait(|screen| quiet(screen) && whole(screen) && screen.contains(" ve-web"))?;
    ensure!(screen.lines().count() == 50, "{screen}");
    let table: String = still(&screen)
        .lines()
        .take(6)
        .fold(String::new(), |all, l| all + l + "\n");
    kept("top_200x50", &table);
    let foot = screen.lines().last().unwrap_or_default();
    ensure!(foot.starts_with("q end"), "{screen}");

    // So small that little fits, and back.
    tmux.resize(30, 8)?;
    tmux.wait(|screen| screen.contains("NAME") && !screen.contains("TREND"))?;
    tmux.resize(80, 24)?;
    tmux.wait(|screen| names(screen) == ["db", "mail", "web"] && quiet(screen))?;
    Ok(())
}

#[test]
fn busiest_machine_is_first_and_columns_sort() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let tmux = started(&on, 80, 24)?;
    let pinging = Pinging::start(&on.lab.net, on.lab.machine("web").v4())?;
    let rate = |screen: &str| -> Option<f64> {
        let row = screen.lines().find(|line| line.contains(" web "))?;
        row.split_whitespace()
            .skip_while(|word| *word != "up")
            .nth(1)?
            .parse()
            .ok()
    };
    // 100 pings a second; a slow machine gets through fewer.
    let screen = tmux.wait(|screen| {
        names(screen).first() == Some(&"web") && rate(screen).is_some_and(|rate| rate > 20.0)
    })?;
    let rate = rate(&screen).context("no rate")?;
    ensure!(rate < 200.0, "{screen}");
    ensure!(screen.contains("RX/S▼"), "{screen}");
    ensure!(screen.contains('█'), "no trend\n{screen}");
    // The other way round, by name, and back to the busiest.
    tmux.keys(&["r"])?;
    tmux.wait(|screen| screen.contains("RX/S▲") && names(screen) == ["db", "mail", "web"])?;
    tmux.keys(&["n"])?;
    tmux.wait(|screen| screen.contains("NAME▲") && names(screen) == ["db", "mail", "web"])?;
    tmux.keys(&["n"])?;
    tmux.wait(|screen| screen.contains("NAME▼") && names(screen) == ["web", "mail", "db"])?;
    for (key, title) in [("t", "TX/S▼"), ("R", "RX B/S▼"), ("T", "TX B/S▼")] {
        tmux.keys(&[key])?;
        tmux.wait(|screen| screen.contains(title) && names(screen).first() == Some(&"web"))?;
    }
    // The row chosen goes where its machine goes.
    tmux.keys(&["Down", "Down"])?;
    let screen = tmux.wait(|screen| chosen(screen).is_some_and(|name| name != "web"))?;
    let followed = chosen(&screen).unwrap_or_default().to_owned();
    tmux.keys(&["n"])?;
    tmux.wait(|screen| screen.contains("NAME▲") && chosen(screen) == Some(&followed))?;
    drop(pinging);
    tmux.wait(|screen| screen.contains("in 0/s  out 0/s"))?;
    Ok(())
}

#[test]
fn details_show_why_frames_were_dropped() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let tmux = started(&on, 80, 24)?;
    // What a machine says by itself while it comes up may count already.
    tmux.wait(|screen| screen.contains("db on ve-db: ") && screen.contains(" dropped"))?;
    let mail = on.lab.machine("mail");
    // A frame from nobody's address.
    let frame =
        etherparse::PacketBuilder::ethernet2(mail.ns.mac("host0")?, on.lab.host.mac(mail.port())?)
            .ipv4([203, 0, 113, 77], [198, 51, 100, 1], 64)
            .udp(1, 2);
    let mut bytes = Vec::new();
    frame.write(&mut bytes, b"spoofed")?;
    for _ in 0..5 {
        send_frame(&mail.ns, "host0", &bytes)?;
    }
    tmux.keys(&["n"])?;
    tmux.wait(|screen| screen.contains("NAME▲"))?;
    tmux.keys(&["Down"])?;
    let screen = tmux.wait(|screen| {
        screen.contains("spoofed_source             5") && chosen(screen) == Some("mail")
    })?;
    ensure!(
        screen.contains("mail on ve-mail: 203.0.113.4 2001:db8::4"),
        "{screen}"
    );
    Ok(())
}

#[test]
fn filter_shows_those_asked_for() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let tmux = started(&on, 80, 24)?;
    tmux.keys(&["/"])?;
    tmux.text("ai")?;
    tmux.wait(|screen| names(screen) == ["mail"] && screen.contains("/ai"))?;
    // Keys are text meanwhile.
    tmux.text("q")?;
    tmux.wait(|screen| screen.contains("no machine has \"aiq\""))?;
    tmux.keys(&["BSpace", "Enter"])?;
    tmux.wait(|screen| screen.contains("\"ai\": 1 of 3"))?;
    tmux.keys(&["Escape"])?;
    tmux.wait(|screen| names(screen).len() == 3)?;
    // Who owns this address?
    tmux.keys(&["/"])?;
    tmux.text("2001:db8:1::1234")?;
    tmux.wait(|screen| names(screen) == ["web"])?;
    // A terminal tells Escape from the beginning of a sequence by the time between.
    tmux.keys(&["Escape"])?;
    tmux.wait(|screen| names(screen).len() == 3)?;
    tmux.keys(&["?"])?;
    tmux.wait(|screen| screen.contains("any key goes back"))?;
    tmux.keys(&["Escape"])?;
    tmux.wait(|screen| !screen.contains("any key goes back") && names(screen).len() == 3)?;
    Ok(())
}

/// The shell is back as it was left, and works.
fn restored(tmux: &Tmux, before: &str) -> Result<()> {
    let asked = ["#{alternate_on}", "#{cursor_flag}"].map(|format| tmux.ask(format));
    let [alternate, cursor] = asked;
    ensure!((alternate?, cursor?) == ("0".to_owned(), "1".to_owned()));
    let screen = tmux.screen()?;
    ensure!(
        screen.contains(before) && !screen.contains("NAME"),
        "{screen}"
    );
    // Raw mode would show neither what is typed nor begin lines at the left.
    tmux.line("echo $((6*7))")?;
    let screen = tmux.wait(|screen| screen.lines().any(|line| line == "42"))?;
    ensure!(screen.contains("$ echo $((6*7))"), "{screen}");
    Ok(())
}

#[test]
fn terminal_is_as_before_however_it_ends() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    type End<'a> = &'a dyn Fn(&Tmux) -> Result<()>;
    let endings: [(&str, End<'_>); 4] = [
        ("q", &|tmux| tmux.keys(&["q"])),
        ("Ctrl-C", &|tmux| tmux.keys(&["C-c"])),
        ("SIGTERM", &|tmux| signal(tmux, Signal::SIGTERM)),
        ("SIGINT", &|tmux| signal(tmux, Signal::SIGINT)),
    ];
    for (name, end) in endings {
        let tmux = started(&on, 80, 24)?;
        ensure!(tmux.ask("#{alternate_on}")? == "1");
        end(&tmux)?;
        tmux.wait(|screen| screen.contains("$") && !screen.contains("machines up"))
            .context(name)?;
        restored(&tmux, "top --interval 0.2").context(name)?;
        tmux.line("echo code $?")?;
        tmux.wait(|screen| screen.contains("code 0"))
            .context(name)?;
    }
    Ok(())
}

fn signal(tmux: &Tmux, signal: Signal) -> Result<()> {
    Ok(nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(tmux.child()?),
        signal,
    )?)
}

#[test]
fn hangup_ends_it() -> Result<()> {
    let on = Attached::usual(Mode::Tc)?;
    let tmux = started(&on, 80, 24)?;
    let pid = tmux.child()?;
    // As when the connection breaks: the terminal is gone.
    drop(tmux);
    let gone = wait_until(SOON, || {
        !fs::exists(format!("/proc/{pid}")).unwrap_or(false)
    });
    ensure!(gone, "top goes on without a terminal");
    Ok(())
}

#[test]
fn agent_and_data_plane_may_come_and_go() -> Result<()> {
    let Attached { agent, lab } = Attached::usual(Mode::Tc)?;
    let on = Attached { agent, lab };
    let tmux = started(&on, 80, 24)?;
    tmux.wait(|screen| screen.contains(&format!("agent pid {}", on.agent.id())))?;
    let signal = nix::unistd::Pid::from_raw(on.agent.id().cast_signed());
    nix::sys::signal::kill(signal, Signal::SIGTERM)?;
    tmux.wait(|screen| screen.contains("no agent") && names(screen).len() == 3)?;
    // It counts on without one.
    let pinging = Pinging::start(&on.lab.net, on.lab.machine("db").v4())?;
    tmux.wait(|screen| names(screen).first() == Some(&"db"))?;
    drop(pinging);
    on.lab.run("detach")?;
    tmux.wait(|screen| screen.contains("! the data plane was taken away"))?;
    on.lab.run("attach eth0 --once")?;
    tmux.wait(|screen| !screen.contains("taken away") && names(screen).len() == 3)?;
    Ok(())
}

#[test]
fn without_a_terminal_or_a_data_plane_it_says_so() -> Result<()> {
    let lab = Lab::builder()
        .machine(Spec::new("web").address("203.0.113.2"))
        .build()?;
    let output = lab.output("top")?;
    ensure!(output.code() == 1 && output.stdout.is_empty(), "{output:?}");
    ensure!(output.stderr.contains("top needs a terminal"), "{output:?}");
    let output = lab.output("top --json")?;
    ensure!(output.code() == 2, "{output:?}");
    let tmux = Tmux::start(&lab, 80, 24)?;
    tmux.line(&line(&lab, "top")?)?;
    tmux.wait(|screen| screen.contains("nothing is attached"))?;
    ensure!(tmux.ask("#{alternate_on}")? == "0");
    Ok(())
}
