//! What only the BPF target has: programs, maps, packet access, counters.

mod counters;
mod debug;
mod error;
mod events;
mod flows;
mod hidden;
mod maps;
mod neighbors;
mod packet;
mod past;
mod tc;
mod xdp;
