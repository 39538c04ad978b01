//! What is done while something fails.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Error, Result};

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `attach --once` where nothing is attached.
    Attach,
    /// `attach --once` where something is.
    Reattach,
    /// `add` without an agent.
    Add,
    /// `remove` without an agent.
    Remove,
    /// `detach`.
    Detach,
    /// What the agent does for a machine that comes and goes.
    Sync,
    /// CNI's ADD without an agent.
    CniAdd,
    /// CNI's DEL without an agent.
    CniDel,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 8] = [
        Operation::Attach,
        Operation::Reattach,
        Operation::Add,
        Operation::Remove,
        Operation::Detach,
        Operation::Sync,
        Operation::CniAdd,
        Operation::CniDel,
    ];

    const fn name(self) -> &'static str {
        match self {
            Operation::Attach => "attach",
            Operation::Reattach => "re-attach",
            Operation::Add => "add",
            Operation::Remove => "remove",
            Operation::Detach => "detach",
            Operation::Sync => "sync",
            Operation::CniAdd => "cni-add",
            Operation::CniDel => "cni-del",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Operation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Operation::ALL
            .into_iter()
            .find(|operation| operation.name() == text)
            .with_context(|| {
                let names = Operation::ALL.map(Operation::name);
                format!("no operation `{text}`: there are {}", names.join(", "))
            })
    }
}
