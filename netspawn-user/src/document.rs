//! Reading TOML so that everything wrong in it is reported at once, with line
//! and key.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    gone,
    problem::{Fault, Problem, did_you_mean},
};

/// Largest file that is read, in bytes: 30,000 addresses and more.
const MAX_SIZE: u64 = 1 << 20;

/// The text of a file, `None` when there is none of that name.
pub fn read(path: &Path) -> Result<Option<String>, Problem> {
    let Some(bytes) = read_bytes(path)? else {
        return Ok(None);
    };
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        Fault::new("is not UTF-8 text", "save the file as UTF-8").at(path, Some(line), None)
    })
}

/// The content of a file, `None` when there is none of that name.
pub fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, Problem> {
    let fault = |message: String, remedy: &str| Fault::new(message, remedy).at(path, None, None);
    let unreadable = |error: io::Error| {
        fault(
            format!("cannot be read: {error}"),
            "see that it is a file that root can read",
        )
    };
    // Without O_NONBLOCK the opening of a FIFO would wait for a writer.
    let file = match File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
    {
        Ok(file) => file,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && matches!(gone::is_there(path), Ok(false)) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(error)),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(fault(
            "is not a regular file".to_owned(),
            "replace it by a file, or remove it",
        ));
    }
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(fault(
            format!("is larger than {MAX_SIZE} bytes"),
            "declare shorter prefixes instead of many addresses",
        ));
    }
    Ok(Some(bytes))
}

/// A value with its place.
pub type Value<'t> = Spanned<DeValue<'t>>;

/// A TOML file on its way to becoming a struct.
pub struct Document<'t> {
    path: &'t Path,
    text: &'t str,
    /// What was found to be wrong so far.
    pub problems: Vec<Problem>,
}

impl<'t> Document<'t> {
    /// Reads the syntax. The table is empty when that fails, and the problems
    /// say why.
    pub fn parse(path: &'t Path, text: &'t str) -> (Self, DeTable<'t>) {
        let mut document = Document {
            path,
            text,
            problems: Vec::new(),
        };
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let fault = Fault::new(
                    format!("is not TOML: {}", error.message().replace('\n', ", ")),
                    "see https://toml.io for the syntax",
                );
                let line = error.span().map(|span| document.line(span.start));
                document.problems.push(fault.at(path, line, None));
                DeTable::new()
            }
        };
        (document, table)
    }

    /// Everything that is wrong, in the order of the lines.
    pub fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| problem.line);
        self.problems
    }

    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Reports a fault in a field.
    pub fn fault(&mut self, field: &str, span: Range<usize>, fault: Fault) {
        let line = self.line(span.start);
        self.problems
            .push(fault.at(self.path, Some(line), Some(field)));
    }

    /// Reports a key that does not exist.
    pub fn unknown(&mut self, field: &str, span: Range<usize>, given: &str, known: &[&str]) {
        let fault = Fault::new("unknown key", did_you_mean(given, known));
        self.fault(field, span, fault);
    }

    /// Passes a result on, and reports its fault.
    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    pub fn check<T>(
        &mut self,
        field: &str,
        span: Range<usize>,
        result: Result<T, Fault>,
    ) -> Option<T> {
        result.map_err(|fault| self.fault(field, span, fault)).ok()
    }

    fn expected(&mut self, field: &str, value: &Value<'_>, expected: &str, example: &str) {
        let fault = Fault::new(
            format!("expected {expected}, found {}", kind(value.get_ref())),
            format!("write {example}"),
        );
        self.fault(field, value.span(), fault);
    }

    /// A section.
    pub fn table<'v>(&mut self, field: &str, value: &'v Value<'t>) -> Option<&'v DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.expected(field, value, "a section", &format!("[{field}]"));
        }
        table
    }

    /// A string, through `check`.
    pub fn string<T>(
        &mut self,
        field: &str,
        value: &Value<'_>,
        example: &str,
        check: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        match value.get_ref().as_str() {
            Some(text) => self.check(field, value.span(), check(text)),
            None => {
                self.expected(field, value, "a string", example);
                None
            }
        }
    }

    /// A whole number, through `check`.
    #[expect(
        clippy::disallowed_methods,
        reason = "this parses text or bytes; no system call can fail here"
    )]
    pub fn integer<T>(
        &mut self,
        field: &str,
        value: &Value<'_>,
        example: &str,
        check: impl FnOnce(i64) -> Result<T, Fault>,
    ) -> Option<T> {
        let Some(integer) = value.get_ref().as_integer() else {
            self.expected(field, value, "a whole number", example);
            return None;
        };
        // What does not fit 64 bits is out of every range.
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i64::MAX);
        self.check(field, value.span(), check(number))
    }

    /// A boolean.
    pub fn boolean(&mut self, field: &str, value: &Value<'_>, example: &str) -> Option<bool> {
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.expected(field, value, "true or false", example);
        }
        boolean
    }

    /// As [`Document::strings`], not empty.
    pub fn some_strings<T: Ord + Clone>(
        &mut self,
        field: &str,
        value: &Value<'_>,
        example: &str,
        check: impl Fn(&str) -> Result<T, Fault>,
    ) -> Option<Vec<T>> {
        let values = self.strings(field, value, example, check)?;
        if values.is_empty() {
            let fault = Fault::new("the list is empty", format!("write {example}"));
            self.fault(field, value.span(), fault);
            return None;
        }
        Some(values)
    }

    /// A list of strings, each through `check`; nothing twice.
    pub fn strings<T: Ord + Clone>(
        &mut self,
        field: &str,
        value: &Value<'_>,
        example: &str,
        check: impl Fn(&str) -> Result<T, Fault>,
    ) -> Option<Vec<T>> {
        let Some(array) = value.get_ref().as_array() else {
            self.expected(field, value, "a list of strings", example);
            return None;
        };
        let before = self.problems.len();
        let mut values = Vec::with_capacity(array.len());
        let mut seen = BTreeSet::new();
        for element in array.iter() {
            let Some(parsed) = self.string(field, element, example, &check) else {
                continue;
            };
            if !seen.insert(parsed.clone()) {
                let text = element.get_ref().as_str().unwrap_or_default();
                let fault = Fault::new(format!("{text} is given twice"), "remove one of them");
                self.fault(field, element.span(), fault);
            }
            values.push(parsed);
        }
        (self.problems.len() == before).then_some(values)
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
/// A packaged file with the keys that it shows as comments (`#key = value`; prose has a
/// space after the `#`).
#[cfg(test)]
pub fn uncommented(packaged: &str) -> String {
    let shown = |line: &str| line.starts_with('#') && !line.starts_with("# ");
    packaged
        .lines()
        .map(|line| if shown(line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect()
}
