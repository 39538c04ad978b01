//! Programs at tc hooks.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{
        bpf_csum_update, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_redirect_neigh,
        bpf_redirect_peer, bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_vlan_pop,
        bpf_skb_vlan_push,
    },
    macros::classifier,
    programs::TcContext,
};
use netspawn_ebpf::{
    abi::{Endpoint, Key, NOBODY, NextHop, Owner, endpoint_flag, nexthop_flag, settings_flag},
    decide::{
        self, Meta,
        error::Toward,
        neighbor::{NO_LINK, link},
        offload::{Judged, Open},
        past,
        reply::let_in,
    },
    rewrite,
    tables::Tables as _,
    verdict::{Action, Error, Family, Reason, Verdict, word_mac},
    wire::{
        EthHdr, Frame as _, FrameMut as _, Ipv6Hdr, L3, L4_V6, MIN_FRAME, ether_type, extension,
        ndp::{self, ADVERTISEMENT_FRAME},
        protocol,
    },
};

use super::{
    counters, debug, error, events, flows, hidden,
    maps::{Maps, PORTS},
    neighbors,
    packet::Packet,
    past::past as past_of,
};

/// Of the data plane that these programs are of; the loader sets it.
#[unsafe(no_mangle)]
static NETSPAWN_KEY: Key = Key::NONE;

#[inline(always)]
fn key() -> Key {
    // SAFETY: a live static, which the compiler is not to take for what it says here.
    unsafe { (&raw const NETSPAWN_KEY).read_volatile() }
}

/// Other programs and the stack go on with the frame.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

const ETHER_TYPE: usize = offset_of!(EthHdr, ether_type);
const NEXT_HEADER: usize = L3 + offset_of!(Ipv6Hdr, next_hdr);

/// Bytes that decisions on IP packets read at most, where no extension headers are:
/// Ethernet, the longest IPv4 header and UDP's, which is also Ethernet, IPv6 and TCP's.
const HEADERS: u32 = 82;

/// Longest frame of neighbor discovery that is examined, of which every byte is
/// read for the checksum.
const DISCOVERY: u32 = (L4_V6 + 8 * ndp::MAX_UNITS) as u32;

/// A hook's view of the skb.
struct Skb {
    raw: *mut __sk_buff,
}

macro_rules! field {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[inline(always)]
        fn $name(&self) -> u32 {
            let value: u64;
            // By an instruction of its own: for two reads of a field LLVM keeps a pointer to
            // it, which is no context to the verifier.
            // SAFETY: the context is valid for the whole run of the program.
            unsafe {
                asm!(
                    "{} = *(u32 *)({} + {})",
                    out(reg) value, in(reg) self.raw, const offset_of!(__sk_buff, $name),
                    options(readonly, pure, nostack)
                );
            }
            value as u32
        }
    };
}

impl Skb {
    field!(
        /// Bytes of the frame, also out of reach.
        len
    );
    field!(
        /// The device of the hook.
        ifindex
    );
    field!(mark);
    field!(priority);
    field!(
        /// The device that the frame has come in by, 0 for none.
        ingress_ifindex
    );
    field!(vlan_present);
    field!(vlan_tci);
    field!(gso_size);
    field!(protocol);

    /// The same, with nothing known of it: what has been found out of the frame before
    /// would make the verifier walk all that follows once for each way that leads here.
    #[inline(always)]
    fn afresh(&self) -> Skb {
        Skb {
            raw: core::hint::black_box(self.raw),
        }
    }

    #[inline(always)]
    fn set_mark(&self, mark: u32) {
        // SAFETY: as above; the verifier allows writes to this field.
        unsafe { (*self.raw).mark = mark };
    }

    #[inline(always)]
    fn set_priority(&self, priority: u32) {
        // SAFETY: as above.
        unsafe { (*self.raw).priority = priority };
    }

