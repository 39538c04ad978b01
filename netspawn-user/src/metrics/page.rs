use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;

use super::{Known, catalog, encode};
use crate::datapath::reader::Reader;

/// How old a page may be: however many clients ask, it is made once in that time.
const FRESH: Duration = Duration::from_secs(1);

/// Form of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `text/plain; version=0.0.4`, which everything reads.
    Plain,
    /// `application/openmetrics-text; version=1.0.0`.
    OpenMetrics,
}

/// The page of metrics.
pub struct Page {
    reader: Reader,
    known: Arc<Mutex<Known>>,
    /// In the form of OpenMetrics, then plain.
    kept: Option<(Instant, Bytes, Bytes)>,
}

impl Page {
    pub fn new(reader: Reader, known: Arc<Mutex<Known>>) -> Self {
        Page {
            reader,
            known,
            kept: None,
        }
    }

    /// The text.
    ///
    /// # Errors
    /// When the kernel does not tell.
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread that has panicked leaves counts that are whole; text that is none is left out"
    )]
    pub fn text(&mut self, form: Form) -> Result<Bytes> {
        let kept = match self.kept.take() {
            Some(kept) if kept.0.elapsed() < FRESH => kept,
            _ => {
                let made = Instant::now();
                let readings = self.reader.read()?;
                let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                let known = known.clone();
                let text = encode::text(readings, known)?;
                let plain = plain(&text);
                tracing::debug!(
                    "metrics: {} bytes in {:.1} ms",
                    text.len(),
                    made.elapsed().as_secs_f64() * 1e3
                );
                (made, text.into(), plain.into())
            }
        };
        let text = match form {
            Form::OpenMetrics => kept.1.clone(),
            Form::Plain => kept.2.clone(),
        };
        self.kept = Some(kept);
        Ok(text)
    }
}

/// The text in the form that preceded OpenMetrics: a counter's name is that of its
/// samples, and what is not known there is left out.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                let metric = catalog::ALL.iter().find(|metric| metric.family() == name);
                let name = metric.map_or(name, |metric| metric.name);
                for part in ["# ", what, " ", name, " ", rest] {
                    plain.push_str(part);
                }
            }
            (Some("#"), ..) => {}
            _ => plain.push_str(line),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_has_counters_by_the_name_of_their_samples() {
        let text = "\
# HELP netspawn_sync_failures Times that failed.
# TYPE netspawn_sync_failures counter
netspawn_sync_failures_total 2
# HELP netspawn_machines Machines # by state.
# TYPE netspawn_machines gauge
# UNIT netspawn_machines machines
netspawn_machines{state=\"up\"} 3
# EOF
";
        assert_eq!(
            plain(text),
            "\
# HELP netspawn_sync_failures_total Times that failed.
# TYPE netspawn_sync_failures_total counter
netspawn_sync_failures_total 2
# HELP netspawn_machines Machines # by state.
# TYPE netspawn_machines gauge
netspawn_machines{state=\"up\"} 3
"
        );
    }
}
