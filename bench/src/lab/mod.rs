//! The network that scenarios measure in: a generator and a receiver around a host that
//! takes packets to machines in one of the ways there are.
//!
//! ```text
//!      net                     host                               guests
//!  lan0 10.0.0.1  ════  eth0 10.0.0.2 ─ the way ─ p0  ════════  g0  10.1.0.0
//!       2001:db8::1          2001:db8::2          p1  ════════  g1  10.1.0.1
//! ```

mod cpu;
mod links;
mod load;
mod priority;
mod receiver;
mod way;
mod world;

pub use cpu::Stopwatch;
pub use links::receive_offload;
pub use load::{Load, on_one_core};
pub use priority::Foremost;
pub use receiver::Receiver;
pub use way::Way;
pub use world::{Guests, World, declare, lan_mac, machine_mac, machine4, machine6, uplink_mac};
