//! `cargo xtask captures`: `top` with real traffic in a lab, as pictures for README.md.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result};
use netspawn_tests::{Agent, Lab, Process, Spec, Tmux, Workdir, binary, require_root};

use crate::{
    build,
    run::{show, step},
    setup,
};

/// Where the pictures go, below the workspace.
const FOLDER: &str = "docs/images";

/// Name, tenant, and pings a second that it gets and sends.
const MACHINES: [(&str, &str, u32, u32); 12] = [
    ("web", "acme", 400, 120),
    ("shop", "acme", 250, 60),
    ("db", "acme", 80, 200),
    ("mail", "acme", 40, 25),
    ("dns", "", 300, 0),
    ("git", "lab", 60, 90),
    ("ci", "lab", 20, 160),
    ("wiki", "lab", 15, 0),
    ("chat", "lab", 110, 0),
    ("vpn", "", 180, 180),
    ("cache", "", 0, 0),
    ("backup", "", 0, 40),
];

/// How long traffic goes on before the first picture: as long as a trend is wide.
const WARM: Duration = Duration::from_secs(45);

/// Arguments of `cargo xtask captures`.
#[derive(clap::Args)]
pub struct Args {}

/// Raises a lab, has machines send and receive, and writes what `top` shows.
pub fn run(_: Args) -> Result<()> {
    require_root()?;
    setup::ready()?;
    build::programs(false)?;
    let mut builder = Lab::builder();
    for (number, (name, tenant, ..)) in (20..).zip(MACHINES) {
        let mut spec = Spec::new(name)
            .address(&format!("203.0.113.{number}"))
            .address(&format!("2001:db8::{number}"));
        if name == "web" {
            spec = spec.address("2001:db8:1::/64");
        }
        if !tenant.is_empty() {
            spec = spec.tenant(tenant);
        }
        builder = builder.machine(spec);
    }
    let lab = builder.build()?;
    let _agent = Agent::start(&lab, "eth0")?;
    let _traffic = traffic(&lab)?;
    let tmux = Tmux::start(&lab, 80, 24)?;
    tmux.line(&format!(
        "clear; {} {} top",
        binary()?.display(),
        lab.options().join(" ")
    ))?;
    tmux.wait(|screen| screen.contains("12 of 12 machines up"))?;
    step("traffic for a while");
    spoof(&lab)?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies below the workspace")?
        .join(FOLDER);
    fs::create_dir_all(&folder)?;
    // The machine whose details show something.
    tmux.keys(&["n"])?;
    tmux.keys(&["Down", "Down"])?;
    tmux.wait(|screen| screen.contains("> chat"))?;
    tmux.keys(&["r"])?;
    for (columns, lines) in [(80, 24), (200, 50)] {
        tmux.resize(columns, lines)?;
        // Drawn anew, and then with what has come meanwhile.
        thread::sleep(Duration::from_secs(3));
        let path = folder.join(format!("top-{columns}x{lines}.png"));
        photograph(
            &anstyle_svg::Term::new().render_svg(&tmux.coloured()?),
            &path,
        )?;
        step(format_args!("{FOLDER}/top-{columns}x{lines}.png"));
    }
    Ok(())
}

/// Has a browser draw an SVG, whose look depends on the fonts that there are, as a PNG of
/// its size. No test draws, so that setting up installs no browser.
fn photograph(svg: &str, png: &Path) -> Result<()> {
    let side = |name: &str| {
        let value = svg
            .split_once(&format!("{name}=\""))?
            .1
            .split_once("px\"")?
            .0;
        value.parse::<u32>().ok()
    };
    let (width, height) = side("width")
        .zip(side("height"))
        .context("the picture has no size")?;
    let dir = Workdir::new()?;
    let page = dir.path().join("top.svg");
    fs::write(&page, svg)?;
    show(
        Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-background-networking", "--disable-sync"])
            .arg(format!(
                "--user-data-dir={}",
                dir.path().join("browser").display()
            ))
            .arg(format!("--window-size={width},{height}"))
            .arg(format!("--screenshot={}", png.display()))
            .arg(page),
    )
    .context("this needs a browser: apt-get install chromium")
}

/// Pings that go on until the value is dropped.
fn traffic(lab: &Lab) -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for (name, _, comes, goes) in MACHINES {
        let machine = lab.machine(name);
        for (from, to, rate) in [
            (&lab.net, machine.v4().to_string(), comes),
            (&machine.ns, "198.51.100.1".to_owned(), goes),
        ] {
            if rate > 0 {
                let pause = format!("{:.4}", 1.0 / f64::from(rate));
                all.push(
                    from.cmd("ping")
                        .args(["-n", "-q", "-i", &pause, &to])
                        .start()?,
                );
            }
        }
    }
    Ok(all)
}

/// Warms up, while a machine sends from an address that it does not own.
fn spoof(lab: &Lab) -> Result<()> {
    let chat = &lab.machine("chat").ns;
    chat.run("ip addr add 203.0.113.99/32 dev host0")?;
    let count = (WARM.as_secs() * 10).to_string();
    chat.cmd("ping")
        .args(["-n", "-q", "-i", "0.1", "-W", "0.1", "-c", &count])
        .args(["-I", "203.0.113.99", "198.51.100.1"])
        .limit(WARM * 2)
        .output()?;
    Ok(())
}
