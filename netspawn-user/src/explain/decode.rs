//! A frame in words, layer by layer, by a parser that the data plane does not use.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpPacketSlice, Icmpv4Slice, Icmpv6Slice, Icmpv6Type, LaxNetSlice, LaxSlicedPacket, LinkSlice,
    TcpSlice, TransportSlice,
    icmpv6::{Icmpv6PayloadSlice, NdpOptionSlice},
};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Value, json};

use crate::model::DisplayMac;

/// A layer of a frame: its name, and its fields in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// `ethernet`, `vlan`, `arp`, `ipv4`, `ipv6`, `tcp`, `udp`, `icmp`, `icmp6`, `payload`;
    /// `about` for what an ICMP error quotes.
    pub name: &'static str,
    /// Fields.
    pub fields: Vec<(&'static str, Value)>,
    /// The layers of what is quoted.
    pub inner: Vec<Layer>,
}

impl Layer {
    fn new(name: &'static str, fields: Vec<(&'static str, Value)>) -> Self {
        Layer {
            name,
            fields,
            inner: Vec::new(),
        }
    }
}

/// The layers of a frame, from Ethernet on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded(pub Vec<Layer>);

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len() + self.inner.len()))?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        for layer in &self.inner {
            map.serialize_entry(layer.name, layer)?;
        }
        map.end()
    }
}

impl Serialize for Decoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for layer in &self.0 {
            map.serialize_entry(layer.name, layer)?;
        }
        map.end()
    }
}

/// Decodes a frame with the tag beside it.
pub fn decode(frame: &[u8], tag: Option<u16>) -> Decoded {
    let mut layers = Vec::new();
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
        return Decoded(layers);
    };
    if let Some(LinkSlice::Ethernet2(eth)) = &packet.link {
        layers.push(Layer::new(
            "ethernet",
            vec![
                ("source", mac(eth.source())),
                ("destination", mac(eth.destination())),
                ("type", json!(format!("{:#06x}", eth.ether_type().0))),
            ],
        ));
    }
    if let Some(tag) = tag {
        layers.push(Layer::new(
            "vlan",
            vec![("id", json!(tag & 0xfff)), ("priority", json!(tag >> 13))],
        ));
    }
    above(&packet, &mut layers);
    Decoded(layers)
}

fn mac(bytes: [u8; 6]) -> Value {
    json!(DisplayMac(bytes).to_string())
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn mac_of(bytes: &[u8]) -> Value {
    bytes.try_into().map_or(Value::Null, mac)
}

/// The network layer and what it carries.
fn above(packet: &LaxSlicedPacket<'_>, layers: &mut Vec<Layer>) {
    match &packet.net {
        Some(LaxNetSlice::Arp(packet)) => layers.push(arp(packet)),
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let mut fields = vec![
                ("source", json!(header.source_addr())),
                ("destination", json!(header.destination_addr())),
                ("ttl", json!(header.ttl())),
                ("length", json!(header.total_len())),
                ("protocol", json!(header.protocol().0)),
            ];
            if header.dont_fragment() {
                fields.push(("dont_fragment", json!(true)));
            }
            if header.is_fragmenting_payload() {
                let offset = header.fragments_offset().value();
                fields.push(("fragment_offset", json!(u32::from(offset) * 8)));
                fields.push(("more_fragments", json!(header.more_fragments())));
            }
            layers.push(Layer::new("ipv4", fields));
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let mut fields = vec![
                ("source", json!(header.source_addr())),
                ("destination", json!(header.destination_addr())),
                ("hop_limit", json!(header.hop_limit())),
                ("length", json!(u32::from(header.payload_length()) + 40)),
                ("next_header", json!(header.next_header().0)),
            ];
            if ip.is_payload_fragmented() {
                fields.push(("fragment", json!(true)));
            }
            layers.push(Layer::new("ipv6", fields));
        }
        None => {}
    }
    let payload = match &packet.transport {
        Some(TransportSlice::Tcp(segment)) => {
            layers.push(tcp(segment));
            segment.payload().len()
        }
        Some(TransportSlice::Udp(datagram)) => {
            layers.push(Layer::new(
                "udp",
                vec![
                    ("source", json!(datagram.source_port())),
                    ("destination", json!(datagram.destination_port())),
                    ("length", json!(datagram.length())),
                ],
            ));
            datagram.payload().len()
        }
        Some(TransportSlice::Icmpv4(message)) => {
            layers.push(icmp4(message));
            if is_error4(message) {
                about(message.payload(), layers);
                return;
            }
            message.payload().len()
        }
        Some(TransportSlice::Icmpv6(message)) => {
            layers.push(icmp6(message));
            if message.type_u8() < 128 {
                about(message.payload(), layers);
                return;
            }
            match message.icmp_type() {
                Icmpv6Type::EchoRequest(_) | Icmpv6Type::EchoReply(_) => message.payload().len(),
                // Its body is among the fields.
                _ => 0,
            }
        }
        Some(_) => 0,
        None => match &packet.net {
            Some(LaxNetSlice::Arp(_)) => 0,
            _ => rest(packet),
        },
    };
    if payload > 0 {
        layers.push(Layer::new("payload", vec![("bytes", json!(payload))]));
    }
}

