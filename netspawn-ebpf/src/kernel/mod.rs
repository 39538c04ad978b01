//! What only the BPF target has: programs, maps, packet access, counters.

mod counters;
mod debug;
mod error;
mod events;
mod hidden;
mod maps;
mod packet;
mod tc;
mod xdp;
