use std::fmt;

use jiff::Timestamp;
use netspawn_ebpf::verdict::{Kind as Fate, Reason};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabel as _, EncodeLabelSet, EncodeMetric as _, LabelSetEncoder,
        MetricEncoder, NoLabelSet, text,
    },
    registry::Registry,
};

use super::{
    Known,
    catalog::{self, Kind, Metric},
};
use crate::{datapath::reader::Readings, registry::MachineState};

/// All metrics in the form of OpenMetrics.
pub fn text(readings: Readings, known: Known) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Everything { readings, known }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// What there is to tell.
#[derive(Debug)]
struct Everything {
    readings: Readings,
    known: Known,
}

/// Values of a metric's labels.
struct Labels<'a>(&'a Metric, &'a [&'a str]);

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Labels(metric, values) = self;
        debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
        for (name, value) in metric.labels.iter().zip(*values) {
            (*name, *value).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

/// A metric that is being written.
struct Samples<'a> {
    metric: &'static Metric,
    encoder: MetricEncoder<'a>,
}

impl Samples<'_> {
    fn add(&mut self, labels: &[&str], value: u64) -> fmt::Result {
        if labels.is_empty() {
            return put(&mut self.encoder, self.metric.kind, value);
        }
        let labels = Labels(self.metric, labels);
        put(
            &mut self.encoder.encode_family(&labels)?,
            self.metric.kind,
            value,
        )
    }
}

fn put(encoder: &mut MetricEncoder<'_>, kind: Kind, value: u64) -> fmt::Result {
    match kind {
        Kind::Counter => encoder.encode_counter::<NoLabelSet, u64, u64>(&value, None),
        _ => encoder.encode_gauge(&value),
    }
}

fn begin<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    metric: &'static Metric,
) -> Result<Samples<'a>, fmt::Error> {
    let kind = metric.kind.metric_type();
    let encoder = encoder.encode_descriptor(metric.family(), metric.help, None, kind)?;
    Ok(Samples { metric, encoder })
}

fn moment(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &'static Metric,
    at: Option<Timestamp>,
) -> fmt::Result {
    let mut samples = begin(encoder, metric)?;
    match at {
        Some(at) => samples
            .encoder
            .encode_gauge(&(at.as_millisecond() as f64 / 1e3)),
        None => Ok(()),
    }
}

impl Collector for Everything {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // In the order of the catalog.
        self.agent(&mut encoder)?;
        self.uplinks(&mut encoder)?;
        self.declared(&mut encoder)?;
        self.maps(&mut encoder)?;
        self.syncs(&mut encoder)?;
        self.frames(&mut encoder)?;
        self.machines(&mut encoder)
    }
}

