//! Real engines in booted hosts, one module each: `cargo xtask test engines NAME`.

mod containerd;
mod containerd_newer;
mod docker;
mod docker_newer;
mod docker_scale;
mod incus;
mod kubernetes;
mod libvirt;
mod lxc;
mod podman;
mod scenario;
mod tenants;
