//! Links and names of files in the documents: what they name is there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use pulldown_cmark::{Event, LinkType, Options, Parser, Tag, TagEnd};

use crate::{build::workspace, run::read};

/// What a document says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Document {
    /// Links with a path or an anchor, as they are written.
    links: Vec<String>,
    /// Code that looks like a path of this repository.
    files: Vec<String>,
    /// Anchors of headings, as GitHub makes them.
    anchors: BTreeSet<String>,
}

/// Fails with every link that leads nowhere, and every file named that is not there.
pub fn check() -> Result<()> {
    let root = workspace();
    let listed = read(std::process::Command::new("git").current_dir(root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let tracked: BTreeSet<&str> = listed.lines().collect();
    let mut wrong = Vec::new();
    for name in tracked.iter().filter(|name| name.ends_with(".md")) {
        let text =
            fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        for fault in faults(root, Path::new(name), &document(&text, &tracked)) {
            wrong.push(format!("{name}: {fault}"));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn faults(root: &Path, name: &Path, document: &Document) -> Vec<String> {
    let folder = name.parent().unwrap_or(Path::new(""));
    let mut faults = Vec::new();
    for link in &document.links {
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target: PathBuf = if path.is_empty() {
            root.join(name)
        } else {
            root.join(folder).join(path)
        };
        if !target.exists() {
            faults.push(format!("a link to {link}, which is not there"));
        } else if !anchor.is_empty() {
            let text = fs::read_to_string(&target).unwrap_or_default();
            let there = self::document(&text, &BTreeSet::new()).anchors;
            if !there.contains(anchor) {
                faults.push(format!("a link to {link}: there is no such heading"));
            }
        }
    }
    for file in &document.files {
        if !root.join(file).exists() {
            faults.push(format!("`{file}` is not there"));
        }
    }
    faults
}

fn document(text: &str, tracked: &BTreeSet<&str>) -> Document {
    let mut document = Document::default();
    let mut heading = None;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link {
                link_type,
                dest_url,
                ..
            }) if link_type != LinkType::Autolink && !dest_url.contains("://") => {
                document.links.push(dest_url.to_string());
            }
            Event::Start(Tag::Image { dest_url, .. }) if !dest_url.contains("://") => {
                document.links.push(dest_url.to_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let slug = slug(&heading.take().unwrap_or_default());
                let mut numbered = slug.clone();
                let mut number = 0;
                while !document.anchors.insert(numbered.clone()) {
                    number += 1;
                    numbered = format!("{slug}-{number}");
                }
            }
            Event::Code(code) => {
                if let Some(heading) = &mut heading {
                    *heading += &code;
                }
                if is_path(&code, tracked) {
                    document.files.push(code.to_string());
                }
            }
            Event::Text(text) => {
                if let Some(heading) = &mut heading {
                    *heading += &text;
                }
            }
            _ => {}
        }
    }
    document
}

/// Whether it names something below a top-level folder of the repository.
fn is_path(code: &str, tracked: &BTreeSet<&str>) -> bool {
    let Some((top, _)) = code.split_once('/') else {
        return false;
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._@-".contains(c);
    code.chars().all(plain)
        && tracked.iter().any(|name| {
            name.split_once('/')
                .is_some_and(|(folder, _)| folder == top)
        })
}

/// A heading's anchor: lower case, blanks as hyphens, letters and digits alone.
fn slug(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => Some(c),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_files_and_anchors_are_read() {
        let tracked = BTreeSet::from(["docs/a.md", "xtask/src/main.rs", "README.md"]);
        let text = "# The `add` command, twice\n\n## Same\n\n## Same\n\n\
                    [a](docs/a.md#x) [b](#same) <https://example.org> [c](https://example.org)\n\
                    `xtask/src/gone.rs` `/etc/x` `net/core/dev.c` `docs/{a,b}.md` `a`\n\n\
                    ```\n[no](link)\n```\n";
        let read = document(text, &tracked);
        assert_eq!(read.links, ["docs/a.md#x", "#same"]);
        assert_eq!(read.files, ["xtask/src/gone.rs"]);
        assert_eq!(
            Vec::from_iter(read.anchors),
            ["same", "same-1", "the-add-command-twice"]
        );
    }

    #[test]
    fn what_is_not_there_is_told() {
        let folder = std::env::temp_dir().join(format!("netspawn-links-{}", std::process::id()));
        fs::create_dir_all(folder.join("docs")).unwrap();
        fs::write(folder.join("docs/a.md"), "# Here\n").unwrap();
        let document = Document {
            links: vec!["a.md#here".into(), "a.md#gone".into(), "b.md".into()],
            files: vec!["docs/a.md".into(), "docs/b.md".into()],
            anchors: BTreeSet::new(),
        };
        let told = faults(&folder, Path::new("docs/a.md"), &document);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            told,
            [
                "a link to a.md#gone: there is no such heading",
                "a link to b.md, which is not there",
                "`docs/b.md` is not there"
            ]
        );
    }
}
