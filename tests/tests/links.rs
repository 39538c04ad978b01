//! Links that an engine's users have named like the port that a file expects.
//!
//! What Incus does is done by hand here, and what it is asked is answered by [`serve`], so
//! that each moment can be held. The real one is in the engines' suite.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{
    Capture, HOST0, Lab, Machine, Mode, Ns, Process, READY, Spec, binary, in_each_mode, ping,
    ready_for, unreachable, wait_until,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The port that a file expects.
const LINK: &str = "ve-web";
/// Where the server finds its folder; set in its process alone.
const FOLDER: &str = "FAKE_INCUS";
/// Until what has happened is followed.
const SOON: Duration = Duration::from_secs(20);
/// As long as nothing may happen.
const QUIET: Duration = Duration::from_millis(700);

/// Incus as far as it is asked, in its folder: `projects.json`, `instances.json`, and as
/// long as there is a file `hold` no answer.
struct Incus {
    folder: PathBuf,
    process: Option<Process>,
}

impl Incus {
    fn new(lab: &Lab) -> Result<Self> {
        let folder = lab.dir().join("incus");
        fs::create_dir(&folder)?;
        let incus = Incus {
            folder,
            process: None,
        };
        incus.write(
            "projects",
            &json!([
                { "name": "default", "config": {} },
                { "name": "acme", "config": { "restricted": "true" } },
            ]),
        )?;
        incus.instance(None, false)?;
        Ok(incus)
    }

    fn start(&mut self, lab: &Lab) -> Result<()> {
        // This program once more, in the host's namespace with all of its threads.
        let mut process = lab
            .host
            .cmd(std::env::current_exe()?)
            .args(["--exact", "serve", "--ignored", "--nocapture"])
            .env(FOLDER, &self.folder)
            .start()?;
        process.wait_line(SOON, |line| line.contains("listening"))?;
        self.process = Some(process);
        Ok(())
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        let draft = self.folder.join("draft");
        fs::write(&draft, value.to_string())?;
        fs::rename(draft, self.folder.join(format!("{name}.json")))?;
        Ok(())
    }

    /// What is listed: an instance of a restricted project, with a name for its link.
    fn instance(&self, link: Option<&str>, runs: bool) -> Result<()> {
        let mut device = json!({ "type": "nic", "nictype": "p2p" });
        let mut config = json!({});
        if let Some(link) = link {
            device["host_name"] = json!(link);
            if runs {
                config["volatile.eth0.host_name"] = json!(link);
            }
        }
        self.write(
            "instances",
            &json!([{
                "name": "u1", "project": "acme", "type": "container", "location": "none",
                "status_code": if runs { 103 } else { 102 },
                "expanded_config": config, "expanded_devices": { "eth0": device },
            }]),
        )
    }

    fn hold(&self, held: bool) -> Result<()> {
        let file = self.folder.join("hold");
        match held {
            true => fs::write(file, "")?,
            false => fs::remove_file(file)?,
        }
        Ok(())
    }
}

/// The process of [`Incus::start`].
#[test]
#[ignore = "started by the others"]
fn serve() -> Result<()> {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return Ok(());
    };
    let listener = UnixListener::bind(folder.join("unix.socket"))?;
    println!("listening");
    for stream in listener.incoming() {
        let (folder, stream) = (folder.clone(), stream?);
        thread::spawn(move || {
            if let Err(error) = answer(&folder, stream) {
                println!("{error:#}");
            }
        });
    }
    Ok(())
}

fn answer(folder: &Path, mut stream: UnixStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let path = first.split(' ').nth(1).context("no request")?.to_owned();
    let mut key = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("sec-websocket-key")
        {
            key = Some(derive_accept_key(value.as_bytes()));
        }
    }
    if let Some(key) = key {
        // Events, of which all are lost.
        write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {key}\r\n\r\n"
        )?;
        let mut rest = String::new();
        reader.read_line(&mut rest)?;
        return Ok(());
    }
    let metadata = if path.starts_with("/1.0/projects") {
        fs::read_to_string(folder.join("projects.json"))?
    } else if path.starts_with("/1.0/instances") {
        // As it was when the question came.
        let listed = fs::read_to_string(folder.join("instances.json"))?;
        while folder.join("hold").exists() {
            thread::sleep(Duration::from_millis(5));
        }
        listed
    } else {
        json!({ "environment": { "server_clustered": false, "server_name": "x" } }).to_string()
    };
    let body = format!("{{\"metadata\":{metadata}}}");
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