    /// Has the program at an uplink's egress know the frame as ours.
    #[inline(always)]
    fn put_key(&self) {
        let Key { mark, priority } = key();
        self.set_mark(mark);
        self.set_priority(priority);
    }

    #[inline(always)]
    fn packet(&self) -> Packet {
        // SAFETY: the context is valid for the whole run of the program.
        unsafe { Packet::new((*self.raw).data as usize, (*self.raw).data_end as usize) }
    }

    /// Brings what decisions read within reach, where a driver left it in fragments. What
    /// has been read of the packet's place before is of no use afterwards.
    #[inline(always)]
    fn pulled(&self) -> Skb {
        self.pull_headers();
        self.afresh()
    }

    #[inline(always)]
    fn pull_headers(&self) {
        // Behind the first segment of a super-packet may be others as skbs of their own
        // (SCTP, GRO): what is pulled out of one is missing there, and `skb_segment` in
        // net/core/skbuff.c ends in a BUG(). Its headers are within reach in any case.
        if self.gso_size() != 0 || !self.lacks(self.len()) {
            return;
        }
        if self.lacks(HEADERS) {
            self.pull(HEADERS);
        }
        let frame = self.packet();
        if frame.read::<u16>(ETHER_TYPE) != Some(ether_type::IPV6.to_be()) {
            return;
        }
        let Some([next, _]) = frame.read::<[u8; 2]>(NEXT_HEADER) else {
            return;
        };
        let discovery = next == protocol::ICMPV6 && self.len() <= DISCOVERY;
        if discovery && self.lacks(self.len()) {
            self.pull(self.len());
        } else if extension::is_extension(next) && self.lacks(extension::REACH) {
            self.pull(extension::REACH);
        }
    }

    /// Whether less than `wanted` bytes are within reach. In 64 bits: the
    /// verifier loses a packet pointer that is cut to 32.
    #[inline(always)]
    fn lacks(&self, wanted: u32) -> bool {
        self.packet().reach() < wanted as usize
    }

    /// Packet pointers are to be taken afresh afterwards. On failure nothing
    /// has moved, and decisions find the frame too short.
    #[inline(always)]
    fn pull(&self, wanted: u32) {
        let wanted = if self.len() < wanted {
            self.len()
        } else {
            wanted
        };
        // SAFETY: the context is valid.
        unsafe { bpf_skb_pull_data(self.raw, wanted) };
    }

    /// With nothing judged of what the sender says.
    #[inline(always)]
    fn unjudged(&self) -> Meta {
        let tagged = self.vlan_present() != 0;
        Meta {
            length: self.len(),
            gso_size: self.gso_size(),
            offload: Judged::default(),
            vlan: if tagged {
                (self.vlan_tci() & 0xfff) as u16
            } else {
                0
            },
            tagged,
            protocol: self.protocol() as u16,
        }
    }

    /// For the short way: whole packets have not been judged.
    #[inline(always)]
    fn express_meta(&self) -> Meta {
        let mut meta = self.unjudged();
        if meta.gso_size != 0 {
            meta.offload = hidden::judge(self.raw);
        }
        meta
    }

    #[inline(always)]
    fn meta(&self) -> Meta {
        Meta {
            offload: hidden::judge(self.raw),
            ..self.unjudged()
        }
    }

    /// Where a sum is left open.
    #[inline(always)]
    fn open(&self) -> Open {
        hidden::open(self.raw)
    }

    /// Sets to 0 what a machine may have set of what the kernel behind us goes by, on every
    /// packet from a port: which class of the uplink's queueing discipline it is in, which
    /// queue it takes, when it leaves (row S5).
    #[inline(always)]
    fn forget(&self) {
        // SAFETY: the context is valid; the verifier allows writes to these fields. That to
        // `tstamp` takes the type of the time with it, in a program that does not read the
        // type (`bpf_convert_tstamp_write` in net/core/filter.c).
        // One by one, which LLVM would join: each is a write of its own to the kernel.
        unsafe {
            (&raw mut (*self.raw).mark).write_volatile(0);
            (&raw mut (*self.raw).priority).write_volatile(0);
            (&raw mut (*self.raw).queue_mapping).write_volatile(0);
            (&raw mut (*self.raw).tstamp).write_volatile(0);
        }
    }

