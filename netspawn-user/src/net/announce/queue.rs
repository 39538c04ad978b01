//! Which announcement is due when. Pure: time comes in from outside.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use netspawn_ebpf::{
    abi::{HOST, endpoint_flag},
    wire::Mac,
};

use crate::{model::Host, plan::State};

/// How often an address is announced on an uplink.
pub const TIMES: u8 = 3;
/// How long after an announcement the same one follows.
const AGAIN: Duration = Duration::from_secs(1);
/// Time between frames when there are many: 1,000 a second.
const PACE: Duration = Duration::from_millis(1);
/// Frames that may leave at once after a pause.
const BURST: u32 = 50;
/// Frames that are waited for together while the pace holds them back.
const BATCH: u32 = 10;
/// Announcements of an address on an uplink that follow each other as they come; a
/// machine may come and go at its own will, as often as it likes.
const AT_ONCE: u32 = 12;
/// How long it takes until one more of them may be sent.
const REGAIN: Duration = Duration::from_secs(5);
/// How soon an address is defended again (RFC 5227 2.4, DEFEND_INTERVAL).
const DEFEND: Duration = Duration::from_secs(10);

/// An uplink on which addresses are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its link-layer address.
    pub mac: Mac,
    /// Whether its link works.
    pub carrier: bool,
}

/// What is answered for, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Uplinks by ifindex.
    pub uplinks: BTreeMap<u32, Place>,
    /// Single addresses of machines that are up, with their 802.1Q id on the
    /// uplink (0: untagged).
    pub addresses: BTreeMap<IpAddr, u16>,
}

impl Served {
    /// What programs with this content of the maps answer for. Without `host`
    /// all uplinks count as working.
    pub fn of(state: &State, host: Option<&Host>) -> Self {
        let works = |ifindex| match host {
            Some(host) => host
                .links
                .get(ifindex)
                .is_some_and(|link| link.admin_up && link.carrier),
            None => true,
        };
        Served {
            uplinks: state
                .uplinks
                .iter()
                .map(|(ifindex, uplink)| {
                    let place = Place {
                        mac: uplink.mac,
                        carrier: works(ifindex),
                    };
                    (*ifindex, place)
                })
                .collect(),
            addresses: state
                .addresses
                .iter()
                .filter(|(prefix, owner)| {
                    **owner != HOST && prefix.prefix_len() == prefix.max_prefix_len()
                })
                .filter_map(|(prefix, owner)| {
                    let endpoint = &state.endpoints.get(owner)?.forward;
                    let up = endpoint.flags & endpoint_flag::UP != 0;
                    up.then_some((prefix.addr(), endpoint.vlan))
                })
                .collect(),
        }
    }
}

/// Why addresses are announced on an uplink: all of them, but for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It has been attached.
    Attached,
    /// It has another link-layer address.
    Mac(Mac),
    /// Its link works again.
    Carrier,
    /// They are new.
    Address,
}

/// What is about to be announced on an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// ifindex of the uplink.
    pub uplink: u32,
    /// Why.
    pub cause: Cause,
    /// How many addresses.
    pub count: usize,
}

/// A frame to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// ifindex of the uplink.
    pub uplink: u32,
    /// The uplink's link-layer address.
    pub mac: Mac,
    /// The address.
    pub address: IpAddr,
    /// 802.1Q id, 0 for none.
    pub vlan: u16,
}

/// An address on an uplink.
type Key = (u32, IpAddr);
/// When, and in which order among those of that time.
type Slot = (Instant, u64);

/// What is still to be sent of one address on one uplink.
#[derive(Clone, Copy, Debug)]
struct Job {
    slot: Slot,
    left: u8,
}

