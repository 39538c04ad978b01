//! Whether the uplinks can be attached, work, and are nobody else's.

use super::{Facts, Finding, decide, facts::Uplink, rules::*, run, sum_up};
use crate::{datapath::attach::UplinkError, import::quoted};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.uplinks.is_empty() {
        found.push(Finding::new(
            NO_UPLINK,
            "uplink",
            "none is named, attached or configured, and there is no default route",
            decide("name the interface that faces the network: `netspawn-xdp check eth0`"),
        ));
    }
    for uplink in &facts.uplinks {
        found.extend(unfit(uplink));
        if uplink.unfit.is_none() {
            found.extend(xdp(uplink));
            found.extend(traffic_control(facts, uplink));
        }
    }
    for (uplink, link) in facts.links().filter(|(up, _)| up.unfit.is_none()) {
        if !link.admin_up {
            found.push(Finding::new(
                UPLINK_DOWN,
                &uplink.name,
                "is set down",
                run([format!("ip link set dev {} up", quoted(&link.name))]),
            ));
        } else if !link.carrier {
            found.push(Finding::new(
                UPLINK_NO_CARRIER,
                &uplink.name,
                "has no carrier",
                decide("look at the cable, the switch, or the hypervisor's network card"),
            ));
        }
    }
    found
}

fn unfit(uplink: &Uplink) -> Option<Finding> {
    let error = uplink.unfit.as_ref()?;
    let text = error.to_string();
    let text = text
        .strip_prefix(&format!("{}: ", uplink.name))
        .unwrap_or(&text);
    // The words behind the semicolon say what to do.
    let (text, advice) = text.split_once("; ").unwrap_or((text, ""));
    let (rule, advice) = match error {
        UplinkError::Unknown { .. } => (UPLINK_MISSING, advice.to_owned()),
        UplinkError::NotEthernet { .. } => (UPLINK_NOT_ETHERNET, advice.to_owned()),
        UplinkError::Port { master, .. } => (
            UPLINK_IS_PORT,
            format!("`netspawn-xdp attach {}`", quoted(master)),
        ),
    };
    Some(Finding::new(rule, &uplink.name, text, decide(advice)))
}

fn xdp(uplink: &Uplink) -> Vec<Finding> {
    let mut found = Vec::new();
    for program in &uplink.others.xdp {
        let rule = if uplink.xdp {
            XDP_SLOT_TAKEN
        } else {
            XDP_BEFORE_OURS
        };
        let remedy = if program.linked {
            decide("a link holds it: end what made it (`bpftool link`, `bpftool net`)")
        } else {
            let name = quoted(&uplink.name);
            run([format!("ip link set dev {name} {} off", program.place)])
        };
        let text = format!("has XDP {} ({})", program.description, program.place);
        found.push(Finding::new(rule, &uplink.name, text, remedy));
    }
    if !uplink.xdp {
        return found;
    }
    let tc = || decide("write mode = \"tc\" into [attach] of netspawn.toml, or `--mode tc`");
    let driver = uplink.driver.as_deref().unwrap_or("its driver");
    let mut add = |rule, text: String| {
        found.push(Finding::new(rule, &uplink.name, text, tc()));
    };
    match driver {
        _ if uplink.has_xdp == Some(false) => {
            add(XDP_UNSUPPORTED, format!("{driver} has no native XDP"));
        }
        "virtio_net" => add(XDP_VIRTIO, "is virtio_net, in mode xdp".to_owned()),
        "veth" => add(XDP_VETH, "is a veth, in mode xdp".to_owned()),
        _ => {}
    }
    found
}

fn traffic_control(facts: &Facts, uplink: &Uplink) -> Vec<Finding> {
    let mut found = Vec::new();
    let others = &uplink.others;
    let name = quoted(&uplink.name);
    let tcx = facts.kernel.as_ref().is_none_or(|kernel| kernel.tcx);
    if !others.tcx.is_empty() {
        found.push(Finding::new(
            TCX_BEFORE_OURS,
            &uplink.name,
            format!("has tcx {}", sum_up(&others.tcx)),
            decide(format!("`bpftool net show dev {name}` shows them")),
        ));
    }
    if !tcx && (others.ingress_qdisc || others.slot_taken) {
        let (text, command) = if others.ingress_qdisc {
            (
                "has an ingress qdisc, which has no side for outgoing packets",
                format!("tc qdisc del dev {name} ingress"),
            )
        } else {
            (
                "has another's filter of preference 1",
                format!("tc qdisc del dev {name} clsact"),
            )
        };
        let advice = format!("put it after preference 1 of a clsact qdisc (`{command}`)");
        found.push(Finding::new(
            FILTER_SLOT_TAKEN,
            &uplink.name,
            text,
            decide(advice),
        ));
    } else if tcx && others.filters > 0 {
        found.push(Finding::new(
            FILTERS_BYPASSED,
            &uplink.name,
            format!("has filters on its ingress ({})", others.filters),
            decide(format!(
                "see `tc filter show dev {name} ingress`; what is to hold for machines belongs \
                 into them"
            )),
        ));
    }
    found
}