impl Everything {
    fn agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        begin(encoder, &catalog::BUILD_INFO)?.add(&[env!("CARGO_PKG_VERSION")], 1)?;
        moment(encoder, &catalog::START_TIME, Some(self.known.since))
    }

    fn uplinks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let uplinks = &self.readings.uplinks;
        let mut samples = begin(encoder, &catalog::UPLINK_INFO)?;
        for uplink in uplinks {
            samples.add(&[&uplink.name, uplink.mode], 1)?;
        }
        let mut samples = begin(encoder, &catalog::UPLINK_PROGRAM)?;
        for uplink in uplinks {
            for (program, is_there) in &uplink.programs {
                samples.add(&[&uplink.name, program], u64::from(*is_there))?;
            }
        }
        Ok(())
    }

    fn declared(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Known { machines, .. } = &self.known;
        let mut samples = begin(encoder, &catalog::MACHINES)?;
        for state in MachineState::ALL {
            let count = machines.iter().filter(|(_, is)| *is == state).count();
            samples.add(&[state.name()], count as u64)?;
        }
        let mut samples = begin(encoder, &catalog::MACHINE_STATE)?;
        for (name, state) in &**machines {
            samples.add(&[name, state.name()], 1)?;
        }
        begin(encoder, &catalog::CONFLICTS)?.add(&[], self.known.conflicts as u64)?;
        begin(encoder, &catalog::PROBLEMS)?.add(&[], self.known.problems as u64)
    }

    fn maps(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, size) in [
            (&catalog::WANTED, self.known.wanted),
            (&catalog::PROGRAMMED, self.readings.size),
        ] {
            let mut samples = begin(encoder, metric)?;
            samples.add(&["endpoints"], size.endpoints as u64)?;
            samples.add(&["ports"], size.ports as u64)?;
            samples.add(&["prefixes"], size.prefixes as u64)?;
        }
        let fills = &self.readings.fills;
        let mut samples = begin(encoder, &catalog::MAP_ENTRIES)?;
        for fill in fills {
            samples.add(&[fill.map], fill.used as u64)?;
        }
        let mut samples = begin(encoder, &catalog::MAP_MAX_ENTRIES)?;
        for fill in fills {
            samples.add(&[fill.map], u64::from(fill.size))?;
        }
        Ok(())
    }

    fn syncs(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let histogram = begin(encoder, &catalog::SYNC_DURATION)?;
        self.known.syncs.encode(histogram.encoder)?;
        begin(encoder, &catalog::SYNC_FAILURES)?.add(&[], self.known.failures)?;
        moment(encoder, &catalog::LAST_SYNC, self.known.last_sync)?;
        let mut lost = begin(encoder, &catalog::EVENTS_LOST)?;
        match self.readings.events_lost {
            Some(count) => lost.add(&[], count),
            None => Ok(()),
        }
    }

    fn frames(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, fate) in [
            (&catalog::PASSED, Fate::Pass),
            (&catalog::DROPPED, Fate::Drop),
            (&catalog::ANSWERED, Fate::Answer),
            (&catalog::FORWARDED, Fate::Forward),
        ] {
            let mut samples = begin(encoder, metric)?;
            for (reason, count) in &self.readings.counts {
                if reason.kind() == fate {
                    samples.add(&[reason.name()], *count)?;
                }
            }
        }
        Ok(())
    }

    fn machines(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let machines = &self.readings.machines;
        type Field = fn(&netspawn_ebpf::abi::Traffic) -> u64;
        let fields: [(&'static Metric, Field); 4] = [
            (&catalog::RECEIVED_PACKETS, |traffic| traffic.rx_packets),
            (&catalog::RECEIVED_BYTES, |traffic| traffic.rx_bytes),
            (&catalog::SENT_PACKETS, |traffic| traffic.tx_packets),
            (&catalog::SENT_BYTES, |traffic| traffic.tx_bytes),
        ];
        for (metric, field) in fields {
            let mut samples = begin(encoder, metric)?;
            for (name, machine) in machines {
                samples.add(&[name], field(&machine.traffic))?;
            }
        }
        let mut samples = begin(encoder, &catalog::MACHINE_DROPPED)?;
        for (name, machine) in machines {
            // An increase of what had no sample before is none to Prometheus: what may
            // wake somebody starts at 0.
            let watched = Reason::ALL
                .iter()
                .filter(|reason| reason.kind() == Fate::Drop && reason.is_told());
            for reason in watched.filter(|reason| !machine.drops.contains_key(reason)) {
                samples.add(&[name, reason.name()], 0)?;
            }
            for (reason, count) in &machine.drops {
                samples.add(&[name, reason.name()], *count)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use netspawn_ebpf::abi::Traffic;

    use super::*;
    use crate::datapath::reader::{Fill, MachineReading, Size, UplinkReading};

    fn example() -> String {
        let size = Size {
            endpoints: 1,
            ports: 1,
            prefixes: 2,
        };
        let web = MachineReading {
            traffic: Traffic {
                rx_packets: 1,
                rx_bytes: 60,
                tx_packets: 2,
                tx_bytes: 120,
            },
            drops: BTreeMap::from([(Reason::SpoofedSource, 3), (Reason::NoRoute, 4)]),
        };
        let readings = Readings {
            uplinks: vec![UplinkReading {
                name: "eth0".to_owned(),
                mode: "tc",
                programs: vec![("uplink_ingress", true), ("uplink_egress", false)],
            }],
            counts: Reason::ALL.iter().map(|reason| (*reason, 7)).collect(),
            events_lost: Some(5),
            machines: BTreeMap::from([("web".to_owned(), web)]),
            size,
            fills: vec![Fill {
                map: "addrs4",
                used: 2,
                size: 10,
            }],
        };
        let mut known = Known::new(Timestamp::from_millisecond(1_700_000_000_500).unwrap());
        known.machines = [("web".to_owned(), MachineState::Up)].into();
        known.synced(std::time::Duration::from_millis(3), true, size);
        text(readings, known).unwrap()
    }

    #[test]
    fn samples_carry_what_was_read() {
        let text = example();
        for line in [
            "netspawn_agent_start_time_seconds 1700000000.5",
            "netspawn_uplink_info{uplink=\"eth0\",mode=\"tc\"} 1",
            "netspawn_uplink_program_attached{uplink=\"eth0\",program=\"uplink_egress\"} 0",
            "netspawn_machines{state=\"up\"} 1",
            "netspawn_machines{state=\"down\"} 0",
            "netspawn_machine_state{machine=\"web\",state=\"up\"} 1",
            "netspawn_wanted_entries{kind=\"prefixes\"} 2",
            "netspawn_programmed_entries{kind=\"ports\"} 1",
            "netspawn_map_entries{map=\"addrs4\"} 2",
            "netspawn_map_max_entries{map=\"addrs4\"} 10",
            "netspawn_sync_duration_seconds_bucket{le=\"0.0025\"} 0",
            "netspawn_sync_duration_seconds_bucket{le=\"0.005\"} 1",
            "netspawn_sync_duration_seconds_count 1",
            "netspawn_sync_failures_total 0",
            "netspawn_events_lost_total 5",
            "netspawn_answered_frames_total{reason=\"ndp\"} 7",
            "netspawn_forwarded_frames_total{direction=\"local\"} 7",
            "netspawn_machine_receive_bytes_total{machine=\"web\"} 60",
            "netspawn_machine_transmit_packets_total{machine=\"web\"} 2",
            "netspawn_machine_dropped_frames_total{machine=\"web\",reason=\"spoofed_source\"} 3",
            "netspawn_machine_dropped_frames_total{machine=\"web\",reason=\"spoofed_mac\"} 0",
            "netspawn_machine_dropped_frames_total{machine=\"web\",reason=\"no_route\"} 4",
        ] {
            assert!(text.lines().any(|is| is == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn text_has_the_metrics_of_the_catalog_in_their_order() {
        let text = example();
        let types: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .collect();
        let catalog: Vec<_> = catalog::ALL
            .iter()
            .map(|metric| format!("{} {}", metric.family(), metric.kind.name()))
            .collect();
        assert_eq!(types, catalog);
        assert!(text.ends_with("# EOF\n"));
    }
}