/// `attach` where the folder is that of Incus, for that process alone.
fn attach(lab: &Lab, mode: Mode, incus: &Incus) -> Result<Process> {
    let mut process = lab
        .host
        .cmd("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none /var/lib && mkdir /var/lib/incus && \
             mount --bind \"$0\" /var/lib/incus && exec \"$@\"",
        ])
        .arg(&incus.folder)
        .arg(binary()?)
        .args(lab.options())
        .arg("attach")
        .args(mode.attach().split(' '))
        .start()?;
    process.wait_line(READY, |line| line.starts_with("ready:"))?;
    Ok(process)
}

/// `web` that a file declares and that is stopped, `db` that runs, and a machine of a
/// user's, of which nothing is declared.
fn lab() -> Result<Lab> {
    let machine = |name: &str, n: u8| {
        Spec::new(name)
            .address(&format!("203.0.113.{n}"))
            .address(&format!("2001:db8::{n}"))
    };
    Lab::builder()
        .machine(machine("web", 2).unplugged())
        .machine(machine("db", 3))
        // With web's addresses, in case that somebody brings them.
        .machine(machine("evil", 2).undeclared().unplugged())
        .build()
}

/// The two ways in which a file expects [`LINK`].
const FILES: [&str; 2] = ["", "interface = \"ve-web\"\n"];

fn declare(lab: &Lab, first: &str) -> Result<()> {
    let text = lab.machine("web").declaration();
    lab.declare("web", &format!("{first}{text}"))
}

/// Makes the link into a user's machine.
fn intrude(lab: &Lab, evil: &Machine) -> Result<Capture> {
    lab.host.run(&format!(
        "ip link add {LINK} type veth peer name {HOST0} netns {}",
        evil.ns.path().display()
    ))?;
    evil.ns.run(&format!("ip link set {HOST0} up"))?;
    lab.host.run(&format!("ip link set {LINK} up"))?;
    evil.ns.settled(HOST0)?;
    Capture::incoming(&evil.ns, HOST0)
}

fn machine(lab: &Lab, name: &str) -> Result<Value> {
    let list = lab.json("list")?;
    let mut machines = list.as_array().into_iter().flatten();
    let found = machines.find(|machine| machine["name"] == name);
    found.cloned().with_context(|| format!("{list:#}"))
}

/// That `web` has no port for a while, and the intruder gets nothing of what is sent to
/// its addresses.
fn is_kept_out(lab: &Lab, heard: &mut Capture) -> Result<()> {
    let (v4, v6) = (lab.machine("web").v4(), lab.machine("web").v6());
    let deadline = Instant::now() + QUIET;
    while Instant::now() < deadline {
        let web = machine(lab, "web")?;
        ensure!(
            web["state"] == "waiting" && web["ifindex"].is_null(),
            "{web:#}"
        );
        unreachable(&lab.net, v4)?;
    }
    unreachable(&lab.net, v6)?;
    for bytes in [&v4.octets()[..], &v6.octets()] {
        let heard = heard.containing(bytes);
        ensure!(heard.is_empty(), "{heard:02x?}");
    }
    let db = lab.machine("db");
    ping(&lab.net, db.v4())?;
    ping(&lab.net, db.v6())
}

fn says(agent: &mut Process, words: &str) -> Result<()> {
    let said = wait_until(SOON, || agent.err().contains(words));
    ensure!(said, "not said: {words}\n{}", agent.err());
    Ok(())
}

/// As soon as nobody claims the name, the link is that of the file's machine.
fn is_served(lab: &Lab, net: &Ns) -> Result<()> {
    let web = lab.machine("web");
    lab.plug(web)?;
    let up = wait_until(SOON, || {
        machine(lab, "web").is_ok_and(|web| web["state"] == "up")
    });
    ensure!(up, "{:#}\n{}", machine(lab, "web")?, lab.run("status")?);
    ping(net, web.v4())?;
    ping(net, web.v6())
}

