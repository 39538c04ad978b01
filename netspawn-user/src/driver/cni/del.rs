//! DEL: disconnects a container, whatever is left of it.

use super::{Call, attachment, environment::Target, error::Error, link};

/// Disconnects it. What is not there any more is no error.
pub fn run(call: &Call<'_>, target: &Target) -> Result<(), Error> {
    let (container, ifname) = (&target.container, &target.ifname);
    attachment::wait(call.host.run_dir(), container, ifname);
    // The name is of nobody else's, so that this needs no record, and does no harm after
    // another plugin.
    // While there is a link its addresses are the container's, and the runtime calls again.
    link::remove(&attachment::port_name(container, ifname))?;
    // The addresses are withdrawn before they can be given to another.
    call.forget(target);
    call.host.settle();
    match call.ipam(Some(target)) {
        Some(ipam) => ipam.del(),
        None => Ok(()),
    }
}
