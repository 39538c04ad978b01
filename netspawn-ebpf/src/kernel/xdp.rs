//! The program for `--mode xdp`: answers, and forwarding of what is not TCP.
//! All else goes on to the tc programs, which count it, or make errors of it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    helpers::generated::bpf_xdp_adjust_tail,
    macros::xdp,
    programs::XdpContext,
};
use netspawn_ebpf::{
    abi::{Endpoint, endpoint_flag},
    decide::{
        self, Meta,
        offload::{Said, surplus},
    },
    rewrite,
    tables::Tables as _,
    verdict::{Action, Error, Reason, Verdict, word_mac},
    wire::{MIN_FRAME, ndp::ADVERTISEMENT_FRAME, protocol},
};

use super::{
    counters, debug, events,
    maps::{Maps, XDP_PORTS},
    neighbors,
    packet::Packet,
};

#[inline(always)]
fn packet(ctx: &XdpContext) -> Packet {
    Packet::new(ctx.data(), ctx.data_end())
}

#[inline(always)]
fn resize(ctx: &XdpContext, length: usize) -> Option<()> {
    let delta = length as i32 - packet(ctx).reach() as i32;
    if delta == 0 {
        return Some(());
    }
    // SAFETY: the context is valid; packet pointers are taken afresh afterwards.
    let result = unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast(), delta) };
    (result == 0).then_some(())
}

/// The action for a frame that could not be rewritten.
#[inline(always)]
fn failed() -> u32 {
    counters::reason(Reason::HelperFailed);
    XDP_DROP
}

#[inline(always)]
fn answer_arp(ctx: &XdpContext, verdict: &Verdict<'_>) -> u32 {
    if packet(ctx).reach() > MIN_FRAME && resize(ctx, MIN_FRAME).is_none() {
        return failed();
    }
    if rewrite::arp_reply(&mut packet(ctx), word_mac(verdict.mac)).is_none() {
        return failed();
    }
    counters::reason(verdict.reason);
    if verdict.source_differs {
        counters::reason(Reason::ArpSourceDiffers);
    }
    XDP_TX
}

#[inline(always)]
fn answer_ndp(ctx: &XdpContext, verdict: &Verdict<'_>) -> u32 {
    let (mac, asker) = (word_mac(verdict.mac), word_mac(verdict.asker));
    if resize(ctx, ADVERTISEMENT_FRAME).is_none()
        || rewrite::advertisement(&mut packet(ctx), mac, asker, verdict.router).is_none()
    {
        return failed();
    }
    counters::reason(verdict.reason);
    XDP_TX
}

#[inline(always)]
fn deliver(ctx: &XdpContext, verdict: &Verdict<'_>, endpoint: &Endpoint) -> u32 {
    // TCP over a veth needs the offloads that XDP frames do not carry.
    if verdict.protocol == protocol::TCP || endpoint.flags & endpoint_flag::XDP == 0 {
        return XDP_PASS;
    }
    let mut frame = packet(ctx);
    let bytes = frame.reach() as u32;
    if rewrite::ethernet(&mut frame, endpoint.mac, endpoint.port_mac).is_none()
        || rewrite::take_hop(&mut frame, verdict.family).is_none()
    {
        return failed();
    }
    counters::received(verdict.id, bytes);
    counters::reason(verdict.reason);
    XDP_PORTS.redirect(endpoint.ifindex, 0).unwrap_or(XDP_DROP)
}

/// XDP on an uplink.
#[xdp]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    // SAFETY: the context is valid for the whole run of the program.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    let Some(uplink) = Maps.uplink(ifindex) else {
        return XDP_PASS;
    };
    let frame = packet(&ctx);
    // What the sender says beside the bytes is not to be seen here.
    let said = Said {
        length: frame.reach() as u32,
        ..Said::default()
    };
    let meta = Meta::new(&frame, &said);
    if let Some(verdict) = decide::express(&frame, &meta, &said.open, uplink, &Maps)
        && let Some(endpoint) = verdict.endpoint
    {
        return deliver(&ctx, &verdict, endpoint);
    }
    let verdict = decide::uplink(&frame, &meta, uplink, &Maps);
    debug::verdict(verdict.reason, verdict.id, ifindex, meta.length);
    // What is passed is heard at tc, where tags are known.
    if matches!(verdict.action, Action::Arp | Action::Ndp) {
        neighbors::hear(&frame, &verdict, ifindex, 0);
    }
    match (verdict.action, verdict.endpoint) {
        (Action::Arp, _) => answer_arp(&ctx, &verdict),
        (Action::Ndp, _) => answer_ndp(&ctx, &verdict),
        // tc cuts off what follows the packet.
        (Action::Deliver, _) if surplus(&packet(&ctx), meta.length, true).is_some() => XDP_PASS,
        (Action::Deliver, Some(endpoint)) => deliver(&ctx, &verdict, endpoint),
        // Only an skb can be made an error.
        (Action::Drop, _) if matches!(verdict.error, Error::None) => {
            events::tell(
                verdict.reason,
                verdict.id,
                ifindex,
                meta.length,
                &packet(&ctx),
            );
            counters::reason(verdict.reason);
            counters::charge(verdict.reason, verdict.id);
            XDP_DROP
        }
        _ => XDP_PASS,
    }
}