/// Announcements that wait for their time.
///
/// A job names only the address and the uplink. What is sent follows from what
/// is served when its time has come, so that nothing withdrawn is announced.
#[derive(Debug)]
pub struct Queue {
    served: Served,
    times: u8,
    jobs: HashMap<Key, Job>,
    slots: BTreeMap<Slot, Key>,
    order: u64,
    /// The pace allows a frame from then on.
    free: Option<Instant>,
    /// While the pace holds frames back: until then.
    held: Option<Instant>,
    defended: HashMap<IpAddr, Instant>,
    /// When all of [`AT_ONCE`] may be sent again, of those that were announced.
    spent: HashMap<Key, Instant>,
}

impl Queue {
    /// A queue that takes what is `served` for known to everybody, and announces
    /// each address `times` times, [`TIMES`] at most.
    pub fn new(served: Served, times: u8) -> Self {
        Queue {
            served,
            times: times.min(TIMES),
            jobs: HashMap::new(),
            slots: BTreeMap::new(),
            order: 0,
            free: None,
            held: None,
            defended: HashMap::new(),
            spent: HashMap::new(),
        }
    }

    /// What is served now: what is new in it is due at once. Says what that is.
    pub fn update(&mut self, served: Served, now: Instant) -> Vec<Round> {
        self.spent.retain(|_, until| *until > now);
        let before = std::mem::replace(&mut self.served, served);
        let mut rounds = Vec::new();
        let mut keys: Vec<Key> = Vec::new();
        for (uplink, place) in self
            .served
            .uplinks
            .iter()
            .filter(|(_, place)| place.carrier)
        {
            let cause = match before.uplinks.get(uplink) {
                None => Cause::Attached,
                Some(old) if old.mac != place.mac => Cause::Mac(place.mac),
                Some(old) if !old.carrier => Cause::Carrier,
                Some(_) => Cause::Address,
            };
            if cause != Cause::Address {
                // That is no machine's doing.
                self.spent.retain(|(spent, _), _| spent != uplink);
            }
            let known = keys.len();
            for (address, vlan) in &self.served.addresses {
                if cause != Cause::Address || before.addresses.get(address) != Some(vlan) {
                    keys.push((*uplink, *address));
                }
            }
            let count = keys.len() - known;
            if cause != Cause::Address || count > 0 {
                rounds.push(Round {
                    uplink: *uplink,
                    cause,
                    count,
                });
            }
        }
        // Address by address: none waits until another uplink has had all.
        keys.sort_by_key(|(uplink, address)| (*address, *uplink));
        for key in keys {
            self.schedule(key, self.times, now);
        }
        rounds
    }

    /// Announces an address that another station uses, once in 10 s at most
    /// (RFC 5227 2.4); whether it does so now.
    pub fn defend(&mut self, address: IpAddr, now: Instant) -> bool {
        if !self.served.addresses.contains_key(&address) {
            return false;
        }
        self.defended
            .retain(|_, last| now.duration_since(*last) < DEFEND);
        if self.defended.contains_key(&address) {
            return false;
        }
        self.defended.insert(address, now);
        let uplinks: Vec<u32> = self.served.uplinks.keys().copied().collect();
        for uplink in uplinks {
            self.schedule((uplink, address), 1, now);
        }
        true
    }

    /// When the address may be announced on the uplink, from then on.
    fn allowed(&self, key: Key, from: Instant) -> Instant {
        let until = self.spent.get(&key);
        let free = until.and_then(|until| until.checked_sub(REGAIN * (AT_ONCE - 1)));
        free.map_or(from, |free| free.max(from))
    }

    /// Has `left` announcements follow from then on, or as soon as there may be more of
    /// this address. One that is due already keeps its place.
    fn schedule(&mut self, key: Key, left: u8, from: Instant) {
        let due = self.allowed(key, from);
        let mut slot = (due, self.order);
        let mut left = left;
        if let Some(job) = self.jobs.get(&key) {
            left = left.max(job.left);
            if job.slot.0 <= due {
                slot = job.slot;
            }
            self.slots.remove(&job.slot);
        }
        self.order += 1;
        self.slots.insert(slot, key);
        self.jobs.insert(key, Job { slot, left });
    }

