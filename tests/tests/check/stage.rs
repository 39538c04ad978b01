//! A host on which something is wrong, `check` on it, and what mends it.

use std::{
    fs::{self, Permissions},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netspawn_tests::{Cmd, Lab, Ns, Process, Spec, binary};
use netspawn_user::check::{Rule, Severity, rules};
use serde_json::Value;

/// How a finding is mended.
#[derive(Clone, Copy)]
pub enum Mend {
    /// By the commands that it has.
    Printed,
    /// By what the test decides in a person's stead.
    Person(fn(&mut Stage) -> Result<()>),
}

/// A lab, and how `check` is called in it.
pub struct Stage {
    /// The lab.
    pub lab: Lab,
    /// What `check` is told.
    pub words: String,
    /// A command that runs `check`, and what it prints, where neither may see what the
    /// test sees.
    pub within: Vec<String>,
    /// BPFDIR, where it is not the lab's.
    pub bpf_dir: Option<PathBuf>,
    /// Another namespace to run in, that of the network.
    pub outside: bool,
    /// Processes that go with the stage: those in the machines, by name.
    pub machines: Vec<(String, Process)>,
    /// Others.
    pub processes: Vec<Process>,
    /// Links that hold a program.
    pub links: Vec<OwnedFd>,
}

impl Stage {
    /// On a lab, all of whose machines have a process.
    pub fn new(lab: Lab) -> Result<Self> {
        let mut stage = Stage {
            lab,
            words: "eth0".to_owned(),
            within: Vec::new(),
            bpf_dir: None,
            outside: false,
            machines: Vec::new(),
            processes: Vec::new(),
            links: Vec::new(),
        };
        stage.occupy()?;
        Ok(stage)
    }

    /// Starts a process in each machine: a namespace is found by one.
    pub fn occupy(&mut self) -> Result<()> {
        for machine in self.lab.machines() {
            let process = machine.ns.cmd("sleep").arg("600").start()?;
            self.machines.push((machine.name().to_owned(), process));
        }
        Ok(())
    }

    /// Runs command lines in the host.
    pub fn host(&self, lines: &[&str]) -> Result<()> {
        for line in lines {
            self.lab.host.run(line)?;
        }
        Ok(())
    }

    /// Runs nft in the host.
    pub fn nft(&self, script: &str) -> Result<()> {
        let nft = self.lab.host.cmd("nft").args(["-f", "-"]);
        nft.input(script).text().map(drop)
    }

    /// Another network of the host, behind `alt0`.
    pub fn other_network(&self) -> Result<()> {
        self.host(&[
            "ip link add alt0 type veth peer name alt1",
            "ip link set alt0 up",
            "ip link set alt1 up",
            "ip address add 192.0.2.1/24 dev alt0",
        ])
    }

    /// Mounts of its own for what runs from now on, made by a script.
    pub fn mounts(&mut self, script: &str) -> Result<()> {
        let script = format!("{script} && echo mounted && exec sleep 600");
        let mut holder = self
            .lab
            .host
            .cmd("unshare")
            .args(["--mount", "sh", "-ec", &script])
            .start()?;
        holder.wait_line(std::time::Duration::from_secs(10), |line| line == "mounted")?;
        self.within = [
            "nsenter",
            "--mount",
            "--target",
            &holder.id().to_string(),
            "--",
        ]
        .map(str::to_owned)
        .into();
        self.processes.push(holder);
        Ok(())
    }

    fn ns(&self) -> &Ns {
        if self.outside {
            &self.lab.net
        } else {
            &self.lab.host
        }
    }

    /// A command in the place that `check` runs in.
    fn cmd(&self, program: &str) -> Cmd {
        match &self.within[..] {
            [] => self.ns().cmd(program),
            [first, rest @ ..] => self.ns().cmd(first).args(rest).arg(program),
        }
    }

    fn options(&self) -> Vec<String> {
        let mut options = self.lab.options();
        if let Some(dir) = &self.bpf_dir {
            let last = options.len() - 1;
            options[last] = dir.display().to_string();
        }
        options
    }

    /// Text and exit code of `check`.
    pub fn text(&self, words: &str) -> Result<(String, i32)> {
        let program = binary()?.display().to_string();
        let output = self
            .cmd(&program)
            .args(self.options())
            .arg("check")
            .args(words.split_whitespace())
            .output()?;
        ensure!(output.stderr.is_empty(), "{}", output.stderr);
        let code = output.code();
        Ok((output.stdout, code))
    }

    /// What `check --json` finds. The exit code is judged.
    pub fn check(&self) -> Result<Vec<Value>> {
        let (text, code) = self.text(&format!("{} --json", self.words))?;
        judged(&text, code)
    }

    /// Runs a command as it was printed, with `netspawn-xdp` in the path.
    pub fn run_printed(&self, command: &str) -> Result<()> {
        let folder = self.lab.dir().join("path");
        fs::create_dir_all(&folder)?;
        let script = format!(
            "#!/bin/sh\nexec {} {} \"$@\"\n",
            binary()?.display(),
            self.options().join(" ")
        );
        let path = folder.join("netspawn-xdp");
        fs::write(&path, script)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        let paths = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
        let shell = self.cmd("sh").env("PATH", paths);
        let output = shell.args(["-ec", command]).output()?;
        let line = output.line.clone();
        output.success().with_context(|| line).map(drop)
    }
}

/// Findings of `check --json`, whose exit code has to be that of the worst.
pub fn judged(text: &str, code: i32) -> Result<Vec<Value>> {
    let found: Vec<Value> = serde_json::from_str(text).with_context(|| text.to_owned())?;
    let error = found.iter().any(|finding| finding["severity"] == "error");
    ensure!(code == i32::from(error), "exit code {code} with\n{text}");
    Ok(found)
}

/// The finding of that id.
pub fn finding<'a>(found: &'a [Value], id: &str) -> Option<&'a Value> {
    found.iter().find(|finding| finding["id"] == id)
}

