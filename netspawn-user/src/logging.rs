//! Logs: to the journal with fields where stderr is the journal, else to stderr
//! as text or JSON.

use std::{
    fmt, fs,
    io::{self, IsTerminal as _},
    os::unix::fs::MetadataExt as _,
};

use tracing::{
    Level,
    field::{Field, Visit},
};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{
    Layer,
    field::{RecordFields, VisitOutput as _},
    filter::Targets,
    fmt::{
        FormatFields,
        format::{DefaultVisitor, Writer},
    },
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::cli::{Cli, Command, LogFormat};

/// Fields of this program's own logs. Each has an upper-case name of its own in the
/// journal, such as `NETSPAWN_MACHINE`; for people the message says them all.
const FIELDS: [&str; 6] = ["machine", "interface", "reason", "mac", "address", "state"];
/// What names in the journal begin with.
const PREFIX: &str = "NETSPAWN";

/// Where logs go, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Lines for people on stderr.
    Text,
    /// A JSON object a line on stderr.
    Json,
    /// Entries with fields in the journal.
    Journal,
}

/// Sends what the library and others log where the command line and the
/// environment say. Only the agent, which runs for long, says when.
pub fn start(cli: &Cli) -> Form {
    let (own, others) = match cli.global.verbose {
        0 => (Level::INFO, Level::WARN),
        1 => (Level::DEBUG, Level::INFO),
        _ => (Level::TRACE, Level::DEBUG),
    };
    let levels = Targets::new()
        .with_default(others)
        .with_target("netspawn_user", own)
        .with_target("netspawn_xdp", own);
    let text = || {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(cli.global.verbose > 0)
    };
    let (form, layer) = match (cli.global.log_format, journal(), &cli.command) {
        (LogFormat::Json, ..) => (Form::Json, text().json().flatten_event(true).boxed()),
        (LogFormat::Text, Some(journal), _) => (Form::Journal, journal.boxed()),
        (LogFormat::Text, None, Command::Attach(_)) => {
            (Form::Text, text().fmt_fields(Words).boxed())
        }
        (LogFormat::Text, None, _) => (Form::Text, text().fmt_fields(Words).without_time().boxed()),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(levels))
        .init();
    form
}

/// Sends warnings to stderr, of which runtimes keep what they care to.
pub fn start_plugin() {
    let text = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .fmt_fields(Words)
        .without_time();
    tracing_subscriber::registry()
        .with(text.with_filter(Targets::new().with_default(Level::WARN)))
        .init();
}

/// The journal, if stderr is connected to it and it can be reached.
#[expect(
    clippy::disallowed_methods,
    reason = "without journald lines go to stderr"
)]
fn journal() -> Option<tracing_journald::Layer> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    // Whoever redirects stderr of a service hands the variable down all the same.
    let stderr = fs::metadata("/proc/self/fd/2").ok()?;
    if stream != format!("{}:{}", stderr.dev(), stderr.ino()) {
        return None;
    }
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        ..PriorityMappings::new()
    };
    let layer = tracing_journald::layer().ok()?;
    Some(
        layer
            .with_field_prefix(Some(PREFIX.to_owned()))
            .with_priority_mappings(priorities),
    )
}

/// Messages without the [`FIELDS`] that they say themselves.
struct Words;

impl<'writer> FormatFields<'writer> for Words {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Without(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct Without<'writer>(DefaultVisitor<'writer>);

impl Visit for Without<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !FIELDS.contains(&field.name()) {
            self.0.record_debug(field, value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if !FIELDS.contains(&field.name()) {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.record_error(field, value);
    }
}
