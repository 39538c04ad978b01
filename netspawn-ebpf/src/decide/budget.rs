//! What an endpoint may cause: token buckets that are one word each, the time at which
//! the bucket is full again (`CLOCK_MONOTONIC`, nanoseconds).

/// How fast a bucket is filled, and how much there is in it.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Time between two tokens, nanoseconds.
    pub interval: u64,
    /// Tokens of a full bucket.
    pub burst: u64,
}

/// ICMP errors of a kind about an endpoint's packets, and events of an endpoint.
pub const OWN: Rate = Rate {
    interval: 10_000_000,
    burst: 50,
};

/// Neighbors of one endpoint.
pub const NEIGHBORS: Rate = Rate {
    interval: 250_000_000,
    burst: 16,
};

/// Neighbors of all endpoints together.
///
/// The kernel has room for 1,024 of a family (`gc_thresh3`), and makes room by throwing
/// out those that have failed or not changed for 5 s (`neigh_forced_gc` in
/// net/core/neighbour.c). One is looked for during 3 s and fails then. So 500 at most are
/// there on behalf of machines whom the kernel cannot throw out.
pub const ALL_NEIGHBORS: Rate = Rate {
    interval: 20_000_000,
    burst: 128,
};

/// Takes one token; whether there was one. Two CPUs may take the same one.
#[inline(always)]
pub fn take(full_at: &mut u64, now: u64, rate: Rate) -> bool {
    let from = if *full_at < now { now } else { *full_at };
    if from - now > rate.interval * (rate.burst - 1) {
        return false;
    }
    *full_at = from + rate.interval;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_lets_a_burst_through_and_then_a_steady_rate() {
        for (rate, a_second) in [(OWN, 100), (NEIGHBORS, 4), (ALL_NEIGHBORS, 50)] {
            let mut full_at = 0;
            let start = 1_000_000_000_000;
            let at_once = (0..1_000)
                .filter(|_| take(&mut full_at, start, rate))
                .count();
            assert_eq!(at_once as u64, rate.burst);
            let second = (1..=1_000_000u64)
                .filter(|step| take(&mut full_at, start + step * 1_000, rate))
                .count();
            assert_eq!(second, a_second);
            assert!(take(&mut full_at, start + 60_000_000_000, rate));
        }
    }
}
