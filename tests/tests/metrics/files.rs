//! What is in `packaging`: the dashboard and the alerts.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_user::metrics::catalog;
use serde_json::Value;

/// A file of `packaging`.
pub fn packaged(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging")
        .join(path)
}

/// The dashboard.
pub fn dashboard() -> Result<Value> {
    let path = packaged("grafana/netspawn-xdp.json");
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// Titles and expressions of the dashboard's panels.
pub fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    panels
        .flat_map(|panel| {
            let title = panel["title"].as_str().unwrap_or_default();
            let targets = panel["targets"].as_array().into_iter().flatten();
            targets.filter_map(move |target| {
                Some((title.to_owned(), target["expr"].as_str()?.to_owned()))
            })
        })
        .collect()
}

/// What an import needs: Grafana itself is not at hand here.
#[test]
fn dashboard_is_whole() -> Result<()> {
    let dashboard = dashboard()?;
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36));
    assert!(
        dashboard.get("id").is_none(),
        "an id is the server's to give"
    );
    let variables: Vec<_> = dashboard["templating"]["list"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    assert_eq!(variables, ["datasource", "instance", "machine", "top"]);
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        ensure!(
            ids.insert(panel["id"].as_u64().context("no id")?),
            "{title}: id"
        );
        let place = |key: &str| panel["gridPos"][key].as_u64().context("no place");
        let (x, y, w, h) = (place("x")?, place("y")?, place("w")?, place("h")?);
        ensure!(x + w <= 24 && w > 0 && h > 0, "{title} is too wide");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            ensure!(
                cells.insert(cell),
                "{title} covers another panel at {cell:?}"
            );
        }
        if panel["type"] == "row" {
            continue;
        }
        let mut names = BTreeSet::new();
        for target in panel["targets"].as_array().context("no targets")? {
            ensure!(names.insert(target["refId"].as_str().context("no refId")?));
            for source in [&target["datasource"], &panel["datasource"]] {
                assert_eq!(source["uid"], "${datasource}", "{title}");
            }
        }
    }
    // Every variable that is used is there, or Grafana's own.
    let text = dashboard.to_string();
    for (_, rest) in text.match_indices('$').map(|(at, _)| text.split_at(at + 1)) {
        let name: String = rest
            .trim_start_matches('{')
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        ensure!(
            name.starts_with("__") || variables.contains(&&*name),
            "there is no variable ${name}"
        );
    }
    Ok(())
}

/// A metric that is renamed must not be left behind in a file that nobody runs.
#[test]
fn files_name_metrics_that_there_are() -> Result<()> {
    let alerts = std::fs::read_to_string(packaged("prometheus/alerts.yml"))?;
    let text = alerts + &dashboard()?.to_string();
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices("netspawn_") {
        let name: String = text[at..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        used.insert(name);
    }
    for name in &used {
        let known = catalog::ALL.iter().any(|metric| {
            let rest = name.strip_prefix(metric.name);
            rest.is_some_and(|rest| ["", "_bucket", "_count", "_sum"].contains(&rest))
        });
        assert!(known, "there is no metric {name}");
    }
    assert!(used.len() > 15, "{used:?}");
    Ok(())
}

#[test]
fn alerts_are_raised_when_they_should_be() -> Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics/alerts.test.yml");
    for args in [
        [
            "check",
            "rules",
            &packaged("prometheus/alerts.yml").display().to_string(),
        ],
        ["test", "rules", &tests.display().to_string()],
    ] {
        let output = Command::new("promtool").args(args).output()?;
        ensure!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
