//! One fault at one place.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Error, Result, bail};

use crate::{operation::Operation, strace::CALLS};

/// What happens to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It fails with that error.
    Error(&'static str),
    /// The process is killed at it.
    Kill,
}

impl Fault {
    /// All that are tried.
    pub const ALL: [Fault; 6] = [
        Fault::Error("ENOMEM"),
        Fault::Error("EIO"),
        Fault::Error("EMFILE"),
        Fault::Error("ENOSPC"),
        Fault::Error("EINTR"),
        Fault::Kill,
    ];

    const fn name(self) -> &'static str {
        match self {
            Fault::Error(name) => name,
            Fault::Kill => "KILL",
        }
    }
}

/// A fault at the call of a kind with that number, the first being 1, in each thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub operation: Operation,
    pub call: &'static str,
    pub index: usize,
    pub fault: Fault,
}

impl Case {
    /// What strace is told.
    pub fn injection(&self) -> String {
        let what = match self.fault {
            Fault::Error(name) => format!("error={name}"),
            Fault::Kill => "signal=KILL".to_owned(),
        };
        format!("inject={}:{what}:when={}", self.call, self.index)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case {
            operation,
            call,
            index,
            fault,
        } = self;
        write!(f, "{operation}:{call}:{index}:{}", fault.name())
    }
}

impl FromStr for Case {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let [operation, call, index, fault] = *text.split(':').collect::<Vec<_>>() else {
            bail!("`{text}` is not OPERATION:CALL:INDEX:FAULT");
        };
        let fault = Fault::ALL.into_iter().find(|known| known.name() == fault);
        let call = CALLS.into_iter().find(|known| *known == call);
        Ok(Case {
            operation: operation.parse()?,
            call: call.context("no such call")?,
            index: index.parse()?,
            fault: fault.context("no such fault")?,
        })
    }
}
