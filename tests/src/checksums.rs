//! What tcpdump says of the checksums of recorded frames.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};

use crate::capture::write_pcap;

/// tcpdump's verdict on the checksums of some frames.
///
/// Those of transport headers are counted apart: a sender leaves them to its device, and
/// a veth passes them on as they are, so that a wrong one says nothing of who carried it.
#[derive(Debug, Default)]
pub struct Checksums {
    /// Frames that tcpdump read.
    pub frames: usize,
    /// Right checksums of ICMP and ICMPv6. tcpdump has no word for a right one of ICMP,
    /// so each message without a complaint counts.
    pub right: usize,
    /// Lines about a wrong checksum of an IPv4 header, ICMP or ICMPv6, also within a quote.
    pub wrong: Vec<String>,
    /// Lines about a wrong checksum of TCP or UDP.
    pub transport: Vec<String>,
    /// Right checksums of TCP and UDP.
    pub transport_right: usize,
}

impl Checksums {
    /// Lets tcpdump read the frames.
    pub fn of(frames: &[Vec<u8>]) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let file = std::env::temp_dir().join(format!(
            "netspawn-checksums-{}-{}.pcap",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        write_pcap(&file, frames)?;
        let output = Command::new("tcpdump")
            .args(["-nn", "-t", "-vv", "-Z", "root", "-r"])
            .arg(&file)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .context("cannot start tcpdump");
        // Nothing depends on its being gone.
        let _ = std::fs::remove_file(&file);
        let output = output?;
        ensure!(
            output.status.success(),
            "tcpdump ended with {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self::read(&String::from_utf8_lossy(&output.stdout)))
    }

    fn read(text: &str) -> Self {
        let mut verdict = Checksums::default();
        for line in text.lines() {
            // What belongs to a frame is indented below its first line.
            if !line.starts_with([' ', '\t']) {
                verdict.frames += 1;
            }
            let icmp = line.contains("ICMP");
            for words in ["(correct)", "udp sum ok"] {
                verdict.transport_right += line.matches(words).count();
            }
            let wrong = ["bad cksum", "wrong icmp cksum", "bad icmp6 cksum"];
            let transport = ["(incorrect", "bad udp cksum"];
            if wrong.iter().any(|words| line.contains(words)) {
                verdict.wrong.push(line.to_owned());
            } else if transport.iter().any(|words| line.contains(words)) {
                verdict.transport.push(line.to_owned());
            } else if icmp && (line.contains("icmp6 sum ok") || line.contains(": ICMP ")) {
                verdict.right += 1;
            }
        }
        verdict
    }

    /// Fails if one of an IPv4 header, ICMP or ICMPv6 is wrong, or if there were fewer than
    /// `least` right ones of ICMP, which would prove nothing.
    pub fn all_right(&self, least: usize) -> Result<()> {
        ensure!(self.wrong.is_empty(), "tcpdump says {:#?}", self.wrong);
        ensure!(
            self.right >= least,
            "only {} ICMP messages of {least} in {} frames",
            self.right,
            self.frames
        );
        Ok(())
    }
}
