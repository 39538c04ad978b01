//! What strace says.

use std::collections::BTreeMap;

/// The kinds of calls that fail.
pub const CALLS: [&str; 17] = [
    "bpf",
    "openat",
    "getdents64",
    "readlink",
    "readlinkat",
    "read",
    "write",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "sendto",
    "recvfrom",
    "socket",
];

/// Numbers of calls by kind, the first being 1.
pub type Numbers = BTreeMap<&'static str, Vec<usize>>;

/// Of a run of calls that differ in nothing but what they return (a file that is read
/// piece by piece, an array entry by entry) so many are taken at either end, and the
/// middle one.
const ENDS: usize = 2;

/// What the runtime writes to its eventfd to wake itself up. The kernel never refuses that, and
/// it panics.
const WAKE: &str = "\"\\1\\0\\0\\0\\0\\0\\0\\0\", 8)";

/// Thread, kind and shape of a call of a trace: what it is, and on which descriptor.
fn call(line: &str) -> Option<(&str, &'static str, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (name, args) = rest.trim_start().split_once('(')?;
    let name = CALLS.into_iter().find(|known| *known == name)?;
    // `bpf(BPF_MAP_LOOKUP_ELEM, {map_fd=9, key=…`
    let length = match name {
        "bpf" => args.match_indices(',').nth(1).map(|(at, _)| at),
        _ => args.find(','),
    };
    Some((thread, name, &args[..length.unwrap_or(args.len())]))
}

/// Numbers of all calls that are not the dynamic linker's, in the thread that has most of
/// a kind: how many there are, and those that stand for all of them.
pub fn numbers(trace: &str) -> (usize, Numbers) {
    let lines: Vec<&str> = trace.lines().collect();
    // The last library is read before anything of the program runs.
    let started = lines
        .iter()
        .rposition(|line| line.contains("\\177ELF"))
        .map_or(0, |at| at + 1);
    // By thread and kind: the number and the shape of each call.
    let mut calls: BTreeMap<(&str, &'static str), Vec<(usize, &str)>> = BTreeMap::new();
    let mut numbers: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        let Some((thread, name, shape)) = call(line) else {
            continue;
        };
        let number = numbers.entry((thread, name)).or_default();
        *number += 1;
        if at >= started && !line.contains(WAKE) {
            calls
                .entry((thread, name))
                .or_default()
                .push((*number, shape));
        }
    }
    let mut all = 0;
    let mut chosen = Numbers::new();
    for kind in CALLS {
        let of_kind = calls.iter().filter(|((_, name), _)| *name == kind);
        let Some((_, calls)) = of_kind.max_by_key(|(_, calls)| calls.len()) else {
            continue;
        };
        all += calls.len();
        let chosen = chosen.entry(kind).or_default();
        for run in calls.chunk_by(|(_, one), (_, other)| one == other) {
            let here = |at: usize| at < ENDS || at == run.len() / 2 || at + ENDS >= run.len();
            let of_run = run.iter().enumerate().filter(|(at, _)| here(*at));
            chosen.extend(of_run.map(|(_, (number, _))| *number));
        }
    }
    (all, chosen)
}

/// The call that a fault was injected into, if there was one.
pub fn injected(trace: &str) -> Option<&str> {
    trace
        .lines()
        .find(|line| line.contains("(INJECTED)") || line.contains("+++ killed by SIGKILL +++"))
}

/// Whether a call writes to where words go: what fails there cannot be said.
pub fn speaks(line: &str) -> bool {
    line.contains("write(1, ") || line.contains("write(2, ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_like_calls_are_cut() {
        let mut trace = String::from("7 openat(AT_FDCWD, \"/lib/libc.so.6\", 0) = 3\n");
        trace += "7 read(3, \"\\177ELF\", 832) = 832\n";
        for _ in 0..10 {
            trace += "7 read(3, \"text\", 4) = 4\n";
        }
        trace += "7 read(4, \"\", 4) = 0\n7 bpf(BPF_MAP_LOOKUP_ELEM, {map_fd=3, key=1}) = 0\n";
        trace += "7 bpf(BPF_MAP_LOOKUP_ELEM, {map_fd=4, key=2}) = 0\n";
        let (all, chosen) = numbers(&trace);
        assert_eq!(all, 13);
        // The first is the linker's.
        assert_eq!(chosen["read"], [2, 3, 7, 10, 11, 12]);
        assert_eq!(chosen["bpf"], [1, 2]);
    }
}
