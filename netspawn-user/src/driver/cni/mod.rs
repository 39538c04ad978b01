//! `netspawn-cni`: the plugin for runtimes that speak CNI (containerd, podman,
//! Kubernetes). Specification: <https://www.cni.dev/docs/spec/>.
//!
//! As the main plugin it makes the link and has another plugin give the addresses;
//! after another one that has made the link, as `ptp` does, it takes addresses and link
//! from its result. Either way the container is served when ADD returns.

mod add;
pub mod attachment;
mod chain;
mod check;
mod config;
mod del;
mod environment;
mod error;
mod gc;
mod host;
mod ipam;
mod leftovers;
mod link;
mod result;
mod status;
mod version;

use std::{
    ffi::OsStr,
    io::{self, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use serde_json::{Value, json};

use self::{
    attachment::{Attachment, Delegated, Port},
    config::Config,
    environment::{Command, Environment, Target},
    error::{Error, code},
    host::Host,
    version::Version,
};
use crate::{cli::Global, logging, source::engine::Machine};

/// The name by which the program knows that it is the plugin.
const NAME: &str = "netspawn-cni";

/// Whether the program was started as the plugin.
pub fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.and_then(|path| Path::new(path).file_name());
    name == Some(OsStr::new(NAME))
}

/// Does what the environment and stdin say, and prints the outcome on stdout.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn main() -> ExitCode {
    logging::start_plugin();
    let mut stdin = Vec::new();
    let read = io::stdin()
        .lock()
        .read_to_end(&mut stdin)
        .map_err(|error| Error::new(code::IO, format!("cannot read stdin: {error}"), ""));
    let get = |name: &str| std::env::var(name).ok();
    let (output, code) = match read.and_then(|_| run(get, &stdin, &Global::default())) {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(error) => (Some(report(&error, &stdin)), ExitCode::FAILURE),
    };
    let Some(output) = output else {
        return code;
    };
    // The container is not connected if nobody hears that it is.
    match writeln!(io::stdout(), "{output:#}") {
        Ok(()) => code,
        Err(error) => {
            tracing::error!("cannot write to stdout: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what is asked. Returns what is to be printed.
fn run(
    get: impl Fn(&str) -> Option<String>,
    stdin: &[u8],
    global: &Global,
) -> Result<Option<Value>, Error> {
    let environment = Environment::read(get)?;
    if environment.command == Command::Version {
        return Ok(Some(versions(stdin)));
    }
    let config = Config::read(stdin, environment.command, environment.target.as_ref())?;
    let call = Call {
        config: &config,
        path: &environment.path,
        host: Host(global),
    };
    match (environment.command, &environment.target) {
        (Command::Add, Some(target)) => add::run(&call, target).map(Some),
        (Command::Del, Some(target)) => del::run(&call, target).map(|()| None),
        (Command::Check, Some(target)) => check::run(&call, target).map(|()| None),
        (Command::Gc, _) => gc::run(&call).map(|()| None),
        _ => status::run(&call).map(|()| None),
    }
}

/// A command and what it works on.
#[derive(Clone, Copy)]
struct Call<'a> {
    config: &'a Config,
    /// `CNI_PATH`.
    path: &'a str,
    host: Host<'a>,
}

impl<'a> Call<'a> {
    /// The plugin that gives addresses, if there is one.
    fn ipam(&self, target: Option<&'a Target>) -> Option<ipam::Ipam<'a>> {
        Some(ipam::Ipam {
            kind: self.config.ipam.as_deref()?,
            path: self.path,
            config: &self.config.raw,
            target,
        })
    }

    /// The same, as it is written down.
    fn delegated(&self) -> Option<Delegated> {
        Some(Delegated {
            kind: self.config.ipam.clone()?,
            config: self.config.raw.clone(),
        })
    }

    /// What is to be known of a container.
    fn attachment(
        &self,
        target: &Target,
        port: Port,
        ipam: Option<Delegated>,
        machine: Machine,
    ) -> Attachment {
        Attachment {
            network: self.config.name.clone(),
            container: target.container.clone(),
            ifname: target.ifname.clone(),
            netns: target.netns.clone(),
            args: target.args.clone(),
            path: self.path.to_owned(),
            port,
            ipam,
            machine,
        }
    }

    /// Forgets what is known of a container.
    fn forget(&self, target: &Target) {
        let run_dir = self.host.run_dir();
        if let Err(error) = attachment::forget(run_dir, &target.container, &target.ifname) {
            let folder = attachment::folder(run_dir);
            tracing::warn!("cannot remove a file in {}: {error}", folder.display());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn versions(stdin: &[u8]) -> Value {
    let asked: Option<Value> = serde_json::from_slice(stdin).ok();
    let version = asked
        .as_ref()
        .and_then(|asked| asked["cniVersion"].as_str());
    json!({
        "cniVersion": version.unwrap_or(Version::NEWEST.name()),
        "supportedVersions": Version::ALL.map(Version::name),
    })
}

/// An error as it is printed.
#[expect(
    clippy::disallowed_methods,
    reason = "the error is told in the newest form that there is"
)]
fn report(error: &Error, stdin: &[u8]) -> Value {
    let version = config::version(stdin).unwrap_or(Version::NEWEST);
    json!({
        "cniVersion": version.name(),
        "code": error.code,
        "msg": error.msg,
        "details": error.details,
    })
}