    /// Cuts or grows the frame.
    #[inline(always)]
    fn resize(&self, length: usize) -> Option<()> {
        // SAFETY: the context is valid.
        let result = unsafe { bpf_skb_change_tail(self.raw, length as u32, 0) };
        (result == 0).then_some(())
    }
}

/// Cuts off what follows the packet; 0 when that is done, or nothing does. A global function,
/// which the verifier walks once, rather than for each way that leads here. Packet pointers
/// are to be taken afresh.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trim_frame(raw: *mut __sk_buff) -> i32 {
    let skb = Skb { raw };
    let whole = skb.gso_size() == 0;
    match decide::offload::surplus(&skb.packet(), skb.len(), whole) {
        Some(length) if skb.resize(length as usize).is_none() => -1,
        _ => 0,
    }
}

/// Where an answer leaves.
#[derive(Clone, Copy)]
enum Back {
    /// Out of the uplink it came in on.
    Uplink,
    /// Out of the port it came in on, where no program of ours sees it.
    Port,
    /// Into the stack, which asked on its way out of the device.
    Up,
}

#[inline(always)]
fn send_back(skb: &Skb, back: Back) -> i32 {
    let flags = match back {
        Back::Uplink => {
            skb.put_key();
            0
        }
        Back::Port => 0,
        Back::Up => {
            skb.set_mark(key().mark);
            BPF_F_INGRESS as u64
        }
    };
    // Otherwise LLVM keeps the field's address from one place to the other, and the
    // verifier takes no modified context.
    let ifindex = skb.afresh().ifindex();
    // SAFETY: takes numbers only.
    unsafe { bpf_redirect(ifindex, flags) as i32 }
}

#[inline(always)]
fn failed() -> i32 {
    counters::reason(Reason::HelperFailed);
    DROP
}

#[inline(always)]
fn answer_arp(skb: &Skb, verdict: &Verdict<'_>, back: Back) -> i32 {
    if skb.len() > MIN_FRAME as u32 && skb.resize(MIN_FRAME).is_none() {
        return failed();
    }
    if rewrite::arp_reply(&mut skb.packet(), word_mac(verdict.mac)).is_none() {
        return failed();
    }
    if verdict.source_differs {
        counters::reason(Reason::ArpSourceDiffers);
    }
    send_back(skb, back)
}

#[inline(always)]
fn answer_ndp(skb: &Skb, verdict: &Verdict<'_>, back: Back) -> i32 {
    if skb.len() != ADVERTISEMENT_FRAME as u32 && skb.resize(ADVERTISEMENT_FRAME).is_none() {
        return failed();
    }
    let (mac, asker) = (word_mac(verdict.mac), word_mac(verdict.asker));
    if rewrite::advertisement(&mut skb.packet(), mac, asker, verdict.router).is_none() {
        return failed();
    }
    send_back(skb, back)
}

#[inline(always)]
fn answer_echo(skb: &Skb, family: Family, back: Back) -> i32 {
    if rewrite::echo_reply(&mut skb.packet(), family).is_none() {
        return failed();
    }
    send_back(skb, back)
}

/// Takes a hop, and keeps the sum right that a driver may have left of the whole
/// packet (`CHECKSUM_COMPLETE`): in IPv4 the header's own checksum makes up for
/// the change, in IPv6 nothing does.
#[inline(always)]
fn take_hop(skb: &Skb, packet: &mut Packet, family: Family) -> Option<()> {
    const NEXT_HEADER_AND_HOPS: usize = L3 + 6;
    if let Family::V4 = family {
        return rewrite::take_hop(packet, family);
    }
    let old = packet.read::<u16>(NEXT_HEADER_AND_HOPS)?;
    rewrite::take_hop(packet, family)?;
    let new = packet.read::<u16>(NEXT_HEADER_AND_HOPS)?;
    // SAFETY: the context is valid; the helper changes no packet data. It
    // refuses where there is no such sum, which is right.
    unsafe { bpf_csum_update(skb.raw, u32::from(new) + u32::from(!old)) };
    Some(())
}

