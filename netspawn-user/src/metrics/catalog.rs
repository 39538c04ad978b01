//! Every metric, with what it means: the text that is served and the table in
//! docs/reference.md have them from here.

use prometheus_client::metrics::MetricType;

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name as it is queried.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Names of labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the agent's maps are made anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

impl Kind {
    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }

    pub(super) const fn metric_type(self) -> MetricType {
        match self {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        }
    }
}

impl Metric {
    /// The name without what OpenMetrics has samples of counters end in.
    pub(super) fn family(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }
}

macro_rules! metrics {
    ($($const:ident = $kind:ident $name:literal $labels:tt $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $const: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &$labels,
                help: $help,
            };
        )*

        /// All metrics, in the order of the text.
        pub const ALL: &[Metric] = &[$($const,)*];
    };
}

metrics! {
    BUILD_INFO = Gauge "netspawn_build_info" ["version"]
        "Version of the agent, whose value is 1.";
    START_TIME = Gauge "netspawn_agent_start_time_seconds" []
        "When the agent started, in seconds since the epoch.";
    UPLINK_INFO = Gauge "netspawn_uplink_info" ["uplink", "mode"]
        "Uplinks, whose value is 1, and how they were attached: tc or xdp.";
    UPLINK_PROGRAM = Gauge "netspawn_uplink_program_attached" ["uplink", "program"]
        "Whether a program hangs on an uplink where it belongs: 1 or 0.";
    MACHINES = Gauge "netspawn_machines" ["state"]
        "Machines declared, by state: up, waiting, down or conflict.";
    MACHINE_STATE = Gauge "netspawn_machine_state" ["machine", "state"]
        "State of a machine, whose value is 1.";
    CONFLICTS = Gauge "netspawn_conflicting_prefixes" []
        "Prefixes that machines declare and do not get, because others hold them.";
    PROBLEMS = Gauge "netspawn_problems" []
        "Faults of declarations, and things that the last sync could not do; the agent's log has them.";
    WANTED = Gauge "netspawn_wanted_entries" ["kind"]
        "Endpoints, ports, and prefixes of machines that the maps should hold.";
    PROGRAMMED = Gauge "netspawn_programmed_entries" ["kind"]
        "Endpoints, ports, and prefixes of machines that the kernel's maps hold.";
    MAP_ENTRIES = Gauge "netspawn_map_entries" ["map"]
        "Entries of a map.";
    MAP_MAX_ENTRIES = Gauge "netspawn_map_max_entries" ["map"]
        "Entries that a map has room for.";
    SYNC_DURATION = Histogram "netspawn_sync_duration_seconds" []
        "Time that bringing the maps up to date took.";
    SYNC_FAILURES = Counter "netspawn_sync_failures_total" []
        "Times that bringing the maps up to date failed.";
    LAST_SYNC = Gauge "netspawn_last_sync_timestamp_seconds" []
        "When the maps were last brought up to date, in seconds since the epoch.";
    EVENTS_LOST = Counter "netspawn_events_lost_total" []
        "Events that the programs could not tell, because too many were waiting to be read.";
    PASSED = Counter "netspawn_passed_frames_total" ["reason"]
        "Frames left to the kernel's stack, by reason.";
    DROPPED = Counter "netspawn_dropped_frames_total" ["reason"]
        "Frames dropped, by reason.";
    ANSWERED = Counter "netspawn_answered_frames_total" ["reason"]
        "Frames answered in place, by what they asked.";
    FORWARDED = Counter "netspawn_forwarded_frames_total" ["direction"]
        "Frames forwarded: in to machines, out of them, or local between them.";
    RECEIVED_PACKETS = Counter "netspawn_machine_receive_packets_total" ["machine"]
        "Frames delivered to a machine; what offloads have put together counts as one.";
    RECEIVED_BYTES = Counter "netspawn_machine_receive_bytes_total" ["machine"]
        "Bytes of frames delivered to a machine.";
    SENT_PACKETS = Counter "netspawn_machine_transmit_packets_total" ["machine"]
        "Frames from a machine that were forwarded; what offloads have put together counts as one.";
    SENT_BYTES = Counter "netspawn_machine_transmit_bytes_total" ["machine"]
        "Bytes of frames from a machine that were forwarded.";
    MACHINE_DROPPED = Counter "netspawn_machine_dropped_frames_total" ["machine", "reason"]
        "Frames from or for a machine that were dropped, by reason; reasons never met are left out, but for those of spoofing.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        for metric in ALL {
            let total = metric.name.ends_with("_total");
            assert_eq!(total, metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("netspawn_"), "{}", metric.name);
            // OpenMetrics wants them escaped.
            assert!(!metric.help.contains(['\\', '"', '\n']), "{}", metric.name);
        }
    }
}