    /// When [`Queue::pop`] is to be called next; `None` when there is nothing to
    /// wait for.
    pub fn next(&self) -> Option<Instant> {
        let (slot, _) = self.slots.first_key_value()?;
        Some(self.held.map_or(slot.0, |held| slot.0.max(held)))
    }

    /// The next frame whose time has come.
    pub fn pop(&mut self, now: Instant) -> Option<Announcement> {
        loop {
            let (&slot, &key) = self.slots.first_key_value()?;
            if slot.0 > now || !self.may_send(now) {
                return None;
            }
            self.slots.remove(&slot);
            let job = self.jobs.remove(&key)?;
            let (uplink, address) = key;
            let place = self.served.uplinks.get(&uplink);
            let (Some(place), Some(vlan)) = (
                place.filter(|place| place.carrier),
                self.served.addresses.get(&address),
            ) else {
                continue;
            };
            let announcement = Announcement {
                uplink,
                mac: place.mac,
                address,
                vlan: *vlan,
            };
            self.sent(now);
            let until = self.spent.get(&key).map_or(now, |until| (*until).max(now));
            self.spent.insert(key, until + REGAIN);
            if job.left > 1 {
                self.schedule(key, job.left - 1, now + AGAIN);
            }
            return Some(announcement);
        }
    }

    fn may_send(&mut self, now: Instant) -> bool {
        self.held = self
            .free
            .filter(|free| *free > now)
            .map(|free| free + PACE * (BATCH - 1));
        self.held.is_none()
    }

