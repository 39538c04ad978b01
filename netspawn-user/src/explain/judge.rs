//! What the library says of a frame: the decision that the programs are made of, over
//! the same content of the maps.

use netspawn_ebpf::{
    abi::{NOBODY, Owner, endpoint_flag},
    decide::{
        self, Meta,
        error::{self, Toward},
        offload::Said,
        past::{self, Past},
    },
    tables::Tables as _,
    verdict::{Action, Error, Family, Reason, Verdict},
    wire::protocol,
};

use super::{
    At, Case,
    run::{Run, TC_NEXT, TC_REDIRECT, TC_SHOT, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    world::{World, is_machine},
};

/// The library's word on a frame.
#[derive(Clone, Debug)]
pub struct Judged<'a> {
    /// The verdict.
    pub verdict: Verdict<'a>,
    /// Whether an ICMP error is made about it, as far as the budget goes.
    pub error: bool,
}

/// Decides on a frame; `None` where a program lets it go before any decision, because the
/// maps do not hold where it is.
pub fn judge<'a>(world: &'a World, case: &Case) -> Option<Judged<'a>> {
    let frame = &case.bytes[..];
    let said = Said {
        length: frame.len() as u32,
        gso_size: case.gso_size,
        ..Said::default()
    };
    let meta = Meta {
        vlan: case.tag.unwrap_or(0) & 0xfff,
        tagged: case.tag.is_some(),
        ..Meta::new(frame, &said)
    };
    let (verdict, toward, ifindex) = match case.at {
        At::Uplink(ifindex) => (
            decide::uplink(frame, &meta, world.uplink(ifindex)?, world),
            Toward::Network,
            ifindex,
        ),
        At::Host(ifindex) => {
            let verdict = match past::leaving(frame, ifindex, 0, || Past::OWN, world) {
                Some(reason) => Verdict::drop(reason, NOBODY),
                None => decide::host(frame, &meta, world),
            };
            (verdict, Toward::Host, ifindex)
        }
        At::Port(id) => {
            let endpoint = world.machine(id)?;
            (
                decide::port(frame, &meta, id, endpoint, world),
                Toward::Machine,
                endpoint.ifindex,
            )
        }
    };
    let error = verdict.error != Error::None
        && error::is_due(frame, verdict.family)
        && match verdict.family {
            Family::V4 => error::source4(frame, toward, ifindex, world) != [0; 4],
            Family::V6 => error::source6(frame, toward, ifindex, world) != [0; 2],
        };
    Some(Judged { verdict, error })
}

impl Judged<'_> {
    /// What is counted: the reason first.
    pub fn reasons(&self) -> Vec<Reason> {
        let mut reasons = vec![self.verdict.reason];
        if self.verdict.source_differs {
            reasons.push(Reason::ArpSourceDiffers);
        }
        if self.error {
            reasons.push(Reason::AnsweredError);
        }
        reasons
    }

    fn charged(&self) -> Option<Owner> {
        let drops = self.verdict.action == Action::Drop;
        (drops && is_machine(self.verdict.id)).then_some(self.verdict.id)
    }

    /// What a program at tc has to return.
    fn at_tc(&self) -> u32 {
        match self.verdict.action {
            Action::Pass => TC_NEXT,
            Action::Drop if !self.error => TC_SHOT,
            _ => TC_REDIRECT,
        }
    }

    /// What the XDP program has to return.
    pub fn at_xdp(&self) -> u32 {
        let verdict = &self.verdict;
        match (verdict.action, verdict.endpoint) {
            (Action::Arp | Action::Ndp, _) => XDP_TX,
            (Action::Deliver, Some(endpoint))
                if verdict.protocol != protocol::TCP
                    && endpoint.flags & endpoint_flag::XDP != 0 =>
            {
                XDP_REDIRECT
            }
            (Action::Drop, _) if verdict.error == Error::None => XDP_DROP,
            _ => XDP_PASS,
        }
    }

    /// How what a program did differs from this; `None` when it does not.
    pub fn differs(&self, run: &Run) -> Option<String> {
        let code = if run.xdp { self.at_xdp() } else { self.at_tc() };
        if run.code != code {
            return Some(format!("action {} instead of {code}", run.code));
        }
        // XDP leaves to tc what it passes, also its counting.
        let (mut reasons, charged) = if run.xdp && code == XDP_PASS {
            (Vec::new(), None)
        } else {
            (self.reasons(), self.charged())
        };
        reasons.sort();
        if run.counted != reasons {
            return Some(format!(
                "counted as {} instead of {}",
                names(&run.counted),
                names(&reasons)
            ));
        }
        if run.charged != charged {
            return Some(format!(
                "charged to {:?} instead of {charged:?}",
                run.charged
            ));
        }
        let verdict = &self.verdict;
        if let (Action::Deliver, Some(endpoint)) = (verdict.action, verdict.endpoint)
            && code != XDP_PASS
            && (run.frame.get(..6), run.frame.get(6..12))
                != (Some(&endpoint.mac[..]), Some(&endpoint.port_mac[..]))
        {
            return Some("another destination".to_owned());
        }
        None
    }
}

fn names(reasons: &[Reason]) -> String {
    if reasons.is_empty() {
        return "nothing".to_owned();
    }
    let names: Vec<&str> = reasons.iter().map(|reason| reason.name()).collect();
    names.join(" and ")
}
