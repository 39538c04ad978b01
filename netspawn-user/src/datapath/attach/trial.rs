//! Whether the kernel attaches programs to traffic control, tried where nobody is
//! affected: in a network namespace that lasts for as long as the trial.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    thread,
};

use nix::sched::{CloneFlags, unshare};

use super::tc;
use crate::net::netlink::{Error, Netlink};

/// `lo`, the only interface there.
const LOOPBACK: u32 = 1;

/// Attaches a tc program as a port's guard is attached.
///
/// # Errors
/// What the kernel refuses, and what was tried; a trial that cannot be made
/// (without CAP_SYS_ADMIN) says nothing against the kernel, and is `Ok`.
#[expect(
    clippy::disallowed_methods,
    reason = "a trial that cannot be made says nothing"
)]
pub fn traffic_control(program: BorrowedFd<'_>) -> Result<(), (&'static str, Error)> {
    let Ok(program) = program.try_clone_to_owned() else {
        return Ok(());
    };
    let trial = thread::spawn(move || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return Ok(());
        }
        attach(&program)
    });
    trial.join().unwrap_or_else(|_| {
        let error = io::Error::other("the trial failed");
        Err(("try traffic control", error.into()))
    })
}

fn attach(program: &OwnedFd) -> Result<(), (&'static str, Error)> {
    use std::os::fd::AsFd as _;

    let mut netlink = Netlink::open().map_err(|error| ("ask the kernel", error))?;
    tc::join_block(&mut netlink, LOOPBACK).map_err(|error| ("add an ingress qdisc", error))?;
    let block = tc::Parent::Block(tc::block(LOOPBACK));
    tc::set_filter(&mut netlink, block, program.as_fd(), false)
        .map_err(|error| ("add a BPF filter", error))?;
    tc::leave_block(&mut netlink, LOOPBACK).map_err(|error| ("delete the qdisc", error))?;
    tc::add_clsact(&mut netlink, LOOPBACK).map_err(|error| ("add a clsact qdisc", error))
}
