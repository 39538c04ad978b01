//! The plugin that gives addresses: run with what we were run with.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
};

use serde_json::Value;

use super::{
    environment::{Command, Target},
    error::{Error, code},
    result::{self, Previous},
    version::Version,
};

/// A plugin that gives addresses, and everything it is run with.
#[derive(Clone, Copy, Debug)]
pub struct Ipam<'a> {
    /// Its file's name.
    pub kind: &'a str,
    /// `CNI_PATH`.
    pub path: &'a str,
    /// The network configuration.
    pub config: &'a Value,
    /// The interface, for ADD, DEL and CHECK.
    pub target: Option<&'a Target>,
}

impl Ipam<'_> {
    /// Addresses for an interface.
    ///
    /// # Errors
    /// When the plugin gives none. What it may have kept is given back.
    pub fn add(&self) -> Result<Previous, Error> {
        let added = self.run(Command::Add).and_then(|output| {
            let value: Value = serde_json::from_slice(&output)
                .map_err(|error| self.error(code::DECODE, format!("no result: {error}")))?;
            let result = result::read(&format!("the result of {}", self.kind), &value)?;
            if result.ips.is_empty() {
                return Err(self.error(code::CONFIG, "gives no address".to_owned()));
            }
            Ok(result)
        });
        if added.is_err() {
            self.undo();
        }
        added
    }

    /// Gives addresses back on the way out of a failure, which is the one to be told.
    pub fn undo(&self) {
        if let Err(error) = self.del() {
            tracing::warn!("cannot give addresses back: {error}");
        }
    }

    /// Gives an interface's addresses back.
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn del(&self) -> Result<(), Error> {
        self.run(Command::Del).map(drop)
    }

    /// Whether an interface's addresses are still its own.
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn check(&self) -> Result<(), Error> {
        self.run(Command::Check).map(drop)
    }

    /// Passes GC or STATUS on to a plugin that knows them.
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn pass_on(&self, command: Command) -> Result<(), Error> {
        if !self.speaks(Version::V1_1_0)? {
            return Ok(());
        }
        self.run(command).map(drop)
    }

    fn speaks(&self, version: Version) -> Result<bool, Error> {
        let output = self.run(Command::Version)?;
        let answer: Value = serde_json::from_slice(&output)
            .map_err(|error| self.error(code::DECODE, format!("no versions: {error}")))?;
        let supported = answer["supportedVersions"].as_array();
        Ok(supported.is_some_and(|all| all.iter().any(|one| one == version.name())))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    fn run(&self, command: Command) -> Result<Vec<u8>, Error> {
        let mut process = Process::new(self.file()?);
        process
            .env("CNI_COMMAND", command.name())
            .env("CNI_PATH", self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(target) = self.target {
            process
                .env("CNI_CONTAINERID", &target.container)
                .env("CNI_IFNAME", &target.ifname)
                .env("CNI_ARGS", &target.args)
                .env(
                    "CNI_NETNS",
                    target.netns.as_deref().unwrap_or(Path::new("")),
                );
        }
        let failed = |error| self.error(code::IO, format!("cannot be run: {error}"));
        let mut child = process.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read has no need to; what it says then tells.
            let _ = stdin.write_all(self.config.to_string().as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        // Its own words are the ones that help.
        Err(serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let said = String::from_utf8_lossy(&output.stdout);
            self.error(code::IO, format!("{}: {}", output.status, said.trim()))
        }))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the next directory is looked in, and that none has it is said"
    )]
    fn file(&self) -> Result<PathBuf, Error> {
        let mut folders = self.path.split(':').filter(|folder| !folder.is_empty());
        folders
            .clone()
            .map(|folder| Path::new(folder).join(self.kind))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                let folders = if folders.next().is_none() {
                    "CNI_PATH, which is empty"
                } else {
                    self.path
                };
                Error::config(
                    format!(
                        "plugin {} of ipam.type is not found in {folders}",
                        self.kind
                    ),
                    "install it there; Debian has it in containernetworking-plugins",
                )
            })
    }

    fn error(&self, code: u32, what: String) -> Error {
        Error::new(code, format!("{}: {what}", self.kind), "")
    }
}