    /// A slot of [`PACE`] is used up; those of a pause can be used later, as
    /// many as [`BURST`].
    fn sent(&mut self, now: Instant) {
        let oldest = now.checked_sub(PACE * (BURST - 1)).unwrap_or(now);
        self.free = Some(self.free.map_or(oldest, |free| free.max(oldest)) + PACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH0: u32 = 2;
    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    fn served(uplinks: &[(u32, Mac, bool)], addresses: impl IntoIterator<Item = u32>) -> Served {
        Served {
            uplinks: uplinks
                .iter()
                .map(|&(ifindex, mac, carrier)| (ifindex, Place { mac, carrier }))
                .collect(),
            addresses: addresses
                .into_iter()
                .map(|number| (address(number), 0))
                .collect(),
        }
    }

    fn one(addresses: impl IntoIterator<Item = u32>) -> Served {
        served(&[(ETH0, MAC, true)], addresses)
    }

    /// All that leaves until nothing is left, with the time of each since
    /// `start`, as a loop that sleeps until [`Queue::next`] has it.
    fn run(queue: &mut Queue, start: Instant) -> Vec<(Duration, Announcement)> {
        let mut sent = Vec::new();
        let mut now = start;
        while let Some(next) = queue.next() {
            now = now.max(next);
            while let Some(announcement) = queue.pop(now) {
                sent.push((now - start, announcement));
            }
        }
        sent
    }

    fn numbers(sent: &[(Duration, Announcement)]) -> Vec<(u64, IpAddr)> {
        sent.iter()
            .map(|(at, what)| (at.as_secs(), what.address))
            .collect()
    }

    #[test]
    fn new_address_is_announced_three_times_a_second_apart() {
        let now = Instant::now();
        let mut queue = Queue::new(one([]), TIMES);
        let round = Round {
            uplink: ETH0,
            cause: Cause::Address,
            count: 1,
        };
        assert_eq!(queue.update(one([1]), now), [round]);
        let sent = run(&mut queue, now);
        let expected: Vec<_> = (0..3).map(|second| (second, address(1))).collect();
        assert_eq!(numbers(&sent), expected);
        assert!(
            sent.iter()
                .all(|(_, what)| (what.uplink, what.mac) == (ETH0, MAC))
        );
        assert_eq!(queue.next(), None);
    }

    /// A machine that comes and goes every 5 ms for a minute, then stays.
    #[test]
    fn machine_that_comes_and_goes_is_announced_seldom_and_in_the_end() {
        let start = Instant::now();
        let mut queue = Queue::new(one([2]), TIMES);
        let (mut now, mut sent) = (start, Vec::new());
        let mut on = false;
        while now < start + Duration::from_secs(60) {
            on = !on;
            queue.update(if on { one([1, 2]) } else { one([2]) }, now);
            while let Some(what) = queue.pop(now) {
                sent.push((now - start, what.address));
            }
            now += Duration::from_millis(5);
        }
        // As many as there may be at once, and one more each five seconds.
        let most = AT_ONCE as usize + 60 / 5;
        assert!(sent.len() <= most, "{}: {sent:?}", sent.len());
        assert!(sent.iter().all(|(_, sent)| *sent == address(1)));
        // Others are announced as if nothing were.
        queue.update(one([2, 3]), now);
        assert_eq!(queue.pop(now).unwrap().address, address(3));
        // It is there in the end, and that is announced as soon as may be, and repeated.
        queue.update(one([1, 2, 3]), now);
        let rest = run(&mut queue, now);
        let rest: Vec<_> = rest
            .into_iter()
            .filter(|(_, what)| what.address == address(1))
            .collect();
        assert_eq!(rest.len(), usize::from(TIMES));
        assert!(rest[0].0 <= REGAIN, "{rest:?}");
        // Nothing is kept of what is over.
        queue.update(one([1]), now + Duration::from_secs(600));
        assert!(queue.spent.is_empty());
    }

    #[test]
    fn uplink_that_changes_is_announced_at_once_however_often() {
        let now = Instant::now();
        let mut queue = Queue::new(one([1]), TIMES);
        for n in 0..100 {
            let now = now + Duration::from_millis(100 * n);
            let mac = [2, 0, 0, 0, 1, n as u8];
            queue.update(served(&[(ETH0, mac, true)], [1]), now);
            assert_eq!(queue.pop(now).unwrap().mac, mac);
        }
    }

    #[test]
    fn nothing_new_is_not_announced() {
        let now = Instant::now();
        let mut queue = Queue::new(one([1, 2]), TIMES);
        assert_eq!(queue.update(one([1, 2]), now), []);
        assert_eq!(queue.update(one([2]), now), []);
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn uplink_that_changes_announces_all_and_no_other_does() {
        let other = [2, 0, 0, 0, 0, 9];
        for (before, after, cause) in [
            ((MAC, true), (other, true), Some(Cause::Mac(other))),
            ((MAC, false), (MAC, true), Some(Cause::Carrier)),
            ((MAC, true), (MAC, false), None),
            ((MAC, true), (other, false), None),
        ] {
            let now = Instant::now();
            let with = |(mac, carrier)| served(&[(ETH0, mac, carrier), (3, MAC, true)], [1, 2]);
            let mut queue = Queue::new(with(before), 1);
            let rounds = queue.update(with(after), now);
            let expected = cause.map(|cause| Round {
                uplink: ETH0,
                cause,
                count: 2,
            });
            assert_eq!(rounds, Vec::from_iter(expected));
            let sent = run(&mut queue, now);
            assert_eq!(sent.len(), if cause.is_some() { 2 } else { 0 });
            assert!(sent.iter().all(|(_, what)| what.uplink == ETH0));
            assert!(sent.iter().all(|(_, what)| what.mac == after.0));
        }
        // A second uplink.
        let now = Instant::now();
        let mut queue = Queue::new(one([1]), 1);
        let both = served(&[(ETH0, MAC, true), (3, other, true)], [1]);
        let round = Round {
            uplink: 3,
            cause: Cause::Attached,
            count: 1,
        };
        assert_eq!(queue.update(both, now), [round]);
        let sent = run(&mut queue, now);
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].1.uplink, sent[0].1.mac), (3, other));
    }

