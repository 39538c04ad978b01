//! `cargo xtask docs`: the parts of the documents that follow from the code.
//!
//! A part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`. What goes
//! there is said by `netspawn-user/examples/reference.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{build::workspace, ci::cargo, run::read, setup};

/// Arguments of `cargo xtask docs`.
#[derive(clap::Args)]
pub struct Args {}

/// Sets the machine up, and writes what is out of date.
pub fn run(_args: Args) -> Result<()> {
    setup::ready()?;
    for (path, text) in stale()? {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        crate::run::step(path.display());
    }
    Ok(())
}

/// Fails when a document is out of date.
pub fn check() -> Result<()> {
    let stale: Vec<String> = stale()?
        .iter()
        .map(|(path, _)| path.display().to_string())
        .collect();
    if !stale.is_empty() {
        bail!(
            "{} out of date: run `cargo xtask docs` and commit what it writes",
            stale.join(", ")
        );
    }
    Ok(())
}

/// Documents whose parts are not what the code says, and what they should be.
fn stale() -> Result<Vec<(PathBuf, String)>> {
    let printed = read(cargo().args([
        "run",
        "--quiet",
        "--package",
        "netspawn-user",
        "--example",
        "reference",
    ]))?;
    let parts: BTreeMap<String, String> =
        serde_json::from_str(&printed).context("the example `reference` printed no parts")?;
    let mut used = BTreeSet::new();
    let mut stale = Vec::new();
    for path in documents()? {
        let old = fs::read_to_string(&path)?;
        let new = replaced(&old, &parts, &mut used).with_context(|| path.display().to_string())?;
        if new != old {
            stale.push((path, new));
        }
    }
    if let Some(unused) = parts.keys().find(|name| !used.contains(*name)) {
        bail!("no document has the line `{}`", begin(unused));
    }
    Ok(stale)
}

/// All Markdown files at the top level and in `docs`.
fn documents() -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for folder in [workspace(), &workspace().join("docs")] {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension() == Some(Path::new("md").as_os_str()) {
                paths.push(path);
            }
        }
    }
    paths.sort();
    Ok(paths)
}

fn begin(name: &str) -> String {
    format!("<!-- generated: {name} -->")
}

/// The text with what is between markers replaced.
fn replaced(
    text: &str,
    parts: &BTreeMap<String, String>,
    used: &mut BTreeSet<String>,
) -> Result<String> {
    let mut result = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        result += line;
        result.push('\n');
        let name = line
            .strip_prefix("<!-- generated: ")
            .and_then(|rest| rest.strip_suffix(" -->"));
        let Some(name) = name else {
            continue;
        };
        let part = parts
            .get(name)
            .with_context(|| format!("nothing is generated as `{name}`"))?;
        let end = format!("<!-- end: {name} -->");
        if !lines.any(|line| line == end) {
            bail!("the line `{end}` is missing");
        }
        result += &format!("\n{}\n\n{end}\n", part.trim_end());
        used.insert(name.to_owned());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_replace_what_is_between_their_markers() {
        let parts = [("x".to_owned(), "new\n".to_owned())].into();
        let mut used = BTreeSet::new();
        let old = "a\n<!-- generated: x -->\nold\n<!-- end: x -->\nb\n";
        let new = "a\n<!-- generated: x -->\n\nnew\n\n<!-- end: x -->\nb\n";
        assert_eq!(replaced(old, &parts, &mut used).unwrap(), new);
        assert_eq!(replaced(new, &parts, &mut used).unwrap(), new);
        assert!(used.contains("x"));
        for broken in ["<!-- generated: y -->\n", "<!-- generated: x -->\nold\n"] {
            assert!(replaced(broken, &parts, &mut used).is_err(), "{broken}");
        }
    }
}
