//! Versions of the specification.

use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::error::{Error, code};

/// A version that is spoken here. Those before have a result of another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Lists of interfaces and addresses; plugins in chains.
    V0_3_0,
    /// As before.
    V0_3_1,
    /// CHECK.
    V0_4_0,
    /// Addresses without their family.
    V1_0_0,
    /// GC and STATUS; more of interfaces and routes.
    V1_1_0,
}

impl Version {
    /// All of them.
    pub const ALL: [Version; 5] = [
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];
    /// What is spoken where nobody says.
    pub const NEWEST: Version = Version::V1_1_0;

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = Version::ALL
            .into_iter()
            .find(|version| version.name() == text);
        known.ok_or_else(|| {
            Error::new(
                code::VERSION,
                format!("incompatible CNI version {text:?}"),
                format!(
                    "supported are {}",
                    Version::ALL.map(Version::name).join(", ")
                ),
            )
        })
    }
}