/// Bytes behind what is understood.
fn rest(packet: &LaxSlicedPacket<'_>) -> usize {
    match (packet.ip_payload(), packet.ether_payload()) {
        (Some(payload), _) => payload.payload.len(),
        (None, Some(payload)) => payload.payload.len(),
        (None, None) => 0,
    }
}

/// The packet that an ICMP error quotes.
fn about(quote: &[u8], layers: &mut Vec<Layer>) {
    let Ok(packet) = LaxSlicedPacket::from_ip(quote) else {
        return;
    };
    let mut inner = Vec::new();
    above(&packet, &mut inner);
    layers.push(Layer {
        name: "about",
        fields: Vec::new(),
        inner,
    });
}

#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn arp(packet: &ArpPacketSlice<'_>) -> Layer {
    let address = |bytes: &[u8]| -> Value {
        <[u8; 4]>::try_from(bytes).map_or(Value::Null, |bytes| json!(Ipv4Addr::from(bytes)))
    };
    Layer::new(
        "arp",
        vec![
            (
                "operation",
                match packet.operation().0 {
                    1 => json!("request"),
                    2 => json!("reply"),
                    other => json!(other),
                },
            ),
            ("sender", address(packet.sender_protocol_addr())),
            ("sender_mac", mac_of(packet.sender_hw_addr())),
            ("target", address(packet.target_protocol_addr())),
            ("target_mac", mac_of(packet.target_hw_addr())),
        ],
    )
}