    #[test]
    fn withdrawn_address_is_announced_no_more() {
        let now = Instant::now();
        let mut queue = Queue::new(one([]), TIMES);
        queue.update(one([1, 2]), now);
        assert_eq!(queue.pop(now).unwrap().address, address(1));
        queue.update(one([1]), now);
        assert_eq!(queue.pop(now), None);
        queue.update(one([]), now);
        assert_eq!(run(&mut queue, now), []);
        // Nor on an uplink that is gone or without carrier.
        queue.update(one([1]), now);
        queue.update(served(&[(ETH0, MAC, false)], [1]), now);
        assert_eq!(run(&mut queue, now), []);
        queue.update(one([1]), now);
        queue.update(served(&[], [1]), now);
        assert_eq!(run(&mut queue, now), []);
    }

    #[test]
    fn repeated_cause_starts_again_and_adds_nothing() {
        let now = Instant::now();
        let mut queue = Queue::new(one([]), TIMES);
        queue.update(one([1]), now);
        queue.update(one([]), now);
        queue.update(one([1]), now);
        assert_eq!(queue.slots.len(), 1);
        assert!(queue.pop(now).is_some());
        // Its MAC changes twice before the second announcement.
        for mac in [[2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 8]] {
            queue.update(served(&[(ETH0, mac, true)], [1]), now);
        }
        let sent = run(&mut queue, now);
        let expected: Vec<_> = (0..3).map(|second| (second, address(1))).collect();
        assert_eq!(numbers(&sent), expected);
        assert!(sent.iter().all(|(_, what)| what.mac == [2, 0, 0, 0, 0, 8]));
    }

    #[test]
    fn another_tag_is_new() {
        let now = Instant::now();
        let mut queue = Queue::new(one([1]), 1);
        let mut tagged = one([1]);
        tagged.addresses.insert(address(1), 30);
        queue.update(tagged, now);
        assert_eq!(queue.pop(now).unwrap().vlan, 30);
    }

    #[test]
    fn thousands_are_paced_and_first_ones_go_before_repetitions() {
        const COUNT: u32 = 5_000;
        let now = Instant::now();
        let mut queue = Queue::new(one([]), TIMES);
        queue.update(one(0..COUNT), now);
        let sent = run(&mut queue, now);
        assert_eq!(sent.len(), 3 * COUNT as usize);
        for (index, (_, what)) in sent.iter().take(COUNT as usize).enumerate() {
            assert_eq!(what.address, address(index as u32));
        }
        // In any second there are about a thousand.
        for second in 0..14 {
            let within = Duration::from_secs(second)..Duration::from_secs(second + 1);
            let count = sent.iter().filter(|(at, _)| within.contains(at)).count();
            assert!((900..=1100).contains(&count), "{count} in second {second}");
        }
        assert!(sent[0].0 == Duration::ZERO);
    }

    #[test]
    fn a_loop_that_is_late_keeps_the_pace() {
        let start = Instant::now();
        let mut queue = Queue::new(one([]), 1);
        queue.update(one(0..5_000), start);
        let mut now = start;
        let mut wakes = 0;
        while let Some(next) = queue.next() {
            now = now.max(next) + Duration::from_millis(15);
            wakes += 1;
            while queue.pop(now).is_some() {}
        }
        let seconds = (now - start).as_secs_f64();
        assert!((4.6..5.2).contains(&seconds), "{seconds}");
        assert!(wakes < 600, "{wakes}");
    }

    #[test]
    fn attacked_address_is_defended_once_in_ten_seconds() {
        let now = Instant::now();
        let mut queue = Queue::new(one([1]), TIMES);
        for second in 0..25 {
            let now = now + Duration::from_secs(second);
            queue.defend(address(1), now);
            queue.defend(address(2), now);
            let sent = run(&mut queue, now);
            assert_eq!(sent.len(), usize::from(second % 10 == 0), "{second}");
        }
    }
}
