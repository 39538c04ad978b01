//! The maps, and typed look-ups into them.

use core::{mem::MaybeUninit, ptr::write_volatile};

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, lpm_trie::Key,
        xdp::DevMapHash,
    },
};
use netspawn_ebpf::{
    abi::{
        Budget, COUNTS_ENTRIES, DEFAULT_MAX_ADDRESSES, DEFAULT_MAX_MACHINES, DropKey, EVENTS_SIZE,
        Endpoint, EndpointEntry, Flow, MAX_HOST_FLOWS, MAX_NEIGHBORS, MAX_NEXTHOPS, MAX_ROUTES,
        MAX_XDP_PORTS, NOBODY, Near, Neighbor, NextHop, Owner, Settings, SharedBudget, Traffic,
        UPLINK_PROBES, UPLINK_SLOTS, Uplink, settings_flag, uplink_slot,
    },
    tables::Tables,
    wire::{Ipv4, Words6},
};

#[map(name = "addrs4")]
static ADDRS4: HashMap<Key4, Owner> = HashMap::with_max_entries(DEFAULT_MAX_ADDRESSES, 0);
#[map(name = "addrs6")]
static ADDRS6: HashMap<Words6, Owner> = HashMap::with_max_entries(DEFAULT_MAX_ADDRESSES, 0);
#[map(name = "prefixes4")]
static PREFIXES4: LpmTrie<Key4, Owner> =
    LpmTrie::with_max_entries(DEFAULT_MAX_ADDRESSES, BPF_F_NO_PREALLOC);
#[map(name = "prefixes6")]
static PREFIXES6: LpmTrie<TrieKey6, Owner> =
    LpmTrie::with_max_entries(DEFAULT_MAX_ADDRESSES, BPF_F_NO_PREALLOC);
#[map(name = "sources4")]
static SOURCES4: LpmTrie<SourceKey4, u8> =
    LpmTrie::with_max_entries(DEFAULT_MAX_ADDRESSES, BPF_F_NO_PREALLOC);
#[map(name = "sources6")]
static SOURCES6: LpmTrie<SourceKey6, u8> =
    LpmTrie::with_max_entries(DEFAULT_MAX_ADDRESSES, BPF_F_NO_PREALLOC);
#[map(name = "endpoints")]
static ENDPOINTS: Array<EndpointEntry> = Array::with_max_entries(DEFAULT_MAX_MACHINES, 0);
#[map(name = "ports")]
pub static PORTS: HashMap<u32, Owner> = HashMap::with_max_entries(DEFAULT_MAX_MACHINES, 0);
#[map(name = "uplinks")]
static UPLINKS: Array<Uplink> = Array::with_max_entries(UPLINK_SLOTS, 0);
#[map(name = "routes4")]
static ROUTES4: LpmTrie<Key4, u32> = LpmTrie::with_max_entries(MAX_ROUTES, BPF_F_NO_PREALLOC);
#[map(name = "routes6")]
static ROUTES6: LpmTrie<TrieKey6, u32> = LpmTrie::with_max_entries(MAX_ROUTES, BPF_F_NO_PREALLOC);
#[map(name = "nexthops")]
static NEXTHOPS: Array<NextHop> = Array::with_max_entries(MAX_NEXTHOPS, 0);
#[map(name = "near")]
static NEAR: Array<Near> = Array::with_max_entries(1, 0);
#[map(name = "settings")]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map(name = "counts")]
pub static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTS_ENTRIES, 0);
#[map(name = "traffic")]
pub static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(DEFAULT_MAX_MACHINES, 0);
#[map(name = "drops")]
pub static DROPS: PerCpuHashMap<DropKey, u64> =
    PerCpuHashMap::with_max_entries(DEFAULT_MAX_MACHINES, BPF_F_NO_PREALLOC);
#[map(name = "budgets")]
pub static BUDGETS: Array<Budget> = Array::with_max_entries(DEFAULT_MAX_MACHINES, 0);
#[map(name = "shared")]
pub static SHARED: Array<SharedBudget> = Array::with_max_entries(1, 0);
#[map(name = "stations")]
pub static STATIONS: LruHashMap<Neighbor, u8> = LruHashMap::with_max_entries(MAX_NEIGHBORS, 0);
#[map(name = "asked")]
pub static ASKED: LruHashMap<Neighbor, u64> = LruHashMap::with_max_entries(MAX_NEIGHBORS, 0);
#[map(name = "host_flows")]
pub static HOST_FLOWS: LruHashMap<Flow, u64> = LruHashMap::with_max_entries(MAX_HOST_FLOWS, 0);
#[map(name = "events")]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_SIZE, 0);
// New ports come before old ones go.
#[map(name = "xdp_ports")]
pub static XDP_PORTS: DevMapHash = DevMapHash::with_max_entries(2 * MAX_XDP_PORTS, 0);

/// Bytes of an IPv4 address as one word: keys lie on the stack, which the
/// verifier wants aligned, unlike packets and map values.
type Key4 = u32;
/// Bytes of an IPv6 address with the alignment that they have behind a trie's
/// prefix length.
type TrieKey6 = [u32; 4];

