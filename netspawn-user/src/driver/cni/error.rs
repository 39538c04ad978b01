//! Errors as a runtime takes them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an error is about: the specification's numbers below 100, our own from there on.
pub mod code {
    /// The version of the specification is not one of ours.
    pub const VERSION: u32 = 1;
    /// The configuration asks for something that cannot be had.
    pub const UNSUPPORTED: u32 = 2;
    /// There is no such container.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading, writing, or starting a program failed.
    pub const IO: u32 = 5;
    /// Not JSON, or not of the expected types.
    pub const DECODE: u32 = 6;
    /// The configuration is wrong.
    pub const CONFIG: u32 = 7;
    /// Something passing is in the way.
    pub const TRY_AGAIN: u32 = 11;
    /// No container can be added.
    pub const UNAVAILABLE: u32 = 50;
    /// No container can be added, and those that are there may have no network.
    pub const LIMITED: u32 = 51;
    /// The kernel refused.
    pub const KERNEL: u32 = 100;
    /// The data plane does not serve the container.
    pub const NOT_SERVED: u32 = 101;
    /// A container is not connected as it was.
    pub const CHANGED: u32 = 102;
}

/// An error, as it is printed on stdout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// One of [`code`].
    pub code: u32,
    /// What happened, in short.
    pub msg: String,
    /// What was expected, and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Error {
    /// An error with what to do about it.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Error {
            code,
            msg: msg.into(),
            details: details.into(),
        }
    }

    /// A wrong configuration.
    pub fn config(msg: impl Into<String>, details: impl Into<String>) -> Self {
        Error::new(code::CONFIG, msg, details)
    }

    /// A refusal of the kernel's.
    pub fn kernel(what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Error::new(code::KERNEL, format!("{what}: {error}"), "")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
