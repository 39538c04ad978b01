//! What containers leave behind whose runtime has not said that they are gone.

use super::{
    Call,
    attachment::{self, Attachment},
    environment::Target,
    error::{Error, code},
    ipam::Ipam,
    link,
};

/// Gives back what dead containers of the network had, so that it can be given to the
/// next, and what an earlier ADD for the same interface had, or one that was killed. What does
/// not work is tried again at the next ADD.
///
/// # Errors
/// When nobody knows what there is.
pub fn of_network(call: &Call<'_>, target: &Target) -> Result<(), Error> {
    let failed = release_all(call, |all| {
        // Read after the files, which are written once there is the link.
        let network = call.host.network()?;
        all.retain(|one| {
            one.is(&target.container, &target.ifname)
                || one.network == call.config.name && !one.port.is_there(&network)
        });
        Ok(())
    })?;
    for error in failed {
        tracing::warn!("{error}");
    }
    Ok(())
}

/// Gives back what those had that are chosen of all. Returns what did not work.
///
/// # Errors
/// When nobody knows what there is.
pub fn release_all(
    call: &Call<'_>,
    choose: impl FnOnce(&mut Vec<Attachment>) -> Result<(), Error>,
) -> Result<Vec<Error>, Error> {
    let run_dir = call.host.run_dir();
    let unknown = |error: &dyn std::fmt::Display| {
        let folder = attachment::folder(run_dir);
        Error::new(
            code::IO,
            format!("cannot use {}: {error}", folder.display()),
            "",
        )
    };
    let _lock = attachment::lock(run_dir).map_err(|error| unknown(&error))?;
    let mut chosen = attachment::list(run_dir).map_err(|error| unknown(&error))?;
    chosen.extend(attachment::broken_off(run_dir).map_err(|error| unknown(&error))?);
    choose(&mut chosen)?;
    let results = chosen.iter().map(|one| release(call, one));
    Ok(results.filter_map(Result::err).collect())
}

/// Gives back what one had: its link, its addresses, and what is known of it.
fn release(call: &Call<'_>, attachment: &Attachment) -> Result<(), Error> {
    if attachment.port.own {
        link::remove(&attachment.port.name)?;
    }
    let target = attachment.target();
    if let Some(ipam) = &attachment.ipam {
        // Where the plugin is now counts; it may have moved since.
        let path = if call.path.is_empty() {
            &attachment.path
        } else {
            call.path
        };
        let plugin = Ipam {
            kind: &ipam.kind,
            path,
            config: &ipam.config,
            target: Some(&target),
        };
        plugin.del().map_err(|error| Error {
            msg: format!(
                "cannot give the addresses of container {} back: {}",
                attachment.container, error.msg
            ),
            ..error
        })?;
    }
    call.forget(&target);
    Ok(())
}