/// An endpoint id and an address.
type SourceKey4 = [u32; 2];
/// As [`SourceKey4`].
type SourceKey6 = [u32; 5];

/// The key of a look-up in a trie: a full-length prefix. The words are written
/// one by one and in place, because LLVM would join those behind the length to
/// misaligned double words.
#[inline(always)]
fn trie_key6<'a>(
    key: &'a mut MaybeUninit<Key<TrieKey6>>,
    [low, high]: &Words6,
) -> &'a Key<TrieKey6> {
    let words = key.as_mut_ptr().cast::<u32>();
    // SAFETY: the key is five aligned words long.
    unsafe {
        write_volatile(words, 128);
        write_volatile(words.add(1), *low as u32);
        write_volatile(words.add(2), (*low >> 32) as u32);
        write_volatile(words.add(3), *high as u32);
        write_volatile(words.add(4), (*high >> 32) as u32);
        key.assume_init_ref()
    }
}

#[inline(always)]
fn key4(address: &Ipv4) -> Key4 {
    u32::from_ne_bytes(*address)
}

#[inline(always)]
fn is_near(group: u16) -> bool {
    match NEAR.get(0) {
        Some(near) => near.has(group),
        None => true,
    }
}

/// The maps as the decisions see them.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn owner4(&self, address: &Ipv4) -> Owner {
        let key = key4(address);
        // SAFETY: values are single words, which are replaced as a whole.
        if let Some(owner) = unsafe { ADDRS4.get(key) } {
            return *owner;
        }
        if self.settings().flags & settings_flag::PREFIXES4 == 0 {
            return NOBODY;
        }
        let key = Key::new(32, key4(address));
        PREFIXES4.get(&key).copied().unwrap_or(NOBODY)
    }

    #[inline(always)]
    fn owner6(&self, address: &Words6) -> Owner {
        // SAFETY: values are single words, which are replaced as a whole.
        if let Some(owner) = unsafe { ADDRS6.get(address) } {
            return *owner;
        }
        if self.settings().flags & settings_flag::PREFIXES6 == 0 {
            return NOBODY;
        }
        let mut key = MaybeUninit::uninit();
        PREFIXES6
            .get(trie_key6(&mut key, address))
            .copied()
            .unwrap_or(NOBODY)
    }

    #[inline(always)]
    fn is_single4(&self, id: Owner, address: &Ipv4) -> bool {
        // SAFETY: values are single words, which are replaced as a whole.
        unsafe { ADDRS4.get(key4(address)) }.is_some_and(|owner| *owner == id)
    }

    #[inline(always)]
    fn is_single6(&self, id: Owner, address: &Words6) -> bool {
        // SAFETY: values are single words, which are replaced as a whole.
        unsafe { ADDRS6.get(address) }.is_some_and(|owner| *owner == id)
    }

    #[inline(always)]
    fn is_near4(&self, address: &Ipv4) -> bool {
        is_near(Near::group4(address))
    }

    #[inline(always)]
    fn is_near6(&self, address: &Words6) -> bool {
        is_near(Near::group6(address))
    }

    #[inline(always)]
    fn may_send4(&self, id: Owner, address: &Ipv4) -> bool {
        let key = Key::new(64, [id.to_be(), key4(address)]);
        SOURCES4.get(&key).is_some()
    }

    #[inline(always)]
    fn may_send6(&self, id: Owner, [low, high]: &Words6) -> bool {
        let mut key = MaybeUninit::<Key<SourceKey6>>::uninit();
        let words = key.as_mut_ptr().cast::<u32>();
        // SAFETY: the key is six aligned words long; see `trie_key6`.
        let key = unsafe {
            write_volatile(words, 160);
            write_volatile(words.add(1), id.to_be());
            write_volatile(words.add(2), *low as u32);
            write_volatile(words.add(3), (*low >> 32) as u32);
            write_volatile(words.add(4), *high as u32);
            write_volatile(words.add(5), (*high >> 32) as u32);
            key.assume_init_ref()
        };
        SOURCES6.get(key).is_some()
    }

    #[inline(always)]
    fn endpoint(&self, id: Owner) -> Option<&Endpoint> {
        ENDPOINTS.get(id).map(|entry| &entry.forward)
    }

    #[inline(always)]
    fn port(&self, ifindex: u32) -> Owner {
        // SAFETY: values are single words, which are replaced as a whole.
        unsafe { PORTS.get(ifindex) }.copied().unwrap_or(NOBODY)
    }

    #[inline(always)]
    fn uplink(&self, ifindex: u32) -> Option<&Uplink> {
        for probe in 0..UPLINK_PROBES {
            let uplink = UPLINKS.get(uplink_slot(ifindex, probe))?;
            if uplink.ifindex == ifindex {
                return Some(uplink);
            }
        }
        None
    }

    #[inline(always)]
    fn route4(&self, address: &Ipv4) -> Option<&NextHop> {
        let key = Key::new(32, key4(address));
        NEXTHOPS.get(*ROUTES4.get(&key)?)
    }

    #[inline(always)]
    fn route6(&self, address: &Words6) -> Option<&NextHop> {
        let mut key = MaybeUninit::uninit();
        NEXTHOPS.get(*ROUTES6.get(trie_key6(&mut key, address))?)
    }
}