/// The rule of that id.
pub fn rule(id: &str) -> Result<&'static Rule> {
    let mut rules = rules::ALL.iter().copied();
    rules
        .find(|rule| rule.id == id)
        .with_context(|| format!("there is no rule {id}"))
}

/// Commands of a finding.
pub fn commands(finding: &Value) -> Result<Vec<String>> {
    serde_json::from_value(finding["fix"].clone())
        .with_context(|| format!("{finding:#} has no commands"))
}

/// Provokes a finding, mends it, and sees it gone.
pub fn play(
    id: &str,
    lab: fn() -> Result<Lab>,
    provoke: fn(&mut Stage) -> Result<()>,
    mend: Mend,
) -> Result<()> {
    let rule = rule(id)?;
    let mut stage = Stage::new(lab()?)?;
    let before = stage.check()?;
    if let Some(finding) = finding(&before, id) {
        bail!("it is there before it is provoked: {finding:#}");
    }
    provoke(&mut stage)?;
    let found = stage.check()?;
    let finding_of = |found: &[Value]| finding(found, id).cloned();
    let shown = finding_of(&found).with_context(|| format!("not found; instead\n{found:#?}"))?;
    assert_eq!(shown["severity"], rule.severity.name());
    assert_eq!(shown["why"], rule.why);
    for key in ["subject", "found"] {
        assert!(
            shown[key].as_str().is_some_and(|text| !text.is_empty()),
            "{shown:#}"
        );
    }
    let (text, _) = stage.text(&stage.words)?;
    ensure!(text.contains(&format!(" ({id})\n")), "{text}");
    match mend {
        Mend::Printed => {
            for command in commands(&shown)? {
                stage.run_printed(&command)?;
            }
        }
        Mend::Person(decide) => {
            let advice = shown["advice"].as_str();
            ensure!(advice.is_some_and(|text| !text.is_empty()), "{shown:#}");
            assert_eq!(shown["fix"], Value::Null);
            decide(&mut stage)?;
        }
    }
    // A daemon that was told to end takes its time.
    let start = Instant::now();
    loop {
        let after = stage.check()?;
        let Some(finding) = finding_of(&after) else {
            return Ok(());
        };
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "it is there still: {finding:#}"
        );
    }
}

/// A lab with the usual machines and no prefix that is not on-link.
pub fn plain() -> Result<Lab> {
    machines().build()
}

/// As [`plain`], before it is raised.
pub fn machines() -> netspawn_tests::Builder {
    Lab::builder()
        .machine(
            Spec::new("web")
                .address("203.0.113.2")
                .address("2001:db8::2"),
        )
        .machine(
            Spec::new("db")
                .address("203.0.113.3")
                .address("2001:db8::3"),
        )
}

/// Nothing above info, and nothing at all in the words for people.
pub fn severities(found: &[Value]) -> Vec<&str> {
    let severities = found
        .iter()
        .filter_map(|finding| finding["severity"].as_str());
    severities
        .filter(|severity| *severity != Severity::Info.name())
        .collect()
}