/// Sends a frame to a machine. `peer` says whether `bpf_redirect_peer` may be
/// used here, which is at ingress.
#[inline(always)]
fn deliver(skb: &Skb, verdict: &Verdict<'_>, endpoint: &Endpoint, peer: bool) -> i32 {
    let bytes = skb.len();
    let mut packet = skb.packet();
    if rewrite::ethernet(&mut packet, endpoint.mac, endpoint.port_mac).is_none()
        || verdict.takes_hop && take_hop(skb, &mut packet, verdict.family).is_none()
    {
        return failed();
    }
    counters::received(verdict.id, bytes);
    if verdict.from != NOBODY {
        counters::sent(verdict.from, bytes);
    }
    let (ifindex, flags) = (endpoint.ifindex, endpoint.flags);
    if skb.vlan_present() != 0 {
        // SAFETY: the context is valid, packet pointers are not used again.
        unsafe { bpf_skb_vlan_pop(skb.raw) };
    }
    // SAFETY: both take numbers only.
    unsafe {
        if peer && flags & endpoint_flag::NO_PEER == 0 {
            bpf_redirect_peer(ifindex, 0) as i32
        } else {
            bpf_redirect(ifindex, 0) as i32
        }
    }
}

/// Sends a frame out of an uplink, to the next hop as the agent knows it, or
/// through the kernel's own routing and neighbor tables.
#[inline(always)]
fn send_out(skb: &Skb, verdict: &Verdict<'_>, vlan: u16, hop: &NextHop) -> i32 {
    // SAFETY: takes nothing.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let resolved = hop.flags & nexthop_flag::RESOLVED != 0 && now < hop.deadline;
    let ifindex = hop.ifindex;
    let mut packet = skb.packet();
    if take_hop(skb, &mut packet, verdict.family).is_none()
        || resolved && rewrite::ethernet(&mut packet, hop.dst_mac, hop.src_mac).is_none()
    {
        return failed();
    }
    counters::sent(verdict.from, skb.len());
    if vlan != 0 && hop.flags >> nexthop_flag::VLAN_SHIFT == 0 {
        // SAFETY: the context is valid, packet pointers are not used again.
        unsafe { bpf_skb_vlan_push(skb.raw, ether_type::VLAN.to_be(), vlan) };
    }
    skb.put_key();
    // SAFETY: both take numbers only, and no parameters.
    unsafe {
        if resolved {
            bpf_redirect(ifindex, 0) as i32
        } else {
            bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32
        }
    }
}

/// Whether the kernel may look for the neighbor that it needs for a machine's frame.
#[inline(always)]
fn may_go(skb: &Skb, verdict: &Verdict<'_>, id: Owner) -> bool {
    let link = link(verdict, skb.ifindex());
    link == NO_LINK || neighbors::may_seek(skb.raw, id, link)
}

/// Lets a frame come in once more, on an uplink, for the host's stack.
#[inline(always)]
fn hand_to_host(skb: &Skb, from: Owner, hop: &NextHop) -> i32 {
    let ifindex = hop.ifindex;
    if skb.packet().write(0, hop.src_mac).is_none() {
        return failed();
    }
    counters::sent(from, skb.len());
    // On a VLAN of an uplink no program of ours would take it off again.
    if hop.flags >> nexthop_flag::VLAN_SHIFT == 0 {
        skb.set_mark(key().mark);
    }
    // SAFETY: takes numbers only.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS as u64) as i32 }
}