fn tcp(segment: &TcpSlice<'_>) -> Layer {
    let flags: Vec<&str> = [
        (segment.syn(), "syn"),
        (segment.ack(), "ack"),
        (segment.fin(), "fin"),
        (segment.rst(), "rst"),
        (segment.psh(), "psh"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect();
    Layer::new(
        "tcp",
        vec![
            ("source", json!(segment.source_port())),
            ("destination", json!(segment.destination_port())),
            ("flags", json!(flags.join(" "))),
            ("sequence", json!(segment.sequence_number())),
            ("acknowledgment", json!(segment.acknowledgment_number())),
        ],
    )
}

/// RFC 1812 4.3.1: unreachable, source quench, redirect, time exceeded, parameter problem.
fn is_error4(message: &Icmpv4Slice<'_>) -> bool {
    matches!(message.type_u8(), 3 | 4 | 5 | 11 | 12)
}

fn icmp4(message: &Icmpv4Slice<'_>) -> Layer {
    let (kind, code) = (message.type_u8(), message.code_u8());
    let [a, b, c, d] = message.bytes5to8();
    let what = match (kind, code) {
        (0, _) => "echo reply",
        (8, _) => "echo request",
        (3, 0) => "network unreachable",
        (3, 1) => "host unreachable",
        (3, 3) => "port unreachable",
        (3, 4) => "fragmentation needed",
        (3, _) => "unreachable",
        (5, _) => "redirect",
        (11, _) => "time exceeded",
        _ => "other",
    };
    let mut fields = message_fields(kind, code, what);
    match (kind, code) {
        (0 | 8, _) => fields.push(("sequence", json!(u16::from_be_bytes([c, d])))),
        (3, 4) => fields.push(("mtu", json!(u16::from_be_bytes([c, d])))),
        _ => {}
    }
    if let 0 | 8 = kind {
        fields.insert(3, ("id", json!(u16::from_be_bytes([a, b]))));
    }
    Layer::new("icmp", fields)
}

fn message_fields(kind: u8, code: u8, what: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("message", json!(what)),
        ("type", json!(kind)),
        ("code", json!(code)),
    ]
}

fn icmp6(message: &Icmpv6Slice<'_>) -> Layer {
    let kind = message.icmp_type();
    let what = match (message.type_u8(), message.code_u8()) {
        (1, 0) => "no route",
        (1, 3) => "address unreachable",
        (1, 4) => "port unreachable",
        (1, _) => "unreachable",
        (2, _) => "packet too big",
        (3, _) => "time exceeded",
        (128, _) => "echo request",
        (129, _) => "echo reply",
        (133, _) => "router solicitation",
        (134, _) => "router advertisement",
        (135, _) => "neighbor solicitation",
        (136, _) => "neighbor advertisement",
        (137, _) => "redirect",
        _ => "other",
    };
    let mut fields = message_fields(message.type_u8(), message.code_u8(), what);
    match kind {
        Icmpv6Type::EchoRequest(echo) | Icmpv6Type::EchoReply(echo) => {
            fields.push(("id", json!(echo.id)));
            fields.push(("sequence", json!(echo.seq)));
        }
        Icmpv6Type::PacketTooBig { mtu } => fields.push(("mtu", json!(mtu))),
        Icmpv6Type::NeighborAdvertisement(header) => {
            fields.push(("router", json!(header.router)));
            fields.push(("solicited", json!(header.solicited)));
            fields.push(("override", json!(header.r#override)));
        }
        _ => {}
    }
    match message.payload_slice() {
        Ok(Icmpv6PayloadSlice::NeighborSolicitation(body)) => {
            target(body.target_address(), body.options_iterator(), &mut fields);
        }
        Ok(Icmpv6PayloadSlice::NeighborAdvertisement(body)) => {
            target(body.target_address(), body.options_iterator(), &mut fields);
        }
        _ => {}
    }
    Layer::new("icmp6", fields)
}

/// The target of neighbor discovery, and the link-layer addresses in its options.
fn target<'a, E>(
    target: Ipv6Addr,
    options: impl Iterator<Item = Result<NdpOptionSlice<'a>, E>>,
    fields: &mut Vec<(&'static str, Value)>,
) {
    fields.push(("target", json!(target)));
    for option in options.flatten() {
        match option {
            NdpOptionSlice::SourceLinkLayerAddress(option) => {
                fields.push(("source_mac", mac_of(option.link_layer_address())));
            }
            NdpOptionSlice::TargetLinkLayerAddress(option) => {
                fields.push(("target_mac", mac_of(option.link_layer_address())));
            }
            _ => {}
        }
    }
}

impl Layer {
    fn text(&self, field: &str) -> Option<String> {
        let found = self.fields.iter().find(|(name, _)| *name == field)?;
        Some(plain(&found.1))
    }

    /// Its fields in one line.
    pub fn line(&self) -> String {
        let shown = self
            .fields
            .iter()
            .filter(|(_, value)| value.as_str() != Some(""));
        let parts: Vec<String> = shown
            .map(|(name, value)| match value {
                Value::Bool(true) => (*name).to_owned(),
                Value::Bool(false) => format!("not {name}"),
                value => format!("{name} {}", plain(value)),
            })
            .collect();
        parts.join(", ").replace('_', " ")
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

impl Decoded {
    fn layer(&self, name: &str) -> Option<&Layer> {
        self.0.iter().find(|layer| layer.name == name)
    }

    /// The frame in one line, as short as can be.
    pub fn summary(&self) -> String {
        let text = |layer: &Layer, field: &str| layer.text(field).unwrap_or_default();
        if let Some(arp) = self.layer("arp") {
            return format!(
                "arp {} {} by {}",
                text(arp, "operation"),
                text(arp, "target"),
                text(arp, "sender")
            );
        }
        let Some(ip) = self.layer("ipv4").or_else(|| self.layer("ipv6")) else {
            return match self.layer("ethernet") {
                Some(eth) => format!("type {}", text(eth, "type")),
                None => "too short".to_owned(),
            };
        };
        let (from, to) = (text(ip, "source"), text(ip, "destination"));
        for name in ["tcp", "udp"] {
            if let Some(transport) = self.layer(name) {
                let end = |address: &str, field| {
                    let port = text(transport, field);
                    if address.contains(':') {
                        format!("[{address}]:{port}")
                    } else {
                        format!("{address}:{port}")
                    }
                };
                let flags = text(transport, "flags");
                let line = format!(
                    "{name} {} > {} {flags}",
                    end(&from, "source"),
                    end(&to, "destination")
                );
                return line.trim_end().to_owned();
            }
        }
        for name in ["icmp", "icmp6"] {
            if let Some(message) = self.layer(name) {
                let target = message.text("target").map(|target| format!(" {target}"));
                return format!(
                    "{from} > {to} {}{}",
                    text(message, "message"),
                    target.unwrap_or_default()
                );
            }
        }
        let protocol = ip.text("protocol").or_else(|| ip.text("next_header"));
        format!("{from} > {to} protocol {}", protocol.unwrap_or_default())
    }
}

/// Bytes as digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, PacketBuilder, icmpv4::DestUnreachableHeader};

    use super::*;

    const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn too_big() -> Vec<u8> {
        let mut quoted = Vec::new();
        PacketBuilder::ipv4([198, 51, 100, 7], [203, 0, 113, 3], 64)
            .udp(53, 4000)
            .write(&mut quoted, &[0; 20])
            .unwrap();
        let error = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(FROM, TO)
            .ipv4([203, 0, 113, 10], [198, 51, 100, 7], 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(error))
            .write(&mut frame, &quoted)
            .unwrap();
        frame
    }

    #[test]
    fn errors_show_what_they_are_about() {
        let decoded = decode(&too_big(), None);
        let shown = serde_json::to_value(&decoded).unwrap();
        assert_eq!(shown["ethernet"]["source"], "02:00:00:00:00:01");
        assert_eq!(shown["icmp"]["mtu"], 1400);
        assert_eq!(shown["icmp"]["message"], "fragmentation needed");
        assert_eq!(shown["about"]["ipv4"]["destination"], "203.0.113.3");
        assert_eq!(shown["about"]["udp"]["destination"], 4000);
        assert_eq!(
            decoded.summary(),
            "203.0.113.10 > 198.51.100.7 fragmentation needed"
        );
    }

    #[test]
    fn packets_fit_into_a_line() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(FROM, TO)
            .ipv6([1; 16], [2; 16], 64)
            .tcp(1234, 443, 7, 0)
            .syn()
            .write(&mut frame, b"hello")
            .unwrap();
        let decoded = decode(&frame, Some(30));
        assert_eq!(
            decoded.summary(),
            "tcp [101:101:101:101:101:101:101:101]:1234 > [202:202:202:202:202:202:202:202]:443 syn"
        );
        let lines: Vec<String> = decoded.0.iter().map(Layer::line).collect();
        assert_eq!(lines[1], "id 30, priority 0");
        assert_eq!(lines[4], "bytes 5");
    }

    #[test]
    fn what_is_cut_short_is_decoded_as_far_as_it_goes() {
        let frame = too_big();
        for length in 0..frame.len() {
            let decoded = decode(&frame[..length], None);
            assert!(!decoded.summary().is_empty());
            assert_eq!(decoded.0.is_empty(), length < 14);
        }
    }
}
