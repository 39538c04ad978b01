//! The network that scenarios measure in: a generator and a receiver around a host that
//! takes packets to machines in one of the ways there are.
//!
//! ```text
//!      net                     host                               guests
//!  lan0 10.0.0.1  ════  eth0 10.0.0.2 ─ the way ─ p0  ════════  g0  10.1.0.0
//!       2001:db8::1          2001:db8::2          p1  ════════  g1  10.1.0.1
//! ```

mod busy;
mod links;
mod load;
mod ndppd;
mod priority;
mod receiver;
mod station;
mod way;
mod world;

pub use busy::{Busy, unbound_workers};
pub(crate) use links::batch;
pub use links::{ifindexes, join_block, leave_block, receive_offload};
pub use load::{Load, frames_taking, on_one_core};
pub use ndppd::Ndppd;
pub use priority::Foremost;
pub use receiver::{Receiver, XdpReceiver};
pub use station::Station;
pub use way::Way;
pub use world::{Guests, World, declare, lan_mac, machine_mac, machine4, machine6, uplink_mac};
