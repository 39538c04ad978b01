//! Names of engines' machines among all others.

use std::collections::BTreeSet;

use netspawn_ebpf::abi::NAME_LEN;
use sha2::{Digest as _, Sha256};

use super::super::{Source, layers::Layers};
use crate::{fields, model::SourceKind};

/// Hex digits of a digest in a name that is made up.
const DIGITS: usize = 8;

/// Names that engines' machines have got.
#[derive(Debug, Default)]
pub struct Taken(BTreeSet<String>);

impl Taken {
    /// The name here of an engine's machine: its own, as far as that can be one. Files
    /// of that name are about it, unless it was `named_by_user`. One that an engine of
    /// higher rank or systemd-nspawn has already is followed by the engine's.
    pub fn name(
        &mut self,
        wanted: &str,
        source: Source,
        named_by_user: bool,
        layers: &Layers,
    ) -> String {
        let others: &[SourceKind] = match named_by_user {
            false => &[SourceKind::Nspawn],
            true => &[SourceKind::Run, SourceKind::Config, SourceKind::Nspawn],
        };
        let free = |taken: &Self, name: &str| {
            !taken.0.contains(name) && !others.iter().any(|kind| layers.names(name, *kind))
        };
        let mut name = usable(wanted);
        if !free(self, &name) {
            let base = format!("{wanted}.{}", source.name());
            name = usable(&base);
            let mut number = 2;
            while !free(self, &name) {
                name = usable(&format!("{base}.{number}"));
                number += 1;
            }
        }
        self.0.insert(name.clone());
        name
    }
}

/// A machine's name made from any text: what no name can have becomes `-`, and eight
/// digits of the text's SHA-256 tell it from others.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
fn usable(text: &str) -> String {
    if fields::machine_name(text).is_ok() {
        return text.to_owned();
    }
    let kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut name: String = text
        .trim_start_matches(|c: char| !c.is_ascii_alphanumeric())
        .chars()
        .map(|c| if kept(c) { c } else { '-' })
        .take(NAME_LEN - DIGITS - 1)
        .collect();
    if !name.is_empty() {
        name.push('-');
    }
    for byte in Sha256::digest(text.as_bytes()).iter().take(DIGITS / 2) {
        name += &format!("{byte:02x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_can_be_one_stays() {
        let mut taken = Taken::default();
        let layers = Layers::default();
        assert_eq!(taken.name("web", Source::Docker, false, &layers), "web");
        assert_eq!(
            taken.name("web", Source::Incus, false, &layers),
            "web.incus"
        );
        assert_eq!(
            taken.name("web", Source::Incus, false, &layers),
            "web.incus.2"
        );
    }

    #[test]
    fn others_are_made_usable_and_stay_apart() {
        for text in [
            "",
            "a b",
            "a..b",
            "ä",
            "/x",
            "-a",
            &"n".repeat(65),
            &"ö".repeat(200),
        ] {
            let name = usable(text);
            assert!(fields::machine_name(&name).is_ok(), "{text:?}: {name:?}");
        }
        assert_ne!(usable("a b"), usable("a/b"));
        assert_ne!(usable(&"n".repeat(65)), usable(&"n".repeat(66)));
    }
}
