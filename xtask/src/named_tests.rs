//! Tests that SECURITY.md names beside what it promises: they exist.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use pulldown_cmark::{Event, Options, Parser};

use crate::{build::workspace, run::read};

const DOCUMENT: &str = "SECURITY.md";

/// Fails with every test that the document names and that no source has.
///
/// # Errors
/// Also when the document names none, or a source cannot be read.
pub fn check() -> Result<()> {
    let root = workspace();
    let text = fs::read_to_string(root.join(DOCUMENT))
        .with_context(|| format!("cannot read {DOCUMENT}"))?;
    let named = named(&text);
    if named.is_empty() {
        bail!("{DOCUMENT} names no test");
    }
    let listed = read(
        std::process::Command::new("git")
            .current_dir(root)
            .args(["ls-files", "*.rs"]),
    )?;
    let mut sources = BTreeMap::new();
    for name in listed.lines() {
        let path = root.join(name);
        // A source that is deleted and not committed yet is still listed.
        if path.exists() {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
            sources.insert(name.to_owned(), text);
        }
    }
    let missing: Vec<String> = named
        .into_iter()
        .filter(|(suite, test)| !exists(&sources, suite, test))
        .map(|(suite, test)| format!("{DOCUMENT}: no test `{suite}::{test}`"))
        .collect();
    if !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    Ok(())
}

/// `suite::test`, as they stand in inline code.
fn named(text: &str) -> Vec<(String, String)> {
    let is_name = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    Parser::new_ext(text, Options::ENABLE_TABLES)
        .filter_map(|event| match event {
            Event::Code(code) => Some(code.to_string()),
            _ => None,
        })
        .filter_map(|code| {
            let (suite, test) = code.split_once("::")?;
            (is_name(suite) && is_name(test)).then(|| (suite.to_owned(), test.to_owned()))
        })
        .collect()
}

/// Whether a file or directory of the suite's name has a function of the test's.
fn exists(sources: &BTreeMap<String, String>, suite: &str, test: &str) -> bool {
    let function = format!("fn {test}(");
    sources.iter().any(|(name, text)| {
        let path = Path::new(name).with_extension("");
        path.components().any(|part| part.as_os_str() == suite) && text.contains(&function)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_code_are_tests_and_types_are_not() {
        let text = "| a | `guard::spoofed_sources` |\n\n`std::Vec` and `a b::c`";
        let found = named(text);
        assert_eq!(found, [("guard".to_owned(), "spoofed_sources".to_owned())]);
    }

    #[test]
    fn test_is_looked_for_in_its_own_suite() {
        let sources = BTreeMap::from([(
            "tests/tests/guard.rs".to_owned(),
            "fn spoofed_sources(mode: Mode) {}".to_owned(),
        )]);
        assert!(exists(&sources, "guard", "spoofed_sources"));
        assert!(!exists(&sources, "attacks", "spoofed_sources"));
        assert!(!exists(&sources, "guard", "spoofed"));
    }
}