/// Drops a frame, and tells its sender where it is to know.
#[inline(always)]
fn refuse(skb: &Skb, verdict: &Verdict<'_>, back: Back, toward: Toward) -> i32 {
    counters::charge(verdict.reason, verdict.id);
    if matches!(verdict.error, Error::None) {
        return DROP;
    }
    let what = error::pack(verdict.error, verdict.family, toward);
    if !error::make(skb.raw, what, verdict.mtu, verdict.id) {
        return DROP;
    }
    counters::reason(Reason::AnsweredError);
    send_back(skb, back)
}

/// Carries out a verdict. `vlan` is the tag that the machine's frames carry on
/// the uplink, `toward` where the frame came from.
#[inline(always)]
fn act(skb: &Skb, verdict: &Verdict<'_>, vlan: u16, toward: Toward) -> i32 {
    counters::reason(verdict.reason);
    events::tell_skb(verdict.reason, verdict.id, skb.raw);
    debug::verdict(verdict.reason, verdict.id, skb.ifindex(), skb.len());
    let back = match toward {
        Toward::Host => Back::Up,
        Toward::Network => Back::Uplink,
        Toward::Machine => Back::Port,
    };
    // Egress has no such redirect.
    let peer = !matches!(toward, Toward::Host);
    let sent_on = match verdict.action {
        Action::Deliver | Action::Out | Action::ToHost => true,
        Action::Pass => matches!(toward, Toward::Machine),
        _ => false,
    };
    if sent_on && trim_frame(skb.raw) != 0 {
        return failed();
    }
    match (verdict.action, verdict.endpoint, verdict.hop) {
        (Action::Pass, ..) if verdict.mac == 0 => NEXT,
        (Action::Pass, ..) => match skb.packet().write(0, word_mac(verdict.mac)) {
            Some(()) => NEXT,
            None => failed(),
        },
        (Action::Arp, ..) => answer_arp(skb, verdict, back),
        (Action::Ndp, ..) => answer_ndp(skb, verdict, back),
        (Action::Echo, ..) => answer_echo(skb, verdict.family, back),
        (Action::Deliver, Some(endpoint), _) => deliver(skb, verdict, endpoint, peer),
        (Action::Out, _, Some(hop)) => send_out(skb, verdict, vlan, hop),
        (Action::ToHost, _, Some(hop)) => hand_to_host(skb, verdict.from, hop),
        _ => refuse(skb, verdict, back, toward),
    }
}

/// Whether the data plane itself let the frame come in once more; takes the mark off.
#[inline(always)]
fn handed_in(skb: &Skb) -> bool {
    if skb.mark() != key().mark {
        return false;
    }
    skb.set_mark(0);
    counters::reason(Reason::Handed);
    true
}

/// Whether the data plane itself sends the frame; takes the key off.
#[inline(always)]
fn handed_out(skb: &Skb) -> bool {
    let Key { mark, priority } = key();
    if skb.mark() != mark || skb.priority() != priority {
        return false;
    }
    skb.set_mark(0);
    skb.set_priority(0);
    counters::reason(Reason::Handed);
    true
}

/// Whether a frame may not leave by an uplink; counts it. A function of its own, which the
/// verifier walks without what has been found out of the frame before.
#[inline(never)]
fn is_strange(raw: *mut __sk_buff) -> bool {
    let skb = Skb { raw };
    let ifindex = skb.ifindex();
    let reason = if past::forges(&skb.packet(), &skb.open()) {
        Some(Reason::BadOffload)
    } else {
        past::leaving(
            &skb.packet(),
            ifindex,
            skb.ingress_ifindex(),
            || past_of(raw),
            &Maps,
        )
    };
    let Some(reason) = reason else {
        return false;
    };
    counters::reason(reason);
    debug::verdict(reason, NOBODY, ifindex, skb.len());
    true
}

