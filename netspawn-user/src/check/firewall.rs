//! Rules of the host that machines' packets pass, or no longer do.

use std::collections::BTreeSet;

use super::{
    Facts, Finding, decide,
    facts::{Chain, Firewall},
    rules::*,
    subject, sum_up,
};

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(firewall) = &facts.firewall else {
        return found;
    };
    found.extend(bypassed(facts, firewall));
    found.extend(policy(firewall));
    found.extend(legacy(firewall));
    for (uplink, link) in facts.links() {
        let on_it = |chain: &&Chain| chain.hook == "egress" && chain.devices.contains(&link.name);
        for chain in firewall.chains.iter().filter(on_it) {
            if chain.drops || chain.refuses {
                found.push(Finding::new(
                    EGRESS_CHAIN,
                    &uplink.name,
                    describe(chain),
                    decide(format!(
                        "see that it lets machines' packets out: `nft list chain {}`",
                        name(chain)
                    )),
                ));
            }
        }
    }
    found
}

fn name(chain: &Chain) -> String {
    format!("{} {} {}", chain.family, chain.table, chain.name)
}

fn describe(chain: &Chain) -> String {
    let policy = if chain.drops { ", policy drop" } else { "" };
    let rules = if chain.rules == 1 { "rule" } else { "rules" };
    format!(
        "{} ({}, {} {rules}{policy})",
        name(chain),
        chain.hook,
        chain.rules
    )
}

/// Whether packets are taken before a chain.
fn is_bypassed(facts: &Facts, chain: &Chain) -> bool {
    let on_uplink = || {
        facts
            .links()
            .any(|(_, link)| chain.devices.contains(&link.name))
    };
    match chain.family.as_str() {
        "ip" | "ip6" | "inet" => {
            matches!(
                chain.hook.as_str(),
                "prerouting" | "forward" | "postrouting"
            ) || (chain.hook == "ingress" && on_uplink())
        }
        "netdev" => chain.hook == "ingress" && on_uplink(),
        _ => false,
    }
}

fn bypassed(facts: &Facts, firewall: &Firewall) -> Option<Finding> {
    let chains: Vec<&Chain> = firewall
        .chains
        .iter()
        .filter(|chain| is_bypassed(facts, chain) && chain.kind != "nat" && chain.rules > 0)
        .collect();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for machine in &facts.desired.machines {
        known.extend(machine.interface.clone());
        for prefix in &machine.addresses {
            known.extend([prefix.to_string(), prefix.addr().to_string()]);
        }
    }
    let named: BTreeSet<&String> = firewall
        .words
        .iter()
        .filter(|word| known.contains(*word))
        .collect();
    // Address translation for a machine is a rule about it, too.
    if chains.is_empty() && named.is_empty() {
        return None;
    }
    let mut text = sum_up(chains.iter().map(|chain| describe(chain)));
    if !named.is_empty() {
        let separator = if text.is_empty() { "" } else { "; " };
        text += &format!("{separator}rules name {}", sum_up(named));
    }
    let names: Vec<String> = chains.iter().map(|chain| name(chain)).collect();
    let subject = match names.is_empty() {
        true => "nftables".to_owned(),
        false => subject(&names, "chains"),
    };
    Some(Finding::new(
        FORWARD_RULES_BYPASSED,
        subject,
        text,
        decide(
            "filter in the machines; what leaves them also passes nftables' egress hook of the \
             uplink (family netdev). Rules that nothing else needs can go",
        ),
    ))
}

fn policy(firewall: &Firewall) -> Option<Finding> {
    let is = |chain: &&Chain| chain.hook == "forward" && chain.drops && chain.rules == 0;
    let chains: Vec<String> = firewall.chains.iter().filter(is).map(name).collect();
    (!chains.is_empty()).then(|| {
        Finding::new(
            FORWARD_POLICY_DROP,
            subject(&chains, "chains"),
            format!("policy drop: {}", sum_up(&chains)),
            decide("nothing has to be done"),
        )
    })
}

fn legacy(firewall: &Firewall) -> Option<Finding> {
    let tables: Vec<String> = firewall
        .legacy
        .iter()
        .filter(|table| table.rules != Some(0) && !table.name.ends_with(" nat"))
        .map(|table| match table.rules {
            Some(rules) => format!("{} ({rules} rules)", table.name),
            None => format!("{} (rules unknown: its tool is not installed)", table.name),
        })
        .collect();
    (!tables.is_empty()).then(|| {
        Finding::new(
            LEGACY_RULES_BYPASSED,
            "iptables",
            sum_up(&tables),
            decide("filter in the machines; rules that nothing else needs can go"),
        )
    })
}
