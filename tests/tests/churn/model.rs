//! What has to be, by what was done.

use std::collections::BTreeMap;

use netspawn_tests::Crowd;

/// Where a machine's port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Gone,
    /// In the host, under a name, with that ifindex.
    Host(String, u32),
    /// In another namespace, under its own name.
    Aside,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub number: usize,
    pub declared: bool,
    pub place: Place,
    /// Its port is set up.
    pub up: bool,
}

/// What the agent says of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Up,
    Down,
    Waiting,
}

impl Said {
    /// As `list --json` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Said::Up => "up",
            Said::Down => "down",
            Said::Waiting => "waiting",
        }
    }
}

/// All machines.
pub struct Model {
    pub machines: Vec<Machine>,
}

impl Model {
    /// Machines without links and declarations.
    pub fn new(count: usize) -> Self {
        let machine = |number| Machine {
            number,
            declared: false,
            place: Place::Gone,
            up: false,
        };
        Model {
            machines: (0..count).map(machine).collect(),
        }
    }

    /// Numbers of those for which something is true.
    pub fn those(&self, true_of: impl Fn(&Machine) -> bool) -> Vec<usize> {
        self.machines
            .iter()
            .filter(|machine| true_of(machine))
            .map(|machine| machine.number)
            .collect()
    }

    /// Whose port is in the host under its own name.
    pub fn is_home(machine: &Machine) -> bool {
        matches!(&machine.place, Place::Host(name, _) if *name == Crowd::port(machine.number))
    }

    /// The port that a declaration names, whoever made it, and whether it is set up.
    fn port(&self, name: &str) -> Option<(u32, bool)> {
        self.machines
            .iter()
            .find_map(|machine| match &machine.place {
                Place::Host(port, ifindex) if port == name => Some((*ifindex, machine.up)),
                _ => None,
            })
    }

    /// What has to be said of each machine that is declared, with the ifindex.
    pub fn said(&self) -> BTreeMap<String, (Said, Option<u32>)> {
        let declared = self.machines.iter().filter(|machine| machine.declared);
        declared
            .map(|machine| {
                let port = self.port(&Crowd::port(machine.number));
                let said = match port {
                    Some((ifindex, true)) => (Said::Up, Some(ifindex)),
                    Some((ifindex, false)) => (Said::Down, Some(ifindex)),
                    None => (Said::Waiting, None),
                };
                (Crowd::name(machine.number), said)
            })
            .collect()
    }

    /// Ports in the host by name: whether a guard has to be on them. Of those that are
    /// down it is not asked.
    pub fn guards(&self) -> BTreeMap<String, Option<bool>> {
        let mut guards = BTreeMap::new();
        for machine in &self.machines {
            if let Place::Host(name, _) = &machine.place {
                let owner = self
                    .machines
                    .iter()
                    .find(|owner| owner.declared && Crowd::port(owner.number) == *name);
                let wanted = match owner {
                    None => Some(false),
                    Some(_) if machine.up => Some(true),
                    Some(_) => None,
                };
                guards.insert(name.clone(), wanted);
            }
        }
        guards
    }

    /// Who answers at its own address: its port is up under its own name. Where ports have
    /// exchanged names, the other machine is behind it, which does not have the address.
    pub fn answering(&self) -> Vec<usize> {
        self.those(|machine| machine.declared && machine.up && Self::is_home(machine))
    }

    /// Who must not answer.
    pub fn silent(&self) -> Vec<usize> {
        self.those(|machine| !(machine.declared && machine.up && Self::is_home(machine)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let mut model = Model::new(3);
        for machine in &mut model.machines {
            machine.declared = machine.number < 2;
            machine.place = Place::Host(
                Crowd::port(machine.number),
                10 + u32::try_from(machine.number).unwrap(),
            );
            machine.up = true;
        }
        model
    }

    #[test]
    fn names_decide_whose_port_it_is() {
        let mut model = model();
        assert_eq!(model.said()["m0"], (Said::Up, Some(10)));
        assert_eq!(model.guards()["ve-m2"], Some(false));
        // The ports of 0 and 2 exchange their names.
        model.machines[0].place = Place::Host(Crowd::port(2), 10);
        model.machines[2].place = Place::Host(Crowd::port(0), 12);
        assert_eq!(model.said()["m0"], (Said::Up, Some(12)));
        assert_eq!(model.guards()["ve-m2"], Some(false));
        assert_eq!(model.guards()["ve-m0"], Some(true));
        assert_eq!(model.answering(), [1]);
        model.machines[1].place = Place::Aside;
        assert_eq!(model.said()["m1"], (Said::Waiting, None));
        model.machines[2].up = false;
        assert_eq!(model.said()["m0"], (Said::Down, Some(12)));
        assert_eq!(model.guards()["ve-m0"], None);
    }
}
