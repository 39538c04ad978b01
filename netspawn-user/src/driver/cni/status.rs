//! STATUS: whether containers can be connected.

use super::{
    Call, attachment,
    environment::Command,
    error::{Error, code},
};
use crate::source::Source;

/// Whether ADD would work.
pub fn run(call: &Call<'_>) -> Result<(), Error> {
    let view = call.host.view()?;
    let unavailable = |msg: &str, remedy: &str| {
        // Those that there are have lost their uplink.
        let connected = attachment::list(call.host.run_dir())
            .map_err(|problem| Error::kernel("the list of containers", problem))?;
        let lives = connected.iter().any(|one| one.port.is_there(&view.host));
        let code = if lives {
            code::LIMITED
        } else {
            code::UNAVAILABLE
        };
        Err(Error::new(code, msg, remedy))
    };
    if view.uplinks.iter().all(|uplink| uplink.gone) {
        return unavailable(
            "netspawn-xdp is attached to no uplink",
            "run `systemctl enable --now netspawn-xdp@UPLINK`",
        );
    }
    if !view.sources.contains(&Source::Cni) {
        return unavailable(
            "netspawn-xdp is attached without its source cni",
            "add `cni` to `source` in netspawn.toml or to --source",
        );
    }
    match call.ipam(None) {
        Some(ipam) => ipam.pass_on(Command::Status),
        None => Ok(()),
    }
}
