//! GC: removes what containers have left behind.

use super::{
    Call,
    attachment::Attachment,
    environment::Command,
    error::{Error, code},
    leftovers,
};

/// Disconnects the network's containers that are not among those that there still are.
/// All is tried before a failure is told.
pub fn run(call: &Call<'_>) -> Result<(), Error> {
    let config = call.config;
    let is_valid = |one: &Attachment| {
        let mut valid = config.valid.iter();
        valid.any(|valid| one.is(&valid.container, &valid.ifname))
    };
    let mut failed = leftovers::release_all(call, |all| {
        all.retain(|one| one.network == config.name && !is_valid(one));
        Ok(())
    })?;
    call.host.settle();
    if let Some(ipam) = call.ipam(None) {
        failed.extend(ipam.pass_on(Command::Gc).err());
    }
    if failed.is_empty() {
        return Ok(());
    }
    let words: Vec<String> = failed.iter().map(ToString::to_string).collect();
    Err(Error::new(
        code::IO,
        "not all that is left of containers could be removed",
        words.join("; "),
    ))
}