fn link_that_a_user_names_like_a_port_is_not_taken_for_it(mode: Mode) -> Result<()> {
    let lab = lab()?;
    ready_for(&lab, mode)?;
    let mut incus = Incus::new(&lab)?;
    incus.start(&lab)?;
    let mut agent = attach(&lab, mode, &incus)?;
    let evil = lab.machine("evil");
    ping(&lab.net, lab.machine("db").v4())?;
    for file in FILES {
        declare(&lab, file)?;
        // A question that was asked before the link was there is answered after it.
        incus.hold(true)?;
        incus.instance(Some(LINK), false)?;
        let mut heard = intrude(&lab, evil)?;
        is_kept_out(&lab, &mut heard).context("before Incus has said")?;
        incus.hold(false)?;
        says(&mut agent, "which asks for a link of that name")?;
        is_kept_out(&lab, &mut heard).context("while it starts")?;
        incus.instance(Some(LINK), true)?;
        // Whatever lets the agent ask again.
        lab.host
            .run("ip link add other type veth peer name other-peer")?;
        lab.declare(
            "other",
            "addresses = [\"203.0.113.77\"]\ninterface = \"other\"\n",
        )?;
        says(&mut agent, "whose users may have named it")?;
        is_kept_out(&lab, &mut heard).context("as it runs")?;
        // The instance ends, and then the name is root's again.
        lab.host.run(&format!("ip link del {LINK}"))?;
        lab.host.run("ip link del other")?;
        incus.instance(None, false)?;
        is_served(&lab, &lab.net)?;
        lab.unplug(lab.machine("web"))?;
        lab.withdraw("other")?;
        drop(heard);
    }
    Ok(())
}

fn what_is_served_stays_while_an_engine_does_not_answer(mode: Mode) -> Result<()> {
    let lab = lab()?;
    ready_for(&lab, mode)?;
    let mut incus = Incus::new(&lab)?;
    incus.start(&lab)?;
    let agent = attach(&lab, mode, &incus)?;
    is_served(&lab, &lab.net)?;
    incus.hold(true)?;
    agent.end(netspawn_tests::Signal::SIGKILL, SOON)?;
    // A name that is only asked for takes nothing from whom it is.
    incus.instance(Some(LINK), false)?;
    let mut agent = attach(&lab, mode, &incus)?;
    let web = lab.machine("web");
    for _ in 0..2 {
        let now = machine(&lab, "web")?;
        ensure!(now["state"] == "up", "{now:#}");
        ping(&lab.net, web.v4())?;
        ping(&lab.net, web.v6())?;
        if incus.folder.join("hold").exists() {
            incus.hold(false)?;
            says(&mut agent, "incus is followed")?;
        }
    }
    Ok(())
}

/// As an agent of before has left it, with Incus not there.
fn what_was_last_said_of_links_counts_while_the_engine_is_away(mode: Mode) -> Result<()> {
    let first = json!([{
        "name": "u1.acme", "named_by_user": true, "origin": "container u1 of project acme",
        "addresses": [], "place": { "link": "" },
        "faults": [{
            "field": "volatile.eth0.host_name", "left_out": true, "remedy": "remove it",
            "message": "ve-web is no name that Incus has made up",
        }],
    }]);
    let now = json!({ "machines": [], "users": { "any": true, "links": {
        LINK: { "origin": "container u1 of project acme", "made": true },
    } } });
    for (record, file) in [first, now].into_iter().zip(FILES) {
        let lab = lab()?;
        ready_for(&lab, mode)?;
        declare(&lab, file)?;
        fs::create_dir_all(lab.run_dir().join("engines"))?;
        fs::write(lab.run_dir().join("engines/incus.json"), record.to_string())?;
        let incus = Incus::new(&lab)?;
        let mut agent = attach(&lab, mode, &incus)?;
        let mut heard = intrude(&lab, lab.machine("evil"))?;
        says(&mut agent, "whose users may have named it")?;
        is_kept_out(&lab, &mut heard)?;
    }
    Ok(())
}

in_each_mode! {
    link_that_a_user_names_like_a_port_is_not_taken_for_it
    what_is_served_stays_while_an_engine_does_not_answer
    what_was_last_said_of_links_counts_while_the_engine_is_away
}