/// Drops a frame for which the kernel would need one more neighbor than its machine may
/// have it look for. No error is sent: tried again a little later, it goes through.
#[inline(always)]
fn over_budget(id: Owner) -> i32 {
    counters::reason(Reason::NeighborBudget);
    counters::charge(Reason::NeighborBudget, id);
    DROP
}

// Entries are inlined into what the macro makes of them: the stack of all functions that call
// each other is short.

/// Ingress of an uplink.
#[classifier]
#[inline(always)]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    let skb = Skb {
        raw: ctx.as_ptr().cast(),
    };
    if handed_in(&skb) {
        return NEXT;
    }
    let Some(uplink) = Maps.uplink(skb.ifindex()) else {
        return NEXT;
    };
    if let Some(verdict) = decide::express(
        &skb.packet(),
        &skb.express_meta(),
        &skb.open(),
        uplink,
        &Maps,
    ) && let Some(endpoint) = verdict.endpoint
    {
        counters::reason(Reason::ForwardedIn);
        return deliver(&skb, &verdict, endpoint, true);
    }
    let skb = skb.afresh();
    let Some(uplink) = Maps.uplink(skb.ifindex()) else {
        return NEXT;
    };
    let skb = skb.pulled();
    let meta = skb.meta();
    let verdict = decide::uplink(&skb.packet(), &meta, uplink, &Maps);
    neighbors::hear(&skb.packet(), &verdict, skb.ifindex(), meta.vlan);
    act(&skb, &verdict, 0, Toward::Network)
}

/// Egress of an uplink: what the host itself sends.
#[classifier]
#[inline(always)]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    let skb = Skb {
        raw: ctx.as_ptr().cast(),
    };
    if handed_out(&skb) {
        return NEXT;
    }
    let skb = skb.pulled();
    if is_strange(skb.raw) {
        return DROP;
    }
    let meta = skb.meta();
    let verdict = decide::host(&skb.packet(), &meta, &Maps);
    if matches!(verdict.action, Action::Deliver)
        && Maps.settings().flags & settings_flag::HOST_DENY != 0
    {
        flows::note(&skb.packet());
    }
    act(&skb, &verdict, 0, Toward::Host)
}

/// Ingress of a port: what a machine sends.
#[classifier]
#[inline(always)]
pub fn port_ingress(ctx: TcContext) -> i32 {
    let skb = Skb {
        raw: ctx.as_ptr().cast(),
    };
    // SAFETY: values are single words, which are replaced as a whole.
    let id = unsafe { PORTS.get(skb.ifindex()) }.copied();
    let endpoint = match id {
        Some(id) => Maps.endpoint(id),
        None => None,
    };
    let (Some(id), Some(endpoint)) = (id, endpoint) else {
        counters::reason(Reason::UnknownPort);
        return DROP;
    };
    skb.forget();
    let express = decide::express_port(
        &skb.packet(),
        &skb.express_meta(),
        &skb.open(),
        id,
        endpoint,
        &Maps,
    );
    if let Some(verdict) = express {
        match (verdict.endpoint, verdict.hop) {
            (Some(other), _) => {
                counters::reason(Reason::ForwardedLocal);
                return deliver(&skb, &verdict, other, true);
            }
            (_, Some(hop)) => {
                if hop.flags & nexthop_flag::ON_LINK != 0 && !may_go(&skb, &verdict, id) {
                    return over_budget(id);
                }
                counters::reason(Reason::ForwardedOut);
                return send_out(&skb, &verdict, endpoint.vlan, hop);
            }
            _ => {}
        }
    }
    let skb = skb.afresh();
    let skb = skb.pulled();
    let meta = skb.meta();
    let mut verdict = decide::port(&skb.packet(), &meta, id, endpoint, &Maps);
    if matches!(verdict.reason, Reason::HostDenied) && flows::answers(skb.raw) {
        verdict = let_in(&verdict);
    }
    if !may_go(&skb, &verdict, id) {
        return over_budget(id);
    }
    act(&skb, &verdict, endpoint.vlan, Toward::Machine)
}
